"""One request on its way through the gateway, from its bytes to its answer."""
