"""`slackwater report`, and the report that every sweep leaves behind: read, rendered, written whole or not at all.

What stands in it is render.py's business.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.report.document import SCHEMA_VERSION, Analysis, Sweep, analyse
from pipeline.report.html.gather import gather, plan_of
from pipeline.report.html.render import render
from pipeline.stats.trials import Trial
from pipeline.text import print_json
from pipeline.track.location import named
from pipeline.track.store import Store, open_store

ARTIFACT = "report.html"
"""Its name in the sweep's summary run; MLflow's UI shows it there."""


def report_of(store: Store, sweep: Sweep, trials: Sequence[Trial], analysis: Analysis, plan: Mapping[str, Any],
              tags: Mapping[str, str]) -> str:
    """The report of trials that are read already; `plan` and `tags` are the summary run's."""
    return render(sweep, trials, analysis,
                  gather(store, trials, [cell.cell for cell in analysis.cells], plan, tags))


def place(store: Store, run_id: str) -> str:
    """Where a person finds the report of a summary run: a file of this machine, or a run of a server."""
    if store.location.artifacts is not None:
        path = store.location.artifacts / run_id / "artifacts" / ARTIFACT
        if path.is_file():
            return str(path)
    return _("{file} of run {run} in {store}").format(file=ARTIFACT, run=run_id, store=store.location.shown)


def report(name: str, target: Path | None, uri: str | None, as_json: bool) -> int:
    """Write a sweep's report and say where; 0. Raises ConfigError (no such sweep, no writing there) and StoreError."""
    # here and not above: the page makes reports too
    from pipeline.report.pages import sweep_of_record

    store = open_store(named(uri), write=False)
    record = store.find_sweep(name)
    trials = store.trials(record.sweep_id)
    text = report_of(store, sweep_of_record(record, trials), trials, analyse(trials),
                     plan_of(store, record.run_id, record.artifact_uri), record.tags)
    path = target or Path(f"{record.sweep_id}.html")
    content = text.encode(errors="backslashreplace")
    _write(path, content)
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "sweep_id": record.sweep_id, "path": str(path),
                    "bytes": len(content), "trials": len(trials)})
    else:
        print(_("{sweep}: its report is {path}, {size} MiB. Any browser opens it; it needs no network.").format(
            sweep=record.sweep_id, path=path, size=f"{len(content) / 2**20:.1f}"))
    return 0


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader never sees half a report, and a full disk leaves the old one."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        raise ConfigError(_("{path} cannot be written: {error}. Name a file in a folder that is there, yours to write "
                            "and not full: slackwater report -o FILE.").format(
                                path=path, error=error.strerror or error)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)
