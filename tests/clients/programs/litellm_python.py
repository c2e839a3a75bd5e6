"""LiteLLM's library: OpenAI's APIs, and Anthropic's."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # asks no other host

import litellm
from asked import CHAT, INPUT, KEY, MODEL, URL, tell

options = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "num_retries": 0}
chunks = litellm.completion(messages=CHAT, **options, stream=True)
response = litellm.responses(input=INPUT, **options)
events = litellm.responses(input=INPUT, **options, stream=True)
tell(
    chat=litellm.completion(messages=CHAT, **options).choices[0].message.content,
    chat_stream="".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    responses=response.output[0].content[0].text,
    responses_stream="".join(e.delta for e in events if e.type == "response.output_text.delta"),
)
