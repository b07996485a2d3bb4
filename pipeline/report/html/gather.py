"""Reads from a store what a report needs beside numbers: of each cell one trial's papers and some timelines.

How much is read does not grow with the number of trials. Nothing is drawn or worded here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import MeterError, SlackwaterError
from pipeline.language import _
from pipeline.meter.timeline import read_parquet
from pipeline.record.reason import with_code
from pipeline.report.html.contents import CellMaterial, Material
from pipeline.report.html.timelines import Drawn, drawn, of_series
from pipeline.stats.measures import HEADLINE
from pipeline.stats.trials import Measured, Trial, valid, value
from pipeline.track.artifacts import Artifacts
from pipeline.track.store import Store

MOST_CELLS = 16
"""Cells whose timelines are drawn, in the order of the tables."""
MOST_OVERLAID = 10
"""Timelines in one picture: more hide each other."""
FEW_OVERLAID = 3
"""The same where every file comes over a network, which takes a tenth of a second each."""


def gather(store: Store, trials: Sequence[Trial], cells: Sequence[str], plan: Mapping[str, Any],
           tags: Mapping[str, str]) -> Material:
    """Material for the cells, in their order. What cannot be read is missing in it, with the reason; never raises
    for that."""
    artifacts = Artifacts(store.location)
    notes: dict[str, None] = {}
    found = {}
    overlaid = FEW_OVERLAID if store.location.is_server else MOST_OVERLAID
    for index, cell in enumerate(cells):
        members = sorted((trial for trial in trials if trial.cell == cell), key=lambda trial: trial.order)
        found[cell] = _cell(store, artifacts, members, overlaid if index < MOST_CELLS else 0, notes)
    skipped = [(str(one.get("cell", "")), with_code(str(one.get("reason", "")), one.get("reason_code")))
               for one in plan.get("skipped", [])]
    return Material(found, skipped, plan, tags, store.location.shown, list(notes), store.location.option)


def plan_of(store: Store, run_id: str | None, artifact_uri: str) -> Mapping[str, Any]:
    """plan.json of a sweep's summary run; empty where there is none, or it cannot be read."""
    if run_id is None:
        return {}
    try:
        content = Artifacts(store.location).read(run_id, artifact_uri, "plan.json")
        found = json.loads(content) if content is not None else {}
    except (SlackwaterError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _cell(store: Store, artifacts: Artifacts, members: Sequence[Trial], most: int,
          notes: dict[str, None]) -> CellMaterial:
    typical = _typical(members)
    if typical is None:
        return CellMaterial(missing=_("no trial of this cell was measured"))

    def read(trial: Trial, name: str) -> bytes | None:
        try:
            if isinstance(trial, Measured):
                path = Path(trial.result.folder) / name
                return path.read_bytes() if trial.result.folder and path.is_file() else None
            return artifacts.read(trial.run_id, str(getattr(trial, "artifact_uri", "")), name)
        except (SlackwaterError, OSError) as error:
            notes[str(error)] = None
            return None

    papers = _document(read(typical, "provenance.json"))
    response = read(typical, "response.txt") or b""
    wanted = [typical, *_spread([trial for trial in valid(members) if trial is not typical], most - 1)] if most else []
    timelines, missing = [], ""
    for trial in wanted:
        one = _timeline(store, trial, read(trial, "timeline.parquet"), notes)
        if one is not None:
            timelines.append(one)
    if most and not timelines:
        missing = _("the timeline of this trial is not in the store")
    elif not most:
        missing = _("timelines are drawn of the first {n} cells").format(n=MOST_CELLS)
    return CellMaterial(
        typical.order, timelines, max(len(valid(members)), len(timelines)), missing,
        [dict(proof) for proof in papers.get("proofs", []) if isinstance(proof, dict)],
        [dict(meter) for meter in papers.get("meters", []) if isinstance(meter, dict)],
        {str(key): str(text) for key, text in dict(papers.get("machine") or {}).items()},
        response.decode(errors="replace"))


def _typical(members: Sequence[Trial]) -> Trial | None:
    """The valid trial that settled nearest the middle of its cell; without one the first that was measured at all."""
    settled = sorted((value(trial, HEADLINE) or 0.0, trial.order) for trial in valid(members))
    if settled:
        order = settled[(len(settled) - 1) // 2][1]
        return next(trial for trial in members if trial.order == order)
    return members[0] if members else None


def _spread(trials: Sequence[Trial], most: int) -> list[Trial]:
    """At most `most` of them, evenly over the sweep."""
    if len(trials) <= most:
        return list(trials)
    return [trials[index * len(trials) // most] for index in range(most)]


def _timeline(store: Store, trial: Trial, content: bytes | None, notes: dict[str, None]) -> Drawn | None:
    try:
        if content is not None:
            timeline, marks, _processes = read_parquet(io.BytesIO(content))
            return drawn(trial.order, timeline, marks)
    except (MeterError, ValueError, KeyError) as error:
        notes[_("trial {n}: {error}").format(n=trial.order, error=error)] = None
    try:
        series = trial.result.series if isinstance(trial, Measured) else store.series(trial.run_id)
        return of_series(trial.order, series)
    except (SlackwaterError, ValueError):
        return None


def _document(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
