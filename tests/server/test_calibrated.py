"""A gateway with a calibration: used for its model, refused for another."""

from pathlib import Path

import pytest

from modint_guard.errors import ConfigError
from modint_guard.evaluation.fit_calibration import write_calibration
from modint_guard.judging.calibration import CALIBRATION, Calibration
from modint_server.app import create_app
from modint_server.serving import shipped_with
from modint_server.settings import Settings, load_settings
from tests.core.fakes import fitted
from tests.server.conftest import chat, serving
from tests.server.fake_upstream import ADAPTER, BASE, FakeUpstream

FITTED = fitted(flag_at=0.5)


def written(folder: Path, **changes: str) -> Path:
    file = folder / "calibration.json"
    write_calibration(
        file, Calibration.model_validate({"model": BASE, "fitted": {"image": FITTED}, **changes})
    )
    return file


async def test_verdicts_of_its_model_are_calibrated_and_others_are_not(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with serving(upstream.url, calibrations=(written(tmp_path),), alpha=0.49) as gateway:
        said = await gateway.post(chat(modint={"relevant": "image"}))
        own = said.json["modint"]
        other = (await gateway.post(chat(model=ADAPTER, modint={"relevant": "image"}))).json["modint"]
        labels = {"model": BASE, "adapter": "none"}
        unusual = [
            gateway.value("modint_unusual_answers_total", **labels, relevant=relevant)
            for relevant in ("image", "text")
        ]
    assert (own["verdict"], own["calibrated"]) == ("flagged", True)
    assert other["calibrated"] is False
    assert float(said.headers["x-modint-risk"]) == pytest.approx(own["risk"], abs=1e-4)
    assert other["risk"] is None
    assert unusual == [1, 0] and own["risk"] >= 0.51  # 1 - alpha


async def test_one_made_for_another_model_keeps_the_gateway_from_being_ready(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    file = written(tmp_path, model="another")
    async with serving(upstream.url, ready=False, calibrations=(file,)) as gateway:
        await gateway.gateway.attachment.look()
        said = await gateway.get("/readyz")
    assert said.status == 503
    assert "was made for another, but these are served" in said.body.decode()


def test_a_damaged_one_stops_the_process_at_its_start(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text().replace("0.97", "0.99"))
    with pytest.raises(ConfigError, match="does not match its digest"):
        create_app(Settings(calibrations=(file,)))


def test_files_are_named_in_the_environment_with_commas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODINT_CALIBRATIONS", "a.json, b.json")
    assert load_settings().calibrations == (Path("a.json"), Path("b.json"))


def test_a_file_beside_the_weights_is_used_where_its_model_is_served_by_that_name(tmp_path: Path) -> None:
    beside = written(tmp_path)
    assert beside.name == CALIBRATION
    assert shipped_with([tmp_path, tmp_path / "none"], {BASE: None}) == (beside,)
    assert shipped_with([tmp_path], {"renamed": None}) == ()
    beside.write_text(beside.read_text().replace("0.97", "0.99"))
    with pytest.raises(ConfigError, match="does not match its digest"):
        shipped_with([tmp_path], {BASE: None})
