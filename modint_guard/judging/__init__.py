"""What the replies of the views mean for the answer. Pure: no network, no clock, no randomness.

divergence.py   distances between distributions that are known from top-k lists
scoring.py      compares the answer with each view: flips, influences, noise
text_match.py   compares texts instead, if there are no log-probabilities
self_ask.py     reads what the model itself says about which modality it needs
statistic.py    the one number that a flag rests on
risk.py         the risk of an answer, and the constants of a verdict
null.py         the p-value of an answer among inputs that ought to change nothing
null_file.py    the file in which such scores are kept
calibration.py  risk and threshold fitted for one model, and the file that holds them
verdict.py      from scores to a verdict
explanation.py  a verdict as one sentence
"""
