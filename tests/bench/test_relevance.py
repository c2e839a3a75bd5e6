"""Where nobody says what ought to decide: the lexical rules and the model itself on the three families."""

from bench.relevance import rows, self_ask_rows
from modint_guard.types import JSON
from tests.core.fakes import completion


def test_the_rules_take_no_question_of_one_modality_for_the_other() -> None:
    found = {(row["family"], row["held_out"]): row for row in rows(80, 0)}
    for held_out in ("no", "wording"):
        image, text, both = (found[family, held_out] for family in ("image-heavy", "text-heavy", "vqa"))
        assert image["image"] >= 0.8 and image["text"] == 0.0
        assert text["text"] >= 0.8 and text["image"] == 0.0
        assert both["image"] + both["both"] == 1.0 and both["needs"] == "both"
        for row in (image, text, both):
            assert abs(sum(row[name] for name in ("image", "text", "both", "unknown")) - 1.0) < 1e-9


async def test_a_model_that_always_says_yes_reads_every_question_as_one_of_the_picture() -> None:
    asked: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        asked.append(body)
        return completion("yes", [{"yes": 0.9, "no": 0.1}])

    found = await self_ask_rows(complete, 4, 0)
    assert [(row["source"], row["family"]) for row in found[::2]] == [
        ("self_ask", "image-heavy"),
        ("self_ask", "text-heavy"),
        ("self_ask", "vqa"),
    ]
    assert all(
        (row["n"], row["image"], row["text"], row["both"], row["unknown"]) == (4, 1, 0, 0, 0) for row in found
    )
    assert len(asked) == 24 and all("image_url" in str(body["messages"]) for body in asked)
    assert all("Does answering need the picture?" in str(body["messages"]) for body in asked)


async def test_a_model_that_is_not_sure_leaves_it_unknown() -> None:
    async def complete(body: JSON) -> JSON:
        return completion("no", [{"yes": 0.4, "no": 0.6}])

    assert all(row["unknown"] == 1.0 for row in await self_ask_rows(complete, 2, 0))
