"""HTTP to a server that serves a model: a question and its answer, or an answer in lines that arrive over time.

The one place of this room that knows the client (requests). Nothing of the environment is read (no proxy, no
certificates, no password): the address is all that counts. What an answer means is its engine's.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from pipeline.engine.answers import quoted
from pipeline.errors import EngineError, innermost

if TYPE_CHECKING:
    import requests

Look = Callable[[], float]
"""Looks after a wait: says in how many seconds it wants to look again; what it raises ends the request."""

CONNECT_S = 5.0
LINE_BYTES = ANSWER_BYTES = 16 * 2**20
"""A line, or an answer that is read whole, is no longer: the longest true one holds the tokens of a long prompt."""
_BLOCK = 65536
_BLOCKS = 64
"""So many wait to be looked at; a server that sends faster waits."""
_HANG_UP_S = 0.01
_LATE_S = 0.5
"""A look is not put off for longer by what goes on arriving."""


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
        super().__init__(f"HTTP {answer.status} {quoted(answer.kind)}: {quoted(answer.text)}")
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
        """One question and its answer, whole within `limit_s`. Raises BrokenError; EngineError: ANSWER_BYTES."""
        asking = self._threads.submit(self._fetch, method, url, body, limit_s)
        try:
            return asking.result(limit_s)
        except NotInTime:
            raise BrokenError(f"timed out: no whole answer within {limit_s:g} s") from None
        finally:
            self._hang_up(asking)

    def lines(self, url: str, body: Mapping[str, Any], look: Look, kind: str = "") -> Generator[tuple[bytes, int]]:
        """POST; each line of the answer with the `time.monotonic_ns()` at which its bytes arrived, while `look` is
        called all along in this thread. However the caller leaves, a server that has not finished sees us hang up.

        Raises RefusedError: not 200, or no `kind` in its content type; BrokenError; EngineError: a line of more than
        LINE_BYTES; whatever `look` raises."""
        arrived: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        room = threading.Semaphore(_BLOCKS)
        reading = self._threads.submit(self._read, url, body, kind, arrived.put, room)
        reading.add_done_callback(lambda _: arrived.put(None))
        try:
            begun, t_ns, look_at = bytearray(), 0, time.monotonic()
            while True:
                try:  # what has arrived comes before a look, so that their marks are in order
                    block = arrived.get(timeout=max(0.0, look_at - time.monotonic()))
                except queue.Empty:
                    look_at = time.monotonic() + look()
                    continue
                if block is None:
                    break
                room.release()
                # Only \n ends a line: a text may hold what str.splitlines takes for an end.
                first, *others = block[0].split(b"\n")
                begun += first
                t_ns = block[1]
                if others:
                    yield bytes(begun), t_ns
                    *whole, rest = others
                    for line in whole:
                        yield line, t_ns
                    begun = bytearray(rest)
                elif len(begun) > LINE_BYTES:
                    raise EngineError(f"a line of its answer is longer than {LINE_BYTES // 2**20} MiB: "
                                      f"{quoted(bytes(begun))}")
                if time.monotonic() > look_at + _LATE_S:
                    look_at = time.monotonic() + look()
            reading.result()
            yield bytes(begun), t_ns
        finally:
            self._hang_up(reading, room)

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None,
              timeout: tuple[float, float | None], keep: bool) -> requests.Response:
        # a server may close a connection without a word once it has streamed over it: none is kept after a stream
        return self._session.request(method, url, json=body, timeout=timeout, stream=True, allow_redirects=False,
                                     headers=None if keep else {"Connection": "close"})

    def _fetch(self, method: str, url: str, body: Mapping[str, Any] | None, limit_s: float) -> Answer:
        with _telling_what_broke(), self._send(method, url, body, (limit_s, limit_s), keep=True) as response:
            return _whole(response)

    def _read(self, url: str, body: Mapping[str, Any], kind: str, put: Callable[[tuple[bytes, int]], None],
              room: threading.Semaphore) -> None:
        """All that the thread does that waits for bytes: so a mark is taken when they arrive."""
        with _telling_what_broke(), self._send("POST", url, body, (CONNECT_S, None), keep=False) as response:
            if response.status_code != 200 or kind not in response.headers.get("content-type", ""):
                raise RefusedError(_whole(response))
            while block := response.raw.read1(_BLOCK):
                put((block, time.monotonic_ns()))
                room.acquire()
        self._session.get_adapter(url).close()  # urllib3 would keep the connection, whatever we asked for

    def _hang_up(self, reading: Future[Any], room: threading.Semaphore | None = None) -> None:
        """End the connection under a thread that still waits for bytes; again, if it only now opened one."""
        while not reading.done():
            if room is not None:
                room.release(_BLOCKS)
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
        session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]  # else it reads the body for us
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


@contextlib.contextmanager
def _telling_what_broke() -> Iterator[None]:
    """What these libraries make of a connection, or of bytes that are no HTTP, is one error."""
    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
        raise BrokenError(quoted(innermost(error))) from error


def _whole(response: requests.Response) -> Answer:
    """Raises EngineError: it is longer than ANSWER_BYTES."""
    blocks, length = [], 0
    while block := response.raw.read1(_BLOCK):
        blocks.append(block)
        length += len(block)
        if length > ANSWER_BYTES:
            raise EngineError(f"its answer is longer than {ANSWER_BYTES // 2**20} MiB: {quoted(b''.join(blocks))}")
    return Answer(response.status_code, response.headers.get("content-type", ""),
                  b"".join(blocks).decode(errors="replace"))
