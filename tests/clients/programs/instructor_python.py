"""instructor: objects by JSON and by tools, of chat and of responses."""

import instructor
from asked import CHAT, INPUT, KEY, MODEL, URL, tell
from openai import OpenAI
from pydantic import BaseModel


class Shape(BaseModel):
    """The shape in the picture."""

    colour: str


client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)


def by(mode: instructor.Mode, **asked: object) -> str:
    """The colour that a mode gives."""
    shape = instructor.from_openai(client, mode=mode).create(
        model=MODEL, response_model=Shape, max_retries=0, **asked
    )
    return shape.colour


tell(
    chat_json=by(instructor.Mode.JSON, messages=CHAT),
    chat_tools=by(instructor.Mode.TOOLS, messages=CHAT),
    responses_tools=by(instructor.Mode.RESPONSES_TOOLS, messages=INPUT),
)
