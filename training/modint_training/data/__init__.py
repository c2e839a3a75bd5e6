"""From data sets to batches: reading, perturbed twins, encoding, sampling."""
