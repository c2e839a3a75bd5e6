"""What every program asks, and how it tells what it got: one JSON object on its last line."""

import json
import sys
from typing import Any

URL, MODEL, PICTURE = sys.argv[1:4]  # the gateway's with /v1, a served name, a data: URL
KEY = "client-key"
QUESTION = "The caption says that the shape is blue. What colour is the shape?"
CHAT = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": PICTURE}},
            {"type": "text", "text": QUESTION},
        ],
    }
]
INPUT = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
            {"type": "input_text", "text": QUESTION},
        ],
    }
]


def tell(**said: Any) -> None:
    """Ends a program: the texts that it got, by what it asked."""
    print(json.dumps(said))
