"""A gateway in front of one engine, from the first bound port to the last closed socket.

bind the port → alive → engine ready → gateway ready → (a signal, or the engine's end) → not ready → drained
→ stopped
"""

import asyncio
import contextlib
import errno
import json
import signal
import socket
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from modint_guard.errors import ConfigError, EngineError
from modint_guard.judging.calibration import CALIBRATION, check_for, read_calibration
from modint_guard.models import BASE, FOLDER, bundled, check_tower_servable
from modint_guard.types import CELLS
from modint_server.adapters.folders import Adapter, checked_model, loadable, resolve_all
from modint_server.app import create_app
from modint_server.engine.child import VLLM, Engine, Progress
from modint_server.engine.config import EngineConfig, check_vllm_options, installed_device
from modint_server.engine.image_attention import GROUP, check_registered
from modint_server.logs import configure_logs
from modint_server.request.gateway import Gateway
from modint_server.settings import Settings, load_settings

NOTICE_S = 1.0  # between "not ready" and the closing port, so that whoever balances load sees it
DRAIN_S = 30  # for answers that are still running
QUIET_S = 10.0  # where no terminal is, a line of progress this often


def start(
    model: str | None,
    adapters: Sequence[str],
    adapter_dir: Path,
    host: str,
    port: int,
    *,
    calibrations: Sequence[Path] = (),
    vllm_options: Sequence[str] = (),
    command: Sequence[str] = VLLM,
) -> None:
    """Serves a model with an engine of our own (`command`, with `vllm_options`) until a signal comes.

    Raises ConfigError or AdapterError before anything is started, EngineError when the engine ends by itself.
    """
    check_vllm_options(vllm_options)
    settings = load_settings(
        upstream_url="http://engine",
        upstream_api_key=None,
        upstream_api_key_file=None,
        **_given(calibrations),
    )
    if settings.adapter_selftest == "auto":  # whoever names an adapter here wants that one, not the base
        settings = settings.model_copy(update={"adapter_selftest": "require"})
    check_registered(settings.image_attention, (each.name for each in entry_points(group=GROUP)))
    folder = checked_model(model if model is not None else str(bundled(BASE)))
    config = EngineConfig(
        model=folder,
        served_name=served_name(folder),
        adapters=resolve_all(adapters, adapter_dir, FOLDER),
        device=installed_device(),
        max_images=settings.max_images,
        options=tuple(vllm_options),
    )
    if any(adapter.name == config.served_name for adapter in config.adapters):
        raise ConfigError(
            f"adapter {config.served_name!r} has the model's name: name it otherwise with NAME=PATH"
        )
    if any(adapter.tower for adapter in config.adapters):
        check_tower_servable(Path(config.model))
    models: dict[str, str | None] = {config.served_name: None}
    models |= {adapter.name: config.served_name for adapter in config.adapters}
    if not settings.calibrations:
        folders = [Path(config.model), *(adapter.path for adapter in config.adapters)]
        settings = settings.model_copy(update={"calibrations": shipped_with(folders, models)})
    for path in settings.calibrations:  # a wrong one costs no start-up
        check_for(read_calibration(path), path, models=models, probes=CELLS)
    with bound(host, port) as door:
        asyncio.run(_start(config, command, settings, door))


def shipped_with(folders: Sequence[Path], models: Mapping[str, str | None]) -> tuple[Path, ...]:
    """The calibration files beside weights, of models that are served under the names they were made for.

    Raises ConfigError for a damaged one.
    """
    files = (folder / CALIBRATION for folder in folders)
    return tuple(file for file in files if file.is_file() and read_calibration(file).served_name in models)


def attach(
    url: str,
    key_file: Path | None,
    host: str,
    port: int,
    *,
    adapter_dir: Path,
    calibrations: Sequence[Path] = (),
) -> None:
    """Serves in front of a running engine until a signal comes; raises ConfigError.

    `adapter_dir` holds the folders of adapters that the engine serves, as far as they are here: for metrics.
    """
    settings = load_settings(upstream_url=url, upstream_api_key_file=key_file, **_given(calibrations))
    known = loadable(adapter_dir)
    with bound(host, port) as door:
        asyncio.run(_attach(settings, door, known))


def _given(calibrations: Sequence[Path]) -> dict[str, Any]:
    """Files named on the command line win over those of the environment."""
    return {"calibrations": tuple(calibrations)} if calibrations else {}


def misfits(config: EngineConfig) -> list[str]:
    """A sentence for each adapter whose card names another base than the one served."""
    return [
        f"adapter {adapter.name!r} was made for {adapter.base!r}, and {config.served_name!r} is served"
        for adapter in config.adapters
        if adapter.base is not None and Path(adapter.base).name != Path(config.served_name).name
    ]


