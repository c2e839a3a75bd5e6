"""The views by name: how a chat is changed to be asked again.

noop               P0  the unchanged request, which shows the engine's own noise
no_context         P1  the image alone
neutral_image      P2  the text alone: every image is mean grey, in its own size
prior              P3  neither: no context and neutral images
                       (both are without any image unless the picture ought to decide, or is supposed
                       to: `BARE`)
without_image_N        the N-th of several images is mean grey, and all else as it was
benign             P4  the image slightly blurred and the context's sentences in another order, which must not
                       change the answer
permuted_options   P5  the texts of the options shifted by one label
question_first         the question before the context
any other              a perturbation of the registry (`data.perturb`), as training and result tables use it

The question and its options are never changed, except for the order of the options in `permuted_options` and
the place of the question in `question_first`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from PIL import Image, ImageFilter

from modint_guard.chat.eligibility import CONSTRAINTS
from modint_guard.chat.images import as_rgb, decode_data_url, neutral_image, png_data_url
from modint_guard.chat.question import MAX_CHARACTERS, sentences_in
from modint_guard.chat.rebuild import rebuild, with_texts_at
from modint_guard.data.item import Item, normalised
from modint_guard.data.perturb import REGISTRY, Perturbation, seeded
from modint_guard.types import (
    BENIGN,
    JSON,
    LEFT_OUT,
    NEUTRAL_IMAGE,
    NO_CONTEXT,
    NOOP,
    PERMUTED_OPTIONS,
    PRIOR,
    QUESTION_FIRST,
    Chat,
)

ViewMaker = Callable[[Chat], JSON | None]  # a chat -> its changed body, None if the view does not fit it
BLUR = 0.01  # radius of the blur in `benign`, as a share of the image's shorter side
_MIN_BLUR = 0.5  # pixels
_MIN_SIDE = 8  # pixels: nothing can be drawn on a smaller picture
_MAX_PIXELS = 4_000_000  # of all images of a request, where each is changed: a body of 16 MB at most
# Fields of a client's body that our own calls must not repeat: how answers are delivered, and how many.
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
_NOT_IN_VIEWS = _DELIVERY | {"max_tokens", "max_completion_tokens", "min_tokens"}  # and how long they are
# These need the true answer or a picture of the data set, which a request does not have.
_NOT_OF_A_REQUEST = frozenset({"true_description", "contradicting_image", "agreeing_image", "no_image"})
FROM_REGISTRY = tuple(name for name in REGISTRY if name not in _NOT_OF_A_REQUEST)


def short_body(body: JSON, max_tokens: int, top_logprobs: int) -> JSON:
    """A body that asks for a short, greedy answer, as it is sent for a view.

    max_tokens: the length of the answer. top_logprobs: the number of alternatives asked for at each of its
    tokens; with 0, no log-probabilities are asked for.
    """
    kept = {key: value for key, value in body.items() if key not in _NOT_IN_VIEWS}
    kept |= {"max_tokens": max_tokens, "temperature": 0}
    return {**kept, "logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else kept


def unconstrained(body: JSON) -> JSON:
    """The body without what forces the form of its answer. Tools stay in the prompt, and none is called."""
    kept = {key: value for key, value in body.items() if key not in CONSTRAINTS}
    return {**kept, "tool_choice": "none"} if body.get("tools") else kept


def full_body(body: JSON) -> JSON:
    """A body that asks for a whole answer, not streamed, with the client's own length and sampling."""
    return {key: value for key, value in body.items() if key not in _DELIVERY}


def benign(chat: Chat) -> JSON | None:
    """A control that must not change the answer: the images slightly blurred, the context's sentences shifted
    by one. Decodes every image. None if these are large.
    """
    if not _can_change_images(chat):
        return None
    blurred = [_blurred(image.url) for image in chat.images]
    return rebuild(chat, context=_reordered(chat.context) if chat.context else None, images=blurred)


def permuted_options(chat: Chat) -> JSON | None:
    """The texts of the options shifted by one label; None if there is no block of labelled options."""
    spans = [option.span for option in chat.options]
    if len(spans) < 2 or any(option.label == option.text for option in chat.options):
        return None
    known_spans = [span for span in spans if span is not None]
    if len(known_spans) < len(spans):
        return None
    texts = [option.text for option in chat.options]
    return with_texts_at(chat, list(zip(known_spans, [texts[-1], *texts[:-1]], strict=True)))


