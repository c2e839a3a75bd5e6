"""Whether a null holds: its flags on harmless inputs unlike those that it was taken from, and on lies.

inputs      what is asked: two halves that share no kind of input, no wording, no form of question; and lies
vocabulary  the words in which long answers go on
measure     asks a gateway, and keeps what its verdicts are made from
table       takes the null from the one half, and judges the other one and the lies by it
"""
