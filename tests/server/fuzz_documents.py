"""What the fuzzer sends and is sent: bodies of clients, replies of an engine, and the damage done to both."""

import copy
import json
from random import Random
from typing import Any

import orjson

from modint_guard.chat.responses import LOGPROBS
from tests.server.conftest import picture
from tests.server.fake_upstream import ADAPTER, BASE

JSON = dict[str, Any]
CHAT, CHECK, COMPLETIONS = "/v1/chat/completions", "/v1/guard/check", "/v1/completions"
RESPONSES, MESSAGES, PASSED = "/v1/responses", "/v1/messages", "/v1/embeddings"
ASKED = 7  # tokens of an answer, where a client has to say how many
QUESTION = "What colour is the shape?"
PICTURE = picture()
PICTURES: tuple[str, ...] = (
    PICTURE,
    picture(size=(1, 1)),
    picture(size=(30, 20)),
    PICTURE[:-10],
    "",
    "data:;base64,",
    "x",
)
PICTURES += ("data:image/png;base64,AAAA", "http://127.0.0.1/x", "data:audio/wav;base64,AAAA")
PICTURES += (PICTURE.replace("png", "jpeg"), PICTURE.replace("data:", "DATA:"))
TEXTS: tuple[str, ...] = (
    QUESTION,
    "The caption says that the shape is blue.",
    "A) red\nB) blue\nWhich?",
    "",
    " ",
    "\0",
    "?",
)
TEXTS += (
    "Options:\n1. red\n2. blue\n3. green",
    "Is it red (yes/no)?",
    "one of: red, blue",
    "- x\n- y",
    "(A)",
)
TEXTS += (
    "Context: it is blue. Question: what is it?",
    "<context>blue</context>",
    "Image 1:",
    "a" * 300,
    "\n",
)
TEXTS += (
    "¿Qué color?",
    "什么颜色？",
    '"Is it?" she said.',
    "Describe the picture",
    "A. A\nB. A",
    "Question:",
)
WORDS: tuple[str, ...] = (
    "red",
    "blue",
    "A",
    "The",
    " red",
    "",
    "It is red",
    "B.",
    "no",
    "\u2581red",
    "\n",
    "<think>",
    "\ufffd",
)
NUMBERS = (0, -1, 1, 1.5, -0.0, 1e308, -1e308, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30)
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    *NUMBERS,
    "",
    "x",
    "\0",
    "a\nb",
    "\u202e",
    "é",
    "\ud800",
    [],
    {},
    [None],
    [[]],
    {"a": None},
)
ACTIONS = ("annotate", "neutralise", "escalate", "debias", "rerank", "abstain", "ladder")
PROBES: tuple[str, ...] = (
    "noop",
    "benign",
    "permuted_options",
    "question_first",
    "misleading_description",
    "unrelated_facts",
)
PROBES += (
    "ocr_noise",
    "neutral_text",
    "noise",
    "black",
    "white",
    "irrelevant_image",
    "screenshot",
    "zzz",
    "prior",
)
FIELDS: dict[str, tuple[Any, ...]] = {
    "max_tokens": (1, 7),
    "n": (1, 2, 0),
    "temperature": (0, 1.0),
    "logprobs": (True, False),
    "top_logprobs": (0, 5, 21),
    "stop": ("a", ["b"]),
    "tools": ([], [{"type": "function", "function": {"name": "f"}}]),
    "response_format": ({"type": "json_object"},),
    "stream_options": ({"include_usage": True},),
    "continue_final_message": (True,),
    "return_token_ids": (True,),
    "prompt_logprobs": (0, 1),
    "cache_salt": ("x",),
    "answer": TEXTS,
}
RESPONSES_FIELDS: dict[str, tuple[Any, ...]] = {
    "max_output_tokens": (1, 16),
    "temperature": (0, 1.0),
    "include": ([], [LOGPROBS], ["reasoning.encrypted_content"]),
    "top_logprobs": (0, 5, 21),
    "instructions": TEXTS,
    "text": ({"format": {"type": "text"}}, {"format": {"type": "json_object"}}),
    "reasoning": ({"effort": "low"},),
    "tools": ([], [{"type": "function", "name": "f", "parameters": {}}]),
    "previous_response_id": ("resp_1",),
    "store": (False,),
}
ITEMS: tuple[JSON, ...] = (
    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "a", "output": "blue"},
    {"type": "reasoning", "summary": []},
    {"role": "assistant", "content": [{"type": "output_text", "text": "blue"}]},
)


