"""One real engine for the whole session: `modint-guard serve` with the bundled base and robust-lora."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modint_guard.demo.launch import RunningGateway, serving
from modint_guard.errors import EngineError


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Its address, process and time to ready; started once, for its start takes most of a minute."""
    log = Path(tmp_path_factory.mktemp("serve")) / "serve.log"
    try:
        with log.open("wb") as output, serving(["--adapter", "robust-lora"], output=output) as running:
            yield running
    except EngineError as error:
        pytest.fail(f"{error}\n{log.read_text('utf-8', 'replace')[-4000:]}")


@pytest.fixture(scope="session")
def base_url(served: RunningGateway) -> str:
    """What the `openai` client takes as its base URL."""
    return f"{served.url}/v1"
