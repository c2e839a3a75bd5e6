"""The anthropic library."""

from anthropic import Anthropic
from asked import KEY, MODEL, PICTURE, QUESTION, URL, tell

kind, _, data = PICTURE.removeprefix("data:").partition(";base64,")
source = {"type": "base64", "media_type": kind, "data": data}
asked = {
    "model": MODEL,
    "max_tokens": 4,
    "messages": [
        {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]}
    ],
}
client = Anthropic(base_url=URL.removesuffix("/v1"), api_key=KEY, max_retries=0)
message = client.messages.create(**asked)
with client.messages.stream(**asked) as stream:
    texts = "".join(stream.text_stream)
    last = stream.get_final_message()
tell(
    messages=message.content[0].text,
    messages_stream=texts,
    messages_helper=last.content[0].text,
    verdicts=[message.modint["verdict"]],
)
