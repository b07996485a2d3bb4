"""What `slackwater export` and `import` print. The file is made and read in record/archive.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.language import N_, _, harmless, worded
from pipeline.record import archive
from pipeline.report import wording
from pipeline.report.document import SCHEMA_VERSION
from pipeline.text import print_json
from pipeline.track import opened
from pipeline.track.location import named
from pipeline.track.push import Push


def export(name: str, path: Path, uri: str | None, as_json: bool) -> int:
    """Write a sweep into a file and say so; 0. Raises ConfigError and StoreError."""
    sweeps = opened.sweeps(uri)
    sweep = archive.write(sweeps.folder(sweeps.sweep(name).sweep_id), path)
    trials, size = sum(sweep.trials.values()), path.stat().st_size
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "sweep_id": sweep.sweep_id, "path": str(path), "trials": trials,
                    "new": 0, "status": sweep.status, "bytes": size})
        return 0
    print(_("{sweep}: {trials} in {path}, {size} MiB. It is a zip; README.txt in it describes its files.").format(
        sweep=sweep.sweep_id, trials=_trials(trials), path=path, size=f"{size / 2**20:.1f}"))
    if sweep.status == "interrupted":
        print(_("note: {note}").format(note=_("the sweep is not finished; the file has the trials measured so far.")))
    return 0


def import_(path: Path, uri: str | None, as_json: bool) -> int:
    """Put a file's sweep into a store and say so; 0. Raises ConfigError and StoreError.

    It is shown from then on; MLflow gets it now if it answers, else with the next `sync`."""
    sweeps = opened.sweeps(uri)
    folder, new = archive.take(path, sweeps.path)
    sweep, trials = folder.bare(), len(archive.opened(path).trials())
    try:
        notes: Sequence[str] = Push.open(named(uri)).send(folder)[1]
    except StoreError as error:
        notes = [str(error)]
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "sweep_id": sweep.sweep_id, "path": str(path), "trials": trials,
                    "new": new, "status": sweep.status, "store": sweeps.shown, "notes": notes})
        return 0
    said = _("{sweep}: {trials}, in {store}.") if new >= trials else _(
        "{sweep}: {trials}, {n} of them were there already, in {store}.")
    print(harmless(said.format(sweep=sweep.sweep_id, trials=_trials(trials), n=trials - new, store=sweeps.shown)))
    print(_("Its values are shown and compared. Nothing of it is ever run: resume refuses it, rerun asks first."))
    for note in notes:
        print(harmless(_("note: {note}").format(note=_("{why} `slackwater sync{store}` sends it to MLflow.").format(
            why=worded(note), store=sweeps.option))))
    print(f"slackwater show {sweep.sweep_id}{sweeps.option}")
    return 0


def _trials(count: int) -> str:
    return wording.n_of(count, N_("{n} trial"), N_("{n} trials"))
