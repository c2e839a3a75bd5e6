"""`modint-guard diagnose` before scripted endpoints: what is asked, resumed, refused, and reported."""

import asyncio
import json
from pathlib import Path

import pytest

from modint_guard.data import write_items
from modint_guard.data.item import Item
from modint_guard.data.perturb import CLEAN
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.diagnose import (
    answers,
    fingerprint,
    labels_of,
    local_reach,
    paced,
    top_logprobs_of,
    variants,
)
from modint_guard.evaluation.journal import Journal
from modint_guard.evaluation.report import diagnosis
from modint_guard.evaluation.tables import Found, Variant
from modint_guard.types import JSON, NEUTRAL_IMAGE, NO_CONTEXT, PRIOR
from tests.core.fakes import called, completion, serving
from tests.core.items import BOTH, DIGIT, LETTERED, SUM
from tests.core.test_calibrate import misled

MADE_BY = {"run": "diagnose"}


def items(count: int) -> list[Item]:
    return [DIGIT.replace(id=f"digit-{index}", source=f"source-{index}") for index in range(count)]


async def silent(body: JSON) -> JSON:
    """The same model without log-probabilities."""
    told = await misled(body)
    return {**told, "choices": [{**told["choices"][0], "logprobs": None}]}


# What is asked


def test_every_item_is_asked_clean_and_in_every_dose_of_what_fits_it() -> None:
    asked = variants([DIGIT, SUM], [], [1, 5], 0)
    assert len({variant.key for variant in asked}) == len(asked)
    clean = {v.item.id: v.item for v in asked if v.perturbation == CLEAN}
    assert clean["digit-0"].context is None and clean["sum-0"].image is None
    doses = {(v.perturbation, v.severity) for v in asked}
    assert ("misleading_description", 1) in doses and ("contradicting_image", 1) in doses
    assert ("true_description", 5) in doses and ("true_description", 1) not in doses  # a control


def test_a_perturbed_picture_is_made_when_it_is_wanted() -> None:
    (shown,) = (v for v in variants([SUM], ["contradicting_image"], [2], 0) if v.perturbation != CLEAN)
    assert shown.item.image is None
    image = shown.whole().image
    assert image is not None and image.getpixel((0, 0)) == (76, 76, 178)


def test_two_models_see_the_same_inputs() -> None:
    one, two = (variants([DIGIT, SUM], [], [3], 7) for _ in range(2))
    assert fingerprint(one) == fingerprint(two) != fingerprint(variants([DIGIT, SUM], [], [3], 8))


