"""What a record may hold: the one check of all that is read here, imported, pulled or taken over. Values, no files.

Records of others are data: of every field its type and range are checked before anything of it is used. Every function
gives the value back or raises ValueError that names the field.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any, str], Any]

NAME = re.compile(r"[\w+=\-][\w.+=\-]{0,119}")
"""Of a sweep, and of a trial's folder: one part of a path, and nothing that a terminal reads."""
_UNSEEN = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_LABEL = re.compile(rf"[^{_UNSEEN}]{{1,10000}}")
"""Of a cell: in one line, without control characters and nothing that turns the direction of what follows."""
_LONGEST = 4_000_000
"""Characters of one text: a prompt of a million tokens."""
_LARGEST = 2**63
_DEEPEST = 16
_MOST = 1_000_000


def parsed(text: str | bytes) -> Any:
    """The JSON document."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def name(value: Any, what: str) -> str:
    """A sweep's id, or the name of a trial's folder."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _wrong(value, what, "a name of letters, digits and _ . - + that begins with no dot")
    return value


def label(value: Any, what: str) -> str:
    """A cell's name."""
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise _wrong(value, what, "a name in one line, without control characters")
    return value


def as_name(said: str) -> str:
    """A text as the beginning of a name."""
    return re.sub(r"[^\w.+=\-]", "_", said)[:80].lstrip(".") or "_"


def as_label(said: str) -> str:
    """A text as a label."""
    return re.sub(f"[{_UNSEEN}]", " ", said)[:10_000]


