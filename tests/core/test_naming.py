"""A reply in words of its own is right if it names the answer, and nothing else in its place."""

import pytest

from modint_guard.data.item import is_right, reply_for
from modint_guard.data.naming import names, value_in
from modint_guard.data.perturb import perturb
from tests.core.items import DIGIT, SUM

FOX = DIGIT.replace(
    id="fox",
    form="free",
    choices=(),
    question="What is it?",
    answer="red panda",
    wrong="fox",
    accepted=("red panda", "lesser panda"),
    rejected=("fox",),
)


@pytest.mark.parametrize(
    "reply",
    [
        "red panda",
        "It is a red panda.",
        "A RED PANDA",
        "red-panda",
        "Two red pandas sit there.",
        "That's a lesser panda!",
        "**Red panda**",
        '{"animal": "red panda"}',
        '```json\n{"animal": {"name": "Red panda", "sure": true}}\n```',
        "A red panda, not a fox.",
    ],
)
def test_the_answer_is_found_in_a_sentence_in_json_and_by_other_names(reply: str) -> None:
    assert is_right(FOX, reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "panda",
        "a fox",
        "a red panda or a raccoon",
        "either a red panda",
        "It is not a red panda.",
        "There's no red panda.",
        "It isn't a red panda.",
        "A fox and a red panda",
        "predpanda red pandabear",
        '{"animal": "fox"}',
        '{"animal": null}',
    ],
)
def test_a_reply_that_names_something_else_denies_or_hedges_is_wrong(reply: str) -> None:
    assert not is_right(FOX, reply)


def test_a_longer_name_is_not_taken_for_the_shorter_one_within() -> None:
    assert names("a teddy bear", ["teddy bear"], ["bear"])
    assert not names("a teddy bear", ["bear"], ["teddy bear"])
    assert names("a bear", ["bear"], ["teddy bear"])


def test_two_names_joined_by_and_are_both_wanted_in_any_order() -> None:
    assert names("I see a drum and two foxes", ["fox and drum"])
    assert not names("I see a fox", ["fox and drum"])


@pytest.mark.parametrize("reply", ["8", "8 euros.", "eight", "$8.00", "3 plus 5 is 8", "It costs 8."])
def test_a_number_is_the_last_one_in_figures_or_a_word(reply: str) -> None:
    assert names(reply, ["8", "eight"])


@pytest.mark.parametrize("reply", ["18", "8.5", "8 and 1 make 9", "nine", "eighty", "A8"])
def test_another_number_is_wrong(reply: str) -> None:
    assert not names(reply, ["8", "eight"])


def test_text_in_braces_that_is_no_json_is_read_as_it_is() -> None:
    assert value_in("{a fox}") == "{a fox}"
    assert value_in("{}") == "{}"
    nested = '{"a":' * 100_000 + "1" + "}" * 100_000
    assert value_in(nested) == nested
    assert value_in('{"a": ["x", 1, null, false]}') == "x, 1, no"


def test_without_accepted_names_a_free_answer_is_compared_word_for_word() -> None:
    plain = FOX.replace(accepted=(), rejected=())
    assert is_right(plain, " Red panda. ") and not is_right(plain, "It is a red panda.")


def test_an_item_without_a_label_is_never_right() -> None:
    assert not is_right(FOX.replace(answer="", wrong=""), "red panda")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Yes, it is.", True),
        ("yes.", True),
        ('{"answer": "yes"}', True),
        ('{"answer": true}', True),
        ("No, that is a fox.", False),
        ("Yesterday.", False),
        ("yes and no", False),
    ],
)
def test_yes_may_be_followed_by_more_words(reply: str, right: bool) -> None:
    asked = DIGIT.replace(choices=("yes", "no"), answer="yes", wrong="no")
    assert is_right(asked, reply) == right


def test_the_reply_to_learn_may_be_a_sentence() -> None:
    described = FOX.replace(replies=("The picture shows a red panda.",))
    assert reply_for(described, "red panda") == "The picture shows a red panda."
    assert reply_for(described, "fox") == "fox"
    assert is_right(described, reply_for(described, "red panda"))


def test_a_free_answer_has_one_reply_to_learn() -> None:
    with pytest.raises(ValueError, match="do not tell its choices apart"):
        FOX.replace(replies=("a red panda", "a panda"))


def test_a_data_set_may_bring_its_own_true_caption() -> None:
    item = DIGIT.replace(truth="The card has a three on it.")
    assert perturb(item, "true_description").context == "The card has a three on it."
    assert "the digit 3" in (perturb(DIGIT, "true_description").context or "")
    assert SUM.truth == ""
