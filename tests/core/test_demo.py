"""The demo: what it prints and writes, and its own check, which says of each counter how far it is off."""

import io
import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from modint_guard.data.item import Item
from modint_guard.data.perturb import perturb
from modint_guard.demo.asking import counting
from modint_guard.demo.counters import Counts, calls_seen, compare, metric_lines, scrape
from modint_guard.demo.curl_script import write_script
from modint_guard.demo.run import (
    MAX_WIDTH,
    check_sheet,
    correction,
    flagged_answer,
    show_answers,
    show_metrics,
    write_files,
)
from modint_guard.demo.shows import of_world
from modint_guard.demo.tables import examples, summary
from modint_guard.errors import ConfigError
from modint_guard.evaluation.runner import Row, request_for
from modint_guard.models import ADAPTER, BASE
from modint_guard.types import JSON
from tests.core.fakes import called
from tests.core.items import DIGIT, SUM

LIED = perturb(DIGIT, "misleading_description")
SHOWN = perturb(SUM, "contradicting_image")


def report(verdict: str, cause: str | None, probes: int, relevant: str = "image") -> JSON:
    risk = 0.93 if verdict == "flagged" else 0.1
    return {"relevant": relevant, "verdict": verdict, "cause": cause, "probes": [{}] * probes, "risk": risk}


def row(item: Item, model: str, answer: str, modint: JSON | None) -> Row:
    return Row(item, model, answer, answer == item.answer, modint)


ROWS = [
    row(LIED, BASE, "7", report("flagged", "text", 3)),
    row(SHOWN, BASE, "3", report("pass", None, 3, "text")),
    row(LIED, ADAPTER, "3", report("pass", None, 3)),
    row(SHOWN, ADAPTER, "3", report("pass", None, 2, "text")),
]
ANSWERS = {BASE: ROWS[:2], ADAPTER: ROWS[2:]}
TINYWORLD = of_world("tinyworld")
REQUESTS: Counts = {
    ("adapter=none", f"model={BASE}", "outcome=ok", "route=chat"): 2,
    (f"adapter={ADAPTER}", f"model={BASE}", "outcome=ok", "route=chat"): 2,
}
VERDICTS: Counts = {
    ("adapter=none", "cause=text", f"model={BASE}", "relevant=image", "verdict=flagged"): 1,
    ("adapter=none", "cause=none", f"model={BASE}", "relevant=text", "verdict=pass"): 1,
    (f"adapter={ADAPTER}", "cause=none", f"model={BASE}", "relevant=image", "verdict=pass"): 1,
    (f"adapter={ADAPTER}", "cause=none", f"model={BASE}", "relevant=text", "verdict=pass"): 1,
}
# Four answers and eleven probes, and the warm-up before them.
CALLS: Counts = {("engine=0", "finished_reason=stop"): 4 + 11}
WARM_UP: Counts = {("engine=0", "finished_reason=stop"): 5, ("engine=0", "finished_reason=abort"): 1}


def counters(requests: Counts, verdicts: Counts, calls: Counts) -> dict[str, Counts]:
    return {
        "modint_requests_total": requests,
        "modint_verdicts_total": verdicts,
        "vllm:request_success_total": calls,
    }


BEFORE = counters(dict.fromkeys(REQUESTS, 7), {}, WARM_UP)
AFTER = counters(
    {key: 7 + count for key, count in REQUESTS.items()},
    {**VERDICTS, ("adapter=none", "cause=image", f"model={BASE}", "relevant=both", "verdict=flagged"): 0},
    dict(Counter(WARM_UP) + Counter(CALLS)),
)


def test_counters_that_equal_the_answers_say_nothing() -> None:
    assert list(compare(ROWS, BASE, BEFORE, AFTER)) == []
    assert list(calls_seen(ROWS, BEFORE, AFTER)) == []


def test_an_answer_that_was_not_counted_is_a_sentence() -> None:
    missing: Counts = {key: count for key, count in VERDICTS.items() if "verdict=flagged" not in key}
    (problem,) = compare(ROWS, BASE, BEFORE, {**AFTER, "modint_verdicts_total": missing})
    assert problem == (
        f"modint_verdicts_total{{adapter=none, cause=text, model={BASE}, relevant=image, verdict=flagged}}"
        " rose by 0, the table has 1"
    )


def test_a_count_without_an_answer_is_a_sentence() -> None:
    failed = ("adapter=none", f"model={BASE}", "outcome=upstream_error", "route=chat")
    after = {**AFTER, "modint_requests_total": {**AFTER["modint_requests_total"], failed: 1}}
    (problem,) = compare(ROWS, BASE, BEFORE, after)
    assert problem.endswith("outcome=upstream_error, route=chat} rose by 1, the table has 0")


