"""What a sweep says before its first trial, and the trials that only warm caches."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.base import Plan
from pipeline.errors import ConfigError
from pipeline.phases import MIB
from pipeline.record.index import CELL_DIGEST, Earlier
from pipeline.record.trial import TrialRecord
from pipeline.sweep import forecast as forecasts
from pipeline.sweep.cells import Cell
from pipeline.sweep.forecast import BETWEEN_S, cell_digest, clock, forecast, outer_limit, remaining_s
from pipeline.sweep.plan import warm_ups
from tests.unit import made_records
from tests.unit.test_rerun import composed

PEAK = "during_generation/tree_rss_peak_mib"


class Known:
    """Records that know these trials of the cells they are asked for."""

    def __init__(self, *trials: Earlier) -> None:
        self.trials = trials

    def earlier(self, digests: Collection[str], host: str) -> list[Earlier]:
        return [one for one in self.trials if one.digest in digests]


def made(name: str, *overrides: str, weights_mib: float = 0.0, **settings: Any) -> Cell:
    memory = {"weights": int(weights_mib * MIB)} if weights_mib else {}
    return Cell(name, overrides, composed(*overrides), Plan(settings, (), memory, ("1 of 2 cores",)))


def known(cell: Cell, seconds: float, peak_mib: float | None) -> Earlier:
    return Earlier(cell_digest(cell.config, cell.plan.settings), seconds, peak_mib)


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return [made("oneshot-off", "mode=oneshot", weights_mib=100), made("oneshot-on", "mode=oneshot", "infer_os=on")]


def of(cells: Sequence[Cell], ahead: Sequence[int], *trials: Earlier) -> forecasts.Forecast:
    return forecast(cells, ahead, Known(*trials))  # type: ignore[arg-type]


def test_a_sweep_that_was_never_run_says_so_and_takes_the_peak_from_the_model_file(cells: list[Cell]) -> None:
    found = of(cells, [0, 1, 0, 1])
    assert (found.seconds, found.peak_mib, found.peak_measured, found.earlier) == (None, 100.0, False, 0)
    duration, peak, demands, longest = found.lines()
    assert "unknown until the first trials are done" in duration
    assert "100 MiB" in peak and "by the model file" in peak
    assert "1 of 2 cores" in demands and "page cache" in demands and "no other sweep" in demands
    assert re.search(r"ended after 4:\d\d h at the latest", longest)


def test_duration_and_peak_come_from_earlier_trials_of_the_same_cells(cells: list[Cell]) -> None:
    found = of(cells, [0, 1, 0, 1], known(cells[0], 10.0, 190.0), known(cells[0], 30.0, 200.0),
               known(cells[0], 12.0, 195.0), known(cells[1], 20.0, 170.0), Earlier("another", 999.0, 9999.0))
    assert found.seconds == pytest.approx(2 * (12 + BETWEEN_S) + 2 * (20 + BETWEEN_S))
    assert (found.peak_mib, found.peak_cell, found.peak_measured, found.earlier) == (200.0, "oneshot-off", True, 4)
    assert "about 67 s" in found.lines()[0]


def test_a_cell_without_earlier_trials_lasts_as_long_as_the_others_and_may_be_the_largest(cells: list[Cell]) -> None:
    huge = replace(cells[0], plan=replace(cells[0].plan, memory={"weights": 900 * MIB}))
    found = of([huge, cells[1]], [0, 1], known(cells[1], 20.0, 170.0))
    assert found.seconds == pytest.approx(2 * (20 + BETWEEN_S))
    assert (found.peak_mib, found.peak_cell, found.peak_measured) == (900.0, "oneshot-off", False)


def test_too_little_memory_is_said_beforehand(cells: list[Cell]) -> None:
    found = of(cells, [0], known(cells[0], 1.0, 2.0**40))
    assert found.short_of_memory
    assert "too little" in found.lines()[1]


def test_the_digest_is_of_the_cell_and_not_of_the_sweep() -> None:
    def digest(*overrides: str, **settings: Any) -> str:
        return cell_digest(composed("mode=oneshot", *overrides), settings)

    assert digest() == digest("repetitions=7", "design=fixed", "question=Why?", "tracking.uri=sqlite:///x.db",
                              "design.warmup=1")
    others = {digest(), digest("num_ctx=512"), digest("max_tokens=7"), digest("settle.window_s=9"),
              digest(n_threads=2)}
    assert len(others) == 5


def test_what_is_left_is_known_once_a_block_has_run() -> None:
    assert remaining_s(["a"], []) is None
    assert remaining_s(["a", "b", "c"], [("a", 10.0), ("b", 20.0)]) == pytest.approx(45 + 3 * BETWEEN_S)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (130, "2:10 min"), (6000, "1:40 h")])
def test_a_duration_reads_as_one(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_the_records_tell_what_a_cell_took_on_this_machine_and_leave_out_what_failed(tmp_path: Path) -> None:
    def measured(order: int, digest: str, verdict: str = "valid") -> TrialRecord:
        one = made_records.trial("oneshot-off", order, 190.0, verdict=verdict, order=order,
                                 metrics={PEAK: {1: 190.0 + order, 2: 180.0}})
        return replace(one, tags={**one.tags, CELL_DIGEST: digest}, ended_ms=one.started_ms + 5000 * order)

    made_records.record(tmp_path, [measured(1, "aa"), measured(2, "aa", "suspect"), measured(3, "aa", "failed"),
                                   measured(4, "bb")], made_records.sweep("tide-1", host=platform.node()))
    made_records.record(tmp_path, [measured(5, "aa")], made_records.sweep("tide-2", host="elsewhere"))
    sweeps = made_records.sweeps(tmp_path)
    found = sweeps.earlier(["aa"], platform.node())
    assert sorted((one.digest, one.seconds, one.peak_mib) for one in found) == [("aa", 5.0, 191.0), ("aa", 10.0, 192.0)]
    assert sweeps.earlier([], platform.node()) == []


def test_warm_ups_are_one_trial_of_every_engine_and_model() -> None:
    cells = [made("a", "mode=oneshot", model="x.gguf"), made("b", "mode=interactive", model="x.gguf"),
             made("c", "mode=oneshot", model="y.gguf")]
    assert warm_ups(cells, 0) == []
    assert warm_ups(cells, 1) == [0, 2]
    assert warm_ups(cells, 2) == [0, 2, 0, 2]


def test_a_negative_number_of_warm_ups_and_a_metric_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"design\.warmup=-1"):
        composed("mode=oneshot", "design.warmup=-1")
    with pytest.raises(ConfigError, match=r"question_metrics=stabilised/tree_rss_mib.*stabilized/tree_rss_mib"):
        composed("mode=oneshot", "question_metrics=[stabilised/tree_rss_mib]")


def test_a_trials_outer_limit_is_far_above_its_forecast_and_says_by_what() -> None:
    def left_s(expected_s: float | None, *overrides: str) -> tuple[float, str]:
        limit = outer_limit(composed(*overrides), expected_s)
        return limit.at_s - time.monotonic(), limit.said

    short, said = left_s(10.0)
    assert short == pytest.approx(1800, abs=1) and "forecast of 10 s" in said
    assert left_s(1000.0)[0] == pytest.approx(10_000, abs=1)
    unknown, said = left_s(None, "mode.turns=10", "mode.think_time_s=3600")
    assert unknown == pytest.approx(14 * 3600, abs=1) and said.startswith("14:00 h (no forecast")
    given, said = left_s(10.0, "engine.trial_limit_s=30")
    assert given == pytest.approx(30, abs=1) and said == "30 s (engine.trial_limit_s)"
    assert left_s(10.0, "mode.source=stdin")[0] == float("inf")
