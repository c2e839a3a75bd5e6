"""Which words of an answer came from a lie: spans against two simple rules, on composed answers.

cases      what is asked: words, captions of two or three things and JSON records, lied to and told the truth
marks      what is counted: the first mention of what the lie claims, and what each rule marks
lengths    long answers beside inputs that do no harm: how many are flagged, and what their verdicts cost
intervals  exact binomial ones
measure    asks a gateway, and writes the tables
"""
