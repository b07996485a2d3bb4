"""Ollama's HTTP API as this project uses it: short questions, one streamed request, errors in words.

No process and no log is looked at here. Texts and statuses: server/routes.go in Ollama's repository.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import EngineError, PromptTooLongError

if TYPE_CHECKING:
    import httpx

OnLine = Callable[[Mapping[str, Any], int], None]
"""Called with one decoded line and the `time.monotonic_ns()` at which its bytes arrived."""

_CONNECT_S = 5.0
_NO_SUCH_MODEL = re.compile(r"model ['\"]?(.+?)['\"]? not found")
_TOO_LONG = ("exceeds the context length", "longer than the context length", "exceeds the available context")


class NoSuchModelError(EngineError):
    """The server does not have the model."""


class UnreachableError(EngineError):
    """Nothing that speaks HTTP is there, or it went away."""


class Api:
    """One server, by its address. Not thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._verify = self.url.startswith("https:")  # loading certificates takes 20 ms and more
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Give up the connection that is kept open."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def version(self, limit_s: float = _CONNECT_S) -> str:
        """What /api/version says. Raises UnreachableError, or EngineError for something that is not Ollama."""
        answer = self._json("GET", "/api/version", None, limit_s)
        if not isinstance(answer.get("version"), str):
            raise self._not_ollama(f"/api/version said {json.dumps(answer)[:80]}")
        return str(answer["version"])

    def running(self) -> Sequence[Mapping[str, Any]]:
        """The loaded models (/api/ps). One that is still loading is missing, one whose engine crashed is listed."""
        return list(self._json("GET", "/api/ps", None, _CONNECT_S).get("models") or [])

    def show(self, model: str) -> Mapping[str, Any]:
        """What the server knows of a model (/api/show). Raises NoSuchModelError."""
        return self._json("POST", "/api/show", {"model": model}, _CONNECT_S)

    def send(self, body: Mapping[str, object], limit_s: float) -> Mapping[str, Any]:
        """One /api/generate request that is answered by one object."""
        return self._json("POST", "/api/generate", body, limit_s)

    def stream(self, path: str, body: Mapping[str, object], on_sent: Callable[[int], None], on_line: OnLine,
               watch: Callable[[], float]) -> None:
        """One POST; every line of the answer goes to `on_line`. `watch` is called all the while and says in how many
        seconds again; what it raises ends the request, and the server sees us hang up.

        Raises EngineError (refused, error inside the stream), UnreachableError, whatever `watch` raises."""

        async def talk() -> None:
            reader = asyncio.ensure_future(self._read(path, body, on_sent, on_line))
            try:
                pause_s = 0.0
                while not reader.done():
                    await asyncio.wait({reader}, timeout=pause_s)
                    if not reader.done():
                        pause_s = watch()
            finally:
                if not reader.done():
                    reader.cancel()
                await asyncio.wait({reader})
            reader.result()

        asyncio.run(talk())

    async def _read(self, path: str, body: Mapping[str, object], on_sent: Callable[[int], None],
                    on_line: OnLine) -> None:
        import httpx

        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        client = httpx.AsyncClient(base_url=self.url, trust_env=False, verify=self._verify, timeout=timeout)
        try:
            async with client:
                on_sent(time.monotonic_ns())
                async with client.stream("POST", path, json=body) as response:
                    await self._lines(response, on_line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def _lines(self, response: httpx.Response, on_line: OnLine) -> None:
        if response.status_code != 200 or "json" not in response.headers.get("content-type", ""):
            raise self.refused(response, (await response.aread()).decode(errors="replace"))
        rest = b""
        async for block in response.aiter_bytes():
            t_ns = time.monotonic_ns()
            # Only \n ends a line: a text may hold what str.splitlines takes for an end.
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._line(line, t_ns, on_line)
        self._line(rest, time.monotonic_ns(), on_line)

    def _line(self, line: bytes, t_ns: int, on_line: OnLine) -> None:
        if not line.strip():
            return
        try:
            value = json.loads(line)
        except ValueError as error:
            raise self._not_ollama(f"a line of its answer is not JSON: {line[:60]!r}") from error
        if not isinstance(value, dict):
            raise self._not_ollama(f"a line of its answer is not an object: {line[:60]!r}")
        if "error" in value:
            raise self._error(str(value["error"]), "in the middle of its answer")
        on_line(value, t_ns)

    def _json(self, method: str, path: str, body: Mapping[str, object] | None, limit_s: float) -> Mapping[str, Any]:
        import httpx

        try:
            if self._client is None:
                self._client = httpx.Client(trust_env=False, verify=self._verify)
            response = self._client.request(method, self.url + path, json=body, timeout=limit_s)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self.refused(response, response.text)
        try:
            value = response.json()
        except ValueError as error:
            raise self._not_ollama(f"{path} answered {_summary(response, response.text)}") from error
        if not isinstance(value, dict):
            raise self._not_ollama(f"{path} answered with {response.text[:60]!r}")
        return value

    def refused(self, response: httpx.Response, text: str) -> EngineError:
        """The error for an answer that is not 200 with JSON."""
        try:
            said = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            return self._not_ollama(f"it answered {_summary(response, text)}")
        return self._error(said if isinstance(said, str) else json.dumps(said), f"with HTTP {response.status_code}")

    def _error(self, said: str, where: str) -> EngineError:
        if match := _NO_SUCH_MODEL.search(said):
            return NoSuchModelError(f"Ollama at {self.url} has no model {match[1]}. `ollama pull {match[1]}` gets it.")
        if any(words in said for words in _TOO_LONG):
            return PromptTooLongError(f"the prompt is longer than the context ({said}). Raise num_ctx, or shorten the "
                                      "prompt.")
        if "server busy" in said:
            return EngineError(f"Ollama at {self.url} is busy ({said}): others send it requests while it loads. End "
                               "them, or use engine=ollama, which starts a server of its own.")
        return EngineError(f"Ollama reported an error {where}: {said}")

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(f"no answer from {self.url}: {str(error) or type(error).__name__}. Expected an Ollama "
                                "server; check that it runs (`ollama serve`) and that the address is right.")

    def _not_ollama(self, seen: str) -> EngineError:
        return EngineError(f"what answers at {self.url} is not Ollama: {seen}. Expected Ollama's JSON API; check the "
                           "address, and whether a proxy stands in between.")


def _summary(response: httpx.Response, text: str) -> str:
    kind = response.headers.get("content-type", "no content type").split(";")[0]
    title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    words = " ".join((title[1] if title else text).split())[:80]
    return f"HTTP {response.status_code} {kind} ({words or 'empty'})"
