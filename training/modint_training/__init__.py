"""LoRA training and evaluation of vision-language models."""
