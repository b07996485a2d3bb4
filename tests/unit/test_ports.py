"""What is this machine, and which engine.url is not."""

from __future__ import annotations

import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import ports
from pipeline.engine.ollama.attached import _address
from pipeline.errors import ConfigError

HERE = ["127.0.0.1", "127.8.9.1", "localhost", "::1", "0.0.0.0", socket.gethostname()]


def engine(url: str) -> Any:
    return SimpleNamespace(engine=SimpleNamespace(url=url, allow_remote=False))


@pytest.mark.parametrize("host", HERE)
def test_this_machine_goes_by_all_its_names(host: str) -> None:
    assert ports.is_here(host)
    url = f"http://[{host}]:11434" if ":" in host else f"http://{host}:11434"
    assert _address(engine(url)) == (url, True, 11434)


@pytest.mark.parametrize("host", ["192.0.2.7", "example.invalid", "2001:db8::1", "no..name"])
def test_another_machine_is_another_machine(host: str) -> None:
    assert not ports.is_here(host)
    with pytest.raises(ConfigError, match="is another machine"):
        _address(engine(f"http://[{host}]:11434" if ":" in host else f"http://{host}:11434"))


def test_of_processes_that_share_a_socket_the_server_is_named_and_not_its_worker() -> None:
    code = ("import os, socket, sys; server = socket.create_server(('127.0.0.1', 0)); child = os.fork(); "
            "child and print(server.getsockname()[1], flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert ports.listener(int(server.stdout.readline())) == server.pid
        server.communicate(b"")
