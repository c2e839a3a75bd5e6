"""Each probe by name: what it changes, and what it leaves."""

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modint_guard import Guard
from modint_guard.chat.images import decode_data_url, png_data_url
from modint_guard.chat.request import parse
from modint_guard.data.perturb import REGISTRY
from modint_guard.judging.scoring import probe_result, relabelled, score, shifted_labels
from modint_guard.probing.views import FROM_REGISTRY, VIEWS, without_pictures
from modint_guard.types import JSON, LEFT_OUT, ProbeOutcome, Relevant
from tests.core.fakes import RED, ask, image_part, reply, text_part

LIE = "The ball is blue. It rolls. It is round."
QUESTION = "What colour is the ball?"
OPTIONS = "A. red\nB. blue\nC. green"
BODY = ask(f"{LIE}\n{QUESTION}\n{OPTIONS}")


def made(name: str, body: JSON = BODY) -> JSON:
    found = VIEWS[name](parse(body))
    assert found is not None
    return found


def text(body: JSON) -> str:
    said: str = body["messages"][0]["content"][-1]["text"]
    return said


def picture(body: JSON) -> str:
    url: str = body["messages"][0]["content"][0]["image_url"]["url"]
    return url


@pytest.mark.parametrize("name", list(VIEWS))
def test_a_view_keeps_the_request_the_question_and_the_size_of_the_picture(name: str) -> None:
    body = ask(f"{LIE}\n{QUESTION}\n{OPTIONS}", images=4) if name in LEFT_OUT else BODY
    before = copy.deepcopy(body)
    view = made(name, body)
    assert before == body
    assert {key: value for key, value in view.items() if key != "messages"} == {"model": "m"}
    assert QUESTION in text(view)
    assert name in ("permuted_options", "question_first") or text(view).endswith(f"{QUESTION}\n{OPTIONS}")
    assert decode_data_url(picture(view)).size == decode_data_url(RED).size
    assert view == made(name, body)  # the same request always gives the same view


@pytest.mark.parametrize("name", FROM_REGISTRY)
def test_a_perturbation_of_the_registry_changes_its_own_modality_only(name: str) -> None:
    view = made(name)
    if REGISTRY[name].modality == "text":
        assert picture(view) == RED and not text(view).startswith(LIE)
    else:
        assert picture(view) != RED and text(view) == text(BODY)


def test_only_what_needs_truth_or_a_data_set_is_no_probe() -> None:
    assert set(REGISTRY) - set(FROM_REGISTRY) == {
        "true_description",
        "contradicting_image",
        "agreeing_image",
        "no_image",
    }


def test_a_misleading_description_claims_one_of_the_options_and_needs_some() -> None:
    claimed = text(made("misleading_description")).removesuffix(f"\n{QUESTION}\n{OPTIONS}")
    assert sum(option in claimed for option in ("red", "blue", "green")) == 1
    assert VIEWS["misleading_description"](parse(ask(QUESTION))) is None
    assert VIEWS["misleading_description"](parse(ask("Which?\nA. Aa\nB. aa"))) is None  # one answer, twice


def test_benign_moves_sentences_and_blurs_mildly() -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    body = ask(f"{LIE}\n{QUESTION}")
    body["messages"][0]["content"][0] = image_part(png_data_url(Image.fromarray(pixels)))
    view = made("benign", body)
    assert text(view) == f"It rolls.\nIt is round.\nThe ball is blue.\n{QUESTION}"
    seen = np.asarray(decode_data_url(picture(view)), dtype=float)
    assert 0 < np.abs(seen - pixels).mean() < 10
    assert (seen[:, :15] < 1).all() and (seen[:, 25:] > 254).all()  # only the edge is soft


def test_permuted_options_move_on_by_one_and_are_read_with_the_old_labels() -> None:
    view = made("permuted_options")
    assert text(view) == f"{LIE}\n{QUESTION}\nA. green\nB. red\nC. blue"
    options = parse(BODY).options
    assert shifted_labels(options) == {"A": "C", "B": "A", "C": "B"}
    seen = relabelled(reply("B", A=0.1, B=0.7, C=0.2), shifted_labels(options))
    assert (seen.token, seen.text) == ("A", "A")
    assert {label: round(np.exp(value), 3) for label, value in (seen.top or {}).items()} == {
        "C": 0.1,
        "A": 0.7,
        "B": 0.2,
    }


@pytest.mark.parametrize(
    "body", [ask(QUESTION), ask(f"{QUESTION}\n- red\n- blue"), ask(f"{QUESTION} (red/blue)")]
)
def test_options_without_labels_cannot_be_permuted(body: JSON) -> None:
    assert VIEWS["permuted_options"](parse(body)) is None


@given(
    st.lists(
        st.sampled_from(["red", "blue", "dark green", "1.5 kg", "(none)"]),
        min_size=2,
        max_size=5,
        unique=True,
    )
)
def test_permuting_keeps_labels_and_texts(texts: list[str]) -> None:
    block = "\n".join(f"{label}) {option}" for label, option in zip("ABCDE", texts, strict=False))
    view = made("permuted_options", ask(f"{QUESTION}\n{block}"))
    found = parse(view).options
    assert [option.label for option in found] == list("ABCDE"[: len(texts)])
    assert [option.text for option in found] == [texts[-1], *texts[:-1]]


