"""What the embedded engine says, on its pipe and over HTTP, read into values: what is not as expected is an error.

How it is asked is llamacpp.py. Fields: tools/server/README.md in llama.cpp's repository.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.engine.answers import Length, UnexpectedError, count, inner, number, quoted, read_object, text, truth
from pipeline.engine.base import OnEvent

PIPE_BYTES = 65536
"""An answer on the pipe is no longer."""

_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d{1,5}")


@dataclass(frozen=True)
class Last:
    """The end of an answer: the server's own counts and times (ms). None: it does not say."""

    reason: str
    truncated: bool
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    prompt_ms: float | None
    predicted_ms: float | None


@dataclass(frozen=True)
class Refusal:
    """Why a request was not answered. The counts are of a prompt that is too long."""

    kind: str
    message: str
    prompt_tokens: int | None = None
    context: int | None = None


class RefusedInStream(UnexpectedError):
    """The stream holds an error instead of a piece of the answer."""

    def __init__(self, data: bytes) -> None:
        super().__init__("the stream holds an error")
        self.data = data


def read_command(line: bytes) -> tuple[str, str]:
    """(address, error) of the child's answer to a command; "" for the one it has not. Raises UnexpectedError."""
    answer = read_object(line, "its answer on the pipe")
    if "error" not in answer and "ok" not in answer:
        raise UnexpectedError(f"its answer on the pipe is neither ok nor an error: {quoted(line)}")
    address = text(answer, "address")
    if address and not _ADDRESS.fullmatch(address):
        raise UnexpectedError(f"address is {quoted(address)}; expected a port of this machine")
    return address, quoted(text(answer, "error"), 600)


def read_refusal(said: bytes | str) -> Refusal:
    """An error's body. Raises UnexpectedError."""
    whole = read_object(said, "the refusal")
    error = inner(whole, "error") or whole
    return Refusal(text(error, "type"), quoted(text(error, "message") or str(error), 600),
                   count(error, "n_prompt_tokens"), count(error, "n_ctx"))


def read_tokens(said: bytes) -> int:
    """How many tokens /tokenize counts. Raises UnexpectedError."""
    tokens = read_object(said, "the answer to /tokenize").get("tokens")
    if not isinstance(tokens, list):
        raise UnexpectedError(f"the answer to /tokenize has no list of tokens: {quoted(said)}")
    return len(tokens)


def read_prompt(said: bytes) -> str:
    """The prompt in its template. Raises UnexpectedError."""
    answer = read_object(said, "the answer to /apply-template")
    if "prompt" not in answer:
        raise UnexpectedError(f"the answer to /apply-template has no prompt: {quoted(said)}")
    return text(answer, "prompt")


class Stream:
    """One streamed answer. Counts tokens as the server does: a chunk may carry none, one, or several."""

    def __init__(self, max_tokens: int, on_event: OnEvent, on_text: Callable[[str], None] | None = None) -> None:
        self.text: list[str] = []
        self.last: Last | None = None
        self._max_tokens, self._on_event, self._on_text = max_tokens, on_event, on_text
        self._tokens, self._last_ns, self._processed, self._length = 0, 0, 0, Length(max_tokens)

    def take(self, line: bytes, t_ns: int) -> bool:
        """One line of the stream: did it bring something, a token or a part of the prompt?

        Raises UnexpectedError: not as expected, or it goes on where it had to end; RefusedInStream."""
        field, _, data = line.partition(b": ")
        if field == b"error":
            raise RefusedInStream(data)
        if field != b"data":
            return False
        chunk = read_object(data, "a chunk of the stream")
        if "error" in chunk:
            raise RefusedInStream(data)
        if self.last is not None:
            raise UnexpectedError("the server goes on after the last chunk of its answer")
        said, counted = text(chunk, "content"), count(chunk, "tokens_predicted")
        tokens = self._tokens if counted is None else max(self._tokens, counted)
        self._length.add(tokens, len(said))
        came = self._more_of_the_prompt(chunk) or tokens > self._tokens
        self.text.append(said)
        for _ in range(self._tokens, tokens):
            self._on_event("token" if self._tokens else "first_token", t_ns)
            self._tokens, self._last_ns = self._tokens + 1, t_ns
            if self._tokens == self._max_tokens:
                self._on_event("last_token", t_ns)
        if self._on_text is not None and said:
            self._on_text(said)
        if truth(chunk, "stop"):
            self._end(chunk)
        return came

    def _more_of_the_prompt(self, chunk: Mapping[str, Any]) -> bool:
        processed = count(inner(chunk, "prompt_progress"), "processed") or 0
        more, self._processed = processed > self._processed, max(processed, self._processed)
        return more

    def _end(self, chunk: Mapping[str, Any]) -> None:
        timings, prompt_tokens = inner(chunk, "timings"), count(chunk, "tokens_evaluated")
        if prompt_tokens is None or "tokens_predicted" not in chunk:
            raise UnexpectedError("the last chunk of the stream counts no tokens")
        self.last = Last(quoted(text(chunk, "stop_type") or "unknown"), truth(chunk, "truncated"), prompt_tokens,
                         self._tokens, count(timings, "cache_n"), number(timings, "prompt_ms"),
                         number(timings, "predicted_ms"))
        if 0 < self._tokens < self._max_tokens:
            self._on_event("last_token", self._last_ns)
