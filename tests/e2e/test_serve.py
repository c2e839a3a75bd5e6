"""The product as a newcomer starts it: vLLM behind the gateway, its models, its readiness, its end."""

import json
import urllib.request
from pathlib import Path

import pytest

from modint_guard.demo.launch import RunningGateway

pytestmark = [pytest.mark.e2e, pytest.mark.needs("libnuma1")]


def children(pid: int) -> list[int]:
    """The processes below one process, itself left out."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text("utf-8").split()):
            found += [child, *children(child)]
    return found


def get(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return dict(json.load(answer))


def test_base_and_adapter_are_served(served: RunningGateway) -> None:
    cards = get(f"{served.url}/v1/models")["data"]
    assert isinstance(cards, list)
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("tinyworld-base", None),
        ("robust-lora", "tinyworld-base"),
    ]


def test_readiness_names_what_the_engine_can_do(served: RunningGateway) -> None:
    assert get(f"{served.url}/readyz")["capabilities"] == {
        "models": ["tinyworld-base", "robust-lora"],
        "lora": ["robust-lora"],
        "logprobs": True,
        "top_logprobs": 20,
        "images": True,
        "teacher_forcing": True,  # beside adapters by our plugin
        "last_rows": True,
        "priority": True,
    }


def test_the_engine_is_reachable_from_this_machine_only(served: RunningGateway) -> None:
    """None of its processes listens on a TCP port beyond the loopback interface."""
    sockets = set()
    for pid in children(served.process.pid):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink()) if descriptor.is_symlink() else ""
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    listening = "0A"
    tables = [Path(f"/proc/net/{name}").read_text("utf-8").splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    exposed = [
        row[1] for row in rows if row[3] == listening and row[9] in sockets and not _is_loopback(row[1])
    ]
    assert exposed == []


def _is_loopback(address: str) -> bool:
    return address.split(":")[0] in {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}


def test_no_key_is_in_a_command_line(served: RunningGateway) -> None:
    for pid in children(served.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert not [word for word in words if b"api-key" in word.lower()]
