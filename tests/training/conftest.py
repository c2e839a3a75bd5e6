"""One tokenizer and processor for all tests of the training, and no deadline for properties."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from transformers import PreTrainedTokenizerFast

from modint_guard.models import BASE, bundled
from modint_training.tinyworld import language
from tests.training import forked as forked_runs

settings.register_profile("modint", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modint")


@pytest.fixture(scope="session")
def processor() -> Any:
    """The processor that ships with the base, by its tokenizer: test_language.py trains that again."""
    return language.build_processor(PreTrainedTokenizerFast.from_pretrained(bundled(BASE)))


@pytest.fixture(scope="session")
def forked() -> forked_runs.Run:
    """Runs several processes of a program; what they import is imported once for all that ask for this."""
    return forked_runs.run
