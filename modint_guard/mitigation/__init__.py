"""What is done about a flagged answer.

policy.py   which action a request gets, and which rungs the ladder tries
ladder.py   tries the rungs in order, within a budget of tokens and time
rungs.py    what each rung does to get another answer
fitted.py   constants fitted on a validation split
"""
