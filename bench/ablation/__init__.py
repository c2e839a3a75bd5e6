"""The effect of each part of the training method: adapters trained with and without it, measured the same
way."""
