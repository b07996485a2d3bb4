"""What a trial yields: one frozen value, everything after it is a pure function of such values.

Also its JSON form, in which it waits in the spool. Nothing here reads memory or knows MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.record.reason import codes_of, with_codes_of
from pipeline.text import to_json

SCHEMA_VERSION = 1

METHOD = 2
"""How this version measures. To be raised whenever the same cell would read or count differently, since trials of two
methods are not compared as if only their settings differed. A trial that carries no number is of method 1.

1  until 3c8a73e.
2  The engine's own files are brought into one page-cache state before a trial, as the model is; the sampler's rate
   follows what moves; a peak that could not be reset is not called the phase's; a phase that lacks samples is suspect
   by itself, lost slots elsewhere are a note, major faults of the server's tree and swap between the moments are
   suspect; a wait ends by progress.
"""

Verdict = Literal["valid", "suspect", "failed", "warm-up"]
"""warm-up: measured as any other, and in no comparison by design."""

ARTIFACTS = ("timeline.parquet", "timeline.png", "config.yaml", "provenance.json", "response.txt", "server.log")
"""The artifacts of every trial, under the same names in every run."""


@dataclass(frozen=True)
class TrialResult:
    """One repetition of a cell, as measured. `folder` holds the ARTIFACTS that could be written."""

    sweep_id: str
    cell: str
    repetition: int
    block: int
    order: int
    mode: str
    infer_os: str
    verdict: Verdict
    reasons: Sequence[str]
    """Why it is suspect or failed; as for notes and suspect phases, each is a Reason where it has a code."""
    notes: Sequence[str]
    """What the user should know although it does not change the number (a busy neighbour, …)."""
    started_ms: int
    """Unix time, milliseconds."""
    ended_ms: int
    params: Mapping[str, Any]
    """The resolved config, flattened: "engine.name" → value."""
    settings: Mapping[str, Any]
    """The server settings the cell resolved to."""
    metrics: Mapping[str, Mapping[int, float]]
    """Metric name → turn → value. Turn 0 for what belongs to the trial and not to a turn."""
    series: Mapping[str, Sequence[tuple[int, float]]]
    """Downsampled timeline for charts: name → (milliseconds since the trial began, MiB)."""
    tags: Mapping[str, str]
    folder: str
    schema_version: int = SCHEMA_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)
    suspect_phases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Phase → why its values enter no comparison, whatever the verdict of the whole trial is."""
    method: int = 1
    """How it was measured: see METHOD."""

    def value(self, metric: str, turn: int | None = None) -> float | None:
        """The metric's value at a turn; None asks for the last one (the run's value). None: not measured."""
        values = self.metrics.get(metric)
        if not values:
            return None
        return values.get(max(values) if turn is None else turn)

    def to_json(self) -> str:
        """One JSON document; `from_json` is its inverse."""
        return to_json(vars(self) | {"reason_codes": codes_of(self)})  # asdict copies every point of every series

    @classmethod
    def from_json(cls, text: str) -> TrialResult:
        """Raises ValueError for a document of another schema version."""
        data = json.loads(text)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema_version {data.get('schema_version')!r}, expected {SCHEMA_VERSION}")
        data["metrics"] = {name: {int(turn): value for turn, value in turns.items()}
                           for name, turns in data["metrics"].items()}
        data |= with_codes_of(data, data.pop("reason_codes", None))
        data["series"] = {name: [(int(t), float(v)) for t, v in points] for name, points in data["series"].items()}
        return cls(**data)

    @property
    def path(self) -> Path:
        """Folder with the artifacts."""
        return Path(self.folder)
