"""pydantic-ai: agents by chat and by responses, in words and as objects."""

import base64

from asked import KEY, MODEL, PICTURE, QUESTION, URL, tell
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Shape(BaseModel):
    """The shape in the picture."""

    colour: str


kind, _, data = PICTURE.removeprefix("data:").partition(";base64,")
asked = [BinaryContent(base64.b64decode(data), media_type=kind), QUESTION]
provider = OpenAIProvider(base_url=URL, api_key=KEY)
chat, responses = OpenAIChatModel(MODEL, provider=provider), OpenAIResponsesModel(MODEL, provider=provider)
said = {}
for name, model in (("chat", chat), ("responses", responses)):
    said[name] = Agent(model).run_sync(asked).output
    said[f"{name}_stream"] = Agent(model).run_stream_sync(asked).get_output()
    said[f"{name}_object"] = Agent(model, output_type=NativeOutput(Shape)).run_sync(asked).output.colour
tell(**said)
