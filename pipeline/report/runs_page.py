"""The list of sweeps that `slackwater runs` prints, one line each. A sweep's own page is in `sweep_page`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.language import _
from pipeline.report import wording
from pipeline.report.document import Sweep
from pipeline.report.terminal_lines import pad, paragraph, row

_WIDE = 110
"""Columns from which the year is shown."""


def print_runs(console: Console, sweeps: Sequence[Sweep]) -> None:
    """The list of sweeps, newest first as given."""
    if not sweeps:
        paragraph(console, Text(_("No sweep in this store yet.")))
        return
    rows = [(_("sweep"), _("started"), _("trials"), _("question"))] + [
        (sweep.sweep_id, _started(console, sweep), _counts(sweep), sweep.question or sweep.name or "–")
        for sweep in sweeps]
    widths = [max(cell_len(line[column]) for line in rows) + 2 for column in range(3)]
    for line, status in zip(rows, ["", *(sweep.status for sweep in sweeps)], strict=True):
        first, started, trials = (pad(text, width) for text, width in zip(line, widths, strict=False))
        row(console, Text.assemble(first, started, (trials, _STATUS.get(status, "")), line[3],
                                   style="dim" if line is rows[0] else ""))


def _started(console: Console, sweep: Sweep) -> str:
    form = "%m-%d %H:%M" if console.width < _WIDE else "%Y-%m-%d %H:%M"
    return "–" if sweep.started_ms is None else time.strftime(form, time.localtime(sweep.started_ms / 1000))


_STATUS = {"failed": "red", "interrupted": "yellow", "running": "cyan"}


def _counts(sweep: Sweep) -> str:
    done = sweep.trials_finished
    text = "–" if done is None else f"{done}/{sweep.trials_planned}" if sweep.trials_planned else str(done)
    if done is not None and sweep.trials_valid is not None and sweep.trials_valid < done:
        text += _(", ") + wording.n_with(sweep.trials_valid, "valid")
    return text if sweep.status == "finished" else f"{text} {wording.verdict_name(sweep.status)}"
