"""What MLflow lets a run carry: names, keys and values in its alphabet and its lengths.

Limits measured on MLflow 3.17: keys 250 characters of letters, digits and _ - . / : and space, no empty or dot
segment between slashes; param values 6,000 and tag values 8,000 characters (longer is cut without an error). What is
longer is shown cut: whole it stands in the run's result.json.
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
from pipeline.text import printable, to_json

KEY_LIMIT = 250
PARAM_LIMIT = 6000
TAG_LIMIT = 8000
SHOWN = 18
"""Characters of a run's name that MLflow's table shows, about."""

_TRIALS = uuid.UUID("5f0c6a3e-6a35-4c39-9a0c-6d1f3f5b7a10")


def run_name(trial: TrialRecord) -> str:
    """ "oneshot-on r2"; a cell too long to be read whole has the repetition first, where it is seen."""
    cell = shown(trial.cell, TAG_LIMIT)
    short = f"{cell} r{trial.repetition}"
    return short if len(short) <= SHOWN else f"r{trial.repetition} {cell}"[:KEY_LIMIT]


def sweep_name(sweep_id: str, experiment: str) -> str:
    """ "mode_gap sweep"; of a sweep that no file names, the time it began: "sweep 261123-173656"."""
    return f"{experiment} sweep"[:KEY_LIMIT] if experiment else f"sweep {sweep_id.removeprefix('run-')}"[:KEY_LIMIT]


def trial_uuid(trial: TrialRecord) -> str:
    """The same for the same trial however often it is logged; another for a trial that was run again."""
    place = (trial.sweep_id, trial.order, trial.cell, trial.repetition, trial.started_ms)
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
    if isinstance(value, str) and value and decode_param(value) == value and _is_plain(value):
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


def shown_params(values: Mapping[str, Any]) -> dict[str, str]:
    """A config as MLflow's page shows it: what is too long is cut."""
    return {key(name): shown_param(value) for name, value in values.items()}


def shown_tags(texts: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow's page shows them: empty ones are left out, long ones cut."""
    return {key(name): shown(str(text), TAG_LIMIT) for name, text in texts.items() if str(text)}


def shown_param(value: Any) -> str:
    """What MLflow's page shows of a config value."""
    return shown(encode_param(value), PARAM_LIMIT)


def shown(text: str, limit: int) -> str:
    """The text as a person may read it in MLflow: its beginning and a word on what is missing, if it is too long."""
    plain = text if _is_plain(text) else printable(text).translate(_SEPARATORS)
    if len(text) <= limit:
        return plain
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    tail = f" … cut from {len(text)} characters, sha256 {digest}"
    return plain[: limit - len(tail)] + tail


_SEPARATORS = {0: "\u2400", 0x1E: "\u241e", 0x1F: "\u241f"}
"""No database's text holds NUL; the other two have no picture of their own."""


def _is_plain(text: str) -> bool:
    return printable(text) == text and not any(chr(code) in text for code in _SEPARATORS)


def join_lines(texts: tuple[str, ...] | list[str]) -> str:
    """Several texts in one tag, a line each."""
    return "\n".join(" ".join(text.split()) for text in texts)


def join_groups(groups: Mapping[str, Sequence[str]]) -> str:
    """Texts by a name without a colon (a phase), a line each: "decode: it has 2 of 300 samples"."""
    return join_lines([f"{name}: {text}" for name, texts in groups.items() for text in texts])
