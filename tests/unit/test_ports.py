"""What is this machine, and which engine.url is not."""

from __future__ import annotations

import os
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
    assert _address(engine(url)) == (url, True, host, 11434)


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


def test_of_two_programs_on_one_port_the_one_at_the_address_is_named() -> None:
    code = ("import socket, sys; host, port = sys.argv[1], int(sys.argv[2]); "
            "server = socket.create_server((host, port), family=socket.AF_INET6 if ':' in host else socket.AF_INET); "
            "print(server.getsockname()[1], flush=True); sys.stdin.read()")

    def serve(host: str, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", code, host, str(port)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE)

    with serve("127.0.0.1", 0) as first:
        assert first.stdout is not None
        port = int(first.stdout.readline())
        with serve("127.0.0.2", port) as second, serve("::1", port) as third:
            for other in (second, third):
                assert other.stdout is not None
                other.stdout.readline()
            for host, server in (("127.0.0.1", first), ("127.0.0.2", second), ("::1", third), ("0.0.0.0", first)):
                assert ports.listener(port, host) == server.pid
            assert {each.uid for each in ports.listening(port, "127.0.0.2")} == {os.getuid()}
            assert ports.listener(port, "127.0.0.3") is None
            for other in (third, second, first):
                other.communicate(b"")
