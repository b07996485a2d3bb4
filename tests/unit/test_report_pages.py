"""What a printed page needs of a store."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import main
from pipeline.report import document, wording
from pipeline.report.pages import sweep_of_record
from pipeline.report.sweep_page import print_sweep
from pipeline.stats.summary import cells
from tests.conftest import ROOT
from tests.unit.made_records import HEADLINE, cell, record, sweep


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


def test_a_page_asks_for_no_metric_that_is_not_read_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`show` reads wording.SHOWN only; a page that used another metric would say that it was not measured."""
    phases = {f"{phase}/{name}": {1: 5.0} for phase in ("initialization", "pre_generation", "post_generation",
              "stabilized", "released", "engine", "as_found") for name in ("tree_rss_mib", "system_used_pct",
              "unexplained_mib", "weights_mib", "kv_mib")}
    made = [one for name in ("oneshot-off", "oneshot-on", "interactive-off", "interactive-on")
            for one in cell(name, [200.0, 201.0, 202.0], metrics=phases)]
    asked: set[str] = set()
    trials = [replace(one) for one in made]
    for one in trials:
        vars(one)["metrics"] = Asked(dict(one.metrics), asked)
    # the cells have medians of every metric; which of them are asked for is seen below
    summaries = cells(made)
    monkeypatch.setattr(document, "cells", lambda trials: summaries)
    analysis = document.analyse(trials)
    analysis = replace(analysis, cells=[replace(c, median=Asked(dict(c.median), asked)) for c in analysis.cells])
    out = io.StringIO()
    print_sweep(Console(file=out, width=100), sweep_of_record(sweep(), trials), analysis)
    assert "settled" in out.getvalue() and "where it is" in out.getvalue()
    assert HEADLINE in asked
    assert asked <= wording.SHOWN


def test_no_verb_that_reads_loads_mlflow_or_needs_a_server(tmp_path: Path) -> None:
    record(tmp_path, [*cell("oneshot-off", [200.0, 201.0, 202.0]), *cell("oneshot-on", [180.0, 181.0, 182.0])])
    verbs = (["runs"], ["show"], ["show", "--json"], ["report"], ["export", "last", "tide.zip"],
             ["compare", "last:oneshot-off", "last:oneshot-on"], ["compare", "tide.zip:oneshot-off", "last:oneshot-on"],
             ["delete", "last:21", "--yes"], ["completion", "query", "slackwater show "])
    program = ("import sys\nfrom pipeline.cli import main\n"
               f"for words in {verbs!r}:\n"
               "    assert main(words) == 0, words\n"
               "    assert 'mlflow' not in sys.modules and 'sqlalchemy' not in sys.modules, words\n")
    environment = {**os.environ, "SLACKWATER_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
                   "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_a_sweep_that_is_not_fetched_yet_is_listed_without_a_count(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path))
    record(tmp_path, cell("oneshot-off", [200.0]), replace(sweep(), fetched=False))
    assert main(["runs"]) == 0
    assert "–" in capsys.readouterr().out.splitlines()[1]
