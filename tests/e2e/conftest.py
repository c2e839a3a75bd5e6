"""Real engines for the whole session, each started once, for a start takes most of a minute: `served` in
`make test`, the other in `make test-training`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modint_guard.demo.launch import RunningGateway, serving
from modint_guard.errors import EngineError
from modint_guard.models import ADAPTER
from tests.e2e.engines import GAIN, STRAY, serving_whatever_it_tests, stray
from tests.e2e.own_data import OwnData, follow_page


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """`modint-guard serve` with the bundled base and robust-lora: its address, process and time to ready.

    It corrects an answer only if the request asks for that, and takes its time.
    """
    folder = Path(tmp_path_factory.mktemp("serve"))
    (folder / "policies.toml").write_text("[[policy]]\ndeadline_s = 120.0\n", "utf-8")
    environment, log = pytest.MonkeyPatch(), folder / "serve.log"
    environment.setenv("MODINT_POLICIES_FILE", str(folder / "policies.toml"))
    try:
        with log.open("wb") as output, serving(["--adapter", ADAPTER], output=output) as running:
            environment.undo()  # other tests run in this process while the engine lives
            yield running
    except EngineError as error:
        pytest.fail(f"{error}\n{log.read_text('utf-8', 'replace')[-4000:]}")
    finally:
        environment.undo()


@pytest.fixture(scope="session")
def base_url(served: RunningGateway) -> str:
    """What the `openai` client takes as its base URL."""
    return f"{served.url}/v1"


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnData:
    """An adapter trained on a file by the commands of docs/own-data.md."""
    return follow_page(Path(tmp_path_factory.mktemp("own")))


@pytest.fixture(scope="session")
def scaled_url(own: OwnData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A `modint-guard serve` whose engine scales its attention to pictures, and which is not ready: beside
    robust-lora and the adapter of docs/own-data.md there is one of which vLLM applies nothing. The others
    answer."""
    folder = Path(tmp_path_factory.mktemp("scaled"))
    environment, log = pytest.MonkeyPatch(), folder / "serve.log"
    environment.setenv("MODINT_IMAGE_ATTENTION", str(GAIN))
    arguments = ["--adapter", ADAPTER, "--adapter", f"{STRAY}={stray(folder / STRAY)}", *own.served]
    try:
        with (
            log.open("wb") as output,
            serving_whatever_it_tests(arguments, {ADAPTER, STRAY, "mine"}, own.folder, output) as url,
        ):
            environment.undo()  # other tests run in this process while the engine lives
            yield url
    except EngineError as error:
        pytest.fail(f"{error}\n{log.read_text('utf-8', 'replace')[-4000:]}")
    finally:
        environment.undo()