def question_first(chat: Chat) -> JSON | None:
    """Context and question exchanged; None unless the context is one piece of text before the question, in
    the same message.
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
    """A registered perturbation as a view, seeded by the request's own words.

    A perturbation that claims a wrong answer claims one of the options, and gives None for a request with
    fewer than two of them; one of the picture gives None for tiny and for large pictures. Raises KeyError for
    an unknown name.
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
    if not _can_change_images(chat) or any(min(image.size) < _MIN_SIDE for image in chat.images):
        return None
    pictures = (kind.apply(item.replace(image=Image.new("RGB", i.size)), rng).image for i in chat.images)
    return rebuild(chat, images=[png_data_url(picture) for picture in pictures if picture is not None])


def _can_change_images(chat: Chat) -> bool:
    """Whether the images are small enough to be drawn, encoded and sent once more."""
    return sum(width * height for width, height in (image.size for image in chat.images)) <= _MAX_PIXELS


_NO_CHOICES = Item("request", "image-heavy", "request", "word", "", ("yes", "no"), "yes", "no")


def _as_item(chat: Chat) -> Item | None:
    """The request as an item, for the registry; None with fewer than two options. The claimed option depends
    on the request's words.
    """
    texts = tuple({normalised(option.text): option.text for option in chat.options}.values())
    if len(texts) < 2:
        return None
    claimed, other = seeded("claim", _fingerprint(chat)).sample(texts, 2)
    return _NO_CHOICES.replace(question=chat.question, choices=texts, answer=other, wrong=claimed)


def _fingerprint(chat: Chat) -> str:
    return hashlib.sha256(f"{chat.context}\x1f{chat.question}".encode(errors="replace")).hexdigest()


def _blurred(url: str) -> str:
    image = as_rgb(decode_data_url(url))
    radius = max(_MIN_BLUR, BLUR * min(image.size))
    return png_data_url(image.filter(ImageFilter.GaussianBlur(radius)))


def _reordered(context: str) -> str:
    """The sentences of a context, the first one last; a single sentence and a long text stay as they are."""
    if len(context) > MAX_CHARACTERS:
        return context
    sentences = [context[a:b] for a, b in sentences_in(context)]
    return "\n".join([*sentences[1:], *sentences[:1]]) if len(sentences) > 1 else context


def _neutral(chat: Chat) -> list[str]:
    return [neutral_image(image.size) for image in chat.images]


def without_pictures(chat: Chat, *, context: str | None = None) -> JSON:
    """The request without its images, as the paper asks a text that ought to decide (arXiv 2505.19616,
    section 3): a grey one misleads, too. Grey if without them a message would hold nothing.

    context: as in `rebuild`.
    """
    whole = rebuild(chat, context=context)
    bare = rebuild(chat, context=context, images=[None] * len(chat.images))
    pairs = zip(whole["messages"], bare["messages"], strict=True)
    is_emptied = any(before.get("content") and not after.get("content") for before, after in pairs)
    return rebuild(chat, context=context, images=_neutral(chat)) if is_emptied else bare


def without_image(number: int) -> ViewMaker:
    """A view in which the image of this number, from 1 on, is mean grey. None for a request with fewer
    images, and for one with a single image, which `neutral_image` leaves out.
    """

    def make(chat: Chat) -> JSON | None:
        if not 1 < len(chat.images) >= number:
            return None
        urls = [image.url for image in chat.images]
        urls[number - 1] = neutral_image(chat.images[number - 1].size)
        return rebuild(chat, images=urls)

    return make


VIEWS: dict[str, ViewMaker] = {
    NO_CONTEXT: lambda chat: rebuild(chat, context=""),
    NEUTRAL_IMAGE: lambda chat: rebuild(chat, images=_neutral(chat)),
    PRIOR: lambda chat: rebuild(chat, context="", images=_neutral(chat)),
    **{name: without_image(number) for number, name in enumerate(LEFT_OUT, 1)},
    NOOP: rebuild,
    BENIGN: benign,
    PERMUTED_OPTIONS: permuted_options,
    QUESTION_FIRST: question_first,
    **{name: from_registry(name) for name in FROM_REGISTRY},
}
# In place of those above, unless the picture ought to decide or is supposed to.
BARE: dict[str, ViewMaker] = {
    NEUTRAL_IMAGE: without_pictures,
    PRIOR: lambda chat: without_pictures(chat, context=""),
}
