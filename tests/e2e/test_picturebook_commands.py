"""Commands that take the picture-book world, with its base in the real engine: demo, diagnose, calibrate.

`make test-picturebook` fetches the base by pip first; `make test` leaves this file out.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from modint_guard.demo.launch import RunningGateway, serving
from modint_guard.demo.run import run
from modint_guard.demo.shows import of_own, of_world
from modint_guard.errors import EngineError
from modint_guard.judging.null import Null
from modint_guard.judging.null_file import read_nulls
from modint_guard.models.picturebook import ADAPTER, NAME, fetched_folder
from tests.core.fakes import called

pytestmark = [pytest.mark.e2e, pytest.mark.fetched]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    log = Path(tmp_path_factory.mktemp("picturebook")) / "serve.log"
    try:
        with log.open("wb") as output, serving(["--model", NAME], output=output) as running:
            yield running
    except EngineError as error:
        pytest.fail(f"{error}\n{log.read_text('utf-8', 'replace')[-4000:]}")


def test_the_demo_flags_what_a_lie_gave_shows_the_cure_and_counts_what_it_shows(tmp_path: Path) -> None:
    console = Console(width=160, file=io.StringIO())
    show = of_world("picturebook")
    run(show, tmp_path / "book.png", console)  # raises if the counters differ from the answers
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert f"asking {len(show.items)} items of {NAME} and of {ADAPTER}" in said
    lines = said.splitlines()
    (at,) = (at for at, line in enumerate(lines) if "misleading description" in line and "/" in line)
    flagged, wrong = map(int, lines[at].split("│")[5].split("/"))
    of_adapter = int(lines[at + 1].split("│")[5].split("/")[1])
    assert wrong >= 8, "the base must fall for lies, else this shows nothing"
    assert flagged >= wrong / 3
    assert of_adapter <= wrong / 2
    for kind in ("caption needed", "document"):
        assert f", {kind} " in said
    with Image.open(tmp_path / "book.png") as sheet:
        assert sheet.height > 2000
    assert (tmp_path / "book.sh").is_file()


def test_a_folder_is_asked_the_check_up(tmp_path: Path, served: RunningGateway) -> None:
    """Behind a gateway that runs already, which spares a second start of the engine."""
    console = Console(width=160, file=io.StringIO())
    folder = of_own(str(fetched_folder()), None, limit=2)
    run(replace(folder, serve=("--upstream", served.url)), tmp_path / "own.png", console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert f"asking {len(folder.items)} items of {NAME}" in said
    assert f"{NAME} was asked too little about pictures to tell whether it sees" in said


def test_diagnose_takes_the_world(tmp_path: Path, served: RunningGateway) -> None:
    lies = ("--perturbation", "misleading_description", "--perturbation", "contradicting_image")
    where = ("--model", NAME, "--url", served.url, "--output", str(tmp_path))
    assert called("diagnose", "picturebook", *where, *lies, "--limit", "2") == 0
    rows = json.loads((tmp_path / "report.json").read_text("utf-8"))["rows"]
    assert {(row["family"], row["perturbation"]) for row in rows} >= {
        ("image-heavy", "misleading_description"),
        ("text-heavy", "contradicting_image"),
        ("vqa", "clean"),
    }
    assert {row["held_out"] for row in rows} == {"no", "wording"}


def test_calibrate_measures_the_bases_null_on_the_world(tmp_path: Path, served: RunningGateway) -> None:
    file = tmp_path / "null.json"
    where = ("--model", NAME, "--url", served.url, "--output", str(file))
    assert called("calibrate", "picturebook", *where, "--unlabelled", "--limit", "2") == 0
    assert len(read_nulls(file, Null(client_share=1.0))[NAME].scores) > 0
