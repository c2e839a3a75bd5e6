"""The content of small requests: what the engine is asked before clients may ask it."""

from modint_guard.chat.images import neutral_image
from modint_guard.types import JSON

IN_WORDS = "What is two and two?"
COLOUR = "Name a colour."
YES = "Say yes."
WHAT = "What is this?"


def about_a_picture(question: str) -> list[JSON]:
    """A grey picture of 64 x 64 pixels, and a question below it: the content of a user's message."""
    picture = {"type": "image_url", "image_url": {"url": neutral_image((64, 64))}}
    return [picture, {"type": "text", "text": question}]
