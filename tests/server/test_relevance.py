"""Which modality ought to decide where the client does not say: configured rules, the model's own word."""

from pathlib import Path
from typing import Any

import pytest

from modint_guard.errors import ConfigError
from modint_server.app import create_app
from modint_server.settings import Settings
from tests.server.conftest import Running, chat, serving
from tests.server.fake_upstream import Answer, FakeUpstream, misled, text_of

RULES = '[[rule]]\nrelevant = "text"\nmodel = "tinyworld-*"\nquestion = "colour"\n'


async def judged(gateway: Running, **modint: Any) -> dict[str, Any]:
    report: dict[str, Any] = (await gateway.post(chat(modint=modint))).json["modint"]
    return report


async def test_a_configured_rule_decides_and_the_client_comes_before_it(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    async with serving(upstream.url, relevance_rules_file=file) as gateway:
        ruled = await judged(gateway)
        report = await judged(gateway, relevant="image")
    assert (ruled["relevant"], ruled["relevant_source"]) == ("text", "route")
    assert (report["relevant"], report["relevant_source"]) == ("image", "request")


def test_a_bad_file_of_rules_stops_the_process_at_its_start(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES.replace("text", "sound"))
    with pytest.raises(ConfigError, match="rule 1: relevant is 'sound'"):
        create_app(Settings(relevance_rules_file=file))


async def test_the_model_is_asked_where_nobody_knows_and_its_call_is_counted(upstream: FakeUpstream) -> None:
    def script(body: dict[str, Any]) -> Answer:
        if "Does answering need the picture?" in text_of(body):
            return Answer("yes", {"yes": 0.95, "no": 0.04})
        return misled(body)

    upstream.script = script
    body = chat(modint={})
    body["messages"][0]["content"][2]["text"] = "Say more."  # names nothing
    async with serving(upstream.url, self_ask="auto") as gateway:
        report = (await gateway.post(body)).json["modint"]
        labels = {"model": "tinyworld-base", "adapter": "none", "relevant": "image", "probe": "self_ask"}
        counted = gateway.value("modint_probe_results_total", **labels, outcome="undecided")
    assert (report["relevant"], report["relevant_source"], report["cause"]) == ("image", "self_ask", "text")
    assert counted == 1.0
