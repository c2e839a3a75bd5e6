"""`modint-guard ask`: asks a gateway about a picture; the answer's words are coloured by what gave them."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer
from PIL import Image
from rich.console import Console
from rich.text import Text

from modint_guard.chat.images import IMAGE_FORMATS
from modint_guard.cli import printable
from modint_guard.endpoint import Endpoint, read_key
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.showing.pieces import ShownAnswer, ShownPiece, shown
from modint_guard.types import JSON

COLOURS = {"text": "yellow", "image": "cyan", None: ""}
NAMES: dict[Literal["text", "image"], str] = {"text": "text", "image": "picture"}
FLAGGED = "bold underline"
RELEVANT = ("image", "text", "both", "auto")


def ask(
    image: Annotated[Path, typer.Argument(help="The picture.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What is asked about it.", show_default=False)],
    context: Annotated[str, typer.Option(help="A text that is given beside the picture.")] = "",
    relevant: Annotated[
        str, typer.Option(help=f"What ought to decide the answer: {', '.join(RELEVANT)}.")
    ] = "auto",
    url: Annotated[str, typer.Option(help="The gateway's address.")] = "http://127.0.0.1:8080",
    model: Annotated[str, typer.Option(help="The model; the first that is served by default.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the gateway's key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the completion as JSON.")] = False,
) -> None:
    """Ask a gateway about a picture; the words of the answer are coloured by what gave them."""
    if relevant not in RELEVANT:
        raise ConfigError(f"--relevant is {relevant[:40]!r}: it must be one of {', '.join(RELEVANT)}")
    body = request(image, question, context, relevant) | {"max_tokens": max_tokens}
    completion = asyncio.run(_asked(body, model, url, read_key(api_key_file)))
    if as_json:
        typer.echo(orjson.dumps(completion, option=orjson.OPT_INDENT_2).decode())
        return
    answer = shown(completion)
    if answer.modint is None:
        raise EndpointError(
            f"{url} gave an answer without a verdict: is a gateway of modint-guard running there?"
        )
    console = Console(highlight=False)
    for line in rendered(answer):
        console.print(line, soft_wrap=True)


def request(image: Path, question: str, context: str, relevant: str) -> JSON:
    """The chat body that asks about a picture. Raises ConfigError if the file is no picture."""
    texts: list[JSON] = [{"type": "text", "text": text} for text in (context, question) if text.strip()]
    modint: JSON = {"relevant": relevant} | ({"context": context} if context.strip() else {})
    content = [{"type": "image_url", "image_url": {"url": data_url(image)}}, *texts]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "modint": modint}


def data_url(file: Path) -> str:
    """A picture's file as a data URL. Raises ConfigError if it cannot be read or is no picture."""
    try:
        data = file.read_bytes()
        with Image.open(file, formats=IMAGE_FORMATS) as picture:
            kind = Image.MIME[str(picture.format)]
    except (OSError, SyntaxError, ValueError) as exc:
        said = exc.strerror if isinstance(exc, OSError) and exc.strerror else "it is no picture"
        raise ConfigError(
            f"{file} cannot be read ({said}): name a picture, {', '.join(IMAGE_FORMATS)}"
        ) from exc
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def _asked(body: JSON, model: str, url: str, key: str | None) -> JSON:
    async with Endpoint(url, key) as endpoint:
        if not model:
            served = await endpoint.models()
            if not served:
                raise EndpointError(f"{url} serves no model.")
            model = str(served[0].get("id"))
        return await endpoint.complete({"model": model, **body})


def rendered(answer: ShownAnswer) -> list[Text]:
    """The lines that show an answer: its texts with colours, what gave what without colours, the verdict.

    What a terminal would act on is escaped.
    """
    lines = [
        Text.assemble(*((printable(piece.text), _style(piece)) for piece in text)) for text in answer.texts
    ]
    for modality, name in NAMES.items():
        if words := answer.given_by(modality):
            lines.append(Text(f"from the {name}: {_listed(words)}", COLOURS[modality]))
    if answer.flagged:
        lines.append(Text(f"flagged: {_listed(answer.flagged)}", FLAGGED))
    if answer.modint is not None:
        reason = f" ({answer.modint.reason})" if answer.modint.reason else ""
        lines.append(Text(f"{answer.modint.verdict}{reason}: {printable(answer.modint.explanation)}", "dim"))
    return lines


def _listed(words: list[str]) -> str:
    return " · ".join(map(printable, words))


def _style(piece: ShownPiece) -> str:
    return " ".join(style for style in (COLOURS[piece.gave], FLAGGED if piece.is_flagged else "") if style)
