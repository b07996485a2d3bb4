"""HTTP to a server that serves a model: a question and its answer, or an answer in lines that arrive over time.

The one place of this room that knows the client (requests). Nothing of the environment is read (no proxy, no
certificates, no password): the address is all that counts. What an answer means is its engine's.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import EngineError, innermost

if TYPE_CHECKING:
    import requests

Look = Callable[[], float]
"""Looks after a wait: says in how many seconds it wants to look again; what it raises ends the request."""

CONNECT_S = 5.0
_BLOCK = 65536
_HANG_UP_S = 0.01


class BrokenError(EngineError):
    """Nothing that speaks HTTP is there, or it went away."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    kind: str
    """Its content type; "" if it has none."""
    text: str


class RefusedError(EngineError):
    """An answer that is not the stream that was asked for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status} {answer.kind}: {answer.text[:300]}")
        self.answer = answer


class Client:
    """One request at a time. Made before anything is timed: its library takes a tenth of a second to import."""

    def __init__(self) -> None:
        self._session, self._threads = self._opened(), ThreadPoolExecutor(1)
        self._socket: socket.socket | None = None

    def close(self) -> None:
        """Give up the connection and the thread that are kept."""
        self._session.close()
        self._threads.shutdown()

    def ask(self, method: str, url: str, body: Mapping[str, Any] | None, limit_s: float) -> Answer:
        """One question and its answer; a silence of `limit_s` ends it. Raises BrokenError."""
        import requests

        try:
            return _whole(self._send(method, url, body, (limit_s, limit_s)))
        except requests.RequestException as error:
            raise BrokenError(innermost(error)) from error

    def lines(self, url: str, body: Mapping[str, Any], look: Look, kind: str = "") -> Generator[tuple[bytes, int]]:
        """POST; each line of the answer with the `time.monotonic_ns()` at which its bytes arrived, while `look` is
        called all along in this thread. However the caller leaves, a server that has not finished sees us hang up.

        Raises RefusedError: not 200, or no `kind` in its content type; BrokenError; whatever `look` raises."""
        arrived: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        reading = self._threads.submit(self._read, url, body, kind, arrived.put)
        reading.add_done_callback(lambda _: arrived.put(None))
        try:
            rest, t_ns, look_at = b"", 0, time.monotonic()
            while True:
                try:  # what has arrived comes before a look, so that their marks are in order
                    block = arrived.get(timeout=max(0.0, look_at - time.monotonic()))
                except queue.Empty:
                    look_at = time.monotonic() + look()
                    continue
                if block is None:
                    break
                # Only \n ends a line: a text may hold what str.splitlines takes for an end.
                *lines, rest = (rest + block[0]).split(b"\n")
                t_ns = block[1]
                for line in lines:
                    yield line, t_ns
            reading.result()
            yield rest, t_ns
        finally:
            self._hang_up(reading)

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None,
              timeout: tuple[float, float | None], stream: bool = False) -> requests.Response:
        # a server may close a connection without a word once it has streamed over it: none is kept after a stream
        return self._session.request(method, url, json=body, timeout=timeout, stream=stream, allow_redirects=False,
                                     headers={"Connection": "close"} if stream else None)

    def _read(self, url: str, body: Mapping[str, Any], kind: str, put: Callable[[tuple[bytes, int]], None]) -> None:
        """All that the thread does that waits for bytes: so a mark is taken when they arrive."""
        import requests
        import urllib3

        try:
            with self._send("POST", url, body, (CONNECT_S, None), stream=True) as response:
                if response.status_code != 200 or kind not in response.headers.get("content-type", ""):
                    raise RefusedError(_whole(response))
                while block := response.raw.read1(_BLOCK):
                    put((block, time.monotonic_ns()))
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise BrokenError(innermost(error)) from error

    def _hang_up(self, reading: Future[None]) -> None:
        """End the connection under a thread that still waits for bytes; again, if it only now opened one."""
        while not reading.done():
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the server has closed it
                    self._socket.shutdown(socket.SHUT_RDWR)
            wait([reading], _HANG_UP_S)

    def _opened(self) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter

        def opened(new: socket.socket) -> None:
            self._socket = new

        adapter = HTTPAdapter()
        pools = adapter.poolmanager.pool_classes_by_scheme
        adapter.poolmanager.pool_classes_by_scheme = {scheme: _telling(pools[scheme], opened) for scheme in pools}
        session = requests.Session()
        session.trust_env = False
        session.headers["Accept-Encoding"] = "identity"  # what is packed arrives late
        for scheme in pools:
            session.mount(f"{scheme}://", adapter)
        return session


def _telling(pool: Any, opened: Callable[[socket.socket], None]) -> Any:
    """A class of connection pools that tells the sockets: no client ends a request that another thread waits in."""

    class Connection(pool.ConnectionCls):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class Pool(pool):  # type: ignore[misc]
        ConnectionCls = Connection

    return Pool


def _whole(response: requests.Response) -> Answer:
    return Answer(response.status_code, response.headers.get("content-type", ""),
                  response.content.decode(errors="replace"))