def test_an_answer_counted_twice_is_a_sentence() -> None:
    twice = {key: count + (key[0] == "adapter=none") for key, count in AFTER["modint_requests_total"].items()}
    (problem,) = compare(ROWS, BASE, BEFORE, {**AFTER, "modint_requests_total": twice})
    assert problem.endswith("rose by 3, the table has 2")


def test_an_answer_without_a_verdict_is_a_sentence() -> None:
    rows = [*ROWS[1:], row(LIED, BASE, "7", None)]
    assert list(compare(rows, BASE, BEFORE, AFTER))[-1] == "1 answers came without a `modint` object"


def test_fewer_calls_than_were_sent_are_a_sentence() -> None:
    short: Counts = {("engine=0", "finished_reason=stop"): 5 + 14}
    (problem,) = calls_seen(ROWS, BEFORE, {**AFTER, "vllm:request_success_total": short})
    assert problem == "vllm:request_success_total rose by 14, but 15 calls were sent"


def test_more_calls_than_were_sent_are_no_problem() -> None:
    more: Counts = {("engine=0", "finished_reason=stop"): 100}
    assert list(calls_seen(ROWS, BEFORE, {**AFTER, "vllm:request_success_total": more})) == []


def test_only_counters_that_moved_are_printed_as_prometheus_writes_them() -> None:
    lines = list(metric_lines(AFTER))
    assert len(lines) == 2 + 4
    labels = f'adapter="none",cause="text",model="{BASE}",relevant="image",verdict="flagged"'
    assert f"modint_verdicts_total{{{labels}}} 1" in lines


GATEWAY = b"""# TYPE modint_requests_total counter
modint_requests_total{route="chat",model="m"} 3.0
modint_requests_created{route="chat",model="m"} 1.7e9
# TYPE modint_upstream_up gauge
modint_upstream_up 1.0
"""
ENGINE = b"""# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop"} 12.0
"""


