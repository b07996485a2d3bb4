"""The one shape of a finished trial: what is written, read, pushed, exported and compared. A value; its files are in
folder.py.

`result.json` is its form on disk. Charts are not part of it: they are made from timeline.parquet where they are shown.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pipeline.record import schema
from pipeline.record.reason import Reason, with_codes_of
from pipeline.text import to_json

SCHEMA_VERSION = 2
"""Of result.json. 1: until 3c8a73e, with the charts in it and reasons as sentences; still read."""

METHOD = 2
"""How this version measures. To be raised whenever the same cell would read or count differently, since trials of two
methods are not compared as if only their settings differed. A trial that carries no number is of method 1.

1  until 3c8a73e.
2  The engine's own files are brought into one page-cache state before a trial, as the model is; the sampler's rate
   follows what moves; a peak that could not be reset is not called the phase's; a phase that lacks samples is suspect
   by itself, lost slots elsewhere are a note, major faults of the server's tree and swap between the moments are
   suspect; a wait ends by progress.
"""

Verdict = Literal["valid", "suspect", "failed", "interrupted", "warm-up"]
"""warm-up: measured as any other, and in no comparison by design."""

FINAL = ("valid", "suspect")
"""Verdicts of trials that are not run again."""

RESULT = "result.json"
ARTIFACTS = ("timeline.parquet", "timeline.png", "config.yaml", "provenance.json", "response.txt", "server.log",
             "traceback.txt")
"""The files of a trial beside its result, under the same names everywhere; traceback.txt only after a bug."""


@dataclass(frozen=True)
class TrialRecord:
    """One repetition of a cell, as measured."""

    sweep_id: str
    cell: str
    repetition: int
    block: int
    order: int
    """Its place in the sweep, from 1."""
    mode: str
    infer_os: str
    verdict: Verdict
    started_ms: int
    """Unix time, milliseconds."""
    ended_ms: int
    reasons: Sequence[Reason] = ()
    """Why it is suspect or failed."""
    notes: Sequence[Reason] = ()
    """What a user should know although it does not touch the number (a busy neighbour, …)."""
    suspect_phases: Mapping[str, Sequence[Reason]] = field(default_factory=dict)
    """Phase → why its values enter no comparison, whatever the verdict of the whole trial is."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The resolved config, flattened: "engine.name" → value."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The server settings the cell resolved to."""
    turns: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Metric → turn → value. Turn 0 for what belongs to the trial and not to a turn."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Facts in words: versions, digests, the machine that measured (host, boot_id, …)."""
    method: int = 1
    """How it was measured: see METHOD."""
    attempt: int = 1
    """Of this place in the sweep: a trial that is run again is a further attempt."""

    # Where it was found; no part of result.json.
    run_id: str = ""
    """MLflow's run, if it was pushed to the store at hand."""
    folder: Any = None
    """The folder with result.json and the ARTIFACTS: a Path, or a zipfile.Path inside an export; None: no files."""

    @property
    def name(self) -> str:
        """Of its folder: "0003-oneshot-on-r1", for a further attempt "0003-oneshot-on-r1.2"."""
        return trial_name(self.order, self.cell, self.repetition, self.attempt)

    @functools.cached_property
    def metrics(self) -> Mapping[str, float]:
        """Metric → the last turn's value."""
        return {name: turns[max(turns)] for name, turns in self.turns.items() if turns}

    def value(self, metric: str, turn: int | None = None) -> float | None:
        """The metric's value at a turn; None asks for the last one (the run's value). None: not measured."""
        return self.metrics.get(metric) if turn is None else self.turns.get(metric, {}).get(turn)

    def artifact(self, name: str) -> bytes | None:
        """One of the ARTIFACTS; None if it was not kept. Raises OSError."""
        file = None if self.folder is None else self.folder / name
        return file.read_bytes() if file is not None and file.is_file() else None

    def to_json(self) -> str:
        """result.json; `from_json` is its inverse."""
        return to_json(self.to_dict(), compact=True)

    def to_dict(self) -> dict[str, Any]:
        """The same as a value; `from_dict` is its inverse."""
        document = {name: value for name, value in vars(self).items() if name in _KEPT}
        document["metrics"] = {
            name: _packed({turn: value for turn, value in turns.items() if math.isfinite(value)})
            for name, turns in document.pop("turns").items()}
        document["reasons"] = [reason.to_dict() for reason in self.reasons]
        document["notes"] = [reason.to_dict() for reason in self.notes]
        document["suspect_phases"] = {phase: [reason.to_dict() for reason in reasons]
                                      for phase, reasons in self.suspect_phases.items()}
        return {"schema_version": SCHEMA_VERSION, **document}

    @classmethod
    def from_json(cls, text: str | bytes) -> TrialRecord:
        """Raises ValueError for what is not such a document, or of another schema version."""
        return cls.from_dict(schema.parsed(text))

    @classmethod
    def from_dict(cls, data: Any) -> TrialRecord:
        """The same from the parsed document. Raises ValueError."""
        if not isinstance(data, dict) or data.get("schema_version") not in (1, SCHEMA_VERSION):
            version = data.get("schema_version") if isinstance(data, dict) else None
            raise ValueError(f"schema_version {version!r}, expected {SCHEMA_VERSION}")
        if "metrics" not in data:
            raise ValueError("no trial: it has no metrics")
        if "reason_codes" in data:  # schema 1, beside its sentences
            try:
                data = data | with_codes_of(data, schema.plain(data["reason_codes"], "reason_codes"))
            except (TypeError, AttributeError) as error:
                raise ValueError(f"reason_codes are none: {error}") from error
        known = schema.record({**data, "turns": data["metrics"]}, _FIELDS)
        extra = data.get("extra")
        if isinstance(extra, Mapping) and extra.get("interrupted"):  # schema 1
            known["verdict"] = "interrupted"
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"no trial: {error}") from error

    def at(self, folder: Any, run_id: str = "") -> TrialRecord:
        """The same, with where it was found."""
        return replace(self, folder=folder, run_id=run_id)


