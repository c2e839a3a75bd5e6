"""The libraries that people call with get their answers through the gateway, and each request is judged.

They run as processes of an environment of their own (`make test-clients`) against a real socket.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import picture, serving
from tests.server.fake_upstream import BASE, Answer, FakeUpstream, misled, running
from tests.server.test_streams_and_faults import until

pytestmark = pytest.mark.clients
JSON = dict[str, Any]
ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
INSTALLED = ROOT / ".venv-clients"
OBJECT = '{"colour": "blue"}'
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "Shape", "arguments": OBJECT}}
# What each program asks, in its own order, and how many of its requests are judged.
ASKED = {
    "openai_python.py": ("chat chat_stream chat_helper responses responses_stream responses_helper", 6),
    "anthropic_python.py": ("messages messages_stream messages_helper", 2),
    "langchain_python.py": ("chat chat_stream chat_object chat_tools responses responses_stream", 4),
    "llama_index_python.py": ("chat chat_stream responses responses_stream", 4),
    "litellm_python.py": ("chat chat_stream responses responses_stream", 4),
    "instructor_python.py": ("chat_json chat_tools responses_tools", 0),
    "pydantic_ai_python.py": (
        "chat chat_stream chat_object responses responses_stream responses_object",
        4,
    ),
    "openai_node.mjs": ("chat chat_stream responses responses_stream", 4),
    "anthropic_node.mjs": ("messages messages_stream", 2),
    "ai_sdk_node.mjs": ("chat chat_stream responses responses_stream like like_stream", 6),
}


def answered(body: JSON) -> Answer:
    """`misled`, as an object to who asks for one."""
    wants_object = "response_format" in body or "format" in (body.get("text") or {})
    return Answer(OBJECT) if wants_object else misled(body)


def calling_tools(body: JSON, answer: JSON) -> JSON:
    """An answer by the tool that was offered."""
    if "tools" in body:
        message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    return answer


async def said_by(program: str, url: str) -> JSON:
    """What a program tells; its whole output if it fails."""
    command = [str(INSTALLED / "bin" / "python"), str(PROGRAMS / program)]
    if program.endswith(".mjs"):
        for file in PROGRAMS.glob("*.mjs"):
            shutil.copy(file, INSTALLED)  # Node looks for libraries beside the program
        command = ["node", str(INSTALLED / program)]
    process = await asyncio.create_subprocess_exec(
        *(*command, f"{url}/v1", BASE, picture()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "NO_PROXY": "*"},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, out.decode()
    said: JSON = json.loads(out.decode().splitlines()[-1])
    return said


@pytest.mark.parametrize("program", ASKED)
async def test_a_library_gets_its_answers_and_each_is_judged(program: str) -> None:
    if not (INSTALLED / ("node_modules" if program.endswith(".mjs") else ".installed")).exists():
        pytest.skip("its library is not installed: make test-clients installs it, if there is Node for it")
    names, judged = ASKED[program]
    upstream = FakeUpstream(script=answered, responses=True, damage=calling_tools)
    if program.startswith("instructor"):
        item = {"type": "function_call", "id": "f", "call_id": "c", "name": "Shape", "arguments": OBJECT}
        head = {"id": "resp_1", "object": "response", "created_at": 7, "status": "completed", "model": BASE}
        more = {"output": [item], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        upstream.further["/v1/responses"] = ("application/json", json.dumps({**head, **more}).encode())
    async with running(upstream), serving(upstream.url, api_keys="client-key") as gateway:
        said = await said_by(program, gateway.url)
        await until(lambda: gateway.gateway.in_flight == 0)
        counted = sum(
            gateway.value("modint_verdicts_total", model=BASE, adapter="none", relevant="image", **verdict)
            or 0
            for verdict in ({"verdict": "pass", "cause": "none"}, {"verdict": "flagged", "cause": "text"})
        )
    assert set(said.pop("verdicts", ["flagged"])) == {"flagged"}
    assert said == dict.fromkeys(names.split(), "blue")
    assert counted == judged
