"""The training loop: steps, checkpoints, validation, plots."""
