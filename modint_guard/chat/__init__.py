"""What a chat request and its reply say: how they are checked, read and rewritten. No probing, no judging.

body.py             the check of a body's shape and of the media in it
parts.py            content parts in one form, whatever name clients give them
request.py          splits a body into images, context and question
question.py         splits one text into question and context, by rules
learnt_split.py     divides a request by the learnt splitter, starting from the rules
splitter.py         the chain of labels, context or not, and the file of its weights
split_features.py   what it sees of a request
tokens.py           cuts texts into tokens, clauses and sentences
question_words.py   what kind of word a word is
asides.py           finds what a question states within its own sentence
option_block.py     finds the options of a question
system_prompt.py    finds the facts that a system prompt states
images.py           reads data URLs; makes the neutral image
rebuild.py          writes a body with its context, images or texts replaced
options.py          the `modint` field and headers of a request
eligibility.py      which requests are not probed, and why
relevance.py        which modality ought to decide the answer
named_modality.py   what a question itself says ought to decide
concepts.py         what a text speaks of, in some twenty languages
linear.py           the classifier of relevance, and the file of its weights
ngrams.py           hashes of the pieces of a text
relevance_rules.py  the same, by rules that are configured
rule_files.py       what relevance rules and mitigation policies share: matching, and their TOML files
responses.py        the Responses API in terms of chat
thoughts.py         tells an answer from the thoughts before it
reply.py            reads a completion or a stream
"""
