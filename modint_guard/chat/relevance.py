"""Which modality ought to decide the answer.

The first of these that says so decides: the request or its header; a configured rule that matches
(`relevance_rules`); the question, if it names a modality (`named_modality`); a classifier of the request's
words, if it is sure enough; if `self_ask` is on, the model
itself, which is asked for one word (`SELF_ASK`). Otherwise the relevance is unknown.

The classifier gives a probability to "image", "text", "both" and "neither". It counts words, character
n-grams and concepts (`concepts`) of question, context and system prompt, and looks at where the context
stands and what it shares with the question. Its weights are fitted on labelled requests in many languages
(bench/relevance). "text" is not possible where nothing but the question is text, unless the question holds
numbers of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modint_guard.chat.concepts import concepts_in
from modint_guard.chat.linear import Features, Linear, collect, flag_buckets, pair_buckets, shipped_classifier
from modint_guard.chat.named_modality import by_wording, says_picture_is_poor
from modint_guard.chat.ngrams import Hashes, TextHashes, buckets, text_hashes
from modint_guard.chat.relevance_rules import RelevanceRule, by_configured_rules
from modint_guard.types import Chat, ModintOptions, Relevant, RelevantSource

SELF_ASK = "Does answering need the picture?"
LABELS = ("image", "text", "both", "neither")
# From this probability on that the other modality does not matter, an answer may be flagged for following it,
# though it is unknown what ought to decide. Of the requests to learn from that reach it, nine in ten are so.
_OTHER_DOES_NOT_MATTER = 0.8
_AGREES = 0.7  # the least probability of `image` at which a named picture counts: captions can need both
_MAX_QUESTION, _MAX_CONTEXT, _MAX_PROMPT = 1500, 3000, 600  # characters that are read
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LONG_WORD = 4
_MANY_SHARED = 0.4
_QUOTES = '"“«„「'
_TELLING = frozenset({"claim", "picture", "limit", "doc", "textnoun"})  # of a context, looked at in pairs


@dataclass(frozen=True, slots=True)
class Relevance:
    """What ought to decide, who says so, and, if it is the classifier, with which probability.

    likely: if it is unknown, the probability that each modality alone ought to decide. supposed: what answers
    are judged by then: the modality beside which the other very likely does not matter, or UNKNOWN.
    """

    relevant: Relevant
    source: RelevantSource
    probability: float | None = None
    likely: Mapping[Relevant, float] = field(default_factory=dict)
    supposed: Relevant = Relevant.UNKNOWN


def decide(
    chat: Chat, options: ModintOptions | None = None, rules: Iterable[RelevanceRule] = ()
) -> Relevance:
    """Which modality ought to decide, and who said so: "request", "header", "route" (a configured rule),
    "rules" (the question names it), "classifier", or "none" if it is unknown.
    """
    options = options or ModintOptions()
    if options.relevant is not None:
        return Relevance(options.relevant, options.relevant_source or "request")
    configured = by_configured_rules(rules, str(chat.body.get("model") or ""), chat.question)
    if configured is not None:
        return Relevance(configured, "route")
    return guess(chat, label_probabilities(chat, shipped_classifier().model), shipped_classifier().limits)


def guess(chat: Chat, probabilities: Mapping[str, float], limits: Sequence[float]) -> Relevance:
    """What the question names, if the classifier does not speak against it; else what the classifier says.
    Where that is the picture, but the context says that it is hard to read, both are needed, by the rules.
    """
    named, is_poor = by_wording(chat.question, chat.context), says_picture_is_poor(chat.context)
    if named is not None and (named is not Relevant.IMAGE or probabilities["image"] >= _AGREES):
        return Relevance(Relevant.BOTH if is_poor and named is Relevant.IMAGE else named, "rules")
    label = believed(probabilities, limits)
    if label == "image" and is_poor:
        return Relevance(Relevant.BOTH, "rules")
    in_context = _is_of_the_context(chat)
    if label is None or (label == "image" and in_context):
        likely = {each: probabilities[each.value] for each in (Relevant.IMAGE, Relevant.TEXT)}
        supposed = beside_what_does_not_matter(probabilities)
        if supposed is Relevant.IMAGE and (is_poor or in_context):
            supposed = Relevant.UNKNOWN
        return Relevance(Relevant.UNKNOWN, "none", likely=likely, supposed=supposed)
    return Relevance(Relevant(label), "classifier", round(probabilities[label], 4))


def beside_what_does_not_matter(probabilities: Mapping[str, float]) -> Relevant:
    """The likelier modality, if the other very likely does not matter: it alone ought to decide, or neither
    does. UNKNOWN if that is not so, or if neither is likelier still.
    """
    likelier = max((Relevant.IMAGE, Relevant.TEXT), key=lambda each: probabilities[each.value])
    alone, neither = probabilities[likelier.value], probabilities["neither"]
    does_not_matter = alone > neither and alone + neither >= _OTHER_DOES_NOT_MATTER
    return likelier if does_not_matter else Relevant.UNKNOWN


def _is_of_the_context(chat: Chat) -> bool:
    """Whether the context has many of the question's longer words: it may well be what is asked about. Of the
    requests to learn from that look so, and like ones of the picture, three in ten are not.
    """
    asked = text_hashes(_ends(chat.question, _MAX_QUESTION))
    given = text_hashes(_ends(chat.context or "", _MAX_CONTEXT))
    return _share(asked.words[asked.lengths >= _LONG_WORD], given.words) >= _MANY_SHARED


def believed(probabilities: Mapping[str, float], limits: Sequence[float]) -> str | None:
    """The likeliest of LABELS if it is a modality and likely enough to be believed. limits: the least
    probability of each of LABELS.
    """
    label = max(probabilities, key=lambda name: probabilities[name])
    is_believed = label != "neither" and probabilities[label] >= limits[LABELS.index(label)]
    return label if is_believed else None


def label_probabilities(chat: Chat, model: Linear) -> dict[str, float]:
    """The probability of each of LABELS; they sum to 1."""
    values = model.probabilities(features_of(chat)) * where_possible(chat)
    return {label: float(value) / float(values.sum()) for label, value in zip(LABELS, values, strict=True)}


def where_possible(chat: Chat) -> NDArray[np.float64]:
    """For each of LABELS 1 if it is possible, else 0: no text can decide where nothing but the question and
    its options is text, unless the question states numbers of its own; and no picture where there is none.
    """
    text = chat.context is not None or len(_NUMBER.findall(chat.question)) >= 2
    return np.array([bool(chat.images), text, bool(chat.images), True], np.float64)


def features_of(chat: Chat) -> Features:
    """What the classifier sees of a request."""
    question, context = _ends(chat.question, _MAX_QUESTION), _ends(chat.context or "", _MAX_CONTEXT)
    prompt = _ends(_system_prompt(chat), _MAX_PROMPT)
    asked, given, told = text_hashes(question), text_hashes(context), text_hashes(prompt)
    has_context = int(chat.context is not None)
    words = [
        *((grams, 100 + place, 0.7) for place, grams in enumerate(asked.grams)),
        *((grams, 110 + place + 5 * has_context, 0.5) for place, grams in enumerate(asked.grams)),
        *((grams, 140 + place, 0.4) for place, grams in enumerate(given.grams)),
        (asked.words, 120, 0.8),
        (asked.words, 122 + has_context, 0.6),
        (asked.pairs, 124, 0.5),
        (asked.words[:1], 126 + has_context, 0.4),
        (given.words, 150, 0.6),
        (given.words[:3], 151, 0.4),
        (given.pairs, 152, 0.3),
        (told.words, 160, 0.4),
        (told.grams[1], 161, 0.3),
    ]
    single, paired = _flags(chat, question, context, prompt, asked, given)
    flags = [(flag_buckets(sorted(single), 3), 2.4), (pair_buckets(sorted(paired), 2), 2.4)]
    return collect([*((buckets(hashes, salt), weight) for hashes, salt, weight in words), *flags])


def _flags(
    chat: Chat, question: str, context: str, prompt: str, asked: TextHashes, given: TextHashes
) -> tuple[set[str], set[str]]:
    """Named features, and those of them that are looked at in pairs."""
    asks, says = concepts_in(question[-700:]), set(concepts_in(context[:600]))
    flags = {
        "picture" if chat.images else "no_picture",
        "context" if chat.context is not None else "no_context",
        f"question_length_{min(int(np.log2(len(question) + 1)), 8)}",
        f"numbers_asked_{min(len(_NUMBER.findall(question)), 4)}",
        f"numbers_given_{min(int(np.log2(len(_NUMBER.findall(context)) + 1)), 3)}",
        *(f"at_{place}" for place in _places(chat)),
        *(["mark"] if any(mark in question for mark in "?？؟") else []),
        *(["options"] if chat.options else []),
        *(["quote"] if any(mark in context for mark in _QUOTES) else []),
        *(["lines"] if "\n" in context.strip() else []),
    }
    if chat.context is not None:
        flags |= {
            f"context_length_{min(int(np.log2(len(chat.context) + 1)), 9)}",
            f"context_size_{min(int(np.log2(len(chat.context) + 1) / 2), 5)}",
            *_shared(question, context, asked, given),
        }
    named = {f"asks_{name}" for name in asks} or {"asks_nothing"}
    paired = flags | named | {f"says_{name}" for name in says & _TELLING}
    single = flags | named | {f"says_{name}" for name in says}
    single |= {f"told_{name}" for name in concepts_in(prompt)}
    single |= {f"first_{name}" for name in asks[:1]} | {f"last_{name}" for name in asks[-1:]}
    return single, paired


def _shared(question: str, context: str, asked: TextHashes, given: TextHashes) -> set[str]:
    """What the question has in common with the context."""
    long_words = asked.words[asked.lengths >= _LONG_WORD]
    words, grams = _share(long_words, given.words), _share(asked.grams[1], given.grams[1])
    numbers = set(_NUMBER.findall(question)) & set(_NUMBER.findall(context))
    return {
        f"words_shared_{int(words * 5)}",
        "some_shared" if words else "none_shared",
        f"grams_shared_{int(grams * 8)}",
        "number_shared" if numbers else "no_number_shared",
    }


def _share(some: Hashes, others: Hashes) -> float:
    return float(np.isin(some, others).mean()) if len(some) else 0.0


def _places(chat: Chat) -> set[str]:
    """Where the context stands: in which message, and before or after the question."""
    places: set[str] = set()
    for span in chat.context_spans:
        role = chat.body["messages"][span.message]["role"]
        places.add("last" if span.message == chat.turn else "earlier" if role == "user" else "system")
    here = [(s.part or 0, s.start) for s in chat.context_spans if s.message == chat.turn]
    asked = [(s.part or 0, s.start) for s in chat.question_spans]
    if here and asked:
        order = "after" if here[-1] > asked[-1] else "before" if here[-1] < asked[0] else "between"
        places |= {order, "same_text" if {p for p, _ in here} & {p for p, _ in asked} else "own_text"}
    return places


def _system_prompt(chat: Chat) -> str:
    """The system prompt's texts without their context."""
    spans = [span for span in chat.context_spans if span.message != chat.turn]
    texts: list[str] = []
    for number, message in enumerate(chat.body["messages"]):
        if message["role"] not in ("system", "developer"):
            continue
        content = message.get("content")
        parts = [(None, content)] if isinstance(content, str) else enumerate(content or [])
        for place, part in parts:
            text = part if isinstance(part, str) else part.get("text")
            text = text if isinstance(text, str) else ""
            here = [(s.start, s.end) for s in spans if (s.message, s.part) == (number, place)]
            stops = [0, *(end for _, end in here)], [*(start for start, _ in here), len(text)]
            texts.extend(text[a:b] for a, b in zip(*stops, strict=True))
    return "\n".join(text.strip() for text in texts if text.strip())


def _ends(text: str, size: int) -> str:
    """A text, or the two ends of a longer one."""
    return text if len(text) <= size else f"{text[: size // 2]} {text[-(size // 2) :]}"
