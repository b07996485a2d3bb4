"""HTTP to engines: marks are taken as bytes arrive, a silence is looked after, and a server sees that we hang up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pipeline.engine.http import BrokenError, Client, RefusedError
from pipeline.errors import EngineError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
Serve = Callable[[socket.socket], None]
PAUSE_S = 0.15


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextlib.contextmanager
def server(serve: Serve) -> Iterator[str]:
    """One request, answered by `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def one() -> None:
            connection, _ = listening.accept()
            with connection:
                asked = connection.recv(65536)
                while asked.startswith(b"POST") and not asked.endswith(b"{}"):  # its body may come in a second piece
                    asked += connection.recv(65536)
                serve(connection)

        thread = threading.Thread(target=one)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        thread.join(5)
        assert not thread.is_alive()


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


def idle() -> float:
    return 0.05


def test_each_line_is_marked_when_its_bytes_arrive_and_only_a_newline_ends_one(client: Client) -> None:
    sent: list[int] = []

    def serve(connection: socket.socket) -> None:
        for at, data in enumerate(("a\u2028\r\n", "b\nc", "c\nd")):
            time.sleep(PAUSE_S if at else 0)
            sent.append(time.monotonic_ns())
            connection.sendall((b"" if at else HEAD) + chunk(data.encode()))
        connection.sendall(b"0\r\n\r\n")

    with server(serve) as url:
        found = list(client.lines(url, {}, idle, kind="json"))
    assert [line.decode() for line, _ in found] == ["a\u2028\r", "b", "cc", "d"]
    for (_, marked), at in zip(found, (sent[0], sent[1], sent[2], sent[2]), strict=True):
        assert 0 <= marked - at < PAUSE_S * 1e9


def test_an_answer_without_chunks_arrives_piece_by_piece_too(client: Client) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\na\n")
        time.sleep(PAUSE_S)
        connection.sendall(b"b\n")

    with server(serve) as url:
        (_, first), (_, second), (rest, _) = client.lines(url, {}, idle)
    assert second - first > PAUSE_S * 0.9e9 and rest == b""


@pytest.mark.parametrize("head", [b"", HEAD + chunk(b"a\n")], ids=["before its first byte", "in its answer"])
def test_what_the_look_raises_ends_the_request_and_the_server_sees_us_hang_up(client: Client, head: bytes) -> None:
    ended: list[float] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(head)
        assert connection.recv(1) == b""
        ended.append(time.monotonic())

    begun = time.monotonic()

    def look() -> float:
        if time.monotonic() - begun > PAUSE_S:
            raise EngineError("no token")
        return 0.02

    with server(serve) as url:
        with pytest.raises(EngineError, match="no token"):
            list(client.lines(url, {}, look))
        left = time.monotonic()
    assert abs(ended[0] - left) < PAUSE_S


def test_a_caller_that_leaves_is_seen_by_the_server_and_the_client_goes_on(client: Client) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(HEAD + chunk(b"a\n"))
        assert connection.recv(1) == b""

    for _ in range(2):
        with server(serve) as url, contextlib.closing(client.lines(url, {}, idle)) as lines:
            assert next(lines)[0] == b"a"


@pytest.mark.parametrize(("answer", "words"), [
    (b"", "closed connection without response"), (HEAD + chunk(b"a\nb") + b"5\r\n", "IncompleteRead"),
    (b"no HTTP at all\r\n\r\n", "no HTTP at all")])
def test_a_connection_that_breaks_says_how(client: Client, answer: bytes, words: str) -> None:
    with server(lambda connection: connection.sendall(answer)) as url, pytest.raises(BrokenError, match=words):
        list(client.lines(url, {}, idle))


def test_another_answer_than_the_stream_that_was_asked_for_is_kept_whole(client: Client) -> None:
    page = b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nbusy"
    with (server(lambda connection: connection.sendall(page)) as url, pytest.raises(RefusedError) as refused):
        list(client.lines(url, {}, idle, kind="json"))
    assert (refused.value.answer.status, refused.value.answer.kind, refused.value.answer.text) == (
        502, "text/html", "busy")


def test_a_question_ends_after_a_silence_and_no_proxy_of_the_environment_is_asked(
        client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with server(lambda connection: time.sleep(0.3)) as url, pytest.raises(BrokenError, match="timed out"):
        client.ask("GET", url, None, 0.1)
    with pytest.raises(BrokenError, match="Connection refused"):
        client.ask("GET", url, None, 1.0)
