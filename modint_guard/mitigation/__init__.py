"""What is done about a flagged answer: policies, the rungs of the ladder, and fitted constants."""