def _packed(turns: Mapping[int, float]) -> Any:
    """As schema.turns reads it. Whole numbers without a point."""
    values = [int(value) if value == int(value) else value for value in turns.values()]
    if list(turns) == [0]:
        return values[0]
    return values if list(turns) == list(range(1, len(values) + 1)) else dict(zip(turns, values, strict=True))


def trial_name(order: int, cell: str, repetition: int, attempt: int = 1) -> str:
    """Of a trial's folder. The cell is cut to 80 characters: 255 is the limit of a name."""
    return f"{order:04d}-{safe(cell)}-r{repetition}" + (f".{attempt}" if attempt > 1 else "")


def safe(text: str) -> str:
    """Text as a file name: letters, digits and _ . - + alone, at most 80 characters, no dot in front."""
    return re.sub(r"[^\w.\-+]", "_", text, flags=re.ASCII)[:80].lstrip(".") or "_"


_KEPT = [name for name in TrialRecord.__dataclass_fields__ if name not in ("run_id", "folder")]


def _reasons(value: Any, what: str) -> tuple[Reason, ...]:
    return tuple(schema.listed(lambda each, what: Reason.from_dict(
        each if isinstance(each, Reason) else schema.plain(each, what)))(value, what))


_FIELDS: Mapping[str, schema.Check] = {
    "sweep_id": schema.name, "cell": schema.label, "mode": schema.text, "infer_os": schema.text,
    "verdict": schema.one_of(get_args(Verdict)), "params": schema.mapped(schema.plain),
    "settings": schema.mapped(schema.plain), "tags": schema.trial_tags,
    "turns": schema.mapped(schema.turns), "reasons": _reasons, "notes": _reasons,
    "suspect_phases": schema.mapped(_reasons),
    **dict.fromkeys(("repetition", "block", "order", "started_ms", "ended_ms", "method", "attempt"), schema.whole),
}
