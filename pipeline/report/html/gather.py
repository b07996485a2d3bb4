"""Reads from a store what a report needs beside numbers: of each cell one trial's papers and some timelines.

How much is read does not grow with the number of trials. Nothing is drawn or worded here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import MeterError
from pipeline.language import _
from pipeline.meter.timeline import read_parquet
from pipeline.record import schema
from pipeline.record.find import Sweeps
from pipeline.record.reason import with_code
from pipeline.record.trial import TrialRecord
from pipeline.report.html.contents import CellMaterial, Material
from pipeline.report.html.timelines import Drawn, drawn
from pipeline.stats.measures import HEADLINE
from pipeline.stats.trials import valid, value

MOST_CELLS = 16
"""Cells whose timelines are drawn, in the order of the tables."""
MOST_OVERLAID = 10
"""Timelines in one picture: more hide each other."""


def gather(sweeps: Sweeps, trials: Sequence[TrialRecord], cells: Sequence[str], plan: Mapping[str, Any],
           tags: Mapping[str, str]) -> Material:
    """Material for the cells, in their order. What cannot be read is missing in it, with the reason; never raises
    for that."""
    notes: dict[str, None] = {}
    found = {}
    for index, cell in enumerate(cells):
        members = sorted((trial for trial in trials if trial.cell == cell), key=lambda trial: trial.order)
        found[cell] = _cell(members, MOST_OVERLAID if index < MOST_CELLS else 0, notes)
    skipped = [(str(one.get("cell", "")), with_code(str(one.get("reason", "")), one.get("reason_code")))
               for one in plan.get("skipped", [])]
    return Material(found, skipped, plan, tags, sweeps.shown, list(notes), sweeps.option)


def _cell(members: Sequence[TrialRecord], most: int, notes: dict[str, None]) -> CellMaterial:
    typical = _typical(members)
    if typical is None:
        return CellMaterial(missing=_("no trial of this cell was measured"))

    def read(trial: TrialRecord, name: str) -> bytes | None:
        try:
            return trial.artifact(name)
        except OSError as error:
            notes[str(error)] = None
            return None

    papers = _document(read(typical, "provenance.json"))
    response = read(typical, "response.txt") or b""
    wanted = [typical, *_spread([trial for trial in valid(members) if trial is not typical], most - 1)] if most else []
    timelines, missing = [], ""
    for trial in wanted:
        one = _timeline(trial, read(trial, "timeline.parquet"), notes)
        if one is not None:
            timelines.append(one)
    if most and not timelines:
        missing = _("the timeline of this trial is not in the store")
    elif not most:
        missing = _("timelines are drawn of the first {n} cells").format(n=MOST_CELLS)
    return CellMaterial(
        typical.order, timelines, max(len(valid(members)), len(timelines)), missing,
        papers.get("proofs", []), papers.get("meters", []),
        {key: str(text) for key, text in papers.get("machine", {}).items()},
        response.decode(errors="replace"))


def _typical(members: Sequence[TrialRecord]) -> TrialRecord | None:
    """The valid trial that settled nearest the middle of its cell; without one the first that was measured at all."""
    settled = sorted((value(trial, HEADLINE) or 0.0, trial.order) for trial in valid(members))
    if settled:
        order = settled[(len(settled) - 1) // 2][1]
        return next(trial for trial in members if trial.order == order)
    return members[0] if members else None


def _spread(trials: Sequence[TrialRecord], most: int) -> list[TrialRecord]:
    """At most `most` of them, evenly over the sweep."""
    if len(trials) <= most:
        return list(trials)
    return [trials[index * len(trials) // most] for index in range(most)]


def _timeline(trial: TrialRecord, content: bytes | None, notes: dict[str, None]) -> Drawn | None:
    try:
        if content is not None:
            timeline, marks, _processes = read_parquet(io.BytesIO(content))
            return drawn(trial.order, timeline, marks)
    except (MeterError, ValueError, KeyError) as error:
        notes[_("trial {n}: {error}").format(n=trial.order, error=error)] = None
    return None


def _document(content: bytes | None) -> dict[str, Any]:
    """provenance.json; empty where it is none."""
    try:
        return schema.provenance(schema.parsed(content or b"{}"))
    except ValueError:
        return {}
