"""`modint-guard calibrate --unlabelled`: a null from a file of requests, without labels."""

import asyncio
from pathlib import Path

import pytest

from modint_guard.data import write_items
from modint_guard.data.item import Item
from modint_guard.errors import ConfigError
from modint_guard.evaluation.calibrate_null import ORIGIN, null_of_requests
from modint_guard.judging.null import CHECKUP, Null, NullScore
from modint_guard.judging.null_file import read_nulls, write_nulls
from modint_guard.types import JSON
from tests.core.fakes import called, completion, serving
from tests.core.items import BOTH, DIGIT, SUM


def unlabelled(item: Item, count: int) -> list[Item]:
    return [
        item.replace(id=f"{item.id}-{n}", source=f"{item.id}-{n // 2}", answer="", wrong="", lie="")
        for n in range(count)
    ]


async def answers_red(body: JSON) -> JSON:
    """Says "red", or what a caption claims; packaged items of red things it answers rightly."""
    texts = [part.get("text", "") for part in body["messages"][-1]["content"]]
    claims = [
        text.rstrip(".").split()[-1] for text in texts if text.startswith(("Caption:", "The picture shows"))
    ]
    said = claims[0] if claims else "red"
    return completion(said, [{said: 0.9, "nothing": 0.05}])


async def test_each_source_of_the_file_has_one_score() -> None:
    null = await null_of_requests(unlabelled(DIGIT, 6), answers_red, "m", seed=0)
    assert null.origins[ORIGIN] == 3
    assert null.origins[CHECKUP] >= 10


async def test_lies_that_changed_an_answer_count_for_power() -> None:
    null = await null_of_requests(unlabelled(DIGIT, 8), answers_red, "m", seed=1)
    assert len(null.lies) > 0


@pytest.mark.parametrize("item", [BOTH, SUM.replace(image=None)])
async def test_requests_that_nothing_can_be_planted_into_are_refused(item: Item) -> None:
    with pytest.raises(ConfigError, match="nothing could be planted into any of 2 requests"):
        await null_of_requests(unlabelled(item, 2), answers_red, "m", seed=0)


async def test_the_command_writes_the_null_beside_those_of_other_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "items", tmp_path / "null.json"
    write_items(unlabelled(DIGIT, 4), data)
    write_nulls(output, {"other": Null((NullScore(1.0, 1),))})
    async with serving(answers_red) as (url, _):
        given = [str(data / "items.jsonl"), "--model", "m", "--output", str(output), "--unlabelled"]
        assert await asyncio.to_thread(called, "calibrate", *given, "--url", url) == 0
    nulls = read_nulls(output, Null(client_share=1.0))
    assert set(nulls) == {"m", "other"} and nulls["m"].origins[ORIGIN] == 2
    assert "2 of them of your requests" in capsys.readouterr().out
