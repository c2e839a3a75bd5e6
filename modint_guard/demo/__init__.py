"""`modint-guard demo`: the main job on a small model, with a contact sheet."""
