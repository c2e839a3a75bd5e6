"""Asks the items of a show through the `openai` client, one request in four as a stream."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from modint_guard.chat.images import neutral_image
from modint_guard.data.item import Item
from modint_guard.demo.shows import Asked
from modint_guard.endpoint import Endpoint
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.runner import Row, row_of
from modint_guard.types import JSON, LADDER

CONCURRENCY = 6
STREAMED_EVERY = 4  # one request in so many is a stream
LINES = 8  # of progress, if the output is no terminal


async def served_model(url: str, wanted: str | None) -> str:
    """The model of that name at a gateway, or the first that is no adapter. Raises ConfigError if there is
    none.
    """
    async with Endpoint(url) as endpoint:
        listed = await endpoint.models()
    names = [str(entry["id"]) for entry in listed]
    bases = [str(entry["id"]) for entry in listed if entry.get("parent") is None]
    if wanted is not None and wanted not in names:
        raise ConfigError(f"--model {wanted}: not served there: name one of {', '.join(names)}")
    return wanted or bases[0]


async def check_answers(url: str, model: str, *, here: bool) -> None:
    """Raises ConfigError, with a remedy, for a model that cannot chat, or not about pictures.

    here: whether its engine was started for this demo.
    """
    picture = {"type": "image_url", "image_url": {"url": neutral_image((64, 64))}}
    question = {"type": "text", "text": "What is this?"}
    async with Endpoint(url) as endpoint:
        if why := await _refusal(endpoint, model, [question]):
            if "chat template" not in why:
                raise ConfigError(f"{model} refuses to chat: {why}")
            how = "behind the options, `-- --chat-template FILE`" if here else "`--chat-template FILE`"
            raise ConfigError(f"{model} has no chat template: give its engine one, {how}")
        if why := await _refusal(endpoint, model, [picture, question]):
            raise ConfigError(
                f"{model} takes no pictures, and the check-up asks about them: name a vision-language model"
                f" (it says: {why})"
            )


async def _refusal(endpoint: Endpoint, model: str, content: list[JSON]) -> str | None:
    """Why a question is refused as such; None if it is answered."""
    body: JSON = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    try:
        await endpoint.complete({**body, "modint": {"mode": "off"}})
    except EndpointError as refused:
        if refused.status is None or not 400 <= refused.status < 500:
            raise
        return str(refused)
    return None


async def ask_all(
    url: str, asked: Sequence[Asked], items: Sequence[Item], console: Console
) -> dict[str, list[Row]]:
    """Every item in every way: rows by the way's label, in the items' order. Raises EndpointError."""
    slots = asyncio.Semaphore(CONCURRENCY)
    with counting(console, len(asked) * len(items)) as count:
        async with _client(url) as client:

            async def one(way: Asked, number: int, item: Item) -> Row:
                async with slots:
                    row = await _row(client, way.request(item), item, stream=number % STREAMED_EVERY == 0)
                count()
                return row

            jobs = [one(way, number, item) for way in asked for number, item in enumerate(items)]
            rows = await asyncio.gather(*jobs)
    size = len(items)
    return {way.label: rows[at * size : (at + 1) * size] for at, way in enumerate(asked)}


async def ask_again(url: str, row: Row) -> Row:
    """The same question once more, with the request for a correction. Raises EndpointError."""
    body = Asked(row.model, row.model).request(row.item)
    body["modint"]["action"] = LADDER
    async with _client(url) as client:
        return await _row(client, body, row.item, stream=False)


@contextmanager
def counting(console: Console, total: int) -> Iterator[Callable[[], None]]:
    """What to call after each of `total` answers: it moves a bar, or prints a line now and then if the output
    is no terminal."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("asking", total=total)
        answers = 0

        def count() -> None:
            nonlocal answers
            answers += 1
            progress.advance(bar)
            if not console.is_terminal and answers % max(1, total // LINES) == 0:
                console.print(f"   {answers} of {total} answers")

        yield count


def _client(url: str) -> Any:
    try:
        import openai
    except ModuleNotFoundError:
        raise ConfigError("the demo speaks through the openai client: pip install openai") from None
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


async def _row(client: Any, body: JSON, item: Item, *, stream: bool) -> Row:
    import openai

    try:
        completion = await (_stream if stream else _whole)(client, body)
    except openai.OpenAIError as exc:
        raise EndpointError(f"{body['model']} gave no answer to item {item.id}: {exc}") from exc
    return row_of(item, body["model"], completion)


def _openai_arguments(body: JSON) -> JSON:
    return {
        **{key: value for key, value in body.items() if key != "modint"},
        "extra_body": {"modint": body["modint"]},
    }


async def _whole(client: Any, body: JSON) -> JSON:
    completion = await client.chat.completions.create(**_openai_arguments(body))
    return dict(completion.model_dump())


async def _stream(client: Any, body: JSON) -> JSON:
    text, modint = "", None
    async for chunk in await client.chat.completions.create(**_openai_arguments(body), stream=True):
        for choice in chunk.choices:
            text += choice.delta.content or ""
        modint = (chunk.model_extra or {}).get("modint", modint)
    return {"choices": [{"message": {"content": text}}], "modint": modint}
