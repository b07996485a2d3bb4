"""Ollama's HTTP API as this project uses it: short questions, one streamed request, errors in words.

No process and no log is looked at here. Texts and statuses: server/routes.go in Ollama's repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.engine.http import CONNECT_S, Answer, BrokenError, Client, Look, RefusedError
from pipeline.errors import EngineError, PromptTooLongError

_NO_SUCH_MODEL = re.compile(r"model ['\"]?(.+?)['\"]? not found")
_TOO_LONG = ("exceeds the context length", "longer than the context length", "exceeds the available context")


class NoSuchModelError(EngineError):
    """The server does not have the model."""


class Api:
    """One server, by its address. Not thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._client = Client()

    def close(self) -> None:
        """Give up the connection that is kept open."""
        self._client.close()

    def version(self, limit_s: float = CONNECT_S) -> str:
        """What /api/version says. Raises BrokenError, or EngineError for something that is not Ollama."""
        answer = self._json("GET", "/api/version", None, limit_s)
        if not isinstance(answer.get("version"), str):
            raise self._not_ollama(f"/api/version said {json.dumps(answer)[:80]}")
        return str(answer["version"])

    def running(self) -> Sequence[Mapping[str, Any]]:
        """The loaded models (/api/ps). One that is still loading is missing, one whose engine crashed is listed."""
        return list(self._json("GET", "/api/ps", None, CONNECT_S).get("models") or [])

    def show(self, model: str) -> Mapping[str, Any]:
        """What the server knows of a model (/api/show). Raises NoSuchModelError."""
        return self._json("POST", "/api/show", {"model": model}, CONNECT_S)

    def send(self, body: Mapping[str, object], limit_s: float) -> Mapping[str, Any]:
        """One /api/generate request that is answered by one object."""
        return self._json("POST", "/api/generate", body, limit_s)

    def lines(self, path: str, body: Mapping[str, object], look: Look) -> Iterator[tuple[Mapping[str, Any], int]]:
        """One POST: the answer line by line, each with the time at which it arrived (`Client.lines`).

        Raises EngineError (refused, error inside the stream), BrokenError, whatever `look` raises."""
        try:
            for line, t_ns in self._client.lines(self.url + path, body, look, kind="json"):
                if line.strip():
                    yield self._decoded(line), t_ns
        except RefusedError as error:
            raise self._refused(error.answer) from error
        except BrokenError as error:
            raise self._unreachable(error) from error

    def _decoded(self, line: bytes) -> Mapping[str, Any]:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise self._not_ollama(f"a line of its answer is not JSON: {line[:60]!r}") from error
        if not isinstance(value, dict):
            raise self._not_ollama(f"a line of its answer is not an object: {line[:60]!r}")
        if "error" in value:
            raise self._error(str(value["error"]), "in the middle of its answer")
        return value

    def _json(self, method: str, path: str, body: Mapping[str, object] | None, limit_s: float) -> Mapping[str, Any]:
        try:
            answer = self._client.ask(method, self.url + path, body, limit_s)
        except BrokenError as error:
            raise self._unreachable(error) from error
        if answer.status != 200:
            raise self._refused(answer)
        try:
            value = json.loads(answer.text)
        except ValueError as error:
            raise self._not_ollama(f"{path} answered {_summary(answer)}") from error
        if not isinstance(value, dict):
            raise self._not_ollama(f"{path} answered with {answer.text[:60]!r}")
        return value

    def _refused(self, answer: Answer) -> EngineError:
        """The error for an answer that is not 200 with JSON."""
        try:
            said = json.loads(answer.text)["error"]
        except (ValueError, KeyError, TypeError):
            return self._not_ollama(f"it answered {_summary(answer)}")
        return self._error(said if isinstance(said, str) else json.dumps(said), f"with HTTP {answer.status}")

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

    def _unreachable(self, error: Exception) -> BrokenError:
        return BrokenError(f"no answer from {self.url}: {error}. Expected an Ollama "
                                "server; check that it runs (`ollama serve`) and that the address is right.")

    def _not_ollama(self, seen: str) -> EngineError:
        return EngineError(f"what answers at {self.url} is not Ollama: {seen}. Expected Ollama's JSON API; check the "
                           "address, and whether a proxy stands in between.")


def _summary(answer: Answer) -> str:
    title = re.search(r"<title>(.*?)</title>", answer.text, re.IGNORECASE | re.DOTALL)
    words = " ".join((title[1] if title else answer.text).split())[:80]
    return f"HTTP {answer.status} {answer.kind.split(';')[0] or 'no content type'} ({words or 'empty'})"
