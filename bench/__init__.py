"""The laboratory: every result table and benchmark. Imports everything; nothing imports it; in no wheel."""
