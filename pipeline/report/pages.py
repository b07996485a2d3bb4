"""The printed pages: gathers what a command shows, from a sweep just run or from a store, and renders it once.

What the numbers are is document.py's, how they look sweep_page.py's; nothing is measured here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.errors import StoreError
from pipeline.language import N_, _, harmless, worded
from pipeline.record.find import Sweeps
from pipeline.record.folder import EVERYTHING, SweepFolder, place_of
from pipeline.record.reason import as_reason, with_code
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.answer import answer
from pipeline.report.document import SCHEMA_VERSION, Analysis, Sweep, analyse, document, runs_document
from pipeline.report.runs_page import print_runs as render_runs
from pipeline.report.sweep_page import print_sweep as render_sweep
from pipeline.report.terminal_lines import paragraph
from pipeline.stats.arms import text_of
from pipeline.stats.trials import WARM_UP
from pipeline.text import print_json, to_json
from pipeline.track import opened

NEXT = (("slackwater show", N_("this page again")), ("slackwater report", N_("the full report, one file")),
        ("slackwater ui", N_("every trial, side by side")))

MACHINE = ("host", "kernel", "cpu", "cores_usable", "memory_total", "revision")


def _next(sweeps: Sweeps, sweep_id: str = "") -> list[tuple[str, str]]:
    """NEXT as it means this store, and this sweep if it is not the last."""
    named = f" {sweep_id}" if sweep_id else ""
    return [(f"{command}{named}{sweeps.option}", purpose) for command, purpose in NEXT]


def _subject(trials: Sequence[Any]) -> dict[str, Any]:
    """What all trials have in common and a reader wants to know first."""
    if not trials:
        return {}
    first = trials[0]
    contexts = {trial.params.get("num_ctx") for trial in trials}
    models = dict.fromkeys(str(trial.tags.get("model", "")) for trial in trials)
    return {"model": ", ".join(filter(None, models)), "engine": str(first.tags.get("engine", "")),
            "engine_version": str(first.tags.get("engine_version", "")),
            "num_ctx": int(first.params["num_ctx"]) if len(contexts) == 1 and "num_ctx" in first.params else None}


def sweep_of_record(record: SweepRecord, trials: Sequence[TrialRecord]) -> Sweep:
    """A sweep as its record has it; what its trials came to is not known before they are fetched."""
    finished = sum(n for verdict, n in record.trials.items() if verdict != WARM_UP)
    return Sweep(sweep_id=record.sweep_id, question=record.question, name=record.experiment, status=record.status,
                 started_ms=record.started_ms, ended_ms=record.ended_ms, trials_planned=record.planned_trials,
                 trials_finished=finished if record.fetched else None,
                 trials_valid=record.trials.get("valid", 0) if record.fetched else None,
                 run_id=record.run_id, command=record.command,
                 extra={key: record.tags[key] for key in MACHINE if key in record.tags}, **_subject(trials))


def _skipped(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(one["cell"]), with_code(str(one["reason"]), one.get("reason_code")))
            for one in plan.get("skipped", [])]


def _listed(skipped: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"cell": cell, "reason": reason, "reason_code": as_reason(reason).to_dict()} for cell, reason in skipped]


def finish(sweeps: Sweeps, record: SweepRecord, push: Callable[[SweepRecord], str | None], as_json: bool,
           notes: Sequence[str]) -> None:
    """The page of a sweep that has ended: made from its records, kept beside them as summary.json, summary.txt and
    report.html, and printed.

    `record`: how it ended, which is written with its answer. `push` then sends it to MLflow, and returns a note if it
    could not; a disk that does not take it is a note."""
    sweep_id, found = record.sweep_id, sweeps.sweep(record.sweep_id)
    folder, record = sweeps.folder(sweep_id), record.at(found.folder, found.trials, found.run_id)
    trials, superseded = sweeps.attempts(sweep_id)
    sweep, analysis = sweep_of_record(record, trials), analyse(trials)
    skipped = _skipped(folder.plan())
    whole = document(sweep, trials, analysis, superseded, folder.deleted())
    whole["sweep"]["skipped"] = _listed(skipped)
    recorder = Console(width=80, record=True, file=io.StringIO(), color_system=None)
    render_sweep(recorder, sweep, analysis, _next(sweeps), skipped)
    made, why_not = _report(folder, sweeps, sweep, trials, analysis, record)
    record = replace(record, answer=answer(analysis))
    try:
        folder.write_text("summary.json", to_json(whole, indent=2))
        folder.write_text("summary.txt", recorder.export_text())
        folder.write(record)
        note = push(record)
    except StoreError as error:
        note = str(error)
    if as_json:
        print_json(whole)
        return
    console = Console(highlight=False)
    render_sweep(console, sweep, analysis, _next(sweeps), skipped)
    if made is not None:
        paragraph(console, Text(_("The report: {place}").format(place=made)))
    for each in dict.fromkeys([*notes, *filter(None, (note, why_not))]):
        paragraph(console, Text(_("note: {note}").format(note=worded(each))))


def _report(folder: SweepFolder, sweeps: Sweeps, sweep: Sweep, trials: Sequence[TrialRecord], analysis: Analysis,
            record: SweepRecord) -> tuple[Path | None, str]:
    """The report beside the records, and why there is none. No fault of it may cost a sweep its page."""
    from pipeline.report.html.write import FILE, report_of

    try:
        folder.write_text(FILE, report_of(sweeps, sweep, trials, analysis, folder.plan(), record.tags))
    except Exception as error:  # noqa: BLE001
        return None, _("The report was not made: {error}. `slackwater report{store}` tries again.").format(
            error=f"{type(error).__name__}: {error}", store=sweeps.option)
    return folder.path / FILE, ""


def show(name: str, as_json: bool, uri: str | None) -> None:
    """Print a sweep of the store. Raises ConfigError for a name that fits none or several."""
    sweeps = opened.sweeps(uri)
    record = sweeps.sweep(name)
    if as_json:
        print_json(_document(sweeps, record))
        return
    folder = sweeps.folder(record.sweep_id)
    trials = sweeps.summary(record.sweep_id, wording.SHOWN | set(record.tag("question_metrics") or []))
    other = "" if name == "last" or record.sweep_id == sweeps.sweep().sweep_id else record.sweep_id
    render_sweep(Console(highlight=False), sweep_of_record(record, trials), analyse(trials), _next(sweeps, other)[1:],
                 missing=[*_deleted(sweeps, folder)])


def _deleted(sweeps: Sweeps, folder: SweepFolder) -> Iterator[str]:
    """What the user took out, here and in MLflow."""
    marked = folder.deleted()
    undo = f"slackwater delete {folder.sweep_id}{{}} --undo{sweeps.option}"
    if EVERYTHING in marked:
        yield _("This sweep was deleted. `{command}` brings it back.").format(command=undo.format(""))
    if orders := sorted({place_of(name)[0] for name in marked - {EVERYTHING}}):
        yield _("Deleted, and in nothing below: {trials}. `{command}` brings one back.").format(
            trials=wording.n_of(len(orders), N_("{n} trial"), N_("{n} trials")), command=undo.format(f":{orders[0]}"))
    if gone := [name for name in folder.push_note(sweeps.shown).get("deleted", ()) if name]:
        yield _("In MLflow the runs of these trials were deleted; here they count: {trials}.").format(
            trials=_(", ").join(str(place_of(name)[0]) for name in gone))


def _document(sweeps: Sweeps, record: SweepRecord) -> dict[str, Any]:
    trials, superseded = sweeps.attempts(record.sweep_id)
    return document(sweep_of_record(record, trials), trials, analyse(trials), superseded,
                    sweeps.folder(record.sweep_id).deleted())


def report(name: str, target: Path | None, uri: str | None, as_json: bool) -> int:
    """Write a sweep's report and say where; 0. Raises ConfigError (no such sweep, no writing there) and StoreError."""
    from pipeline.report.html.write import report_of, write_whole

    sweeps = opened.sweeps(uri)
    record = sweeps.sweep(name)
    trials = sweeps.trials(record.sweep_id)
    text = report_of(sweeps, sweep_of_record(record, trials), trials, analyse(trials),
                     sweeps.folder(record.sweep_id).plan(), record.tags)
    path = target or Path(f"{record.sweep_id}.html")
    content = text.encode(errors="backslashreplace")
    write_whole(path, content)
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "sweep_id": record.sweep_id, "path": str(path),
                    "bytes": len(content), "trials": len(trials)})
    else:
        print(_("{sweep}: its report is {path}, {size} MiB. Any browser opens it; it needs no network.").format(
            sweep=record.sweep_id, path=path, size=f"{len(content) / 2**20:.1f}"))
    return 0


