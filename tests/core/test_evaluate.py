"""Items clean and perturbed through a scripted model: what is asked, and what the rows say."""

import json
import math
from pathlib import Path

import pytest

from modint_guard.data.perturb import CLEAN, REGISTRY
from modint_guard.errors import ConfigError
from modint_guard.evaluation.evaluate import (
    AGAINST,
    Cell,
    answered_of,
    ask,
    cells_of,
    rows_of,
    write_evaluation,
)
from modint_guard.evaluation.figures import doses_of
from modint_guard.evaluation.runner import Row
from modint_guard.types import JSON
from tests.core.fakes import completion
from tests.core.items import BOTH, DIGIT, SUM

LIE = ("misleading_description", "contradicting_image")


async def credulous(body: JSON) -> JSON:
    """Right, unless a caption says something: then half sure of the lie."""
    texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
    lied = len(texts) > 1
    return completion("7" if lied else "3", [{"7": 0.6, "3": 0.4} if lied else {"3": 0.9, "7": 0.1}])


async def robust(body: JSON) -> JSON:
    """Always right; no log-probabilities."""
    return completion("3")


def test_items_are_asked_clean_and_under_all_that_fits_them() -> None:
    cells = cells_of([DIGIT.replace(context="A caption."), SUM, BOTH])
    assert [cell for cell in cells if cell.perturbation == CLEAN] == [
        Cell(family, CLEAN) for family in ("image-heavy", "text-heavy", "vqa")
    ]
    assert cells[Cell("image-heavy", CLEAN)][0].context is None
    assert cells[Cell("text-heavy", CLEAN)][0].image is None
    assert cells[Cell("vqa", CLEAN)] == [BOTH]
    assert {cell.perturbation for cell in cells} - {CLEAN} == set(REGISTRY) - {"no_image"}
    assert Cell("image-heavy", "ocr_noise").held_out == "perturbation"
    assert Cell("image-heavy", "ocr_noise", held_out_wording=True).held_out == "wording"


def test_two_models_are_asked_the_same() -> None:
    one, other = (cells_of([DIGIT], seed=3) for _ in range(2))
    assert one == other


def test_unknown_perturbations_and_items_without_truth_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown perturbation 'lies'; known: misleading_description"):
        cells_of([DIGIT], perturbations=["lies"])
    with pytest.raises(ConfigError, match="none of 1 items has an answer"):
        cells_of([DIGIT.replace(answer="", wrong="")])


async def test_rows_tell_the_effect_and_the_other_model() -> None:
    cells = cells_of([DIGIT, SUM], perturbations=LIE)
    found, better = [await ask(cells, model, "m") for model in (credulous, robust)]
    rows = {(row["family"], row["perturbation"]): row for row in rows_of("m", found, better)}
    assert len(rows) == 4
    lied = rows["image-heavy", "misleading_description"]
    assert (lied["accuracy"], lied["change"], lied["harmful_flip"], lied["unparsable"]) == (0, -1, 1, 0)
    assert (lied["js_exact"], lied["delta_logprob_wrong"]) == (1.0, pytest.approx(math.log(6)))
    assert (lied["gain"], lied["only_this"], lied["only_other"], lied["mcnemar_p"]) == (-1, 0, 1, 1.0)
    shown = rows["text-heavy", "contradicting_image"]
    assert (shown["accuracy"], shown["harmful_flip"], shown["js"]) == (1, 0, 0)
    assert rows["image-heavy", CLEAN]["harmful_flip"] is None
    alone = list(rows_of("m", better))
    assert {tuple(row) for row in alone} == {tuple(row) for row in rows.values()}
    assert {row[name] for row in alone for name in AGAINST} == {None}
    assert {row["js"] for row in alone} == {None}  # an endpoint without log-probabilities


async def test_the_endpoint_gets_what_any_endpoint_understands() -> None:
    bodies: list[JSON] = []

    async def complete(body: JSON) -> JSON:
        bodies.append(body)
        return completion("3")

    cells = cells_of([DIGIT], perturbations=[])
    await ask(cells, complete, "m", top_logprobs=5)
    await ask(cells, complete, "m", top_logprobs=0)
    assert set(bodies[0]) == {"model", "messages", "temperature", "max_tokens", "logprobs", "top_logprobs"}
    assert set(bodies[1]) == {"model", "messages", "temperature", "max_tokens"}


def test_an_option_in_no_list_leaves_the_options_unknown() -> None:
    top = {"3": math.log(0.9)}
    found = answered_of(Row(DIGIT, "m", "3", True, None, top))
    assert (found.options, found.top) == (None, top)
    assert answered_of(Row(DIGIT, "m", "3", True, None)).top is None


def test_perturbations_are_asked_in_doses_and_controls_whole() -> None:
    cells = cells_of([DIGIT], perturbations=("unrelated_facts", "neutral_text"), severities=(5, 2, 2))
    assert [(cell.perturbation, cell.dose) for cell in cells] == [
        (CLEAN, 0),
        ("unrelated_facts", 2),
        ("unrelated_facts", 5),
        ("neutral_text", 5),
    ]
    some, all_of_it = (cells[Cell("image-heavy", "unrelated_facts", severity=dose)][0] for dose in (2, 5))
    assert set((some.context or "").split()) < set((all_of_it.context or "").split())
    with pytest.raises(ConfigError, match="a severity lies between 1 and 5, not at 6"):
        cells_of([DIGIT], severities=(6,))


async def test_rows_and_curves_tell_the_dose(tmp_path: Path) -> None:
    cells = cells_of([DIGIT], perturbations=("unrelated_facts", "neutral_text"), severities=(1, 5))
    rows = list(rows_of("m", await ask(cells, credulous, "m")))
    assert [(row["perturbation"], row["severity"]) for row in rows] == [
        (CLEAN, 0),
        ("unrelated_facts", 1),
        ("unrelated_facts", 5),
        ("neutral_text", 5),
    ]
    # Right when nothing is said, wrong at every dose; the control was asked at one alone and has no curve.
    points = doses_of(rows)["image-heavy, unrelated facts"]["m"]
    assert [point[:2] for point in points] == [(0, 1.0), (1, 0.0), (5, 0.0)]
    assert list(doses_of(rows)) == ["image-heavy, unrelated facts"]
    pytest.importorskip("matplotlib")
    *_, doses = write_evaluation(tmp_path / "report.json", rows, command="evaluate", seed=0)
    assert doses.name == "report-doses.png" and doses.read_bytes().startswith(b"\x89PNG")


async def test_an_evaluation_is_written_as_json_markdown_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = list(rows_of("m", await ask(cells_of([DIGIT, BOTH]), credulous, "m")))
    files = write_evaluation(tmp_path / "report.json", rows, command="evaluate", seed=0)
    assert [file.name for file in files] == [
        "report.json",
        "report.md",
        "report-bars.png",
        "report-radar.png",
    ]
    assert json.loads(files[0].read_text())["rows"] == rows
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[2:])
