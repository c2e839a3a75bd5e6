"""Which modality ought to decide, and which text is context: labelled requests, training and measurement."""
