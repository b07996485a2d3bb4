"""Text at the program's edges: JSON that any file and terminal takes, and terminals that lack a character.

Every file is UTF-8, whatever the locale says; only what a terminal shows and the user types is in the locale's.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import Any

from pipeline.errors import ConfigError

_INSTEAD = "slackwater.instead"
"""Our error handler for encoders (codecs.register_error)."""

_PLAIN = {
    "−": "-", "–": "-", "→": "->", "←": "<-", "…": "...", "·": ".", "×": "x", "±": "+-", "µ": "u", "≥": ">=", "≤": "<=",
    "✓": "+", "✗": "x", "√": "sqrt ", "⁻": "^-", "¹": "1", "‹": "<", "›": ">", "━": "=", "─": "-", "▓": "#", "░": ":",
    "▁": "_", "▂": ".", "▃": "-", "▄": ":", "▅": "=", "▆": "+", "▇": "*", "█": "#",
}
"""Our own characters in ASCII: a minus that became a question mark would make another number."""

_LONE = re.compile("[\ud800-\udfff]")
"""Lone surrogates: what Python makes of bytes that are not in the encoding, in arguments and file names (PEP 383)."""


_CONTROL = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys and JSON does not escape by itself."""


def engine_and_version(engine: str, version: str) -> str:
    """"llamacpp 2026.10", "ollama 0.33.0": a version that begins with the engine's name says it already."""
    return version if engine and version.startswith(f"{engine} ") else f"{engine} {version}".strip()


def to_json(value: Any, indent: int | None = None, sort_keys: bool = False, compact: bool = False) -> str:
    """One JSON document that UTF-8 can hold; what JSON does not know is written as text.

    A file name whose bytes are not UTF-8 has lone surrogates (PEP 383), which JSON can hold escaped only."""
    import json  # every command imports this module

    form: Any = {"indent": indent, "sort_keys": sort_keys, "separators": (",", ":") if compact else None}
    text = json.dumps(value, ensure_ascii=False, default=str, **form)
    return text if not _LONE.search(text) else json.dumps(value, default=str, **form)


def print_json(value: Any) -> None:
    """The document on stdout for a program: in UTF-8, or in ASCII where stdout is in another encoding."""
    import json

    text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(value, indent=2))
    is_utf8 = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
    print(text if is_utf8 else json.dumps(json.loads(text), indent=2))


def printable(text: str) -> str:
    """The text as UTF-8 can hold it: � for every byte of a file name that is none. As long as it was."""
    return _LONE.sub("\ufffd", text)


_PASSWORD = re.compile(r"(?<=//)([^/@:\s\"']*):[^/\s\"']*@")
_SECRET = re.compile(r"(?i)([?&](?:password|passwd|pwd|token|access_token|api_key)=)[^&\s\"']+")


def masked(text: str) -> str:
    """Without the passwords of the addresses in it, also where Hydra has put \\ before each colon: what is kept may be
    passed on, and what is printed be seen."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def as_typed(text: str, key: str) -> str:
    """A text from the command line as it was typed: in UTF-8 where it is not in the locale's encoding.

    Raises ConfigError, naming `key`, if it is in neither."""
    if not _LONE.search(text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(f"{key}={printable(text)} is not allowed: it holds bytes that are neither UTF-8 nor the "
                          f"locale's {sys.getfilesystemencoding()}. Set LC_ALL to the encoding it is typed in, such as "
                          "LC_ALL=C.UTF-8.") from error


def open_terminal() -> None:
    """Make stdin, stdout and stderr usable whatever they were started as; call first.

    A closed one is /dev/null from here on, since the next file opened would take its number, and what is printed would
    be written into it. A character that a terminal's encoding lacks is replaced, not an error."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    codecs.register_error(_INSTEAD, _instead)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_INSTEAD)


def _instead(error: UnicodeError) -> tuple[str, int]:
    """Our own characters in ASCII, others as question marks, as wide as they were."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    import unicodedata

    lacking = error.object[error.start:error.end]
    return "".join(_PLAIN.get(letter) or "?" * (2 if unicodedata.east_asian_width(letter) in "WF" else 1)
                   for letter in lacking), error.end
