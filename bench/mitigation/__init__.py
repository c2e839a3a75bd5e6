"""How well mitigation corrects flagged answers: every rung and the ladder, compared with controls."""
