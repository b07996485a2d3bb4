"""What `slackwater export` and `import` print. The file and the store are handled in track/exchange.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pipeline.language import N_, _
from pipeline.report import wording
from pipeline.report.document import SCHEMA_VERSION
from pipeline.text import print_json
from pipeline.track.exchange import Moved, export_sweep, import_sweep
from pipeline.track.location import named
from pipeline.track.store import open_store


def export(name: str, path: Path, uri: str | None, as_json: bool) -> int:
    """Write a sweep into a file and say so; 0. Raises ConfigError and StoreError."""
    moved = export_sweep(open_store(named(uri), write=False), name, path)
    size = path.stat().st_size
    if as_json:
        _document(moved, {"bytes": size})
        return 0
    print(_("{sweep}: {trials} in {path}, {size} MiB. It is a zip; README.txt in it describes its files.").format(
        sweep=moved.sweep_id, trials=_trials(moved.trials), path=path, size=f"{size / 2**20:.1f}"))
    if moved.status == "interrupted":
        print(_("note: {note}").format(note=_("the sweep is not finished; the file has the trials measured so far.")))
    return 0


def import_(path: Path, uri: str | None, as_json: bool) -> int:
    """Put a file's sweep into a store and say so; 0. Raises ConfigError and StoreError."""
    store = open_store(named(uri))
    moved = import_sweep(path, store)
    if as_json:
        _document(moved, {"store": store.location.shown})
        return 0
    said = _("{sweep}: {trials}, in {store}.") if moved.new == moved.trials else _(
        "{sweep}: {trials}, {n} of them were there already, in {store}.")
    print(said.format(sweep=moved.sweep_id, trials=_trials(moved.trials), n=moved.trials - moved.new,
                      store=store.location.shown))
    print(f"slackwater show {moved.sweep_id}{store.location.option}")
    return 0


def _document(moved: Moved, more: dict[str, object]) -> None:
    print_json({"schema_version": SCHEMA_VERSION, **asdict(moved), **more})


def _trials(count: int) -> str:
    return wording.n_of(count, N_("{n} trial"), N_("{n} trials"))
