"""The engine behind the gateway: starting vLLM, reaching it, and finding out what it can do."""
