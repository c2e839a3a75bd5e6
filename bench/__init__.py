"""The laboratory: every result table and benchmark. It may import everything, nothing imports it, and no
wheel contains it."""
