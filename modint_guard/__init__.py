"""modint-guard: find out whether a vision-language model answered from the wrong modality."""
