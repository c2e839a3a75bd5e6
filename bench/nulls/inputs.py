"""What the null is taken from, and what it is tried on: harmless inputs in two halves, and lies.

The halves share no picture, no kind of input, no wording of questions and no form of question:

        made from                                   tested on
inputs  unrelated sentences, one to twelve, planted  true captions, other unrelated sentences; beside a
        as the product plants them; a sentence that question about a text a picture that fits, one that
        says nothing; unreadable text               does not, noise, a screen
words   those that the model was trained on         those kept out of its training
forms   lettered, open, one of several              yes or no, of which kind, described, and all about a text

Each answer is about an item of its own, so that no two scores have one source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from bench.spans.lengths import LENGTHS, of_length
from modint_guard.data.item import RELEVANT, Family, Item
from modint_guard.data.perturb import perturb, seeded
from modint_guard.evaluation.planting import Planted, harmless, lying
from modint_guard.evaluation.runner import request_for
from modint_guard.guard import Guard
from modint_guard.types import JSON, MAX_DEADLINE_S, Relevant
from modint_training.picturebook import suite as picturebook

Half = Literal["null", "tested"]
NULL: Half = "null"
TESTED: Half = "tested"
HALVES = (NULL, TESTED)
SHORT = (1, 5)  # tokens, at most: answers to questions that ask for a word, which can be right
TOKENS = (*SHORT, *LENGTHS)
TEMPERATURES = (0, 1)
# Times as many short answers, and such as make the null: those that turn out wrong count for nothing.
MORE = 2
PLANTED, CAPTION = "planted lie", "lying caption"
LIES = (PLANTED, CAPTION)
LIED_ABOUT = ("open", "yes_no", "lettered", "which_of", "category")

# The forms of questions (the world's sub-tasks) that the base can answer, by half and family: for answers of
# one token, of five, and of more.
_FORMS: dict[tuple[Half, Family], tuple[tuple[str, ...], ...]] = {
    (NULL, "image-heavy"): (("lettered",), ("open", "which_of"), ("open", "which_of")),
    (TESTED, "image-heavy"): (("yes_no",), ("category",), ("describe", "category")),
    (TESTED, "text-heavy"): (
        *(("colour", "price"), ("deed", "in_spot", "passage", "owner")),
        ("deed", "message", "boxes", "where"),
    ),
}
_FACTS, _UNRELATED = "unrelated sentences", "other unrelated sentences"
# What is beside the questions, by turns, and their family.
_KINDS: dict[Half, tuple[tuple[str, Family], ...]] = {
    NULL: ((_FACTS, "image-heavy"), ("neutral_text", "image-heavy"), ("ocr_noise", "image-heavy")),
    TESTED: (
        *(("true_description", "image-heavy"), ("agreeing_image", "text-heavy")),
        *((_UNRELATED, "image-heavy"), ("irrelevant_image", "text-heavy")),
        *(("true_description", "image-heavy"), ("noise", "text-heavy")),
        *((_UNRELATED, "image-heavy"), ("screenshot", "text-heavy")),
    ),
}
_APART = 100_000  # numbers of items between two groups: their items have seeds of their own
_UNSEEN = replace(picturebook.NOTHING, wording=True, captions=True)


@dataclass(frozen=True)
class HarmlessCase:
    """A question with something beside it that ought to change nothing.

    item: with that beside it, unless it is planted into the request (`body`). tokens: of the answer, at
    most in SHORT, exactly in LENGTHS. number: of the case within its half, temperature and length.
    """

    half: Half
    kind: str
    temperature: int
    tokens: int
    number: int
    item: Item

    @property
    def key(self) -> str:
        """A name that no other case has."""
        return f"{self.half}/{self.temperature}/{self.tokens} tokens/{self.number}"

    @property
    def goes_on(self) -> bool:
        """Whether its answer is made to go on behind its end."""
        return self.tokens in LENGTHS

    def body(self, model: str, seed: int, vocabulary: Sequence[int]) -> JSON:
        """The request. Draws pictures, which takes some milliseconds. vocabulary: the tokens in which a long
        answer goes on.
        """
        goes_on: JSON = {**of_length(self.tokens), "allowed_token_ids": list(vocabulary)}
        length: JSON = goes_on if self.goes_on else {"max_tokens": self.tokens}
        body = _request(self.item, model, **length, temperature=self.temperature, seed=self.number)
        if self.kind != _FACTS:
            return body
        planted = harmless(Guard().plan(body).chat, Relevant.IMAGE, None, seeded("planted", seed, self.key))
        assert planted is not None  # beside a question about a picture something always fits
        return _with_planted(body, planted)


@dataclass(frozen=True)
class LieCase:
    """A question about a picture, asked without anything beside it and with a lie. item: without."""

    kind: str
    number: int
    item: Item

    @property
    def key(self) -> str:
        """A name that no other case has."""
        return f"{self.kind}/{self.number}"

    def clean_body(self, model: str) -> JSON:
        """The request without a lie."""
        return _request(self.item, model, max_tokens=max(SHORT))

    def body(self, model: str, alone: str, seed: int) -> JSON | None:
        """The request with a lie; None if none can be made up. alone: what the model says without one."""
        body = self.clean_body(model)
        if self.kind == CAPTION:
            lied_to = perturb(self.item, "misleading_description", seed=seed)
            return _request(lied_to, model, max_tokens=max(SHORT))
        planted = lying(Guard().plan(body).chat, Relevant.IMAGE, alone, seeded("planted", seed, self.key))
        return None if planted is None else _with_planted(body, planted)


def harmless_cases(count: int, seed: int) -> Iterator[HarmlessCase]:
    """`count` long answers of the tested half for each length and temperature, and MORE times as many of all
    others. A larger count adds to the cases of a smaller one.
    """
    for group, (half, tokens, temperature) in enumerate(product(HALVES, TOKENS, TEMPERATURES)):
        for number in range(count if half == TESTED and tokens in LENGTHS else MORE * count):
            turn, place = divmod(number, len(_KINDS[half]))
            kind, family = _KINDS[half][place]
            forms = _FORMS[half, family][min(TOKENS.index(tokens), len(SHORT))]
            item = _item(half, family, forms[turn % len(forms)], group * _APART + number, seed)
            beside = _with_harmless(item, kind, seed)
            yield HarmlessCase(half, kind, temperature, tokens, number, beside)


def lie_cases(count: int, seed: int) -> Iterator[LieCase]:
    """Questions in wordings kept out of training, MORE times `count` for each kind of lie."""
    for group, kind in enumerate(LIES, len(HALVES) * len(TOKENS) * len(TEMPERATURES)):
        for number in range(MORE * count):
            task = LIED_ABOUT[number % len(LIED_ABOUT)]
            yield LieCase(kind, number, _item(TESTED, "image-heavy", task, group * _APART + number, seed))


def _item(half: Half, family: Family, task: str, index: int, seed: int) -> Item:
    """An item of the split and in the wordings of its half, with nothing beside it."""
    if half == NULL:
        return picturebook.item(family, "validation", index, seed=seed, task=task)
    return picturebook.item(family, "test", index, seed=seed, unseen=_UNSEEN, task=task)


def _with_harmless(clean: Item, kind: str, seed: int) -> Item:
    if kind == _FACTS:
        return clean
    if kind == _UNRELATED:
        rng = seeded("unrelated", seed, clean.id)
        return clean.replace(context=picturebook.unrelated(rng, held_out=True), perturbation=kind)
    return perturb(clean, kind, seed=seed)


def _request(item: Item, model: str, **fields: Any) -> JSON:
    """The request, which names what is relevant. Log-probabilities tell how many tokens an answer has."""
    options = {"relevant": RELEVANT[item.family], "deadline_s": MAX_DEADLINE_S}
    return request_for(item, model, logprobs=True, top_logprobs=1, modint=options, **fields)


def _with_planted(body: JSON, planted: Planted) -> JSON:
    """The request with what was planted, which it names as context, as the product does."""
    return {**body, **planted.body, "modint": {**body["modint"], "context": planted.context}}
