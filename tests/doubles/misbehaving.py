"""An HTTP server that says what a test puts into it, whatever it is: bytes, or a function that writes to the socket."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

Talk = Callable[[socket.socket], None]
Say = bytes | Talk
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
SECONDS = 15.0
"""A talk without end is given up: the client should have left long before."""


def without_end(data: bytes, pause_s: float = 0.0, head: bytes = HEAD) -> Talk:
    """The same again and again, until the client leaves."""
    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            connection.sendall(data)
            time.sleep(pause_s)

    return talk


def silent(connection: socket.socket) -> None:
    """Takes the request and never answers."""
    connection.recv(1)


@contextlib.contextmanager
def serving(answers: Mapping[str, Say]) -> Iterator[str]:
    """Serves each path with its answer: a JSON body, or what a function does to the connection. Yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads: list[threading.Thread] = []

        def accept() -> None:
            with contextlib.suppress(OSError):  # it is over
                while True:
                    threads.append(threading.Thread(target=one, args=(listening.accept()[0],)))
                    threads[-1].start()

        def one(connection: socket.socket) -> None:
            connection.settimeout(SECONDS)
            with connection, contextlib.suppress(OSError):
                say = answers[_asked(connection)]
                if isinstance(say, bytes):
                    connection.sendall(HEAD + say)
                else:
                    say(connection)

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # wakes what waits in accept
            for thread in (accepting, *threads):
                thread.join(SECONDS)


def _asked(connection: socket.socket) -> str:
    """The path of a request, read whole."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += connection.recv(65536)
    head, _, body = said.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length:" in line), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head.split()[1].decode()
