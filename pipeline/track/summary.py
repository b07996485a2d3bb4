"""What a sweep hands to the store: one frozen value, at its start and again at its end. Knows no MLflow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.text import to_json

SCHEMA_VERSION = 1

SweepStatus = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class SweepSummary:
    """One sweep, as its summary run shows it. The same `sweep_id` is always the same run."""

    sweep_id: str
    experiment: str
    """Name of the experiment file; empty for a sweep typed on the command line."""
    question: str
    command: str
    """The command line that runs it again."""
    planned_trials: int
    plan: Mapping[str, Any]
    """Cells, order, seed, resolved settings: whatever the sweep was resolved to. Logged as plan.json."""
    started_ms: int
    """Unix time, milliseconds."""
    status: SweepStatus = "running"
    ended_ms: int | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    """Artifact name → text: summary.json, summary.txt, …"""
    answer: str = ""
    """What it found, in a sentence or a few; empty until it has ended."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the sweep as a whole."""
    tags: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """One JSON document; `from_json` is its inverse."""
        return to_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SweepSummary:
        """Raises ValueError for a document of another schema version."""
        data = json.loads(text)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema_version {data.get('schema_version')!r}, expected {SCHEMA_VERSION}")
        return cls(**data)
