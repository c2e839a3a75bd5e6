"""Runs the gateway in front of one engine, from the bound port to the last closed connection.

port bound → alive → engine ready → gateway ready → (a signal, or the engine's end) → not ready
→ answers that are still running end → stopped
"""

import asyncio
import contextlib
import errno
import gc
import json
import signal
import socket
import sys
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
from modint_guard.models import BASE, FOLDER, bundled, check_tower_servable, picturebook
from modint_guard.models.fetch import say
from modint_guard.types import CELLS
from modint_server.adapters.folders import Adapter, checked_model, loadable, resolve_all
from modint_server.app import create_app
from modint_server.connections import BoundedConnection
from modint_server.engine.child import VLLM, Engine, Progress
from modint_server.engine.config import Device, EngineConfig, check_vllm_options, installed_device
from modint_server.engine.dtype import Dtype, cpu_dtype, has_native_bf16
from modint_server.engine.image_attention import GROUP, check_registered
from modint_server.logs import configure_logs
from modint_server.request.gateway import Gateway
from modint_server.settings import Settings, load_settings

NOTICE_S = 1.0  # from "not ready" to the closing of the port, so that a load balancer sees it
DRAIN_S = 30  # for answers that are still running
SWITCH_S = 0.0002  # a thread that reads a body gives way to the event loop after so long; Python's own: 0.005
QUIET_S = 10.0  # between two lines of progress if the output is no terminal


def start(
    model: str | None,
    adapters: Sequence[str],
    adapter_dir: Path,
    host: str,
    port: int,
    *,
    calibrations: Sequence[Path] = (),
    dtype: Dtype = "auto",
    vllm_options: Sequence[str] = (),
    command: Sequence[str] = VLLM,
) -> None:
    """Starts an engine, and serves it until a signal comes.

    model: folder, hub id or name of a fetched model, which is fetched if need be; None: the bundled base.
    dtype: what the engine computes in. adapters: `NAME` or `NAME=PATH`. vllm_options: further
    words of vLLM's command line. command: the engine's program and first words.
    Raises ConfigError or AdapterError before anything is started, EngineError if the engine ends by itself.
    """
    check_vllm_options(vllm_options)
    settings = load_settings(
        upstream_url="http://engine",
        upstream_api_key=None,
        upstream_api_key_file=None,
        **_named(calibrations),
    )
    if settings.adapter_selftest == "auto":  # who names an adapter here wants its answers, not the base's
        settings = settings.model_copy(update={"adapter_selftest": "require"})
    check_registered(settings.image_attention, (each.name for each in entry_points(group=GROUP)))
    folder = checked_model(_folder_of(model))
    device = installed_device()
    config = EngineConfig(
        model=folder,
        served_name=served_name(folder),
        adapters=resolve_all(adapters, adapter_dir, FOLDER),
        device=device,
        dtype=cpu_dtype(dtype, native_bf16=has_native_bf16()) if device is Device.CPU else dtype,
        max_images=settings.max_images,
        options=tuple(vllm_options),
    )
    if config.scores_beside_adapters and settings.teacher_forcing == "auto":
        settings = settings.model_copy(update={"teacher_forcing": "on"})
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
    for path in settings.calibrations:  # before the engine takes minutes to start
        check_for(read_calibration(path), path, models=models, probes=CELLS)
    with bound(host, port) as listener:
        asyncio.run(_start(config, command, settings, listener))


def _folder_of(model: str | None) -> str:
    """What to serve: the bundled base by default, a fetched model by its name, else what was named."""
    if model is None:
        return str(bundled(BASE))
    is_fetched_model = model == picturebook.NAME and not Path(model).exists()
    return str(picturebook.fetch(say=say)) if is_fetched_model else model


