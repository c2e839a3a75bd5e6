"""A built wheel in a clean environment without extras: help, attaching, and what ships with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.deploy.manifests import copied

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of what the Dockerfile copies and of nothing else, as the images are."""
    folder, context = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("context")
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, context / name)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(context))
    (built,) = folder.glob("modint_guard-*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel and what it needs, and no extra."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))  # ours installs there just as well
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    # What is imported is compiled then; most is not.
    run(*pip, "--no-compile", "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    return folder / "bin"


class Engine(BaseHTTPRequestHandler):
    """Just enough of vLLM to attach to: one model, logprobs, images."""

    def do_GET(self) -> None:
        self._answer({"object": "list", "data": [{"id": "theirs", "parent": None}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        token = {"token": "yes", "logprob": -0.1, "bytes": None}
        content = {**token, "top_logprobs": [token]}
        message = {"role": "assistant", "content": "yes"}
        choice = {"index": 0, "message": message, "logprobs": {"content": [content]}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": "theirs"}
        self._answer({**head, "choices": [choice], "usage": usage})

    def _answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def engine() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd="/")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_wheel_holds_all_three_packages_and_the_models(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "modint_guard/guard.py",
        "modint_guard/py.typed",
        "modint_server/app.py",
        "modint_training/__init__.py",
        "modint_training/accelerate/ddp.yaml",
        "modint_training/presets/paper.yaml",
        "modint_training/recipes/robust-lora.yaml",
        "modint_guard/evaluation/checkup_items/items.jsonl",
        "modint_guard/evaluation/checkup_items/NOTICE",
        "modint_guard/demo/items/picturebook/NOTICE",
        "modint_guard/models/tinyworld-base/config.json",
        "modint_guard/models/robust-lora/adapter_config.json",
        "modint_guard/models/picturebook-lora/adapter_config.json",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "server/", "training/"))]


def test_help_works_without_any_extra_and_lists_every_command(clean: Path) -> None:
    said = run(str(clean / "modint-guard"), "--help")
    for name in ("serve", "demo", "train", "diagnose"):
        assert name in said


def test_a_command_whose_extra_is_missing_says_so(clean: Path) -> None:
    done = subprocess.run(
        [clean / "modint-guard", "train", "tinyworld-base"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "`train` needs: pip install 'modint-guard[train]'\n")


def test_serving_without_an_engine_says_what_to_install(clean: Path) -> None:
    done = subprocess.run([clean / "modint-guard", "serve"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'modint-guard[cpu]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_attaches_to_a_running_engine(clean: Path, engine: str) -> None:
    command = [str(clean / "modint-guard"), "serve", "--upstream", engine, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "try" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "".join(said)
    assert "  models    theirs\n" in said


def test_the_shipped_adapters_are_found(clean: Path) -> None:
    program = (
        "from modint_guard.models import FOLDER, bundled\n"
        "from modint_server.adapters.folders import bundled_names\n"
        "print(bundled_names(FOLDER), (bundled('tinyworld-base') / 'config.json').is_file())"
    )
    assert run(str(clean / "python"), "-c", program) == "['picturebook-lora', 'robust-lora'] True\n"
