"""What a person writes, on the command line or as a YAML value, as an override in Hydra's grammar.

What has a meaning there keeps it (a,b · choice() · [..] · {..} · ${..} · quotes); everything else is quoted and
taken as it stands. Composing is Hydra's business, what a sweep over the values is conduct.py's.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from pipeline.config import GROUPS, Config, options
from pipeline.errors import ConfigError

NEVER_SWEPT = ("question", "tracking.uri", "tracking.experiment")
"""Texts of the whole sweep: a comma in them is a comma."""
PROSE = ("prompt.text", "prompt.templates")
"""Sentences: a comma with a space behind it is a comma, one without sweeps as everywhere."""
FILES = ("model.path", "engine.binary", "prompt.file")
"""Paths: one that is there is one path, whatever stands in it."""

_WORD = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[A-Za-z_$][\w./@$-]*)(?:=(?P<value>.*))?", re.DOTALL | re.ASCII)
_FUNCTIONS = ("choice", "range", "interval", "glob", "shuffle", "sort", "tag", "extend_list", "int", "float", "str",
              "bool", "json_str")
_FUNCTION = re.compile(rf"(?:{'|'.join(_FUNCTIONS)})\s*\(.*\)", re.DOTALL)
_CLOSES = {"(": ")", "[": "]", "{": "}"}


def override_of(word: str) -> str:
    """A word of the command line as Hydra's override. Raises ConfigError for one that is none, or has no end.

    The only place where a word is rewritten: what a key makes of its value (`takes`) decides."""
    found = _WORD.fullmatch(word)
    if found is None or (found["value"] is None and found["sign"] != "~"):
        raise ConfigError(_no_override(word))
    sign, key, value = found["sign"], found["key"], found["value"]
    if value is None or sign == "~":
        return word
    if (inner := _listed(key, value)) is not None:
        return override_of(f"{sign}{key}={inner}")
    if is_choice(key):
        return f"{sign}{key}={','.join(_choice(key, piece.strip()) for piece in _pieces(value))}"
    if value == "":
        return word
    return f"{sign}{key}={_value(key, value)}"


def overrides_of(key: str, value: Any) -> list[str]:
    """A value of a YAML file where a sweep may stand, as overrides: lists sweep, text is as on the command line.

    A mapping names keys below `key`, unless that takes one. Raises ConfigError that names the key: an empty list,
    a value twice, a list in a list where none is taken."""
    kind = takes(key)
    if isinstance(value, str):
        return [override_of(f"{key}={value}")]
    if isinstance(value, Mapping) and (kind is not dict or _is_swept_below(value)):
        return [each for inner, below in value.items() for each in overrides_of(f"{key}.{inner}", below)]
    if not sweeps(key, value):
        return [f"{key}={_plain(key, value)}"]
    if key in NEVER_SWEPT:
        raise ConfigError(f"{key} cannot be swept: it belongs to the sweep, not to a cell. Give it one value.")
    if not value:
        raise ConfigError(f"{key}: [] holds no value to measure: give one or more, or leave the key out.")
    plain = [_plain(key, each) for each in value]
    twice = next((each for at, each in enumerate(plain) if each in plain[:at]), None)
    if twice is not None:
        raise ConfigError(f"{key}: {twice} is in the list twice. Name each value once; `repetitions` measures a "
                          "cell again.")
    return [f"{key}={','.join(plain)}"]


def sweeps(key: str, value: Any) -> bool:
    """Is a YAML value a list to sweep over? One that the key itself takes is its value."""
    return isinstance(value, list) and (takes(key) is not list or any(isinstance(each, list) for each in value))


def is_choice(key: str) -> bool:
    """Is the key a folder of files to choose from, such as mode?"""
    return key in GROUPS or key == "experiment" or "/" in key


@cache
def takes(key: str) -> Any:
    """The type of a setting's value, from the schema: str, int, list, …; object where anything goes; None: no setting,
    or a group of settings."""
    hint: Any = Config
    for name in key.split("."):
        if is_dataclass(hint) and isinstance(hint, type):
            hint = _hints(hint).get(name)
        elif get_origin(hint) is dict:
            hint = object if get_args(hint)[1] is Any else get_args(hint)[1]
        elif hint is not object:
            return None
    if hint is None or (is_dataclass(hint) and key in GROUPS):
        return None
    return dict if is_dataclass(hint) else get_origin(hint) or hint


@cache
def _hints(schema: type) -> dict[str, Any]:
    """Field → type, without the None of an optional one; Any is object."""
    found = {}
    for name, hint in get_type_hints(schema).items():
        if get_origin(hint) in (Union, types.UnionType):
            hint = next(each for each in get_args(hint) if each is not type(None))
        found[name] = object if hint is Any else hint
    return found


def unquoted(value: str) -> str:
    """What a value in Hydra's grammar is without the quotes around it."""
    found = _parsed(value)
    return str(found) if _is_quoted(value) and found is not None else value


