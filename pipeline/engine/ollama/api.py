"""Ollama's HTTP API as this project uses it: short questions, one streamed request, errors in words.

What the server says is read here and nowhere else: what is not as expected is an error that quotes it (answers.py).
No process and no log is looked at here. Texts and statuses: server/routes.go in Ollama's repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.engine.answers import Said, UnexpectedError, count, inner, quoted, read_object, several, text, truth
from pipeline.engine.http import CONNECT_S, Answer, BrokenError, Client, Look, RefusedError
from pipeline.errors import EngineError, PromptTooLongError

_VERSION = re.compile(r"[\w.+-]{1,64}", re.ASCII)
_NO_SUCH_MODEL = re.compile(r"model ['\"]?(.+?)['\"]? not found")
_TOO_LONG = ("exceeds the context length", "longer than the context length", "exceeds the available context")
_SAID = 600
"""Characters of an error that are kept: a load that fails has its reason in them."""


@dataclass(frozen=True)
class Running:
    """A loaded model, as /api/ps lists it."""

    names: Sequence[str]
    bytes: int | None
    """What it takes by the server's own account."""
    expires_at: str
    """A date and a time; "" if it is missing."""


@dataclass(frozen=True)
class Shown:
    """What the server knows of a model (/api/show)."""

    modelfile: str
    quantisation: str
    architecture: str
    trained: int | None
    """The context that it was trained for, in tokens."""


@dataclass(frozen=True)
class Last:
    """The end of an answer: the server's own counts and times. None: it does not say."""

    reason: str
    prompt_tokens: int
    output_tokens: int
    prefill_ns: int | None
    decode_ns: int | None
    load_ns: int | None


@dataclass(frozen=True)
class Piece:
    """A line of a streamed answer."""

    text: str
    thinking: str
    last: Last | None
    """The answer ends with this line."""


@dataclass(frozen=True)
class Pulled:
    """A line of a pull: how far it is."""

    status: str
    completed: int
    total: int


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
        answer = self._object("GET", "/api/version", None, limit_s)
        said = answer.get("version")
        if not isinstance(said, str) or not _VERSION.fullmatch(said):
            raise self._not_ollama(f"/api/version said {_shown(answer)}")
        return said

    def running(self) -> Sequence[Running]:
        """The loaded models (/api/ps). One that is still loading is missing, one whose engine crashed is listed."""
        answer = self._object("GET", "/api/ps", None, CONNECT_S)
        try:
            return [Running((text(entry, "name"), text(entry, "model")), count(entry, "size"),
                            text(entry, "expires_at")) for entry in several(answer, "models")]
        except UnexpectedError as error:
            raise self._not_ollama(f"in its /api/ps {error}") from error

    def models(self) -> Sequence[str]:
        """The names that it has (/api/tags), as `ollama list` shows them."""
        answer = self._object("GET", "/api/tags", None, CONNECT_S)
        try:
            return [quoted(text(entry, "name")) for entry in several(answer, "models")]
        except UnexpectedError as error:
            raise self._not_ollama(f"in its /api/tags {error}") from error

    def show(self, model: str) -> Shown:
        """What the server knows of a model (/api/show). Raises NoSuchModelError."""
        answer = self._object("POST", "/api/show", {"model": model}, CONNECT_S)
        try:
            details, info = inner(answer, "details"), inner(answer, "model_info")
            trained = next((count(info, key) for key in info if key.endswith(".context_length")), None)
            return Shown(text(answer, "modelfile"), quoted(text(details, "quantization_level") or "unknown"),
                         quoted(text(details, "family") or "unknown"), trained)
        except UnexpectedError as error:
            raise self._not_ollama(f"in its /api/show {error}") from error

    def send(self, body: Mapping[str, object], limit_s: float) -> None:
        """One /api/generate request that is answered by one object, which says nothing that is needed."""
        self._object("POST", "/api/generate", body, limit_s)

    def generate(self, body: Mapping[str, object], look: Look) -> Iterator[tuple[Piece, int]]:
        """One answer line by line, each with the time at which it arrived (`Client.lines`).

        Raises EngineError (refused, error inside the stream), BrokenError, whatever `look` raises."""
        for line, t_ns in self._lines("/api/generate", body, look):
            try:
                piece = _piece(line)
            except UnexpectedError as error:
                raise self._not_ollama(f"in a line of its answer {error}") from error
            yield piece, t_ns

    def pull(self, model: str, look: Look) -> Iterator[Pulled]:
        """One pull, line by line. Raises what `generate` raises."""
        for line, _t_ns in self._lines("/api/pull", {"model": model, "stream": True}, look):
            try:
                pulled = Pulled(text(line, "status"), count(line, "completed") or 0, count(line, "total") or 0)
            except UnexpectedError as error:
                raise self._not_ollama(f"in a line of its answer {error}") from error
            yield pulled

    def _lines(self, path: str, body: Mapping[str, object], look: Look) -> Iterator[tuple[Said, int]]:
        try:
            for line, t_ns in self._client.lines(self.url + path, body, look, kind="json"):
                if line.strip():
                    yield self._decoded(line), t_ns
        except RefusedError as error:
            raise self._refused(error.answer) from error
        except BrokenError as error:
            raise self._unreachable(error) from error

    def _decoded(self, line: bytes) -> Said:
        try:
            value = read_object(line, "a line of its answer")
        except UnexpectedError as error:
            raise self._not_ollama(str(error)) from error
        if "error" in value:
            raise self._error(_shown(value["error"]), "in the middle of its answer")
        return value

    def _object(self, method: str, path: str, body: Mapping[str, object] | None, limit_s: float) -> Said:
        try:
            answer = self._client.ask(method, self.url + path, body, limit_s)
        except BrokenError as error:
            raise self._unreachable(error) from error
        if answer.status != 200:
            raise self._refused(answer)
        try:
            return read_object(answer.text, path)
        except UnexpectedError as error:
            raise self._not_ollama(f"{error} (it answered {_summary(answer)})") from error

    def _refused(self, answer: Answer) -> EngineError:
        """The error for an answer that is not 200 with JSON."""
        try:
            said = read_object(answer.text, "it")["error"]
        except (UnexpectedError, KeyError):
            return self._not_ollama(f"it answered {_summary(answer)}")
        return self._error(_shown(said), f"with HTTP {answer.status}")

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


def _piece(line: Said) -> Piece:
    last = Last(quoted(text(line, "done_reason") or "unknown"), count(line, "prompt_eval_count") or 0,
                count(line, "eval_count") or 0, count(line, "prompt_eval_duration"), count(line, "eval_duration"),
                count(line, "load_duration")) if truth(line, "done") else None
    return Piece(text(line, "response"), text(line, "thinking"), last)


def _shown(said: object) -> str:
    return quoted(said if isinstance(said, str) else repr(said), _SAID)


def _summary(answer: Answer) -> str:
    seen = answer.text[:4096]
    title = re.search(r"<title>(.*?)</title>", seen, re.IGNORECASE | re.DOTALL)
    kind = quoted(answer.kind.split(";")[0]) or "no content type"
    return f"HTTP {answer.status} {kind} ({quoted(title[1] if title else seen, 80) or 'empty'})"
