"""A calibration: fitted, promised, written, read again, and refused where it does not belong."""

import json
from pathlib import Path

import numpy as np
import pytest

from modint_guard import Guard, GuardConfig
from modint_guard.errors import ConfigError
from modint_guard.evaluation.fit_calibration import calibrate, halves, lowered, write_calibration
from modint_guard.judging.calibration import (
    Calibration,
    Labelled,
    check_for,
    read_calibration,
)
from modint_guard.judging.risk import FEATURES
from modint_guard.types import CELLS, JSON, Relevant
from tests.core.fakes import ask, fitted, world


def answers(count: int, seed: int = 0, share: float = 0.4, per_source: int = 1) -> list[Labelled]:
    """Synthetic answers: positives move far, negatives little, with overlap."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        bad = bool(rng.random() < share)
        moved = float(rng.beta(5, 2) if bad else rng.beta(2, 5))
        features = dict.fromkeys(FEATURES, 0.0) | {"js": moved, "margin": 2 * moved - 1}
        found.append(Labelled(features, not bad, True, f"source-{index // per_source}"))
    return found


def made(**changes: object) -> Calibration:
    return Calibration.model_validate({"model": "m", "fitted": {"image": fitted(flag_at=0.2)}, **changes})


def test_a_calibration_keeps_its_miss_rate_on_answers_it_has_not_seen() -> None:
    new = [a for a in answers(20_000, seed=99) if a.positive]
    missed = []
    for seed in range(60):
        found = calibrate(answers(200, seed=seed), alpha=0.1, seed=seed)
        z = np.array([found.bias + sum(found.weights[n] * a.features[n] for n in FEATURES) for a in new])
        missed.append(float((1 / (1 + np.exp(-z)) < found.flag_at).mean()))
    assert np.mean(missed) <= 0.1 + 3 * np.std(missed) / np.sqrt(len(missed))


def test_what_is_stored_says_how_it_was_made() -> None:
    found = calibrate(answers(400), alpha=0.1)
    (promise,) = found.promises
    assert (promise.kind, promise.alpha, promise.n) == ("miss", 0.1, found.positives)
    assert found.flag_at <= promise.flag_at
    assert found.positives + found.negatives == 200  # the half that the risk was not fitted on
    assert 0.8 < found.auroc < 1.0
    assert 0.3 < found.feasible_flags < 0.4
    assert min(found.weights.values()) >= 0.0


def test_a_threshold_is_lowered_where_that_flags_no_further_negative() -> None:
    risks, positive = [0.1, 0.3, 0.5, 0.6, 0.8, 0.9], [False, False, True, True, False, True]
    assert lowered(0.6, risks, positive) == pytest.approx(0.4)  # between 0.3 and 0.5
    assert lowered(0.9, risks, positive) == pytest.approx(0.85)
    assert lowered(0.3, risks, positive) == pytest.approx(0.2)  # no positive to gain: still above 0.1
    plain = calibrate(answers(400), alpha=0.1)
    at_most = plain.promises[0].flag_at
    _, setting = halves(answers(400), 0)
    between = [a for a in setting if plain.flag_at <= plain.risk(a) < at_most]
    assert all(a.positive for a in between)


def test_a_second_promise_can_only_lower_the_threshold() -> None:
    found = calibrate(answers(2000), alpha=0.1, error=0.1, delta=0.1)
    assert [promise.kind for promise in found.promises] == ["miss", "error"]
    assert found.flag_at == found.promises[1].flag_at <= found.promises[0].flag_at


def test_a_promise_that_no_threshold_keeps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no threshold keeps the error among unflagged answers at 0.001"):
        calibrate(answers(200), alpha=0.1, error=0.001, delta=0.05)


def test_too_few_positives_are_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"positives are too few for a miss rate of 0.05: at least 19"):
        calibrate(answers(40), alpha=0.05)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_kinds_of_answers_are_needed(share: float) -> None:
    with pytest.raises(ConfigError, match="both kinds are needed in each half"):
        calibrate(answers(100, share=share))


def test_answers_wrong_on_both_are_reported_apart_and_never_fitted() -> None:
    extra = [Labelled(dict.fromkeys(FEATURES, 9.0), False, False, "x")] * 5
    extra += [Labelled(dict.fromkeys(FEATURES, 9.0), True, False, "x")] * 2
    plain, with_them = calibrate(answers(400)), calibrate([*answers(400), *extra])
    assert (with_them.wrong_on_both, with_them.right_only_when_disturbed) == (5, 2)
    assert (with_them.bias, with_them.flag_at) == (plain.bias, plain.flag_at)


def test_one_source_never_serves_both_fit_and_threshold() -> None:
    found = calibrate(answers(400, per_source=4))
    assert (found.positives + found.negatives) % 4 == 0


def test_a_calibration_is_deterministic() -> None:
    assert calibrate(answers(300), seed=4) == calibrate(answers(300), seed=4)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "m.json"
    write_calibration(file, made(adapter="a", command="calibrate"))
    assert read_calibration(file) == made(adapter="a", command="calibrate")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text[:-30], "is not valid JSON"),
        (lambda text: text.replace("0.2", "0.3", 1), "does not match its digest: it was damaged or edited"),
        (
            lambda text: text.replace("modint-calibration-1", "modint-calibration-9"),
            "is not a calibration of the format",
        ),
        (lambda text: "[]", "is not a calibration of the format"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, spoil: object, said: str) -> None:
    file = tmp_path / "m.json"
    write_calibration(file, made())
    file.write_text(spoil(file.read_text()))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=said) as caught:
        read_calibration(file)
    assert str(file) in str(caught.value)


def test_a_file_with_a_true_digest_but_wrong_content_is_refused(tmp_path: Path) -> None:
    import hashlib

    content = {**made().model_dump(mode="json"), "model": ""}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    file = tmp_path / "m.json"
    file.write_text(json.dumps({**content, "sha256": digest}))
    with pytest.raises(ConfigError, match="is not valid at `model`"):
        read_calibration(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_calibration(tmp_path / "none.json")


MODELS = {"m": None, "a": "m"}


@pytest.mark.parametrize("adapter", [None, "a"])
def test_a_calibration_for_a_served_model_is_taken(adapter: str | None) -> None:
    check_for(made(adapter=adapter), Path("c.json"), models=MODELS, probes=CELLS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "n"}, "made for n, but these are served: a, m"),
        ({"adapter": "b"}, "made for m with the adapter b"),
        ({"model": "n", "adapter": "a"}, "made for n with the adapter a"),
        ({"model": "a"}, "made for a"),
        ({"probes": ["no_context", "noise"]}, "needs the probe noise"),
    ],
)
def test_a_calibration_for_another_model_or_probe_set_is_refused(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_for(made(**changes), Path("c.json"), models=MODELS, probes=CELLS)


def with_text(completion: JSON, text: str) -> JSON:
    choice = completion["choices"][0]
    return {**completion, "choices": [{**choice, "message": {"role": "assistant", "content": text}}]}


LIE = "The ball is blue.\nWhat colour is the ball in the picture?"


async def test_a_guard_with_a_calibration_says_so_for_its_model_alone() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    guard = Guard(calibrations=[made()])
    found = (await guard.inspect(ask(LIE), model)).report
    # -1 + 4 * JS, and flagged from 0.2 on
    (row,) = (row for row in found.probes if row.name == "no_context")
    assert row.divergence is not None and found.verdict.risk is not None
    assert found.verdict.risk == pytest.approx(1 / (1 + np.exp(1 - 4 * row.divergence)))
    assert (found.verdict.cause, found.verdict.calibrated) == ("text", True)
    other = (await guard.inspect({**ask(LIE), "model": "n"}, model)).report
    assert not other.verdict.calibrated
    text = (await guard.inspect({**ask(LIE), "modint": {"relevant": "text"}}, model)).report
    assert not text.verdict.calibrated  # fitted for image alone


async def test_a_calibration_of_another_method_is_not_used() -> None:
    model = world(both="blue", image="red", text="blue", neither="round")
    guard = Guard(GuardConfig(), calibrations=[made(method="teacher_forced")])
    assert not (await guard.inspect(ask(LIE), model)).report.verdict.calibrated


async def test_no_promise_covers_a_longer_answer_that_is_judged_at_its_first_word() -> None:
    calls: list[JSON] = []
    one_word = world(both="blue", image="red", text="blue", neither="round")

    async def longer(body: JSON) -> JSON:
        calls.append(body)
        answered = await one_word(body)
        return with_text(answered, f"{answered['choices'][0]['message']['content']} it is")

    fitted = made().fitted["image"].model_copy(update={"clear_below": 0.1})
    guard = Guard(calibrations=[made(fitted={"image": fitted})])
    short = (await guard.inspect(ask(LIE), one_word)).report
    found = (await guard.inspect(ask(LIE), longer)).report
    assert (short.verdict.calibrated, found.verdict.calibrated) == (True, False)
    assert (found.verdict.state, found.verdict.cause) == (short.verdict.state, short.verdict.cause)
    assert found.verdict.risk == short.verdict.risk and len(calls) == 2  # flagged on the first view
    assert any("first word" in note for note in found.notes)


def test_what_was_fitted_is_for_one_modality() -> None:
    found = made().fitted_for(Relevant.IMAGE)
    assert found is not None and found.weights["js"] == 4.0
    assert made().fitted_for(Relevant.TEXT) is made().fitted_for(Relevant.BOTH) is None