def shipped_with(folders: Sequence[Path], models: Mapping[str, str | None]) -> tuple[Path, ...]:
    """The calibration files in `folders` that were made for a model in `models`, which are those served.

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
    """Serves an engine that runs already, until a signal comes. Raises ConfigError.

    key_file: holds the engine's key. adapter_dir: folders of adapters that the engine serves; the metrics
    show what these say about them.
    """
    settings = load_settings(upstream_url=url, upstream_api_key_file=key_file, **_named(calibrations))
    adapters = loadable(adapter_dir)
    with bound(host, port) as listener:
        asyncio.run(_attach(settings, listener, adapters))


def _named(calibrations: Sequence[Path]) -> dict[str, Any]:
    """The setting, if the command line names calibrations: these win over the environment's."""
    return {"calibrations": tuple(calibrations)} if calibrations else {}


def misfits(config: EngineConfig) -> list[str]:
    """A sentence for each adapter whose card names another base than the served model."""
    return [
        f"adapter {adapter.name!r} was made for {adapter.base!r}, and {config.served_name!r} is served"
        for adapter in config.adapters
        if adapter.base is not None and Path(adapter.base).name != Path(config.served_name).name
    ]


def served_name(model: str) -> str:
    """The name by which clients call the base: the hub id, or the folder's own name."""
    return Path(model).name if Path(model).is_dir() else model


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on the gateway's port. Raises ConfigError if the port cannot be had.

    It listens before anything slow is started, so that an early liveness probe waits and is not refused.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {host}: no such address: use 127.0.0.1, or 0.0.0.0 for every one"
        ) from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()
        except OSError as error:
            raise ConfigError(_refusal(host, port, error)) from error
        yield listener


def _refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: choose another with --port, or stop what listens there"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has: choose one above 1023 with --port"
    return f"cannot listen on {host} port {port} ({error.strerror}): choose another --host or --port"


async def _start(
    config: EngineConfig, command: Sequence[str], settings: Settings, listener: socket.socket
) -> None:
    with _signals() as stop, StartDisplay() as display:
        engine = Engine(config, command=command, on_progress=display.show)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(engine.stop)
            engine_settings = {
                "upstream_url": engine.base_url,
                "upstream_uds": engine.uds,
                "upstream_api_key": SecretStr(engine.api_key),
            }
            # The app first: what it refuses is refused before the engine takes minutes to start.
            app = create_app(settings.model_copy(update=engine_settings), adapters=config.adapters)
            app.state.gateway.attachment.hold("the engine is loading")
            await engine.start()
            await _serve(app, listener, stop, _run_engine(engine, app.state.gateway, listener, display))


async def _run_engine(
    engine: Engine, gateway: Gateway, listener: socket.socket, display: "StartDisplay"
) -> EngineError:
    """Waits for the engine to be ready, then for its end, whose reason it returns."""
    ready = await engine.wait_ready()
    for note in (*ready.notes, *misfits(engine.config)):
        display.say(f"note: {note}")
    display.say(f"engine ready after {ready.seconds:.0f} s")
    gateway.attachment.begin()
    greeting = asyncio.create_task(_greet(gateway, listener, display))
    try:
        return await engine.ended()
    finally:
        greeting.cancel()
        await asyncio.gather(greeting, return_exceptions=True)


async def _attach(settings: Settings, listener: socket.socket, adapters: Sequence[Adapter]) -> None:
    with _signals() as stop, StartDisplay() as display:
        app = create_app(settings, adapters=adapters)
        await _serve(app, listener, stop, _greet_and_wait(app.state.gateway, listener, display))


