"""What a server said, read as JSON and held against what is expected: anything else is an error that quotes it.

A server may be anybody's, and broken: no value of it is used that did not come through here. Which fields an answer has
is its engine's (ollama/api.py, llamacpp_answers.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import EngineError
from pipeline.language import harmless
from pipeline.text import printable

Said = Mapping[str, Any]

MOST = 2**63 - 1
"""No count is larger: bytes, tokens, nanoseconds."""

SPARE_TOKENS = 16
"""An answer may go so far beyond the tokens asked for: a server may send an end of text that it does not count."""
LONGEST_TOKEN = 4096
"""Characters; that of no vocabulary is longer."""

_QUOTED = 160
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""A half of a pair, escaped: with the other half a character, alone nothing that a file could hold."""


class UnexpectedError(EngineError):
    """A server said what is not expected of it."""


def quoted(said: bytes | str, most: int = _QUOTED) -> str:
    """Foreign words as an error shows them: the beginning, in one line, nothing in it that a terminal obeys."""
    cut = said[:4 * most]
    text = cut.decode(errors="replace") if isinstance(cut, bytes) else printable(cut)
    line = harmless(" ".join(text.split()))
    return line if len(line) <= most and len(cut) == len(said) else line[:most] + "…"


class Length:
    """How long a streamed answer is: it ends at the tokens that were asked for, whatever the server goes on to send."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens, self._most = max_tokens, max_tokens + SPARE_TOKENS
        self._characters = 0

    def add(self, tokens: int, characters: int) -> None:
        """`tokens`: those until now. `characters`: those that came now. Raises UnexpectedError."""
        self._characters += characters
        if tokens > self._most or self._characters > self._most * LONGEST_TOKEN:
            raise UnexpectedError(f"the server goes on past the {self._max_tokens} tokens that it was asked for "
                                  f"(max_tokens): {tokens} tokens, {self._characters} characters so far")


def read_object(said: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object. `what`: what it stands in, for the error. Raises UnexpectedError."""
    try:
        text = said.decode() if isinstance(said, bytes) else said
        value = json.loads(text, parse_constant=_no_number)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise UnexpectedError(f"{what} holds no text in UTF-8: {quoted(said)}") from error
    except (ValueError, RecursionError) as error:
        raise UnexpectedError(f"{what} is not JSON: {quoted(said)}") from error
    if not isinstance(value, dict):
        raise UnexpectedError(f"{what} is not an object: {quoted(said)}")
    return value


def text(said: Said, name: str) -> str:
    """A text; "" if it is missing. Raises UnexpectedError, as all of these."""
    value = said.get(name, "")
    return value if isinstance(value, str) else _refuse(name, value, "a text")


def truth(said: Said, name: str) -> bool:
    """True or false; false if it is missing."""
    value = said.get(name, False)
    return value if isinstance(value, bool) else _refuse(name, value, "true or false")


def count(said: Said, name: str) -> int | None:
    """A whole number from 0; None if it is missing."""
    value = said.get(name, 0)
    if type(value) is not int or not 0 <= value <= MOST:
        _refuse(name, value, "a whole number from 0")
    return value if name in said else None


def number(said: Said, name: str) -> float | None:
    """A number from 0; None if it is missing, or null, which is how a server writes one that is none."""
    value = said.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= MOST or not math.isfinite(value):
        _refuse(name, value, "a number from 0")
    return float(value)


def inner(said: Said, name: str) -> dict[str, Any]:
    """An object; empty if it is missing."""
    value = said.get(name, {})
    return value if isinstance(value, dict) else _refuse(name, value, "an object")


def several(said: Said, name: str) -> Sequence[Said]:
    """A list of objects; empty if it is missing, or null, which is how Go writes an empty one."""
    value = said.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        _refuse(name, value, "a list of objects")
    return list(value)


def _refuse(name: str, value: object, expected: str) -> Any:
    try:
        shown = json.dumps(value)
    except RecursionError:
        shown = "something nested too deep to be shown"
    raise UnexpectedError(f"{name} is {quoted(shown)}; expected {expected}")


def _no_number(word: str) -> float:
    raise ValueError(word)
