"""The openai library."""

from asked import CHAT, INPUT, KEY, MODEL, URL, tell
from openai import OpenAI

client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)
chat = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=4)
chunks = list(client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=4, stream=True))
with client.chat.completions.stream(model=MODEL, messages=CHAT, max_tokens=4) as stream:
    final = stream.get_final_completion()
response = client.responses.create(model=MODEL, input=INPUT)
events = list(client.responses.create(model=MODEL, input=INPUT, stream=True))
with client.responses.stream(model=MODEL, input=INPUT) as stream:
    last = stream.get_final_response()
tell(
    chat=chat.choices[0].message.content,
    chat_stream="".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    chat_helper=final.choices[0].message.content,
    responses=response.output_text,
    responses_stream="".join(e.delta for e in events if e.type == "response.output_text.delta"),
    responses_helper=last.output_text,
    verdicts=[
        chat.modint["verdict"],
        *(c.modint["verdict"] for c in chunks if hasattr(c, "modint")),
        response.modint["verdict"],
        events[-1].response.modint["verdict"],
    ],
)