async def _greet_and_wait(gateway: Gateway, listener: socket.socket, display: "StartDisplay") -> EngineError:
    """As `_run_engine`, for an engine that others started: it never returns, as /readyz shows its end."""
    await _greet(gateway, listener, display)
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def _serve(
    app: FastAPI,
    listener: socket.socket,
    stop: asyncio.Event,
    engine_end: Coroutine[Any, Any, EngineError],
) -> None:
    """Runs the gateway until `stop` is set, or until `engine_end` returns an error, which is then raised."""
    gateway: Gateway = app.state.gateway
    configure_logs(gateway.settings.log_level)
    sys.setswitchinterval(SWITCH_S)
    gc.freeze()  # what was imported stays: to look through it again and again holds up all threads for 50 ms
    server = _Server(server_config(app))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reads_keys_again = gateway.settings.api_keys_file is not None
    if reads_keys_again:  # else the end of a terminal ends the gateway
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, gateway.reload_keys)
    stopped, end = asyncio.create_task(stop.wait()), asyncio.create_task(engine_end)
    try:
        await asyncio.wait({serving, stopped, end}, return_when=asyncio.FIRST_COMPLETED)
        gateway.draining = True
        if not serving.done() and gateway.attachment.capabilities is not None:  # it was ready: say it is not
            await asyncio.sleep(NOTICE_S)
        server.should_exit = True
        await serving
    finally:
        if reads_keys_again:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        for task in (stopped, end):
            task.cancel()
        await asyncio.gather(stopped, end, return_exceptions=True)
    if end.done() and not end.cancelled():
        raise end.result()
    if not stop.is_set():
        raise EngineError("the gateway ended by itself: see the lines above")


def server_config(app: FastAPI) -> uvicorn.Config:
    """How uvicorn serves the app."""
    gateway: Gateway = app.state.gateway
    return uvicorn.Config(
        app,
        http=BoundedConnection,
        timeout_keep_alive=gateway.settings.keep_alive_s,
        log_config=None,  # the gateway writes its own JSON lines
        log_level="error",  # no warning for every offer of HTTP/2
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


class _Server(uvicorn.Server):
    """Leaves signals to `_signals`: the gateway must say "not ready" before its port closes."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _greet(gateway: Gateway, listener: socket.socket, display: "StartDisplay") -> None:
    """Shows why the gateway is not ready; once it is, what it serves and how to ask."""
    attachment, began = gateway.attachment, time.monotonic()
    while not attachment.ready:
        await asyncio.sleep(0.1)
        if (elapsed_s := time.monotonic() - began) > 1.0:  # an engine of our own is ready sooner
            display.show(Progress("not ready", elapsed_s, "; ".join(attachment.reasons)))
    for problem in attachment.capabilities.problems if attachment.capabilities else ():
        display.say(f"note: {problem}")
    names = [model.id for model in attachment.models]
    for line in greeting(address(listener), names, keys_required=gateway.keys.are_asked_for):
        display.say(line)


def address(listener: socket.socket) -> str:
    """The URL, without a path, by which a client on this machine reaches the gateway."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def greeting(url: str, models: Sequence[str], *, keys_required: bool) -> list[str]:
    """The lines that a person needs to go on: base URL, models, a curl command that works."""
    message = {"role": "user", "content": "What is two plus three?"}
    body = json.dumps({"model": models[-1] if models else "MODEL", "messages": [message], "max_tokens": 8})
    key = " -H 'authorization: Bearer KEY'" if keys_required else ""
    return [
        "modint-guard is ready",
        f"  base URL  {url}/v1",
        f"  models    {', '.join(models)}",
        f"  try       curl {url}/v1/chat/completions -H 'content-type: application/json'{key} \\",
        f"              -d '{body}'",
    ]


class StartDisplay:
    """Shows a person how the start goes: one moving line in a terminal, else a line now and then."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._status = self._console.status("starting")
        self._shown: tuple[str, float] | None = None

    def __enter__(self) -> "StartDisplay":
        return self

    def __exit__(self, *exc: object) -> None:
        self._status.stop()

    def show(self, progress: Progress) -> None:
        """Shows the progress; the last line that was shown gives way to it in a terminal."""
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
        """Prints a line that stays."""
        self._status.stop()
        self._console.print(line, markup=False)


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM or Ctrl-C sets. A second signal ends the process, and the engine, at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sign)

    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, on_signal)
    try:
        yield stop
    finally:
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sign)
