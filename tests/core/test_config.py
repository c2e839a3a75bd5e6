"""Settings that make no sense stop the process; errors say what an envelope needs."""

from collections.abc import Callable

import pytest

import modint_guard
from modint_guard.chat.images import ImageLimits
from modint_guard.config import GuardConfig
from modint_guard.errors import ConfigError, ImageError, ModintError, RequestError
from modint_guard.judging.risk import Thresholds


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Thresholds(sure=1.5), "sure is 1.5"),
        (lambda: Thresholds(negligible=-1.0), "negligible is -1.0"),
        (lambda: Thresholds(flip_margin=-0.1), "flip_margin is -0.1"),
        (lambda: Thresholds(min_probability=0.0), "min_probability is 0.0"),
        (lambda: ImageLimits(max_pixels=0), "max_pixels is 0"),
        (lambda: GuardConfig(deadline_s=0), "deadline_s is 0"),
        (lambda: GuardConfig(deadline_s=61), "at most 60"),
        (lambda: GuardConfig(max_deadline_s=61), "max_deadline_s is 61: it must be above 0 and at most 60"),
        (lambda: GuardConfig(top_logprobs=1), "top_logprobs is 1"),
        (lambda: GuardConfig(view_tokens=0), "view_tokens is 0"),
        (lambda: GuardConfig(max_probes=2), "max_probes is 2"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_request_error_makes_the_envelope() -> None:
    error = RequestError("`n` is odd.", param="n", code="odd", status=422)
    assert error.envelope() == {
        "error": {"message": "`n` is odd.", "type": "invalid_request_error", "param": "n", "code": "odd"}
    }
    assert (str(error), error.status) == ("`n` is odd.", 422)
    assert isinstance(ImageError("no image"), RequestError) and isinstance(error, ModintError)


def test_every_public_name_loads_on_first_use() -> None:
    assert all(getattr(modint_guard, name) is not None for name in modint_guard.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = modint_guard.nothing
