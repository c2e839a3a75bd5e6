"""Which models a diagnosis asks: served or local, the first and a second beside it; and what is refused."""

from pathlib import Path

import pytest

from modint_guard.errors import ConfigError
from modint_guard.evaluation.targets import Target, labels_of, targets_of, without_user
from modint_guard.models import ADAPTER, BASE

HERE, THERE = "http://127.0.0.1:1", "http://127.0.0.1:2"


def second(first: Target, against: str, against_url: str | None = None) -> Target:
    return targets_of(first, against, against_url)[1]


def test_without_a_second_model_there_is_one() -> None:
    assert targets_of(Target("m", url=HERE)) == [Target("m", url=HERE)]


def test_a_local_second_model_may_be_a_model_an_adapter_or_the_base() -> None:
    assert second(Target(BASE, ADAPTER), "base") == Target(BASE)
    assert second(Target(BASE, ADAPTER), BASE) == Target(BASE)
    assert second(Target(BASE), ADAPTER) == Target(BASE, ADAPTER)


def test_a_local_second_model_may_be_a_folder(tmp_path: Path) -> None:
    for name, file in (("model", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    assert second(Target(BASE), str(tmp_path / "model")) == Target(str(tmp_path / "model"))
    assert second(Target(BASE), str(tmp_path / "adapter")) == Target(BASE, str(tmp_path / "adapter"))


def test_a_served_second_model_is_a_name_at_the_same_endpoint_or_another() -> None:
    assert second(Target("m", url=HERE), "base") == Target("base", url=HERE)  # somebody may call one that
    assert second(Target("m", "a", HERE), "base") == Target("m", url=HERE)
    assert second(Target("m", url=HERE), "m", THERE) == Target("m", url=THERE)


@pytest.mark.parametrize(
    ("first", "against", "said"),
    [
        (Target(BASE), "base", f"--against base compares {BASE} with itself: name another model, adapter or"),
        (Target(BASE), BASE, f"--against {BASE} compares {BASE} with itself"),
        (Target(BASE, ADAPTER), ADAPTER, f"compares {ADAPTER} with itself"),
        (Target("m", url=HERE), "m", "--against m compares m with itself"),
        (Target("m", "a", HERE), "a", "--against a compares a with itself"),
        (
            Target(BASE),
            "nobody",
            "--against nobody names no second model: neither a model or adapter, bundled",
        ),
    ],
)
def test_a_second_model_that_is_none_or_the_first_is_refused(first: Target, against: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        targets_of(first, against)


def test_two_endpoints_of_one_model_are_told_apart() -> None:
    assert labels_of([Target("a"), Target("b")]) == ["a", "b"]
    assert labels_of([Target("a", url=HERE), Target("a", url=THERE)]) == ["a (1)", "a (2)"]
    assert labels_of([Target("a", url=HERE)]) == ["a"]


def test_a_name_and_password_are_left_out_of_an_address() -> None:
    assert without_user("http://me:secret@127.0.0.1:8000/v1") == "http://127.0.0.1:8000/v1"
