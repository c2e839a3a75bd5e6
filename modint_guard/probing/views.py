"""Every probe by name: how a chat is changed to be asked again.

noop               P0  the request as it is: the engine's own noise
no_context         P1  the image alone
neutral_image      P2  the text alone: every image is mean grey of the same size
prior              P3  neither
benign             P4  the image mildly blurred, the context's sentences in another order: must change nothing
permuted_options   P5  the options' texts moved on by one label
question_first         the question before the context: the order of the prompt
any other              a perturbation of the registry, as training and tables have it

Question and options are never changed, but for the order of the options in `permuted_options` and their place
in `question_first`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from PIL import Image, ImageFilter

from modint_guard.chat.images import decode_data_url, neutral_image, png_data_url
from modint_guard.chat.question import sentences_in
from modint_guard.chat.rebuild import rebuild, with_texts_at
from modint_guard.data.item import Item, bare
from modint_guard.data.perturb import REGISTRY, Perturbation, seeded
from modint_guard.types import (
    BENIGN,
    JSON,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    NOOP,
    PERMUTED_OPTIONS,
    PRIOR,
    QUESTION_FIRST,
    Chat,
)

ViewMaker = Callable[[Chat], JSON | None]  # a chat -> its changed body, None where it does not fit the chat
BLUR = 0.01  # of the shorter side: the radius of `benign`'s blur
_MIN_BLUR = 0.5  # pixels
# Fields that no call of ours must repeat: how an answer is delivered, how many there are.
_DELIVERY = frozenset(
    {
        "stream",
        "stream_options",
        "n",
        "best_of",
        "use_beam_search",
        "prompt_logprobs",
        "return_token_ids",
        "logprobs",
        "top_logprobs",
        "store",
        "metadata",
    }
)
_NOT_IN_VIEWS = _DELIVERY | {"max_tokens", "max_completion_tokens", "min_tokens"}  # nor how long it is
# What needs to know the truth, or a picture that only a data set has, cannot be made of a request.
_NOT_OF_A_REQUEST = frozenset({"true_description", "contradicting_image", "agreeing_image", "no_image"})
FROM_REGISTRY = tuple(name for name in REGISTRY if name not in _NOT_OF_A_REQUEST)


def asked_briefly(body: JSON, max_tokens: int, top_logprobs: int) -> JSON:
    """A view's body as it is sent: greedy and short, with log-probabilities unless `top_logprobs` is 0."""
    kept = {key: value for key, value in body.items() if key not in _NOT_IN_VIEWS}
    kept |= {"max_tokens": max_tokens, "temperature": 0}
    return {**kept, "logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else kept


def asked_whole(body: JSON) -> JSON:
    """A body asked for a whole answer of the client's own length and sampling, in one piece."""
    return {key: value for key, value in body.items() if key not in _DELIVERY}


def benign(chat: Chat) -> JSON:
    """A control that must not change the answer: the images mildly blurred, the context's sentences moved on
    by one. Decodes every image.
    """
    blurred = [_blurred(image.url) for image in chat.images]
    return rebuild(chat, context=_reordered(chat.context) if chat.context else None, images=blurred)


def permuted_options(chat: Chat) -> JSON | None:
    """The texts of the options moved on by one label; None where there is no block of labelled options."""
    spans = [option.span for option in chat.options]
    if len(spans) < 2 or any(option.label == option.text for option in chat.options):
        return None
    placed = [span for span in spans if span is not None]
    if len(placed) < len(spans):
        return None
    texts = [option.text for option in chat.options]
    return with_texts_at(chat, list(zip(placed, [texts[-1], *texts[:-1]], strict=True)))


def question_first(chat: Chat) -> JSON | None:
    """Context and question in each other's place; None where the context does not stand whole before the
    question, in the same message.
    """
    if len(chat.context_spans) != 1 or len(chat.question_spans) != 1 or not chat.context:
        return None
    (context,), (question,) = chat.context_spans, chat.question_spans
    if context.message != question.message or (context.part or 0, context.start) > (
        question.part or 0,
        question.start,
    ):
        return None
    return with_texts_at(chat, [(context, chat.question), (question, chat.context)])


def from_registry(name: str) -> ViewMaker:
    """A registered perturbation as a view, seeded by the request's own words. A claim states one of the
    options; None where a claim finds fewer than two of them.
    """
    kind = REGISTRY[name]
    return lambda chat: _perturbed(chat, kind)


def _perturbed(chat: Chat, kind: Perturbation) -> JSON | None:
    item = _as_item(chat)
    if item is None and kind.name == "misleading_description":
        return None
    item = item or _NO_CHOICES
    rng = seeded("view", kind.name, _fingerprint(chat))
    if kind.modality == "text":
        return rebuild(chat, context=kind.apply(item, rng).context or "")
    pictures = (kind.apply(item.replace(image=Image.new("RGB", i.size)), rng).image for i in chat.images)
    return rebuild(chat, images=[png_data_url(picture) for picture in pictures if picture is not None])


_NO_CHOICES = Item("request", "image-heavy", "request", "word", "", ("yes", "no"), "yes", "no")


def _as_item(chat: Chat) -> Item | None:
    """The request as the registry wants it: which option a claim states depends on the request's words."""
    texts = tuple({bare(option.text): option.text for option in chat.options}.values())
    if len(texts) < 2:
        return None
    claimed, other = seeded("claim", _fingerprint(chat)).sample(texts, 2)
    return _NO_CHOICES.replace(question=chat.question, choices=texts, answer=other, wrong=claimed)


def _fingerprint(chat: Chat) -> str:
    return hashlib.sha256(f"{chat.context}\x1f{chat.question}".encode(errors="replace")).hexdigest()


def _blurred(url: str) -> str:
    image = decode_data_url(url).convert("RGB")
    radius = max(_MIN_BLUR, BLUR * min(image.size))
    return png_data_url(image.filter(ImageFilter.GaussianBlur(radius)))


def _reordered(context: str) -> str:
    """The sentences of a context, the first one last; one alone stays as it is."""
    said = [context[a:b] for a, b in sentences_in(context)]
    return "\n".join([*said[1:], *said[:1]]) if len(said) > 1 else context


def _neutral(chat: Chat) -> list[str]:
    return [neutral_image(image.size) for image in chat.images]


VIEWS: dict[str, ViewMaker] = {
    NO_CONTEXT: lambda chat: rebuild(chat, context=""),
    NEUTRAL_IMAGE: lambda chat: rebuild(chat, images=_neutral(chat)),
    PRIOR: lambda chat: rebuild(chat, context="", images=_neutral(chat)),
    NOOP: rebuild,
    BENIGN: benign,
    PERMUTED_OPTIONS: permuted_options,
    QUESTION_FIRST: question_first,
    **{name: from_registry(name) for name in FROM_REGISTRY},
}
