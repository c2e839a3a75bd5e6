"""How well the risk detects wrong answers, compared with other detectors on the same answers."""
