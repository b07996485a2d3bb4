"""What a report shows beside a sweep's numbers: timelines, proofs, what was answered, the plan. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.html.timelines import Drawn


@dataclass(frozen=True)
class CellMaterial:
    """What was kept of a cell's trials. `order` is the trial that stands for the cell, 0 if none does."""

    order: int = 0
    timelines: Sequence[Drawn] = ()
    """The one of `order` first, then some of the others."""
    trials_with_timeline: int = 0
    """How many could have been drawn; more than `timelines` in large sweeps."""
    missing: str = ""
    """Why there is no timeline; "" if there is one."""
    proofs: Sequence[Mapping[str, Any]] = ()
    """knob, asked, arrived, effective, state, source."""
    meters: Sequence[Mapping[str, Any]] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    response: str = ""
    """Prompts and answers, word by word: text of others."""


@dataclass(frozen=True)
class Material:
    """Of a sweep. Nothing in it is needed: a report without any says what is missing."""

    cells: Mapping[str, CellMaterial] = field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    """Cells that were not run, with the reason."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """seed, order, overrides of the cells, as the sweep was resolved."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of the summary run: the machine and the versions."""
    store: str = ""
    """Where the trials are, as text for the user."""
    notes: Sequence[str] = ()
    """What could not be read."""
    option: str = ""
    """What a command needs to mean that store."""
