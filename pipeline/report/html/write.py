"""The report as a file and as an artifact of its sweep: read, rendered, written whole or not at all.

What stands in it is decided in render.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.record.find import Sweeps
from pipeline.record.trial import TrialRecord
from pipeline.report.document import Analysis, Sweep
from pipeline.report.html.gather import gather
from pipeline.report.html.render import render

FILE = "report.html"
"""Its name beside the records, and among the artifacts of the sweep's run in MLflow, whose UI shows it there."""


def report_of(sweeps: Sweeps, sweep: Sweep, trials: Sequence[TrialRecord], analysis: Analysis,
              plan: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """The report of trials that are read already; `plan` and `tags` are the sweep's."""
    return render(sweep, trials, analysis,
                  gather(sweeps, trials, [cell.cell for cell in analysis.cells], plan, tags))


def write_whole(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader never sees half a report, and a full disk leaves the old one.

    Raises ConfigError where it cannot be written."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        raise ConfigError(_("{path} cannot be written: {error}. Name a file in an existing folder that you may write "
                            "to and that is not full: slackwater report -o FILE.").format(
                                path=path, error=error.strerror or error)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)
