"""A boundary round a step beside the answer: its failure is logged and counted, and costs no answer."""

from collections.abc import Iterator
from contextlib import contextmanager

from modint_server.logs import LOGGER
from modint_server.metrics import Metrics


@contextmanager
def boundary(metrics: Metrics, step: str) -> Iterator[None]:
    """Ends every failure inside the block. `step` is one of `metrics.STEPS`."""
    try:
        yield
    except Exception:  # noqa: BLE001 - the boundary itself
        LOGGER.exception("step_failed", extra={"fields": {"step": step}})
        metrics.step_failed(step)
