"""Adapter folders: finding, reading, checking and repairing them before an engine serves them."""
