"""Our risk beside other detectors, on the same answers."""