def damaged(document: Any, random: Random, share: float) -> Any:
    """A copy in which about this share of the values are odd, missing, doubled or under another name."""
    if random.random() < share / 2:
        return copy.deepcopy(random.choice(ODD))
    if isinstance(document, dict):
        kept = {key: value for key, value in document.items() if random.random() > share / 3}
        changed = {
            key + ("x" if random.random() < share / 10 else ""): damaged(value, random, share)
            for key, value in kept.items()
        }
        if random.random() < share:
            changed[random.choice(["type", "text", "content", "image_url", "name"])] = random.choice(ODD)
        return changed
    if isinstance(document, list):
        entries = [damaged(value, random, share) for value in document if random.random() > share / 3]
        return entries * (random.randint(2, 4) if random.random() < share / 2 else 1)
    return document


def written(document: Any) -> bytes:
    """JSON with everything that Python writes: infinities, half characters, large numbers."""
    return json.dumps(document).encode()


def bytes_damaged(data: bytes, random: Random) -> bytes:
    """The same with a few wrong bytes, or cut off."""
    damaged_data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if damaged_data:
            damaged_data[random.randrange(len(damaged_data))] = random.randrange(256)
    return bytes(
        damaged_data[: random.randint(0, len(damaged_data))] if random.random() < 0.3 else damaged_data
    )


# Bodies of clients.


def body_of(path: str, random: Random, *, share: float) -> Any:
    """A request with every field now and then; `share` of its values are odd."""
    messages = [_message(random) for _ in range(random.randint(0, 3))]
    if random.random() < 0.7 or not messages:
        messages.append(about_a_picture(random))
    body: JSON = {"model": random.choice([BASE] * 8 + [ADAPTER, "nope"]), "messages": messages}
    if random.random() < 0.5:
        body["stream"] = random.random() < 0.7
    if random.random() < 0.5:
        body["modint"] = _modint(random)
    for name, values in (RESPONSES_FIELDS if path == RESPONSES else FIELDS).items():
        if random.random() < 0.1:
            body[name] = copy.deepcopy(random.choice(values))
    if path == RESPONSES:
        body = in_words_of_responses(body, random)
    elif path == MESSAGES:
        body = in_words_of_messages(body)
    body = damaged(body, random, share) if share else body
    more = {CHECK: {"answer": random.choice(TEXTS)}, COMPLETIONS: {"prompt": "x"}, PASSED: {"input": "x"}}
    return more.get(path, {}) | body if isinstance(body, dict) else body


def in_words_of_responses(body: JSON, random: Random) -> JSON:
    """The same request in the words of the Responses API, now and then with calls of tools between."""
    items: list[Any] = []
    for message in body.pop("messages"):
        content = message["content"]
        if isinstance(content, list):
            content = [_part_of_responses(part) for part in content]
        item: JSON = {"role": message["role"], "content": content}
        items.append({"type": "message", **item} if random.random() < 0.3 else item)
        if random.random() < 0.1:
            items.append(copy.deepcopy(random.choice(ITEMS)))
    return {**body, "input": random.choice(TEXTS) if random.random() < 0.1 else items}


def _part_of_responses(part: Any) -> Any:
    match part:
        case {"type": "image_url", "image_url": {"url": url}}:
            return {"type": "input_image", "image_url": url, "detail": "auto"}
        case {"type": "text", "text": text}:
            return {"type": "input_text", "text": text}
    return part


def in_words_of_messages(body: JSON) -> JSON:
    """The same request in the words of Anthropic's API."""
    messages = copy.deepcopy(body["messages"])
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            match part:
                case {"type": "image_url", "image_url": {"url": str(url)}}:
                    part.clear()
                    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
                    part |= {"type": "image", "source": source}
    return {**body, "messages": messages, "max_tokens": ASKED}


def about_a_picture(random: Random) -> JSON:
    texts = [{"type": "text", "text": random.choice(TEXTS)} for _ in range(random.randint(1, 2))]
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}, *texts]}


def _message(random: Random) -> JSON:
    role = random.choice(["user", "user", "system", "assistant", "tool", "developer"])
    if random.random() < 0.3:
        return {"role": role, "content": random.choice(TEXTS)}
    return {"role": role, "content": [_part(random) for _ in range(random.randint(0, 4))]}