def grammar(value: Any) -> str:
    """A value in Hydra's override grammar; text is always quoted."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{grammar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(grammar, value)) + "]"
    # a backslash means itself, except before what OmegaConf reads as a reference, and for Hydra a quote or the end
    return quoted(literal(str(value)))


def literal(value: Any) -> Any:
    """A value that OmegaConf reads as it is: of its texts none refers to anything."""
    if isinstance(value, Mapping):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value


def quoted(text: str) -> str:
    """Text in quotes; what OmegaConf makes of a ${…} in it is left to it."""
    escaped = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text)
    return f'"{escaped}"'


def _value(key: str, value: str) -> str:
    """The part behind the =: as it is where Hydra reads it as meant, else with quotes."""
    kind = takes(key)
    if kind is str:
        return _text(key, value)
    if _parsed(value) is not None:
        return value
    if value[0] in "[{":
        raise ConfigError(_no_end(key, value))
    pieces = [piece.strip() for piece in _pieces(value)]
    if not all(pieces):
        raise ConfigError(f"{key}={value} cannot be read: there is a comma with no value before or after it.")
    return ",".join(piece if _parsed(piece) is not None else quoted(piece) for piece in pieces)


def _listed(key: str, value: str) -> str | None:
    """What a list holds where the key takes one value: it sweeps, as in a file (Hydra would merge a group's files).

    Raises ConfigError for an empty one."""
    one = key in GROUPS or key.startswith("knob.") or takes(key) in (int, float, bool)
    if not one or not isinstance(_parsed(value), list):
        return None
    inner = value.strip()[1:-1]
    if not inner.strip():
        raise ConfigError(f"{key}=[] holds no value to measure: give one or more, or leave the key out.")
    return inner


def _choice(key: str, value: str) -> str:
    """The name of a file, or what chooses several: a list, choice(), glob()."""
    found = _parsed(value)
    if value == "" or found is _NULL:
        raise ConfigError(f"{key}={value} names none of its files. {_files(key)}".rstrip())
    return value if found is not None and not isinstance(found, bool | int | float) else quoted(value)


def _text(key: str, value: str) -> str:
    """The value of a setting that is text: as it stands, but for a sweep, null, ${…} and quotes around it."""
    if value.lower() == "null" or _is_quoted(value) or (_FUNCTION.fullmatch(value) and _parsed(value) is not None):
        return value
    pieces = _pieces(value)
    if all(_is_quoted(piece.strip()) for piece in pieces) and key not in NEVER_SWEPT:
        return value
    whole = (len(pieces) == 1 or key in NEVER_SWEPT or not all(piece.strip() for piece in pieces)
             or (key in FILES and os.path.exists(os.path.expanduser(value)))
             or (key.startswith(PROSE) and any(piece[:1].isspace() for piece in pieces[1:])))
    return _as_it_stands(value) if whole else ",".join(_as_it_stands(piece.strip()) for piece in pieces)


def _as_it_stands(text: str) -> str:
    """Text that Hydra would take for another one, in quotes."""
    if _is_quoted(text):
        return text
    found = _parsed(text)
    escaped = "\\" in text and isinstance(found, str)  # \, and the like are Hydra's own way to quote
    return text if found == text or escaped else quoted(text)


def _is_quoted(text: str) -> bool:
    """One whole value in quotes?"""
    from hydra.core.override_parser.types import QuotedString

    return text[:1] in ('"', "'") and isinstance(_element(text), QuotedString)


def _parsed(text: str) -> Any:
    """What Hydra reads: a str, a number, a list, a sweep…; None: nothing, it is not in its grammar."""
    from hydra.core.override_parser.types import QuotedString

    found = _element(text)
    return found.text if isinstance(found, QuotedString) else found


def _element(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(f"key={text}")._value
    except HydraException:
        return None
    return _NULL if found is None else found


class _Null:
    """What Hydra reads of null."""


_NULL = _Null()


def _pieces(value: str) -> list[str]:
    """The values between commas, with the spaces around them; a comma in quotes or brackets parts nothing."""
    pieces, begin, waiting = [], 0, ""
    for at, sign in enumerate(value):
        if waiting and sign == waiting[-1]:
            waiting = waiting[:-1]
        elif waiting[-1:] not in ('"', "'"):
            if sign in _CLOSES:
                waiting += _CLOSES[sign]
            elif sign in "\"'" and not value[begin:at].strip():
                waiting += sign
            elif sign == "," and not waiting and value[at - 1:at] != "\\":
                pieces.append(value[begin:at])
                begin = at + 1
    # a bracket or quote that nothing closes is text, and parted by every comma
    return value.split(",") if waiting else [*pieces, value[begin:]]


def _plain(key: str, value: Any) -> str:
    """One value of a YAML file in Hydra's grammar. Raises ConfigError for one that the key cannot take."""
    if is_choice(key):
        if isinstance(value, bool):
            return "on" if value else "off"  # YAML's booleans, unquoted
        if value is None or isinstance(value, list | Mapping):
            raise ConfigError(f"{key}: {_shown(value)} is not the name of one of its files. {_files(key)}")
        value = str(value)
    elif isinstance(value, list) and takes(key) not in (list, object):
        raise ConfigError(f"{key}: {_shown(value)} is a list in a list, and the key takes one value at a time.")
    if isinstance(value, str):
        return value if _element(value) == value else quoted(value)
    return grammar(value)


def _is_swept_below(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(each, list) or (isinstance(each, Mapping) and _is_swept_below(each))
               for each in value.values())


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _files(group: str) -> str:
    names = sorted(options(group))
    return f"Known: {', '.join(names)}." if names else ""


def _no_override(word: str) -> str:
    """What to say of a word without a key, or with one that no setting can have."""
    key, equals, _value = word.partition("=")
    if equals and key.strip():
        wrong = next((sign for sign in key.lstrip("+~") if not re.match(r"[\w./@$-]", sign, re.ASCII)), "")
        return (f"{word} cannot be read as an override: {wrong!r} cannot stand in a key. Expected key=value."
                if wrong else f"{word} cannot be read as an override. Expected key=value, such as num_ctx=4096.")
    chosen = next((group for group in GROUPS if word in options(group)), "")
    hint = f"Did you mean {chosen}={word}?" if chosen and re.fullmatch(r"[\w.-]+", word) else (
        "Expected key=value, without spaces around the =, such as num_ctx=4096.")
    return f"{word or 'an empty word'} cannot be read as an override. {hint}"


def _no_end(key: str, value: str) -> str:
    """Which character keeps a list or a mapping from being read."""
    waiting: list[tuple[str, int]] = []
    for at, sign in enumerate(value):
        if waiting and sign == waiting[-1][0]:
            waiting.pop()
        elif not (waiting and waiting[-1][0] in "\"'") and (sign in _CLOSES or sign in "\"'"):
            waiting.append((_CLOSES.get(sign, sign), at))
    if waiting:
        sign = value[waiting[-1][1]]
        return f"{key}={value} cannot be read: the {sign} at character {waiting[-1][1] + 1} of the value is not closed."
    odd = next(iter(_odd(value)), "")
    return (f"{key}={value} cannot be read as a list or a mapping"
            + (f": {odd!r} needs quotes around the value it stands in, such as [\"a{odd}b\"]." if odd else
               ": expected [a,b] or {key:value}."))


def _odd(value: str) -> Iterator[str]:
    """Characters that Hydra's grammar has no meaning for outside quotes."""
    inside = ""
    for sign in value:
        if inside:
            inside = "" if sign == inside else inside
        elif sign in "\"'":
            inside = sign
        elif not re.match(r"[\w\s/\\+.$%*@?|\[\]{}(),:-]", sign, re.ASCII):
            yield sign


