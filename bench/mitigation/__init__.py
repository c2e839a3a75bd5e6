"""Every rung of the mitigation ladder against controls."""
