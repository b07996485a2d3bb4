"""How late a token is marked after its server sent it, and how soon a server sees that we hang up.

A small server writes the time at which it sends into what it sends (one clock for all processes of a machine). Our
client (pipeline/engine/http.py) takes turns with httpx driven by asyncio, which it replaced; without httpx it runs
alone. Run by `make bench`; wants a quiet machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from statistics import median, quantiles

from pipeline.engine.http import Client

ROUNDS, TOKENS = 200, 6
PREFILL_S, TOKEN_S = 0.02, 0.004
LATE_MS, LATE_P95_MS = 0.2, 2.0
"""How much later than httpx a first token may be marked, in the median and at the 95th percentile."""
ALONE_MS, ALONE_P95_MS = 1.0, 3.0
"""The same without httpx: late after it was sent."""
HANG_UP_MS = 1.0
"""How much later than with httpx a server may see the end of a request that was given up."""

Marks = list[tuple[int, int]]
"""(sent, marked) by token, in ns."""
Arm = Callable[[str, int], tuple[Marks, int]]
"""A request that is given up after so many tokens (0: never) → its marks, and when it was given up."""


def chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


def serve(listening: socket.socket, ended: Connection) -> None:
    """One connection after the other: an answer of TOKENS lines, or as many as the client stays for, each."""
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError):
            while not connection.recv(65536).endswith(b"{}"):
                continue
            time.sleep(PREFILL_S)
            head = (b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n"
                    b"Connection: close\r\n\r\n")
            for _token in range(TOKENS):
                connection.sendall(head + chunk(f'{{"sent":{time.monotonic_ns()}}}\n'))
                head = b""
                connection.settimeout(TOKEN_S)
                try:
                    if not connection.recv(1):
                        break
                except TimeoutError:
                    continue
                finally:
                    connection.settimeout(None)
            else:
                connection.sendall(b"0\r\n\r\n")
        ended.send(time.monotonic_ns())


def sent(line: bytes) -> int:
    return int(line.partition(b":")[2].rstrip(b"}\n"))


class GivenUpError(Exception):
    """The caller's reason to leave."""


def by_requests(url: str, give_up_after: int) -> tuple[Marks, int]:
    client, marks = Client(), Marks()
    with contextlib.suppress(GivenUpError), contextlib.closing(client.lines(url, {}, lambda: 0.2)) as lines:
        for line, t_ns in lines:
            if line:
                marks.append((sent(line), t_ns))
            if len(marks) == give_up_after > 0:
                given_up = time.monotonic_ns()
                raise GivenUpError
        given_up = 0
    client.close()
    return marks, given_up


def by_httpx(url: str, give_up_after: int) -> tuple[Marks, int]:
    import httpx

    marks, given_up = Marks(), 0

    async def read() -> None:
        async with (httpx.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=None) as client,
                    client.stream("POST", "/", json={}) as response):
            async for block in response.aiter_bytes():
                t_ns = time.monotonic_ns()
                marks.extend((sent(line), t_ns) for line in block.splitlines())

    async def talk() -> None:
        nonlocal given_up
        reader = asyncio.ensure_future(read())
        while not reader.done():
            await asyncio.wait({reader}, timeout=0.2 if not give_up_after else 0.0005)
            if len(marks) >= give_up_after > 0:
                given_up = time.monotonic_ns()
                reader.cancel()
                await asyncio.wait({reader})
                return
        reader.result()

    asyncio.run(talk())
    return marks, given_up


@contextlib.contextmanager
def server() -> Iterator[tuple[str, Connection]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended, there = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=serve, args=(listening, there), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", ended
        finally:
            process.terminate()
            process.join()


def measure(arms: dict[str, Arm]) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[float]]]:
    """By arm, in ms: how late first tokens and all others were marked, how late the server saw the end."""
    first, later, hung_up = ({name: list[float]() for name in arms} for _ in range(3))
    with server() as (url, ended):
        for turn in range(ROUNDS + 5):
            for name in sorted(arms, reverse=bool(turn % 2)):
                for give_up_after in (0, 2):
                    marks, given_up = arms[name](url, give_up_after)
                    seen = ended.recv()
                    if turn < 5:  # imports, caches
                        continue
                    late = [(marked - at) / 1e6 for at, marked in marks]
                    if give_up_after:
                        hung_up[name].append((seen - given_up) / 1e6)
                    else:
                        first[name].append(late[0])
                        later[name] += late[1:]
    return first, later, hung_up


def say(what: str, ms: float, limit: float) -> bool:
    held = ms <= limit
    print(f"{what:<62} {ms:7.3f} ms  limit {limit:g} ms  {'ok' if held else 'MISSED'}", flush=True)
    return held


def p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1]


def main() -> int:
    arms: dict[str, Arm] = {"requests": by_requests}
    if importlib.util.find_spec("httpx"):
        arms["httpx"] = by_httpx
    else:
        print("httpx is not installed: our client alone", flush=True)
    first, later, hung_up = measure(arms)
    for name in arms:
        for what, values in (("first token", first[name]), ("other tokens", later[name]), ("end seen", hung_up[name])):
            print(f"{name:<9} {what:<13} median {median(values):7.3f} ms, p95 {p95(values):7.3f} ms, "
                  f"n={len(values)}", flush=True)
    ours, ours_p95 = median(first["requests"]), p95(first["requests"])
    if "httpx" not in arms:
        held = [say("first token marked after it was sent, median", ours, ALONE_MS),
                say("first token marked after it was sent, p95", ours_p95, ALONE_P95_MS),
                say("a request given up is seen by its server, median", median(hung_up["requests"]), HANG_UP_MS)]
    else:
        held = [say("first token later than by httpx, median", ours - median(first["httpx"]), LATE_MS),
                say("first token later than by httpx, p95", ours_p95 - p95(first["httpx"]), LATE_P95_MS),
                say("a request given up is seen later than by httpx, median",
                    median(hung_up["requests"]) - median(hung_up["httpx"]), HANG_UP_MS)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
