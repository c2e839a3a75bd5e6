"""What a demo serves and asks, by its options; and what it says of models that cannot be asked."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from modint_guard.data.item import RELEVANT
from modint_guard.demo.asking import check_answers, served_model
from modint_guard.demo.launch import READY_S
from modint_guard.demo.shows import Show, show_of
from modint_guard.errors import ConfigError, EndpointError
from modint_guard.evaluation.checkup import checkup_items
from modint_guard.models import ADAPTER, BASE, picturebook
from modint_guard.types import JSON
from tests.core.fakes import completion

TEMPLATE = "default chat template is no longer allowed, so you must provide a chat template"


def modes(show: Show, base: str) -> list[tuple[str, str, Counter[str]]]:
    """Label, model, and what the requests say is relevant, of each way of asking."""
    return [
        (way.label, way.model, Counter(way.request(item)["modint"]["relevant"] for item in show.items))
        for way in show.asked(base)
    ]


def test_without_options_tinyworlds_base_and_adapter_are_asked() -> None:
    show = show_of(None, None, None)
    assert (show.serve, show.model) == (("--adapter", ADAPTER), BASE)
    named = Counter(RELEVANT[item.family] for item in show.items)
    assert modes(show, BASE) == [(BASE, BASE, named), (ADAPTER, ADAPTER, named)]


def test_the_picture_books_base_and_adapter_are_asked() -> None:
    show = show_of("picturebook", None, None)
    assert show.serve == ("--model", picturebook.NAME, "--adapter", picturebook.ADAPTER)
    named = Counter(RELEVANT[item.family] for item in show.items)
    assert modes(show, picturebook.NAME) == [
        (name, name, named) for name in (picturebook.NAME, picturebook.ADAPTER)
    ]


def test_a_model_without_an_adapter_is_asked_with_and_without_a_word_of_what_is_relevant() -> None:
    show = show_of(None, "m", None, limit=1)
    named, auto = modes(show, "m")
    assert named == ("named", "m", Counter(RELEVANT[item.family] for item in show.items))
    assert auto == ("auto", "m", Counter({"auto": len(show.items)}))


def test_a_model_of_ones_own_is_asked_the_check_up_in_the_precision_it_is_served_in() -> None:
    show = show_of(None, "Qwen/Qwen2.5-VL-3B-Instruct", None, vllm_options=["--max-model-len", "4096"])
    serve = ("--model", "Qwen/Qwen2.5-VL-3B-Instruct", "--", "--max-model-len", "4096")
    assert (show.serve, show.dtype) == (serve, "auto")
    assert list(show.items) == checkup_items()
    assert [variant.whole() for variant in show.variants] == list(show.items)
    assert show.ready_s > 1800 > READY_S  # `serve` itself gives an engine so long
    assert show.command.endswith("serve --model Qwen/Qwen2.5-VL-3B-Instruct -- --max-model-len 4096")


def test_an_engine_that_runs_is_attached_to() -> None:
    show = show_of(None, None, "http://127.0.0.1:8000", limit=1)
    assert (show.serve, show.dtype, show.model) == (("--upstream", "http://127.0.0.1:8000"), "auto", None)
    assert (show.own_engine, show_of(None, "m", None).own_engine) == (False, True)
    assert len(show.items) == 4 + 3 + 1  # the first of each family, each under all its conditions


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"world": "tinyworld", "model": "m"}, "--world tinyworld has its own items and model: drop --model"),
        ({"world": "picturebook", "url": "u"}, "--world picturebook has its own items and model: drop --url"),
        ({"vllm_options": ["--seed"]}, "--seed is for a model of your own: name it with --model"),
        ({"limit": 3}, "--limit is for a model of your own: name it with --model"),
        (
            {"url": "u", "vllm_options": ["--seed"]},
            "--url asks an engine that runs already: start that engine with --seed, and drop what stands"
            " behind `--`",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        show_of(**{"world": None, "model": None, "url": None, **options})
    assert str(refused.value) == sentence


# -- models that cannot be asked


@asynccontextmanager
async def refusing(reason: str, *, words_too: bool = False, status: int = 400) -> AsyncIterator[str]:
    """The address of an endpoint that refuses pictures, or everything."""

    async def chat(request: web.Request) -> web.Response:
        content = (await request.json())["messages"][-1]["content"]
        if words_too or any(part["type"] == "image_url" for part in content):
            error: JSON = {"message": reason, "type": "BadRequestError", "param": None, "code": status}
            return web.json_response({"error": error}, status=status)
        return web.json_response(completion("yes"))

    async def models(_: web.Request) -> web.Response:
        listed = [{"id": "lora", "parent": "base"}, {"id": "base", "parent": None}, {"id": "other"}]
        return web.json_response({"object": "list", "data": listed})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("here", "where"),
    [(True, "behind the options, `-- --chat-template FILE`"), (False, "`--chat-template FILE`")],
)
async def test_a_model_without_a_chat_template_is_one_sentence_with_its_remedy(
    here: bool, where: str
) -> None:
    async with refusing(TEMPLATE, words_too=True) as url:
        with pytest.raises(ConfigError) as refused:
            await check_answers(url, "base", here=here)
    assert str(refused.value) == f"base has no chat template: give its engine one, {where}"


async def test_a_model_that_reads_text_alone_is_one_sentence_with_its_remedy() -> None:
    async with refusing("base is not a multimodal model") as url:
        with pytest.raises(ConfigError) as refused:
            await check_answers(url, "base", here=True)
    said = str(refused.value)
    assert said.startswith("base takes no pictures, and the check-up asks about them: name a vision-language")
    assert "is not a multimodal model" in said


async def test_a_model_that_refuses_to_chat_is_quoted() -> None:
    async with refusing("maximum context length is 3", words_too=True) as url:
        with pytest.raises(ConfigError, match=r"^base refuses to chat: .*maximum context length is 3"):
            await check_answers(url, "base", here=True)


async def test_an_engine_that_fails_is_no_fault_of_the_model() -> None:
    async with refusing("out of memory", words_too=True, status=500) as url:
        with pytest.raises(EndpointError):
            await check_answers(url, "base", here=True)


async def test_the_first_base_is_asked_unless_another_model_is_named() -> None:
    async with refusing("") as url:
        assert await served_model(url, None) == "base"
        assert await served_model(url, "other") == "other"
        with pytest.raises(
            ConfigError, match=r"^--model theirs: not served there: name one of lora, base, oth"
        ):
            await served_model(url, "theirs")