def text(value: Any, what: str) -> str:
    """Any text; what shows it makes it harmless."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise _wrong(value, what, f"a text of at most {_LONGEST} characters")
    return value


def whole(value: Any, what: str) -> int:
    """A whole number, 0 or more."""
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise _wrong(value, what, "a whole number, 0 or more")
    return value


def number(value: Any, what: str) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not -1e300 < value < 1e300:
        raise _wrong(value, what, "a finite number")
    return float(value)


def truth(value: Any, what: str) -> bool:
    """true or false."""
    if type(value) is not bool:
        raise _wrong(value, what, "true or false")
    return value


def one_of(choices: Sequence[str]) -> Check:
    """One of these words."""
    def check(value: Any, what: str) -> Any:
        if value not in choices:
            raise _wrong(value, what, f"one of {', '.join(map(repr, choices))}")
        return value
    return check


def or_none(inner: Check) -> Check:
    """The same, or null."""
    return lambda value, what: None if value is None else inner(value, what)


def listed(inner: Check) -> Callable[[Any, str], list[Any]]:
    """A list of such."""
    def check(value: Any, what: str) -> list[Any]:
        if not isinstance(value, list | tuple) or len(value) > _MOST:
            raise _wrong(value, what, "a list")
        return [inner(each, what) for each in value]
    return check


def mapped(inner: Check) -> Callable[[Any, str], dict[str, Any]]:
    """An object of such, by text."""
    def check(value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, Mapping) or len(value) > _MOST:
            raise _wrong(value, what, "an object")
        return {text(key, what): inner(each, f"{what}.{key}") for key, each in value.items()}
    return check


def plain(value: Any, what: str, depth: int = _DEEPEST) -> Any:
    """Any JSON value that is finite in every respect."""
    if isinstance(value, Mapping | list | tuple):
        if depth == 0 or len(value) > _MOST:
            raise _wrong(value, what, "a value that is not nested more deeply")
        if isinstance(value, Mapping):
            return {text(key, what): plain(each, f"{what}.{key}", depth - 1) for key, each in value.items()}
        return [plain(each, what, depth - 1) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(value, what)
    if isinstance(value, int) and -_LARGEST < value < _LARGEST:
        return value
    number(value, what)
    return value


def turns(value: Any, what: str) -> dict[int, float]:
    """A metric: a number for what belongs to the trial (turn 0), a list for turns 1…n, else by turn. NaN and infinity
    are what was not measured, and left out."""
    if isinstance(value, Mapping):
        if odd := [turn for turn in value if not re.fullmatch(r"[0-9]{1,9}", str(turn))]:
            raise _wrong(odd[0], what, "the number of a turn")
        by_turn = {int(turn): each for turn, each in value.items()}
    else:
        by_turn = dict(enumerate(value, start=1)) if isinstance(value, list) else {0: value}
    return {turn: number(each, what) for turn, each in by_turn.items() if not _is_none(each)}


def numbers(value: Any, what: str) -> dict[str, float]:
    """Metrics of a sweep, of which the same is left out."""
    return {key: number(each, f"{what}.{key}") for key, each in mapped(_as_it_is)(value, what).items()
            if not _is_none(each)}


def _is_none(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _as_it_is(value: Any, _what: str) -> Any:
    return value


def record(data: Mapping[str, Any], fields: Mapping[str, Check]) -> dict[str, Any]:
    """The fields that are there, each checked."""
    return {field: check(data[field], field) for field, check in fields.items() if field in data}


def sweep_tags(value: Any, what: str) -> dict[str, str]:
    """Tags of a sweep: texts, of which some hold JSON unless an earlier version has cut it."""
    tags: dict[str, str] = mapped(text)(value, what)
    for tag, check in {"arguments": listed(text), "question_metrics": listed(text),
                       "environment": mapped(text)}.items():
        with contextlib.suppress(json.JSONDecodeError):
            or_none(check)(parsed(tags.get(tag, "null")), f"{what}.{tag}")
    return tags


def trial_tags(value: Any, what: str) -> dict[str, str]:
    """Tags of a trial: texts, of which one holds JSON."""
    tags: dict[str, str] = mapped(text)(value, what)
    if tags.get("swept_knobs"):
        mapped(listed(plain))(parsed(tags["swept_knobs"]), f"{what}.swept_knobs")
    return tags


def plan(value: Any) -> dict[str, Any]:
    """plan.json."""
    document = mapped(plain)(value, "plan")
    return document | record(document, _PLAN)


def notes(value: Any) -> dict[str, Any]:
    """notes.json."""
    document = mapped(plain)(value, "notes")
    return document | record(document, {"deleted": listed(text)})


def texts(value: Any) -> dict[str, str]:
    """The texts in a sweep.json of schema 1."""
    found: dict[str, str] = mapped(text)(mapped(_as_it_is)(value, "sweep").get("texts", {}), "texts")
    return found


def provenance(value: Any) -> dict[str, Any]:
    """provenance.json of a trial."""
    document = mapped(plain)(value, "provenance")
    return document | record(document, {"machine": mapped(plain), "proofs": listed(mapped(plain)),
                                        "meters": listed(mapped(plain))})


def _with(needed: Mapping[str, Check], more: Mapping[str, Check]) -> Check:
    def check(value: Any, what: str) -> dict[str, Any]:
        document = mapped(plain)(value, what)
        if missing := needed.keys() - document.keys():
            raise _wrong(value, what, f"an object with {min(missing)}")
        return document | record(document, {**needed, **more})
    return check


_PLAN: Mapping[str, Check] = {
    "cells": listed(_with({"cell": label}, {"overrides": listed(text), "settings": mapped(plain),
                                            "knobs": mapped(listed(text))})),
    "skipped": listed(_with({"cell": label, "reason": text}, {"reason_code": mapped(plain)})),
    "order": listed(text), "warm_ups": listed(text), "cwd": text, "arguments": listed(text), "design": text,
    "repetitions": whole, "shuffle_seed": or_none(whole),
}


def _wrong(value: Any, what: str, expected: str) -> ValueError:
    said = ascii(value) if isinstance(value, str | bool | float) or value is None else type(value).__name__
    return ValueError(f"{ascii(what)[1:-1][:80]} is {said[:60]}, expected {expected}")