class _Gateway(BaseHTTPRequestHandler):
    """Serves the two pages of metrics, and answers a chat request with what it received."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(ENGINE if self.path == "/engine/metrics" else GATEWAY)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        received = {"path": self.path, "type": self.headers["content-type"], "body": body}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(received).encode())

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def gateway() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_counters_of_gateway_and_engine_are_read_and_nothing_else(gateway: str) -> None:
    of_gateway = {"modint_requests_total": {("model=m", "route=chat"): 3}}
    assert scrape(gateway) == {
        **of_gateway,
        "vllm:request_success_total": {("finished_reason=stop",): 12},
    }
    assert scrape(gateway, engine=False) == of_gateway  # an engine of others need not have any


def printed(table: Table) -> str:
    console = Console(width=200, record=True, quiet=False, file=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_summary_counts_right_answers_and_flags_by_kind_and_model() -> None:
    cells = [
        [part.strip() for part in line.split("│")[1:-1]] for line in printed(summary(ANSWERS)).splitlines()
    ]
    assert [line for line in cells if len(line) == 6] == [
        ["image-heavy, misleading description", BASE, "1", "0%", "1/1", "0/0"],
        ["", ADAPTER, "1", "100%", "0/0", "0/1"],
        ["text-heavy, contradicting image", BASE, "1", "100%", "0/0", "0/1"],
        ["", ADAPTER, "1", "100%", "0/0", "0/1"],
    ]


def test_the_examples_show_the_telling_answer_of_each_kind_beside_its_twin() -> None:
    text = printed(examples(ANSWERS))
    assert "7 ✗" in text and "flagged" in text and "0.93" in text
    assert text.count("3 ✓") == 3
    assert text.index("7 ✗") < text.index("3 ✓")


def test_a_base_that_is_shown_alone_is_compared_by_what_its_requests_name() -> None:
    auto = [row(LIED, BASE, "7", report("pass", None, 3)), row(SHOWN, BASE, "3", report("pass", None, 3))]
    answers = {"named": ROWS[:2], "auto": auto}
    assert "relevance" in printed(summary(answers, by="relevance"))
    lines = [
        [part.strip() for part in line.split("│")[1:-1]] for line in printed(summary(answers)).splitlines()
    ]
    assert [line[1::4] for line in lines if len(line) == 6] == [
        ["named", "0/0"],
        ["auto", "0/0"],
        ["named", "0/1"],
        ["auto", "0/1"],
    ]


def written(width: int = MAX_WIDTH) -> Console:
    """A console that is no terminal and keeps what is printed."""
    return Console(width=width, file=io.StringIO())


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the script calls curl, which is not installed here")
def test_the_script_sends_the_item_whose_caption_lies_to_a_server_that_runs(
    tmp_path: Path, gateway: str
) -> None:
    item = next(item for item in TINYWORLD.items if item.perturbation == "misleading_description")
    script = tmp_path / "demo.sh"
    write_script(script, item, BASE, "make serve")
    assert os.access(script, os.X_OK)
    done = subprocess.run([script, gateway], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == {
        "path": "/v1/chat/completions",
        "type": "application/json",
        "body": request_for(item, BASE),
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="the script calls curl, which is not installed here")
def test_the_script_says_that_no_server_runs(tmp_path: Path) -> None:
    script = tmp_path / "demo.sh"
    write_script(script, LIED, BASE, "make serve")
    done = subprocess.run(
        [script, "http://127.0.0.1:1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "connect" in done.stderr


def test_the_script_stands_beside_the_contact_sheet_and_how_to_run_it_is_printed(tmp_path: Path) -> None:
    console = written()
    write_files(console, ANSWERS, tmp_path / "my demo.png", BASE, "make serve")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my demo.png", "my demo.sh"]
    assert text_of(console).endswith(f"\n   make serve\n   sh '{tmp_path}/my demo.sh'\n")
    assert "while `make serve` runs" in (tmp_path / "my demo.sh").read_text("utf-8")


def test_no_printed_line_is_longer_than_200_characters(tmp_path: Path) -> None:
    long = LIED.replace(question="What digit is shown? " * 40, image=TINYWORLD.items[0].image)
    answers = {
        model: [row(long, model, "7 " * 300, report("flagged", "text", 3))] for model in (BASE, ADAPTER)
    }
    console = written()
    show_answers(console, answers, answers[BASE][0], TINYWORLD, BASE)
    show_metrics(console, AFTER)
    write_files(console, answers, tmp_path / "demo.png", BASE, TINYWORLD.command)
    assert max(len(line) for line in text_of(console).splitlines()) <= 200


def test_a_line_shows_the_progress_where_no_terminal_is() -> None:
    console = written()
    with counting(console, 24) as count:
        for _ in range(24):
            count()
    assert text_of(console).splitlines() == [f"   {3 * n} of 24 answers" for n in range(1, 9)]


@pytest.mark.parametrize(
    ("sheet", "sentence"),
    [
        ("demo.jpg", "--sheet demo.jpg: the contact sheet is a PNG: name a file that ends in .png"),
        ("/no/such/demo.png", "--sheet /no/such/demo.png: there is no folder /no/such: create it first"),
    ],
)
def test_a_contact_sheet_that_cannot_be_written_is_refused_at_once(sheet: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_sheet(Path(sheet))
    assert str(refused.value) == sentence


def test_only_a_wrong_flagged_answer_is_asked_again() -> None:
    assert flagged_answer(ROWS) == ROWS[0]
    assert flagged_answer(ROWS[1:]) is None


def test_a_correction_is_told_with_the_first_answer_and_what_was_tried() -> None:
    rungs = [{"rung": "neutralise", "outcome": "mended"}]
    corrected = {"original": "7", "rungs": rungs, "tokens": 0}
    line = correction(row(LIED, BASE, "3", {"mitigation": corrected}))
    assert line.endswith(
        "the model said '7', served is '3' (truth: '3'); rungs: neutralise=mended; 0 tokens more"
    )
    assert "What digit is shown?" in line
    untouched = correction(row(LIED, BASE, "7", {"mitigation": None}))
    assert untouched.endswith("said '7', served is '7' (truth: '3'); rungs: nothing; 0 tokens more")


def demo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """What the command does, in order, with nothing served and nothing fetched."""
    done: list[str] = []
    where = "modint_guard.demo.run."
    monkeypatch.setattr(f"{where}run", lambda show, sheet, console: done.append(" ".join(show.serve)))
    monkeypatch.setattr(f"{where}picturebook.fetch", lambda say: done.append("fetch"))
    monkeypatch.setattr("sys.argv", [".venv/bin/modint-guard"])
    assert called("demo", *arguments, module="modint_guard.demo.run:demo") == 0
    return done


def test_the_toy_worlds_demo_ends_by_saying_how_to_run_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(monkeypatch) == [f"--adapter {ADAPTER}"]
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        "   .venv/bin/modint-guard demo --world picturebook",
        "   .venv/bin/modint-guard demo --model FOLDER_OR_HUB_ID",
    ]


def test_the_picture_books_base_is_fetched_before_a_start_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = "--model picturebook-base --adapter picturebook-lora"
    assert demo(monkeypatch, "--world", "picturebook") == ["fetch", served]
    assert capsys.readouterr().out == ""


def test_a_model_of_the_users_is_served_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("--model", "A/B", "--limit", "1", "--", "--max-model-len", "4096")
    assert demo(monkeypatch, *asked) == ["--model A/B -- --max-model-len 4096"]
    assert demo(monkeypatch, "--url", "http://127.0.0.1:8000") == ["--upstream http://127.0.0.1:8000"]
