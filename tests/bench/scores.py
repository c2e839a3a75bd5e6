"""Where `make bench-calibration` puts the scores that the test of coverage draws from."""

from pathlib import Path

SCORES = Path(__file__).with_name("calibration_scores.jsonl")
