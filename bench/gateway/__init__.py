"""What the gateway costs a request, beside LiteLLM's proxy and no gateway: rate, CPU, added time."""
