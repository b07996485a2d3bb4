"""What a printed page needs of a store."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.report import document, wording
from pipeline.report.pages import sweep_of_record
from pipeline.report.sweep_page import print_sweep
from pipeline.stats.summary import cells
from pipeline.track.archive import Archive
from tests.unit.made_sweeps import HEADLINE, cell, export


class Asked(dict[str, float]):
    """A dict that knows which of its keys were asked for."""

    def __init__(self, values: dict[str, float], asked: set[str]) -> None:
        super().__init__(values)
        self.asked = asked

    def get(self, key: str, default: float | None = None) -> float | None:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> float:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def test_a_page_asks_for_no_metric_that_is_not_read_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`show` reads wording.SHOWN only; a page that used another metric would say that it was not measured."""
    phases = {f"{phase}/{name}": {1: 5.0} for phase in ("initialization", "pre_generation", "post_generation",
              "stabilized", "released", "engine", "as_found") for name in ("tree_rss_mib", "system_used_pct",
              "unexplained_mib", "weights_mib", "kv_mib")}
    made = [one for name in ("oneshot-off", "oneshot-on", "interactive-off", "interactive-on")
            for one in cell(name, [200.0, 201.0, 202.0], metrics=phases)]
    with Archive(export(tmp_path / "file", made)) as file:
        sweep, records = file.records()
    asked: set[str] = set()
    trials = [replace(one, metrics=Asked(dict(one.metrics), asked)) for one in records]
    # the cells have medians of every metric; which of them are asked for is seen below
    summaries = cells(records)
    monkeypatch.setattr(document, "cells", lambda trials: summaries)
    analysis = document.analyse(trials)
    analysis = replace(analysis, cells=[replace(c, median=Asked(dict(c.median), asked)) for c in analysis.cells])
    out = io.StringIO()
    print_sweep(Console(file=out, width=100), sweep_of_record(sweep, trials), analysis)
    assert "settled" in out.getvalue() and "where it is" in out.getvalue()
    assert HEADLINE in asked
    assert asked <= wording.SHOWN
