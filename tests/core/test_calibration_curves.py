"""The picture of a calibration, and the point of its threshold by hand."""

from pathlib import Path

from PIL import Image

from modint_guard.evaluation.calibrate import judged
from modint_guard.evaluation.calibration_curves import Judged, at_threshold, draw_curves
from modint_guard.evaluation.fit_calibration import calibrate
from tests.core.test_calibration import answers

SEEN = Judged([0.9, 0.6, 0.4, 0.2, 0.1], [True, True, False, True, False], 0.4)


def test_the_threshold_s_point_by_hand() -> None:
    assert at_threshold(SEEN) == (1 / 2, 2 / 3)


def test_the_curves_are_drawn_for_every_name(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    assert draw_curves(picture, {"image": SEEN, "text": SEEN})
    with Image.open(picture) as drawn:
        assert drawn.size == (1440, 480)
        assert len(set(drawn.convert("L").resize((60, 20)).tobytes())) > 5


def test_what_is_drawn_is_the_half_that_the_threshold_was_set_on() -> None:
    labelled = answers(200)
    fitted = calibrate(labelled, seed=3)
    seen = judged(labelled, fitted, 3)
    assert (sum(seen.wrong), len(seen.wrong)) == (fitted.positives, fitted.positives + fitted.negatives)
    false, true = at_threshold(seen)
    assert false == fitted.flagged_of_negatives and true >= 0.9
