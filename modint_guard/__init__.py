"""The core: what modality interference is, and how it is probed, judged and corrected.

guard.py         start reading here: the whole flow in one call
examination.py   one request: its plan, its probes, its answer
plan.py          what will be done with a request
judge.py         from replies to a report
config.py        the settings of the guard
types.py         the records that pass between the stages, and the names they use
report.py        the records of the `modint` object
schema.py        the published shape of the `modint` object, and its reader
endpoint.py      a client of any OpenAI-compatible server
errors.py        every error, as one tree
cli.py           the `modint-guard` command
chat/            what a request and its reply say
probing/         the perturbed views of a request, and when they are sent
judging/         what the replies of the views mean
mitigation/      what is done about a flagged answer
data/            data sets, items and perturbations
showing/         an answer as people see it
evaluation/      measuring a model on a data set
demo/            the demo
models/          the bundled models

The public names below are imported on first use, so that importing one small module stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modint_guard.chat.images import ImageLimits as ImageLimits
    from modint_guard.config import GuardConfig as GuardConfig
    from modint_guard.endpoint import Endpoint as Endpoint
    from modint_guard.errors import ModintError as ModintError
    from modint_guard.guard import Guard as Guard
    from modint_guard.judging.risk import Thresholds as Thresholds
    from modint_guard.report import Inspection as Inspection
    from modint_guard.report import Report as Report
    from modint_guard.schema import ModintObject as ModintObject
    from modint_guard.schema import verdict as verdict
    from modint_guard.showing.notebook import highlight as highlight
    from modint_guard.types import ModintOptions as ModintOptions
    from modint_guard.types import Relevant as Relevant

_HOME = {
    "Endpoint": "endpoint",
    "Guard": "guard",
    "GuardConfig": "config",
    "ImageLimits": "chat.images",
    "Inspection": "report",
    "ModintError": "errors",
    "ModintObject": "schema",
    "ModintOptions": "types",
    "Relevant": "types",
    "Report": "report",
    "Thresholds": "judging.risk",
    "highlight": "showing.notebook",
    "verdict": "schema",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
