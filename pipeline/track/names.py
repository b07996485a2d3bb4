"""What MLflow lets a run carry: names, keys and values in its alphabet and its lengths, and back again.

Limits measured on MLflow 3.17: keys 250 characters of letters, digits and _ - . / : and space, no empty or dot
segment between slashes; param values 6,000 and tag values 8,000 characters (longer is cut without an error). What is
longer is shown cut, and kept whole in parts beside it: nothing that is read again is ever cut.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.record.trial import TrialRecord
from pipeline.result import TrialResult
from pipeline.text import printable, to_json

KEY_LIMIT = 250
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
SHOWN = 18
"""Characters of a run's name that MLflow's table shows, about."""

_TRIALS = uuid.UUID("5f0c6a3e-6a35-4c39-9a0c-6d1f3f5b7a10")


def run_name(result: TrialResult | TrialRecord) -> str:
    """ "oneshot-on r2"; a cell too long to be read whole has the repetition first, where it is seen."""
    cell = shown(result.cell, TAG_LIMIT)
    short = f"{cell} r{result.repetition}"
    return short if len(short) <= SHOWN else f"r{result.repetition} {cell}"[:KEY_LIMIT]


def sweep_name(sweep_id: str, experiment: str) -> str:
    """ "mode_gap sweep"; of a sweep that no file names, the time it began: "sweep 261123-173656"."""
    return f"{experiment} sweep"[:KEY_LIMIT] if experiment else f"sweep {sweep_id.removeprefix('run-')}"[:KEY_LIMIT]


def trial_uuid(result: TrialResult | TrialRecord) -> str:
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
    """A config value as text: text as it is, all else as JSON. `decode_param` is its inverse."""
    if isinstance(value, str) and value and not _is_json(value) and _is_plain(value):
        return value
    return to_json(value)


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


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    """A config as MLflow's params. `whole` and `decode_param` give it back."""
    return _stored({key(name): encode_param(value) for name, value in values.items()}, PARAM_LIMIT)


def shown_params(values: Mapping[str, Any]) -> dict[str, str]:
    """A config as MLflow's page shows it: what is too long is cut."""
    return {key(name): shown_param(value) for name, value in values.items()}


def shown_tags(texts: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow's page shows them: empty ones are left out, long ones cut."""
    return {key(name): shown(str(text), TAG_LIMIT) for name, text in texts.items() if str(text)}


def shown_param(value: Any) -> str:
    """What MLflow's page shows of a config value."""
    return shown(encode_param(value), PARAM_LIMIT)


def tags_of(texts: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow takes them; empty ones are left out. `whole` gives them back."""
    return _stored({key(name): str(text) for name, text in texts.items() if str(text)}, TAG_LIMIT)


def _stored(texts: Mapping[str, str], limit: int) -> dict[str, str]:
    """Every text under its name; beside one that MLflow would cut or cannot hold, the whole as JSON, in parts."""
    found = {}
    for name, text in texts.items():
        found[name] = shown(text, limit)
        if found[name] != text:
            json_text = to_json(text)
            parts = range(0, len(json_text), limit)
            found |= {f"{name}{_PART}{number} of {len(parts)}": json_text[begin:begin + limit]
                      for number, begin in enumerate(parts, start=1)}
    return found


_PART = "/part "
_PART_OF = re.compile(rf"(.+){_PART}(\d+) of (\d+)")


def whole(texts: Mapping[str, str], limit: int) -> dict[str, str]:
    """What `tags_of` (TAG_LIMIT) or `params_of` (PARAM_LIMIT) was given.

    Parts of a text that has since been replaced fit no more with what is shown of it, and are left out."""
    if not any(_PART in name for name in texts):
        return dict(texts)
    found, parts = {}, dict[tuple[str, int], dict[int, str]]()
    for name, text in texts.items():
        if part := _PART_OF.fullmatch(name):
            parts.setdefault((part[1], int(part[3])), {})[int(part[2])] = text
        else:
            found[name] = text
    for (name, count), by_number in parts.items():
        try:
            text = str(json.loads("".join(by_number[number] for number in range(1, count + 1))))
        except (KeyError, ValueError):
            continue
        if shown(text, limit) == found.get(name):
            found[name] = text
    return found


def shown(text: str, limit: int) -> str:
    """The text as a person may read it in MLflow: its beginning and a word on what is missing, if it is too long."""
    plain = text if _is_plain(text) else printable(text).translate(_SEPARATORS)
    if len(text) <= limit:
        return plain
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    tail = f" … cut from {len(text)} characters, sha256 {digest}"
    return plain[: limit - len(tail)] + tail


_SEPARATORS = {0: "\u2400", 0x1E: "\u241e", 0x1F: "\u241f"}
"""No database's text holds NUL; the other two separate params where a store is read (source.py)."""


def _is_plain(text: str) -> bool:
    return printable(text) == text and not any(chr(code) in text for code in _SEPARATORS)


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
