"""TinyWorld: the generated task suite of the demo model, its language and its architecture."""
