"""A served adapter of which the installed vLLM applies nothing is found before anybody asks it."""

import urllib.request

import pytest

from modint_guard.models import BASE
from tests.e2e.engines import STRAY, readiness

pytestmark = [pytest.mark.e2e, pytest.mark.trains, pytest.mark.needs("libnuma1")]


def test_an_adapter_whose_keys_match_nothing_keeps_the_gateway_from_being_ready(scaled_url: str) -> None:
    """vLLM itself takes it without a word."""
    status, said = readiness(scaled_url)
    with urllib.request.urlopen(f"{scaled_url}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    assert status == 503
    assert said["adapters"][STRAY]["ok"] is False
    assert any(STRAY in reason and "applies nothing of it" in reason for reason in said["reasons"])
    assert f'modint_adapter_selftest_ok{{adapter="{STRAY}",model="{BASE}"}} 0.0' in page
