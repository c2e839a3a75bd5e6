"""What the replies mean: divergences, scores, risk, and the verdict that follows from them. Pure."""
