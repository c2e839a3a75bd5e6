"""The probes of a request: its perturbed views, when they are sent, and what comes back.

views.py            every view by name: how a chat is changed to be asked again
probe.py            sends views at once, under one deadline
schedule.py         which views are sent when
teacher_forcing.py  how a view scores a whole answer that was given
reasoning.py        answers of models that reason first, compared without reasoning
regenerate.py       short answers of several words, generated again as a whole
"""
