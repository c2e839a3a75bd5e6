"""Labelled items through an endpoint: twins, truth, features, and the command's file."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from modint_guard.chat.images import png_data_url
from modint_guard.data import write_items
from modint_guard.data.item import Item
from modint_guard.endpoint import read_key
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.calibrate import Twin, fingerprint, fitted_where, labelled_answers, twins_of
from modint_guard.evaluation.fit_calibration import calibrate
from modint_guard.evaluation.journal import Journal
from modint_guard.judging.calibration import read_calibration
from modint_guard.types import JSON, Complete
from tests.core.fakes import called, completion, serving
from tests.core.items import BOTH, DIGIT, RED, SUM

assert DIGIT.image is not None
SEEN = png_data_url(DIGIT.image)


def items(count: int) -> list[Item]:
    return [DIGIT.replace(id=f"digit-{index}", source=f"source-{index}") for index in range(count)]


def text_of(body: JSON) -> str:
    return "\n".join(part.get("text", "") for part in body["messages"][-1]["content"])


def sees_the_digit(body: JSON) -> bool:
    return any(part.get("image_url", {}).get("url") == SEEN for part in body["messages"][-1]["content"])


async def misled(body: JSON) -> JSON:
    """Believes a claim of 7; else it sees the 3; without a picture it guesses."""
    await asyncio.sleep(0)
    says = "7" if "digit 7" in text_of(body) else "3" if sees_the_digit(body) else "5"
    return completion(says, [dict.fromkeys(("3", "5", "7"), 0.02) | {says: 0.96}])


def test_every_item_meets_every_perturbation_that_its_data_allow() -> None:
    image, text = twins_of([DIGIT], 0), twins_of([SUM], 0)
    assert {twin.disturbed.perturbation for twin in image} >= {"misleading_description", "true_description"}
    assert all(twin.clean.context is None and twin.clean.image is not None for twin in image)
    assert {twin.disturbed.perturbation for twin in text} >= {"contradicting_image", "black"}
    assert all(twin.clean.image is None for twin in text)
    bare = twins_of([SUM.replace(contradicting=None, agreeing=None)], 0)
    assert "contradicting_image" not in {twin.disturbed.perturbation for twin in bare}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([BOTH], "none of 1 items can be perturbed"),
        (
            [DIGIT.replace(answer="", wrong="")],
            "none of 1 items has an answer to compare with: give labelled ones",
        ),
        ([DIGIT, SUM, DIGIT], "the id 'digit-0' stands twice in the data"),
    ],
)
def test_items_that_cannot_calibrate_are_refused(given: list[Item], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        twins_of(given, 0)


def test_items_without_an_answer_are_left_out() -> None:
    open_one = DIGIT.replace(id="open", answer="", wrong="")
    assert twins_of([DIGIT, open_one], 0) == twins_of([DIGIT], 0)


@pytest.mark.parametrize(
    "answer", [completion(""), {**completion("3"), "choices": [{"message": {"refusal": "No."}}]}]
)
async def test_refusals_and_empty_answers_are_left_out(answer: JSON) -> None:
    async def model(body: JSON) -> JSON:
        return answer if "digit 7" in text_of(body) else await misled(body)

    found = await labelled_answers(twins_of(items(2), 0), model, "m")
    assert len(found["image"]) == 2 * 4 and not any(each.positive for each in found["image"])


async def test_an_endpoint_that_fails_half_way_is_gone_on_with(tmp_path: Path) -> None:
    twins, asked = twins_of(items(3), 0), 0

    def failing_after(most: int) -> Complete:
        async def complete(body: JSON) -> JSON:
            nonlocal asked
            asked += 1
            if asked > most:
                raise EndpointError("busy", status=503)
            return await misled(body)

        return complete

    made_by = {"data": fingerprint(twins)}
    with Journal(tmp_path / "m.answers.jsonl", made_by) as journal:
        with pytest.raises(EndpointError, match=r"busy|got no answer: is the engine well"):
            await labelled_answers(twins, failing_after(30), "m", journal=journal)
        kept = len(journal.records)
    assert 0 < kept < len(twins) + 3
    with Journal(tmp_path / "m.answers.jsonl", made_by) as journal:
        found = await labelled_answers(twins, failing_after(10_000), "m", journal=journal)
        assert len(journal.records) == len(twins) + 3
    assert found == await labelled_answers(twins, misled, "m")


def test_other_data_or_another_seed_is_another_run() -> None:
    one = fingerprint(twins_of(items(2), 0))
    assert one == fingerprint(twins_of(items(2), 0))
    assert one != fingerprint(twins_of(items(2), 1))
    assert one != fingerprint(twins_of(items(1), 0))
    repainted = [item.replace(image=Image.new("RGB", (4, 4))) for item in items(2)]
    assert one != fingerprint(twins_of(repainted, 0))


async def test_a_model_that_believes_lies_gives_positives_and_negatives() -> None:
    found = await labelled_answers(twins_of(items(4), 0), misled, "m")
    assert set(found) == {"image"}
    answers = found["image"]
    assert len(answers) == 4 * 5
    assert sum(answer.positive for answer in answers) == 4  # the lies
    assert all(answer.right_when_clean for answer in answers)
    moved = [answer.features["js"] for answer in answers if answer.positive]
    still = [answer.features["js"] for answer in answers if not answer.positive]
    assert min(moved) > 0.5 > max(still)
    assert {answer.source for answer in answers} == {f"source-{index}" for index in range(4)}


async def test_from_answers_to_a_calibration_that_tells_lies() -> None:
    answers = (await labelled_answers(twins_of(items(40), 0), misled, "m"))["image"]
    fitted = calibrate(answers, alpha=0.1)
    assert fitted.auroc == 1.0 and fitted.flagged_of_negatives == 0.0


async def test_a_refused_fit_names_the_modality_that_ought_to_decide() -> None:
    answers = (await labelled_answers(twins_of(items(2), 0), misled, "m"))["image"]
    with pytest.raises(ConfigError, match="where the image ought to decide: "):
        fitted_where("image", answers, calibrate)


async def test_an_endpoint_without_log_probabilities_is_refused() -> None:
    async def silent(body: JSON) -> JSON:
        return completion("3")

    twin: list[Twin] = twins_of(items(1), 0)
    with pytest.raises(ConfigError, match="does the endpoint give log-probabilities"):
        await labelled_answers(twin, silent, "m")


# The command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_items(items(40), tmp_path / "items")
    return tmp_path / "items" / "items.jsonl"


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(called, "calibrate", *arguments)


async def test_the_command_writes_a_calibration_its_curves_and_the_least_share_of_flags(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "m.json"
    async with serving(misled) as (url, _):
        given = [str(data), "--model", "base", "--adapter", "m", "--output", str(output), "--seed", "3"]
        assert await run(*given, "--url", url) == 0
    made = read_calibration(output)
    assert made.command == (
        "modint-guard calibrate items.jsonl --model base --adapter m --alpha 0.1 --seed 3"
    )
    assert (made.model, made.adapter, set(made.fitted)) == ("base", "m", {"image"})
    fitted = made.fitted["image"]
    assert (fitted.positives, fitted.negatives) == (20, 80)  # half of 40 sources, one lie in five each
    assert [(each.kind, each.alpha) for each in fitted.promises] == [("miss", 0.1)]
    said = capsys.readouterr().out
    least = "at least 11.1% of them have to be flagged"  # (0.2 - 0.1) / (1 - 0.1)
    assert f"image: 20.0% of the answers are positive; {least}" in said
    assert f"to {output.with_suffix('.png')}" in said
    with Image.open(output.with_suffix(".png")) as drawn:
        assert drawn.size == (1440, 480)


async def test_a_second_promise_and_fewer_probes_are_fitted_to_answers_that_are_kept(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "m.json"
    given = [str(data), "--model", "m", "--output", str(output)]
    async with serving(misled) as (url, _):
        assert await run(*given, "--url", url) == 0
    output.with_suffix(".png").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    more = ["--error", "0.15", "--delta", "0.2", "--probes", "1.6", "--url", "http://127.0.0.1:9"]
    assert await run(*given, *more) == 0
    made = read_calibration(output)
    assert made.command.endswith("--model m --alpha 0.1 --error 0.15 --delta 0.2 --probes 1.6 --seed 0")
    fitted = made.fitted["image"]
    assert [(each.kind, each.alpha, each.delta) for each in fitted.promises] == [
        ("miss", 0.1, None),
        ("error", 0.15, 0.2),
    ]
    assert 1.0 <= fitted.expected_probes <= 1.6 and fitted.clear_below > 0.0
    said = capsys.readouterr().out
    assert "at least 5.9% of them have to be flagged" in said  # (0.2 - 0.15) / (1 - 0.15)
    assert "no curves were drawn: they need pip install 'modint-guard[report]'" in said
    assert not output.with_suffix(".png").exists()


async def test_promises_that_cannot_be_kept_are_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(data), "--model", "m", "--output", str(tmp_path / "m.json")]
    async with serving(misled) as (url, _):
        assert await run(*given, "--url", url, "--error", "0.001") == 2
    assert "no threshold keeps the error among unflagged answers at 0.001" in capsys.readouterr().err
    assert await run(*given, "--probes", "0.5") == 2
    assert "0.5 probes a request cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def rows_without_a_family(count: int) -> list[JSON]:
    return [
        {
            "id": item.id,
            "image": "digit.png",
            "conversations": [
                {"from": "human", "value": f"<image>{item.question}"},
                {"from": "gpt", "value": item.answer},
            ],
            "modint": {
                "choices": list(item.choices),
                "wrong": item.wrong,
                "claim": item.claim,
                "source": item.source,
            },
        }
        for item in items(count)
    ]


async def test_data_that_do_not_say_it_are_read_as_the_options_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 1), ("test", 8)):
        lines = [json.dumps(row) for row in rows_without_a_family(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), "utf-8")
    (tmp_path / "pictures").mkdir()
    RED.save(tmp_path / "pictures" / "digit.png")
    output = tmp_path / "out" / "m.json"
    given = [str(tmp_path), "--model", "m", "--output", str(output), "--alpha", "0.5", "--split", "test"]
    given += ["--format", "llava", "--image-root", str(tmp_path / "pictures")]
    async with serving(misled) as (url, _):
        assert await run(*given, "--url", url) == 2
        assert "none of 8 items can be perturbed" in capsys.readouterr().err
        assert await run(*given, "--url", url, "--family", "image-heavy") == 0
    made = read_calibration(output)
    assert made.fitted["image"].positives == 4  # a lie each, of half of the sources
    assert made.command.endswith(
        " --alpha 0.5 --format llava --image-root pictures --split test --family image-heavy --seed 0"
    )


async def test_a_limit_takes_the_first_items_and_is_recorded(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.json"
    given = [str(data), "--model", "m", "--output", str(output), "--alpha", "0.5", "--limit", "8"]
    async with serving(misled) as (url, _):
        assert await run(*given, "--url", url) == 0
    made = read_calibration(output)
    assert made.fitted["image"].positives == 4  # a lie each, of half of the sources
    assert made.command.endswith("--model m --alpha 0.5 --limit 8 --seed 0")


async def test_columns_and_row_numbers_are_read_as_the_options_say(tmp_path: Path) -> None:
    question, rows = "<image>What digit is shown?\nA. 3\nB. 7", []
    for number in range(8):  # answers about one picture would all lie in one half
        RED.save(tmp_path / f"{number}.png")
        rows.append({"id": "same", "ask": question, "output": "A", "images": [f"{number}.png"]})
    (tmp_path / "mine.json").write_text(json.dumps(rows), "utf-8")
    output = tmp_path / "out" / "m.json"
    given = [str(tmp_path / "mine.json"), "--model", "m", "--output", str(output), "--alpha", "0.5"]
    given += ["--family", "image-heavy", "--column", "prompt=ask", "--number-rows"]

    async def model(body: JSON) -> JSON:
        """Believes a caption that speaks of the 7 among the options."""
        letter = "B" if text_of(body).count("7") > 1 else "A"
        return completion(letter, [dict.fromkeys("AB", 0.02) | {letter: 0.98}])

    async with serving(model) as (url, _):
        assert await run(*given, "--url", url) == 0
    made = read_calibration(output)
    assert made.command.endswith("--family image-heavy --column prompt=ask --number-rows --seed 0")


def test_a_folder_is_no_place_for_a_calibration(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called("calibrate", str(data), "--model", "m", "--output", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"{tmp_path} is a folder: --output names the calibration file\n"


def test_the_command_says_which_key_file_is_missing(tmp_path: Path) -> None:
    assert read_key(None) is None
    (tmp_path / "key").write_text("secret\n")
    assert read_key(tmp_path / "key") == "secret"
    with pytest.raises(ConfigError, match="name a file that holds the key"):
        read_key(tmp_path / "none")
