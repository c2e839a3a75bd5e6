"""The published schema of the `modint` object and its typed reader."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from modint_guard import Guard, verdict
from modint_guard.errors import EndpointError
from modint_guard.report import Report, Verdict
from modint_guard.schema import ModintObject, json_schema
from modint_guard.types import JSON, Cause, ProbeOutcome, State
from tests.core.fakes import ask, completion, world

COMMITTED = Path(__file__).parents[2] / "docs" / "schema" / "modint-2.schema.json"
REPORTS = (
    Report(Verdict(State.PASS, risk=0.1)),
    Report(Verdict(State.FLAGGED, cause=Cause.PRIOR), notes=("A note.",)),
    Report(Verdict(State.UNSCORED, reason="timeout")),
    Report(Verdict(State.SKIPPED, reason="no_image")),
)


def test_regenerating_the_committed_schema_changes_nothing() -> None:
    assert json.loads(COMMITTED.read_text()) == json_schema()
    assert COMMITTED.read_text() == json.dumps(json_schema(), indent=2) + "\n"


def test_the_schema_is_a_valid_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.verdict.state.value)
def test_every_state_of_a_report_is_valid(report: Report) -> None:
    jsonschema.validate(report.to_json(), json_schema())


@pytest.mark.parametrize(
    "question", ["What is in the picture?", "It is blue.\nWhat is in the picture?", "What is 2 plus 3?"]
)
async def test_reports_of_the_guard_are_valid(question: str) -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    found = await Guard().inspect(ask(question), model)
    jsonschema.validate(found.report.to_json(), json_schema())


def test_the_schema_names_exactly_the_keys_of_a_report() -> None:
    assert set(json_schema()["properties"]) == set(json_schema()["required"]) == set(REPORTS[0].to_json())


@pytest.mark.parametrize(
    "wrong",
    [{"verdict": "maybe"}, {"risk": 1.5}, {"reason": "tired"}, {"examined": ["sound"]}, {"probes": [{}]}],
)
def test_wrong_values_are_not_valid(wrong: JSON) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**REPORTS[0].to_json(), **wrong}, json_schema())


def test_outcomes_and_states_are_those_of_the_records() -> None:
    text = json.dumps(json_schema())
    assert all(f'"{name}"' in text for name in (*ProbeOutcome, *State, *Cause))


def carriers() -> list[Any]:
    body = {**completion("red"), "created": 1, "model": "m", "modint": REPORTS[0].to_json()}
    chunk = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "modint": REPORTS[0].to_json(),
    }
    return [body, chunk, ChatCompletion.model_validate(body), ChatCompletionChunk.model_validate(chunk)]


@pytest.mark.parametrize(
    "carrier", carriers(), ids=["dict", "chunk dict", "openai completion", "openai chunk"]
)
def test_the_object_is_read_from_whatever_carries_it(carrier: Any) -> None:
    read = verdict(carrier)
    assert isinstance(read, ModintObject)
    assert (read.verdict, read.risk, read.schema_version) == ("pass", 0.1, "2")
    assert read.model_dump(mode="json", by_alias=True) == REPORTS[0].to_json()


@pytest.mark.parametrize("without", [{}, completion("red"), object(), None, "red"])
def test_without_the_object_there_is_none(without: Any) -> None:
    assert verdict(without) is None


def test_unknown_keys_of_a_later_version_are_passed_over() -> None:
    assert verdict({"modint": {**REPORTS[0].to_json(), "later": 1}}) is not None


def test_an_object_of_another_schema_is_refused() -> None:
    with pytest.raises(EndpointError, match="not of schema 2 \\(at `verdict`\\)"):
        verdict({"modint": {**REPORTS[0].to_json(), "verdict": 3}})
