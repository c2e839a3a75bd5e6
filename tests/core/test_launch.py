"""Starting the gateway as a child: a child that ends at once is an error that says so."""

import socket
import subprocess

import pytest

from modint_guard.demo.launch import free_port, serving
from modint_guard.errors import EngineError


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_a_gateway_that_ends_before_it_is_ready_is_reported_with_its_exit_code() -> None:
    wrong = ["--upstream", "no-address"]
    with (
        pytest.raises(EngineError, match="the gateway ended with exit code 2; its last lines say why"),
        serving(wrong, output=subprocess.DEVNULL),
    ):
        pytest.fail("a gateway without an upstream was called ready")
