"""What MLflow lets a run carry: names, keys and values in its alphabet and its lengths, and back again.

Limits measured on MLflow 3.17: keys 250 characters of letters, digits and _ - . / : and space, no empty or dot
segment between slashes; param values 6,000 and tag values 8,000 characters (longer is cut without an error).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.result import TrialResult

KEY_LIMIT = 250
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
SHOWN = 18
"""Characters of a run's name that MLflow's table shows, about."""

_TRIALS = uuid.UUID("5f0c6a3e-6a35-4c39-9a0c-6d1f3f5b7a10")


def run_name(result: TrialResult) -> str:
    """ "oneshot-on r2"; a cell too long to be read whole has the repetition first, where it is seen."""
    short = f"{result.cell} r{result.repetition}"
    return short if len(short) <= SHOWN else f"r{result.repetition} {result.cell}"[:KEY_LIMIT]


def sweep_name(sweep_id: str, experiment: str) -> str:
    """ "mode_gap sweep"; of a sweep that no file names, the time it began: "sweep 261123-173656"."""
    return f"{experiment} sweep"[:KEY_LIMIT] if experiment else f"sweep {sweep_id.removeprefix('run-')}"[:KEY_LIMIT]


def trial_uuid(result: TrialResult) -> str:
    """The same for the same trial however often it is logged; another for a trial that was run again."""
    place = (result.sweep_id, result.order, result.cell, result.repetition, result.started_ms)
    return uuid.uuid5(_TRIALS, json.dumps(place)).hex


def key(name: str) -> str:
    """The name in MLflow's alphabet; a long one is cut and keeps a hash, so that two never become one."""
    parts = [part for part in re.sub(r"[^\w\-. :/]", "_", name).split("/") if part not in ("", ".", "..")]
    found = "/".join(parts) or "_"
    if len(found) <= KEY_LIMIT:
        return found
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{found[:KEY_LIMIT - 9]}-{digest}"


def encode_param(value: Any) -> str:
    """A config value as a param: text as it is, all else as JSON. `decode_param` is its inverse up to the limit."""
    if isinstance(value, str):
        return cut(json.dumps(value, ensure_ascii=False) if not value or _is_json(value) else value, PARAM_LIMIT)
    return cut(json.dumps(value, ensure_ascii=False, default=str), PARAM_LIMIT)


@functools.lru_cache(maxsize=65536)
def decode_param(text: str) -> Any:
    """A param as the config had it: numbers as numbers, null as None. Text that is no JSON stays text."""
    if text[:1] not in _JSON_START:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


_JSON_START = frozenset('"-0123456789[{tfnNI')


def encode_json(value: Any) -> str:
    """A document for people and programs; what JSON does not know is written as text."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and a word on what is missing."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    tail = f" … cut from {len(text)} characters, sha256 {digest}"
    return text[: limit - len(tail)] + tail


def tags_of(texts: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow takes them; empty ones are left out."""
    return {key(name): cut(str(text), TAG_LIMIT) for name, text in texts.items() if str(text)}


def join_lines(texts: tuple[str, ...] | list[str]) -> str:
    """Several texts in one tag, a line each."""
    return "\n".join(" ".join(text.split()) for text in texts)


def join_groups(groups: Mapping[str, Sequence[str]]) -> str:
    """Texts by a name without a colon (a phase), a line each: "decode: it has 2 of 300 samples"."""
    return join_lines([f"{name}: {text}" for name, texts in groups.items() for text in texts])


def split_groups(text: str) -> dict[str, list[str]]:
    """The inverse of `join_groups`."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, said = line.partition(": ")
        found.setdefault(name, []).append(said)
    return found


def split_lines(text: str) -> list[str]:
    """The inverse of `join_lines`."""
    return text.splitlines()