def served_name(model: str) -> str:
    """What clients call the base: the hub id, or the folder's own name."""
    return Path(model).name if Path(model).is_dir() else model


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """The gateway's port, taken before anything slow is started; raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {host}: no such address: use 127.0.0.1, or 0.0.0.0 for every one"
        ) from error
    with socket.socket(family, kind, protocol) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(address)
            door.listen()  # a liveness probe that comes now waits a moment and is not refused
        except OSError as error:
            raise ConfigError(_refused(host, port, error)) from error
        yield door


def _refused(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: choose another with --port, or stop what listens there"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has: choose one above 1023 with --port"
    return f"cannot listen on {host} port {port} ({error.strerror}): choose another --host or --port"


async def _start(
    config: EngineConfig, command: Sequence[str], settings: Settings, door: socket.socket
) -> None:
    with _signals() as stop, Waiting() as waiting:
        engine = Engine(config, command=command, on_progress=waiting.show)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(engine.stop)
            ours = {"upstream_url": engine.base_url, "upstream_uds": engine.uds}
            key = {"upstream_api_key": SecretStr(engine.api_key)}
            app = create_app(  # what it refuses costs no start-up
                settings.model_copy(update=ours | key), adapters=config.adapters
            )
            app.state.gateway.attachment.hold("the engine is loading")
            await engine.start()
            await _serve(app, door, stop, _life_of(engine, app.state.gateway, door, waiting))


async def _life_of(engine: Engine, gateway: Gateway, door: socket.socket, waiting: "Waiting") -> EngineError:
    """From loading to its end. The gateway is alive all along, and ready in between."""
    ready = await engine.wait_ready()
    for note in (*ready.notes, *misfits(engine.config)):
        waiting.say(f"note: {note}")
    waiting.say(f"engine ready after {ready.seconds:.0f} s")
    gateway.attachment.begin()
    greeting = asyncio.create_task(_greet(gateway, door, waiting))
    try:
        return await engine.ended()
    finally:
        greeting.cancel()
        await asyncio.gather(greeting, return_exceptions=True)


async def _attach(settings: Settings, door: socket.socket, known: Sequence[Adapter]) -> None:
    with _signals() as stop, Waiting() as waiting:
        app = create_app(settings, adapters=known)
        await _serve(app, door, stop, _attached(app.state.gateway, door, waiting))


async def _attached(gateway: Gateway, door: socket.socket, waiting: "Waiting") -> EngineError:
    """The end of an engine that is not ours never comes: its absence shows in /readyz instead."""
    await _greet(gateway, door, waiting)
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def _serve(
    app: FastAPI,
    door: socket.socket,
    stop: asyncio.Event,
    life: Coroutine[Any, Any, EngineError],
) -> None:
    """Runs the gateway until a signal or the end of the engine's life; the latter raises EngineError."""
    gateway: Gateway = app.state.gateway
    configure_logs(gateway.settings.log_level)
    server = _Server(_uvicorn(app))
    serving = asyncio.create_task(server.serve(sockets=[door]))
    stopped, end = asyncio.create_task(stop.wait()), asyncio.create_task(life)
    try:
        await asyncio.wait({serving, stopped, end}, return_when=asyncio.FIRST_COMPLETED)
        gateway.draining = True
        if not serving.done() and gateway.attachment.capabilities is not None:  # once ready: some rely on it
            await asyncio.sleep(NOTICE_S)
        server.should_exit = True
        await serving
    finally:
        for task in (stopped, end):
            task.cancel()
        await asyncio.gather(stopped, end, return_exceptions=True)
    if end.done() and not end.cancelled():
        raise end.result()
    if not stop.is_set():
        raise EngineError("the gateway ended by itself: see the lines above")


def _uvicorn(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,  # our own JSON lines
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


class _Server(uvicorn.Server):
    """Leaves the signals to us: the gateway must say "not ready" before its port closes."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _greet(gateway: Gateway, door: socket.socket, waiting: "Waiting") -> None:
    """Says what is served once it is, and until then what is missing."""
    attachment, began = gateway.attachment, time.monotonic()
    while not attachment.ready:
        await asyncio.sleep(0.1)
        if (elapsed_s := time.monotonic() - began) > 1.0:  # ours answers at once: nothing to say then
            waiting.show(Progress("not ready", elapsed_s, "; ".join(attachment.reasons)))
    for problem in attachment.capabilities.problems if attachment.capabilities else ():
        waiting.say(f"note: {problem}")
    names = [model.id for model in attachment.models]
    for line in greeting(
        address(door), names, bool(gateway.settings.api_keys or gateway.settings.api_keys_file)
    ):
        waiting.say(line)


def address(door: socket.socket) -> str:
    """The base URL under which a client on this machine reaches the gateway."""
    host, port = door.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def greeting(url: str, models: Sequence[str], keys_asked: bool) -> list[str]:
    """The lines a person needs to go on: base URL, models, a curl command that works."""
    message = {"role": "user", "content": "What is two plus three?"}
    body = json.dumps({"model": models[-1] if models else "MODEL", "messages": [message], "max_tokens": 8})
    key = " -H 'authorization: Bearer KEY'" if keys_asked else ""
    return [
        "modint-guard is ready",
        f"  base URL  {url}/v1",
        f"  models    {', '.join(models)}",
        f"  try       curl {url}/v1/chat/completions -H 'content-type: application/json'{key} \\",
        f"              -d '{body}'",
    ]


class Waiting:
    """What a person sees: one moving line in a terminal, a line now and then where there is none."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._status = self._console.status("starting")
        self._shown: tuple[str, float] | None = None

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *exc: object) -> None:
        self._status.stop()

    def show(self, progress: Progress) -> None:
        text = f"{progress.stage} · {progress.elapsed_s:.0f} s · {progress.line[:100]}"
        if self._console.is_terminal:
            self._status.update(escape(text[: self._console.width - 4]))  # one line: it is drawn over itself
            self._status.start()
        elif self._shown is None or self._shown[0] != progress.stage or self._due(progress):
            self._shown = (progress.stage, progress.elapsed_s)
            self.say(text)

    def _due(self, progress: Progress) -> bool:
        return self._shown is not None and progress.elapsed_s - self._shown[1] >= QUIET_S

    def say(self, line: str) -> None:
        self._status.stop()
        self._console.print(line, markup=False)


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM or Ctrl-C sets; a second one ends the process at once (the engine with it)."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def heard() -> None:
        stop.set()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sign)

    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, heard)
    try:
        yield stop
    finally:
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sign)
