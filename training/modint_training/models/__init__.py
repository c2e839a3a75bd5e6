"""Models on this machine: loading a base, running it, exporting what was trained."""
