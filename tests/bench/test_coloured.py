"""The README's coloured answer: which one is taken, and what its card says."""

import pytest

from bench.coloured import card, first_of, lied_to
from modint_guard import Guard, GuardConfig
from modint_guard.errors import EndpointError
from modint_guard.types import JSON, Complete
from tests.core.fakes import completion, scored_prompt
from tests.server.fake_upstream import is_grey


def painter(*, believes: bool = True, sees: float = 0.999) -> Complete:
    """Reads the thing off the picture, and is that sure of it; with `believes`, its colour off a caption."""

    async def complete(body: JSON) -> JSON:
        texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
        lied = believes and len(texts) > 1
        colour = {" red": 0.999, " book": 0.001} if lied else {" book": sees, " red": 0.001}
        thing = {" book": 0.2, " pen": 0.8} if is_grey(body) else {" book": 0.999, " pen": 0.001}
        if "prompt_logprobs" in body:
            words = [" a", " red", " book"] if "red" in body["messages"][-1]["content"] else [" a", " book"]
            tops = [{" a": 0.99}, colour, thing][: len(words)]
            return scored_prompt(words, tops if len(words) > 2 else [tops[0], thing])
        words = [" a", " red", " book"] if lied else [" a", " book"]
        return completion("".join(words), [{" a": 0.99}, colour, thing] if lied else [{" a": 0.99}, thing])

    guard = Guard(GuardConfig(teacher_forcing=True))

    async def guarded(body: JSON) -> JSON:
        return (await guard.inspect(body, complete)).completion

    return guarded


async def test_the_first_answer_is_taken_that_the_caption_and_the_picture_both_gave_words_of() -> None:
    found = await first_of((item for item in lied_to() if item.answer == "book"), painter())
    assert found.answer.flagged == ["red"] and found.answer.given_by("image") == ["book"]
    assert found.summary.startswith(f"A picture of a book with the caption “{found.item.context}”; asked ")
    assert found.summary.endswith("“red” from the caption, flagged; “book” from the picture.")
    drawn = {text.get_text() for text in card(found).axes[0].texts}
    assert {"red", "book", "the verdict: flagged, cause text"} <= drawn


@pytest.mark.parametrize("model", [painter(believes=False), painter(sees=0.4)])
async def test_without_such_an_answer_there_is_no_picture(model: Complete) -> None:
    books = [item for item in lied_to() if item.answer == "book"]
    with pytest.raises(EndpointError, match="no answer has a flagged word"):
        await first_of(books, model)