@pytest.mark.parametrize(
    ("given", "names", "said"),
    [
        ([DIGIT], ["misleading"], "'misleading' is no perturbation: name one of"),
        ([DIGIT, DIGIT], [], "the id 'digit-0' stands twice"),
        ([DIGIT.replace(answer="", wrong="")], [], "none of 1 items has an answer"),
        ([BOTH], [], "none of 1 items can be perturbed"),
        ([DIGIT], ["black"], "none of 1 items can be perturbed"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(given: list[Item], names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        variants(given, names, [5], 0)


def test_two_endpoints_of_one_model_are_told_apart() -> None:
    assert labels_of(["a", "b"]) == ["a", "b"]
    assert labels_of(["a", "a"]) == ["a (1)", "a (2)"]


# Asking


async def test_a_model_that_believes_lies(tmp_path: Path) -> None:
    asked = variants(items(2), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        found = await answers("m", misled, asked, journal)
    assert [f.text for f in found] == ["3", "7", "3", "7"]
    assert found[1].cells[NEUTRAL_IMAGE] == "7"
    assert (found[1].influence["text"] or 0) > 1 > (found[1].influence["image"] or 0)
    assert found[0].options == {"3": pytest.approx(0.96 / 0.98), "7": pytest.approx(0.02 / 0.98)}


async def test_another_order_of_the_options_is_tried_on_clean_lettered_items(tmp_path: Path) -> None:
    asked = variants([LETTERED], ["neutral_text"], [5], 0)

    async def stubborn(body: JSON) -> JSON:
        return completion("C", [{"A": 0.01, "B": 0.01, "C": 0.97, "D": 0.01}])

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        clean, other = await answers("m", stubborn, asked, journal)
    assert clean.reordered is True  # the letter stays, so that the answer moves
    assert other.reordered is None


async def test_another_order_of_question_and_context_is_tried_where_both_say_the_same(tmp_path: Path) -> None:
    asked = variants(items(1), ["true_description", "misleading_description"], [5], 0)

    async def hasty(body: JSON) -> JSON:
        texts = [part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text"]
        said = "7" if texts[0].startswith("What") and len(texts) > 1 else "3"
        return completion(said, [dict.fromkeys(("3", "7"), 0.01) | {said: 0.98}])

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        found = await answers("m", hasty, asked, journal)
    told = {each.variant.perturbation: each.reordered for each in found}
    assert told == {"clean": None, "misleading_description": None, "true_description": True}


async def test_without_log_probabilities_views_are_told_by_their_words(tmp_path: Path) -> None:
    asked = variants(items(1), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        clean, lied = await answers("m", silent, asked, journal)
    assert (lied.method, lied.cells[NEUTRAL_IMAGE], lied.options) == ("regenerated", "7", None)
    assert lied.influence["text"] is None and clean.right


async def test_another_order_is_told_by_the_words_as_well(tmp_path: Path) -> None:
    async def stubborn(body: JSON) -> JSON:
        return completion("C")

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        clean, _ = await answers("m", stubborn, variants([LETTERED], ["neutral_text"], [5], 0), journal)
    assert (clean.method, clean.reordered) == ("regenerated", True)


async def test_fewer_log_probabilities_are_taken_where_the_endpoint_gives_no_more() -> None:
    async def five(body: JSON) -> JSON:
        if body.get("top_logprobs", 0) > 5:
            raise EndpointError("at most 5", status=400)
        return await misled(body)

    assert await top_logprobs_of(five, "m", DIGIT) == 5
    assert await top_logprobs_of(silent, "m", DIGIT) == 0

    async def closed(body: JSON) -> JSON:
        raise EndpointError("no such key", status=401)

    with pytest.raises(EndpointError, match="no such key"):
        await top_logprobs_of(closed, "m", DIGIT)


@pytest.mark.parametrize(
    ("answer", "skip"),
    [
        (completion("", [{"": 1.0}]), "empty_answer"),
        (completion("", [{"": 1.0}], refusal="I cannot help with that."), "refusal"),
        ({**completion(""), "choices": [{"message": {"refusal": "No."}}]}, "refusal"),
    ],
    ids=["empty", "refused", "refused without a text"],
)
async def test_refusals_and_empty_answers_count_as_wrong_and_are_named(
    tmp_path: Path, answer: JSON, skip: str
) -> None:
    async def model(body: JSON) -> JSON:
        return answer

    asked = variants(items(1), ["misleading_description"], [5], 0)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        found = await answers("m", model, asked, journal)
    assert [(f.skip, f.right) for f in found] == [(skip, False)] * 2
    said = diagnosis({"m": found}, data="d").notes[-1]
    assert "2 of 2 answers of m were empty, refusals or of another kind" in said


async def test_an_endpoint_that_fails_half_way_is_gone_on_with(tmp_path: Path) -> None:
    asked = variants(items(4), ["misleading_description"], [5], 0)
    calls: list[JSON] = []

    async def counted(body: JSON) -> JSON:
        calls.append(body)
        return await misled(body)

    async def dying(body: JSON) -> JSON:
        if len(calls) > 11:  # the last view of an answer that is there itself
            raise EndpointError("the engine is gone", status=503)
        return await counted(body)

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal, pytest.raises(EndpointError):
        await answers("m", dying, asked, journal, concurrency=1)
    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        kept = len(journal.records)
        assert 0 < kept < len(asked)
        before = len(calls)
        found = await answers("m", counted, asked, journal, concurrency=1)
        assert len(found) == 8 and len(calls) - before < 1 + 4 * (8 - kept) + 1
        again = len(calls)
        assert await answers("m", counted, asked, journal) == found
    assert len(calls) == again  # all there: nothing is asked
    assert found == await undisturbed(asked, tmp_path)


async def test_an_answer_whose_views_are_refused_is_not_kept_and_asked_again(tmp_path: Path) -> None:
    asked = variants(items(4), ["misleading_description"], [5], 0)
    views = 0

    async def limited(body: JSON) -> JSON:
        nonlocal views
        views += body["max_tokens"] == 2  # a view is asked for two tokens, a question for eight
        if views > 6 and body["max_tokens"] == 2:
            raise EndpointError("slow down", status=429)
        return await misled(body)

    with Journal(tmp_path / "a.jsonl", MADE_BY) as journal:
        with pytest.raises(EndpointError, match=r"the view \w+ of digit-\d/.+ got no answer"):
            await answers("m", limited, asked, journal, concurrency=1)
        assert 0 < len(journal.records) < len(asked)
        found = await answers("m", misled, asked, journal)
    assert found == await undisturbed(asked, tmp_path)
    assert all(f.cells.keys() == {NEUTRAL_IMAGE, NO_CONTEXT, PRIOR} for f in found if f.variant.severity)


async def undisturbed(asked: list[Variant], folder: Path) -> list[Found]:
    """What a well endpoint answers in one run."""
    with Journal(folder / "undisturbed.jsonl", MADE_BY) as journal:
        return await answers("m", misled, asked, journal)


async def test_calls_begin_no_faster_than_allowed() -> None:
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    async def noted(body: JSON) -> JSON:
        begun.append(loop.time())
        return {}

    slow = paced(noted, 100)
    await asyncio.gather(*(slow({}) for _ in range(6)))
    assert begun[-1] - begun[0] >= 0.05 - 0.005
    assert paced(noted, None) is noted


# The command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_items(items(4), tmp_path / "items")
    return tmp_path / "items" / "items.jsonl"


def run(*arguments: str) -> int:
    return called("diagnose", *arguments)


async def two_models(body: JSON) -> JSON:
    """`robust`, and any other model misled."""
    return completion("3", [{"3": 0.9, "7": 0.1}]) if body["model"] == "robust" else await misled(body)


async def test_the_command_reports_two_models_side_by_side(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    async with serving(two_models) as (url, modes):
        code = await asyncio.to_thread(
            run,
            str(data),
            *("--model", "base", "--against", "robust", "--url", url),
            *("--perturbation", "misleading_description", "--output", str(output)),
        )
    assert code == 0 and modes == {"off"}
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["models"] == ["base", "robust"]
    assert "base is right in 100% of 4 clean image-heavy questions, and in 0%" in report["finding"][0]
    assert "robust is right in 100% there, a difference of +100%" in report["finding"][1]
    assert "<svg" in (output / "report.html").read_text("utf-8")
    assert "## Side by side" in (output / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    "given",
    [
        "--model base --seed 0",
        "--model base --against robust --perturbation misleading_description --perturbation neutral_text"
        " --severity 1 --severity 5 --limit 2 --format items --family vqa --seed 3",
    ],
)
async def test_the_report_holds_the_command_that_was_typed(data: Path, tmp_path: Path, given: str) -> None:
    async with serving(two_models) as (url, _):
        options = [*given.split(), "--url", url, "--output", str(tmp_path / "out")]
        assert await asyncio.to_thread(run, str(data), *options) == 0
    command = f"modint-guard diagnose items.jsonl {given}"
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["command"] == command
    assert f"<code>{command}</code>" in (tmp_path / "out" / "report.html").read_text("utf-8")


async def test_addresses_are_recorded_where_nothing_else_tells_two_models_apart(
    data: Path, tmp_path: Path
) -> None:
    async with serving(misled) as (one, _), serving(misled) as (two, _):
        secret = two.replace("http://", "http://me:secret@")
        options = ["--model", "base", "--url", one, "--against", "base", "--against-url", secret]
        assert await asyncio.to_thread(run, str(data), *options, "--output", str(tmp_path / "out")) == 0
    made_by = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["command"]
    assert f"--model base --url {one} --against base --against-url {two} --seed 0" in made_by


def test_wrong_calls_are_one_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(data), "--model", "m", "--output", str(tmp_path / "out")]
    assert run(*given, "--against", "m") == 2
    with pytest.raises(ConfigError, match=r"--local needs: pip install 'modint-guard\[train\]'"):
        local_reach([])
    assert "is the same model at the same endpoint" in capsys.readouterr().err
    assert run(*given, "--against-url", "http://127.0.0.1:9") == 2
    assert "name it with --against" in capsys.readouterr().err
    assert run(*given, "--local", "--against", "n", "--against-url", "http://127.0.0.1:9") == 2
    assert "--local runs both models here: drop --against-url" in capsys.readouterr().err
    assert run(*given, "--url", "http://127.0.0.1:9") == 2
    assert "is the server running there?" in capsys.readouterr().err
    assert run(*given, "--api-key-file", str(tmp_path / "none")) == 2
    assert "name a file that holds the key" in capsys.readouterr().err
