"""Rules for every test: in CI nothing is skipped in silence, and no test reaches a model hub."""

import functools
import gc
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Before any library reads them: models are local, and threads would fight over two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Files that share what takes long to start, by its name: engines of a whole session, a process to fork from.
SHARING = {
    "engine": ("e2e", ("adapters", "longer_answers", "main_job", "prometheus", "serve")),
    "engine that scales": ("e2e", ("image_attention", "own_data", "stray_adapter")),
    "forked": ("training", ("distributed", "launch")),
}
GROUPS = {
    f"tests/{folder}/test_{name}.py": shared for shared, (folder, names) in SHARING.items() for name in names
}


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true"}


class ByFile(LoadScopeScheduling):
    """The files of a parallel run, each in one process, and all that share an engine in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)  # without xdist nothing runs in parallel
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Two more than there are cores, for many tests wait for an engine or a socket, and four at most: each of
    them holds torch, and engines run beside."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else min((os.cpu_count() or 1) + 2, 4)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """The files in the order of collection, in which the long ones come first."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without looking for garbage: what is imported and collected lives to the end, a million objects, which
    every search would go through anew, in each process."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a parallel run the long files first: after a long one at the end, all other processes would wait."""
    if not hasattr(config, "workerinput"):
        return
    ranks: dict[str, int] = {}
    for item in items:
        group, rank = _group(item.nodeid), _rank(item)
        ranks[group] = min(rank, ranks.get(group, rank))
    items.sort(key=lambda item: ranks[_group(item.nodeid)])


def _group(nodeid: str) -> str:
    """What the file of a test shares with others, or the file itself."""
    file = nodeid.partition("::")[0]
    return GROUPS.get(file, file)


def _rank(item: pytest.Item) -> int:
    early = (_group(item.nodeid) in SHARING, *map(item.get_closest_marker, ("e2e", "slow")))
    return next((rank for rank, sign in enumerate(early) if sign), len(early))


@functools.cache
def _missing() -> frozenset[str]:
    """The Debian packages that tests need and this machine lacks."""
    root = Path(__file__).parents[1]
    listed = subprocess.run(
        [root / ".ci" / "needs", "missing", "test"],
        cwd=root,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(listed.stdout.split())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked `needs("PACKAGE")` if this machine lacks that Debian package."""
    for package in [name for mark in item.iter_markers("needs") for name in mark.args]:
        if package in _missing():
            pytest.skip(f"{package} is missing: apt-get install --no-install-recommends {package}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skipped test fails, unless it is marked `gpu`: a skip is a claim nobody checked."""
    report = yield
    if (
        _in_ci()
        and report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("gpu") is None
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where only gpu tests may be: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that skips itself."""
    report = yield
    if _in_ci() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where only gpu tests may be: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
