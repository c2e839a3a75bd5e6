"""What a chat request and its reply say: how they are checked, read and rewritten. No probing, no judging.

body.py             the check of a body's shape and of the media in it
request.py          splits a body into images, context and question
splitting.py        tells context from question, clause by clause
units.py            cuts a text into clauses
sentences.py        the sentences of a text, and the options a question lists
option_block.py     finds the options of a question
images.py           reads data URLs; makes the neutral image
rebuild.py          writes a body with its context, images or texts replaced
options.py          the `modint` field and headers of a request
eligibility.py      which requests are not probed, and why
relevance.py        which modality ought to decide the answer
concepts.py         what a text speaks of, in some twenty languages
linear.py           the two classifiers, and the file of their weights
ngrams.py           hashes of the pieces of a text
relevance_rules.py  what ought to decide, by rules that are configured
rule_files.py       what relevance rules and mitigation policies share: matching, and their TOML files
reply.py            reads a completion or a stream
"""