def runs(as_json: bool, uri: str | None) -> None:
    """Print the list of sweeps, the newest first."""
    sweeps = opened.sweeps(uri)
    records = sweeps.all()[::-1]
    listed = [sweep_of_record(record, []) for record in records]
    if as_json:
        print_json(runs_document(listed, _document(sweeps, sweeps.sweep(records[0].sweep_id)) if records else None))
    else:
        render_runs(Console(highlight=False), listed)


def _arms(cells: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[list[str], dict[str, Any]]]:
    """Cells that run the same server, with the settings in which the arms differ (all of them if there is one arm)."""
    keys = dict.fromkeys(key for _, settings in cells for key in settings)
    differing = [key for key in keys if len({str(settings.get(key)) for _, settings in cells}) > 1]
    arms: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name, settings in cells:
        shown = {key: settings.get(key) for key in differing or keys}
        arms.setdefault(str(shown), ([], shown))[0].append(name)
    return list(arms.values())


def plan(cells: Sequence[tuple[str, Mapping[str, Any]]], skipped: Sequence[tuple[str, str]],
         order: Sequence[Sequence[int]], notes: Sequence[str], as_json: bool, *, warm_ups: Sequence[int] = (),
         expected: Sequence[str] = (), figures: Mapping[str, Any] | None = None,
         knobs: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
         swept: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Print what a sweep would run: `cells` are (name, server settings), `order` cell indices block by block.

    `warm_ups` run before the first block; `expected` says what it takes, a line each, and `figures` the same in
    numbers. `knobs`: of each cell what Plan.knobs says; `swept`: the knobs that vary, with their values, of which the
    first is the reference."""
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION,
                    "cells": [{"cell": name, "settings": dict(settings), "knobs": (knobs or {}).get(name, {})}
                              for name, settings in cells],
                    "skipped": _listed(skipped),
                    "order": [[cells[index][0] for index in block] for block in order], "notes": list(notes),
                    "warm_ups": [cells[index][0] for index in warm_ups], "expected": dict(figures or {}),
                    "swept_knobs": {key: list(values) for key, values in (swept or {}).items()}})
        return
    console = Console(highlight=False)
    paragraph(console, Text(_("{cells}, {trials} in {blocks}. Nothing was started.").format(
        cells=wording.n_of(len(cells), N_("{n} cell"), N_("{n} cells")),
        trials=wording.n_of(sum(map(len, order)), N_("{n} trial"), N_("{n} trials")),
        blocks=wording.n_of(len(order), N_("{n} block"), N_("{n} blocks")))))
    for line in expected:
        paragraph(console, Text(worded(line)))
    if warm_ups:
        paragraph(console, Text(_("warm-up  {cells} (not counted)").format(
            cells=", ".join(cells[index][0] for index in warm_ups))))
    for key, values in (swept or {}).items():
        paragraph(console, Text(_("{knob}  {others} against {first}").format(
            knob=key.rpartition(".")[2], others=", ".join(text_of(str(value)) for value in values[1:]),
            first=text_of(str(values[0])))))
    for number, block in enumerate(order, start=1):
        lead = _("block {n}").format(n=number) + "  "
        paragraph(console, Text(", ".join(cells[index][0] for index in block)), cell_len(lead), lead)
    for names, settings in _arms(cells):
        console.print()
        paragraph(console, Text(", ".join(names)))
        paragraph(console, Text("  ".join(f"{key}={value}" for key, value in settings.items())), 2)
        for line in dict.fromkeys(line for name in names for one in (knobs or {}).get(name, {}).values()
                                  for line in one):
            paragraph(console, Text(worded(line), style="dim"), 4, "  ")
    for name, reason in skipped:
        paragraph(console, Text(_("left out: {cell}: {why}").format(cell=name, why=worded(reason))))
    for note in dict.fromkeys(notes):
        paragraph(console, Text(_("note: {note}").format(note=worded(note))))


def sync(uri: str | None) -> int:
    """Push what was not pushed, each sweep to the store it was measured for; 0 if nothing is left waiting."""
    from pipeline.track import push

    synced = push.sync(uri)
    print(wording.n_of(synced.sent, N_("{n} result sent."), N_("{n} results sent.")))
    for note in synced.notes:
        print(harmless(_("note: {note}").format(note=worded(note))))
    return 1 if synced.notes else 0


def pull(name: str | None, uri: str | None) -> None:
    """The records of that sweep, or of all, onto this machine. Raises ConfigError, StoreError."""
    from pipeline.track.opened import sweeps

    records = sweeps(uri)
    for sweep_id in [name] if name else [sweep.sweep_id for sweep in records.all()]:
        sweep = records.sweep(sweep_id)
        print(_("{sweep}: {trials}, in {folder}").format(
            sweep=sweep.sweep_id, folder=sweep.folder,
            trials=wording.n_of(sum(sweep.trials.values()), N_("{n} trial"), N_("{n} trials"))))
    print(_("Its values are shown and compared. Nothing of it is ever run: resume refuses it, rerun asks first."))