def test_an_answer_that_follows_the_text_of_an_option_is_consistent_when_options_move() -> None:
    chat = parse(BODY)
    answer = reply("A", A=0.9, B=0.05, C=0.05)
    same, position = reply("B", A=0.05, B=0.9, C=0.05), reply("A", A=0.9, B=0.05, C=0.05)
    assert probe_result("permuted_options", answer, same, chat).outcome is ProbeOutcome.CONSISTENT
    assert probe_result("permuted_options", answer, position, chat).outcome is ProbeOutcome.FLIPPED
    assert score(answer, {"permuted_options": same}, chat).unstable == ()
    assert score(answer, {"permuted_options": position, "benign": answer}, chat).unstable == (
        "permuted_options",
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (ask(f"{LIE}\n{QUESTION}\n{OPTIONS}"), [f"{QUESTION}\n{OPTIONS}\n{LIE}"]),
        (ask(LIE, f"{QUESTION}\n{OPTIONS}"), [f"{QUESTION}\n{OPTIONS}", LIE]),
    ],
)
def test_the_question_comes_first_and_stays_as_it_is(body: JSON, said: list[str]) -> None:
    view = made("question_first", body)
    assert [part["text"] for part in view["messages"][0]["content"][1:]] == said


@pytest.mark.parametrize("body", [ask(QUESTION), ask(f"{QUESTION}\n{OPTIONS}\n{LIE}")])
def test_without_a_context_before_it_the_question_is_first_already(body: JSON) -> None:
    assert VIEWS["question_first"](parse(body)) is None


def test_every_picture_of_a_request_is_changed() -> None:
    content: list[Any] = [image_part(), text_part("Image 2:"), image_part(), text_part(QUESTION)]
    for name in ("noise", "black", "neutral_image"):
        view = made(name, {"messages": [{"role": "user", "content": content}]})
        urls = [part["image_url"]["url"] for part in view["messages"][0]["content"] if "image_url" in part]
        assert len(urls) == 2 and RED not in urls


# -- where no picture may be needed ------------------------------------------------------------------------


def pictures_in(body: JSON) -> int:
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return sum(part["type"] == "image_url" for content in contents for part in content)


@pytest.mark.parametrize(("relevant", "shown"), [("text", 0), ("image", 1), ("both", 1)])
def test_the_picture_is_left_out_unless_it_ought_to_decide(relevant: str, shown: int) -> None:
    plan = Guard().plan({**BODY, "modint": {"relevant": relevant, "context": LIE}})
    bodies = {view.name: view.body for view in plan.views}
    assert {name: pictures_in(body) for name, body in bodies.items()} == {
        "no_context": 1,
        "neutral_image": shown,
        "prior": shown,
    }
    assert text(bodies["neutral_image"]) == f"{LIE}\n{QUESTION}\n{OPTIONS}"
    assert text(bodies["prior"]) == f"{QUESTION}\n{OPTIONS}"


def test_the_picture_is_left_out_if_nobody_knows_what_ought_to_decide() -> None:
    plan = Guard().plan(ask(f"{LIE}\nWrite a short poem about autumn."))
    assert plan.relevant is Relevant.UNKNOWN
    assert {view.name: pictures_in(view.body) for view in plan.views if view.name != "no_context"} == {
        "neutral_image": 0,
        "prior": 0,
    }


def test_every_picture_of_every_turn_is_left_out_and_its_texts_stay() -> None:
    earlier = {"role": "user", "content": [text_part("One."), image_part(RED), text_part("Two.")]}
    body = ask(f"{LIE}\n{QUESTION}", images=2)
    body = {**body, "messages": [earlier, {"role": "assistant", "content": "Yes."}, *body["messages"]]}
    bare = without_pictures(parse(body))
    assert pictures_in(bare) == 0 and pictures_in(body) == 3
    assert bare["messages"][0]["content"] == [text_part("One."), text_part("Two.")]
    assert [part["text"] for part in bare["messages"][2]["content"]] == [f"{LIE}\n{QUESTION}"]


def test_a_picture_that_is_a_message_by_itself_is_grey_instead_for_no_message_may_be_empty() -> None:
    body = ask(f"{LIE}\n{QUESTION}")
    body = {**body, "messages": [{"role": "user", "content": [image_part(RED)]}, *body["messages"]]}
    grey = without_pictures(parse(body))
    assert pictures_in(grey) == 2 and RED not in str(grey)


def test_a_turn_that_was_context_alone_brings_no_grey_picture_into_another() -> None:
    earlier = [{"role": "user", "content": LIE}, {"role": "assistant", "content": "Yes."}]
    body = ask(QUESTION)
    body = {**body, "messages": [*earlier, *body["messages"]]}
    plan = Guard().plan({**body, "modint": {"relevant": "text", "context": LIE}})
    (prior,) = (view.body for view in plan.views if view.name == "prior")
    assert (prior["messages"][0]["content"], pictures_in(prior)) == ("", 0)
