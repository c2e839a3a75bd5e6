"""The table of where interference sits: base and adapter, sites patched exactly, goals above them."""

import json
from pathlib import Path

import pytest

from bench.locate import measure_locate
from modint_guard.models import ADAPTER, BASE


@pytest.mark.slow
def test_both_models_are_studied_and_a_finished_study_is_not_repeated(tmp_path: Path) -> None:
    output, pages = tmp_path / "locate.json", tmp_path / "pages"
    drawn = measure_locate(output, pages, limit=1, seed=0)
    assert [path.parent.name for path in drawn] == [BASE, ADAPTER] and all(path.is_file() for path in drawn)
    rows = json.loads(output.read_text("utf-8"))["rows"]
    assert {row["model"] for row in rows} == {BASE, ADAPTER}
    assert {"site", "layer", "head", "group", "recovery", "ci_low", "ci_high"} <= set(rows[0])
    assert all(row["recovery"] is not None and row["n"] for row in rows)
    kept = [(folder / "records.jsonl").read_bytes() for folder in (pages / BASE, pages / ADAPTER)]
    measure_locate(output, pages, limit=1, seed=0)
    assert [(folder / "records.jsonl").read_bytes() for folder in (pages / BASE, pages / ADAPTER)] == kept
    text = output.with_suffix(".md").read_text("utf-8")
    assert f"## {BASE}" in text and f"## {ADAPTER}" in text and "Goals" in text
