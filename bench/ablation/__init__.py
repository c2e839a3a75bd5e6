"""Which part of the training method does what: adapters trained without each part, measured alike."""
