"""The OpenAI-compatible gateway in front of vLLM: forwards the answer, probes it, says what drove it."""