def _part(random: Random) -> Any:
    kind = random.random()
    if kind < 0.45:
        return {"type": "text", "text": random.choice(TEXTS)}
    if kind < 0.85:
        return {"type": "image_url", "image_url": {"url": random.choice(PICTURES)}}
    return random.choice(
        [
            {"type": "image_url", "image_url": PICTURE},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            {"type": "text", "text": QUESTION, "uuid": "x"},
            {"type": "refusal", "refusal": "no"},
            {"type": "thinking", "thinking": "x"},
            "text",
        ]
    )


def _modint(random: Random) -> JSON:
    fields: dict[str, tuple[Any, ...]] = {
        "mode": ("on", "off"),
        "relevant": ("image", "text", "both", "auto"),
        "context": TEXTS,
        "question": TEXTS,
        "needs": ("image", ["image", "text"]),
        "deadline_s": (0.01, 1, 60),
        "action": ACTIONS,
    }
    chosen = {name: random.choice(values) for name, values in fields.items() if random.random() < 0.3}
    if random.random() < 0.3:
        chosen["probes"] = random.sample(PROBES, random.randint(0, 4))
    return chosen


# Replies of an engine.


def completion_of(body: JSON, random: Random) -> JSON:
    """What an engine might answer to a body, all of it well formed."""
    text = random.choice(WORDS)
    tokens = [text] if random.random() < 0.7 else text.split(" ")
    entries = [_entry(token, body.get("top_logprobs") or 0, random) for token in tokens]
    choice: JSON = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": entries} if body.get("logprobs") or body.get("include") else None,
        "finish_reason": random.choice(["stop", "length"]),
    }
    if body.get("return_token_ids"):
        choice["token_ids"] = list(range(len(tokens)))
    reply: JSON = {"id": "c", "object": "chat.completion", "created": 1, "model": body.get("model")}
    reply["choices"] = [choice]
    reply["usage"] = {"prompt_tokens": 40, "completion_tokens": len(tokens), "total_tokens": 41}
    if body.get("prompt_logprobs") is not None:
        entry = {"logprob": -random.random(), "rank": 1, "decoded_token": text}
        reply["prompt_logprobs"], reply["prompt_token_ids"] = [None, {"1": entry}], [0, 1]
    return reply


def _entry(token: str, top: Any, random: Random) -> JSON:
    count = top if isinstance(top, int) else 5
    words = random.sample(WORDS, random.randint(0, 5))[:count]
    listed = [{"token": word, "logprob": -random.random() * 8, "bytes": None} for word in words]
    return {"token": token, "logprob": -random.random() * 5, "bytes": None, "top_logprobs": listed}


def chunks_of(completion: JSON) -> list[Any]:
    """The same answer as chunks of a stream."""
    choice = completion["choices"][0]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": completion["model"]}

    def chunk(delta: JSON, finish: str | None = None, **more: Any) -> JSON:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}

    return [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": choice["message"]["content"]}, logprobs=choice["logprobs"]),
        chunk({}, choice["finish_reason"]),
        {**head, "choices": [], "usage": completion["usage"]},
    ]


def response_of(completion: JSON) -> JSON:
    """The same answer as a response of the Responses API."""
    choice, usage = completion["choices"][0], completion["usage"]
    logprobs = choice["logprobs"]
    if isinstance(logprobs, dict):
        logprobs = logprobs.get("content")
    if isinstance(usage, dict):
        names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
        usage = {names.get(name, name): value for name, value in usage.items()}
    part = {"type": "output_text", "text": choice["message"]["content"], "annotations": []}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    return {
        "id": "r",
        "object": "response",
        "status": "completed",
        "model": completion["model"],
        "output": [{**item, "content": [{**part, "logprobs": logprobs}]}],
        "usage": usage,
        "incomplete_details": None,
    }


def events_of_response(response: JSON) -> list[Any]:
    """The same response as events of a stream."""
    item = response["output"][0]
    delta = {"output_index": 0, "content_index": 0, "item_id": item["id"], "logprobs": []}
    return [
        {"type": "response.created", "response": {**response, "output": [], "status": "in_progress"}},
        {"type": "response.output_text.delta", **delta, "delta": item["content"][0]["text"]},
        {"type": "response.completed", "response": response},
    ]


def is_json(document: Any) -> bool:
    """Whether the document is still JSON as it is written: half a character is not."""
    try:
        return bool(orjson.loads(written(document)) is not None)
    except orjson.JSONDecodeError:
        return False
