"""Mitigation measured: every rung and the ladder against controls, through the real engine."""
