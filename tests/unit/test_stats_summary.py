"""Cells, gap and effects from trials whose truth is known because they were made up here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from pipeline.record.trial import TrialRecord
from pipeline.stats import summary
from pipeline.stats.stopping import effect_precision
from tests.unit.made_records import said

HEADLINE = "stabilized/tree_rss_mib"
PEAK = "during_generation/tree_rss_peak_mib"


def made(mode: str, infer_os: str, block: int, values: Mapping[str, Mapping[int, float]], **keys: str) -> TrialRecord:
    """A trial that never ran."""
    params = {"mode.name": mode, "mode.turns": "3" if mode == "interactive" else "1",
              "infer_os.memory_optimization": str(infer_os == "on"), "infer_os.quantization": str(infer_os == "on"),
              "place.block": str(block), **{key.replace("__", "."): value for key, value in keys.items()}}
    cell = f"{mode}-{infer_os}-" + "-".join(keys.values())
    return TrialRecord("s", cell, block, block, 1, mode, infer_os, "valid", 0, 0, params=params, turns=values,
                       run_id="r")


def two_by_two(blocks: int = 3) -> list[TrialRecord]:
    """As found one-shot reads 162 MiB more; unified nothing; the flags save 20 MiB; turns grow by 1 MiB."""
    trials: list[TrialRecord] = []
    for block in range(1, blocks + 1):
        for infer_os, saved in (("off", 0.0), ("on", 20.0)):
            level = 194.0 - saved + 0.05 * block
            trials.append(made("oneshot", infer_os, block, {
                HEADLINE: {1: level}, PEAK: {1: level + 4}, "pre_generation/tree_rss_mib": {1: 32.0},
                "as_found/tree_rss_mib": {0: level}, "decode/tokens_per_s": {1: 50.0 if infer_os == "off" else 40.0}}))
            trials.append(made("interactive", infer_os, block, {
                HEADLINE: {1: level, 2: level + 1, 3: level + 2}, PEAK: {1: level + 4, 2: level + 4, 3: level + 6},
                "pre_generation/tree_rss_mib": {1: level - 4}, "as_found/tree_rss_mib": {0: 32.0},
                "decode/tokens_per_s": {1: 50.0, 2: 50.0, 3: 50.0}}))
    return trials


def test_the_gap_as_found_is_an_artefact_and_the_unified_one_is_none() -> None:
    found = summary.gap(two_by_two())
    as_found = {row.infer_os: row for row in found.as_found}
    assert as_found["off"].difference == pytest.approx(162.1)
    assert as_found["off"].stats.kind == "more"
    unified = {(row.infer_os, row.metric, row.turn): row for row in found.unified}
    turn_1 = unified["off", HEADLINE, 1]
    assert turn_1.difference == 0
    assert turn_1.stats.verdict == "identical (3 of 3)"
    assert unified["on", PEAK, 1].difference == 0
    last = unified["off", HEADLINE, 3]
    assert last.difference == pytest.approx(-2.0)
    assert last.stats.kind == "less"
    assert last.interactive == pytest.approx(196.1)


def test_the_gap_never_compares_before_the_generation() -> None:
    phases = {row.phase for row in summary.gap(two_by_two()).unified}
    assert phases
    assert "pre_generation" not in phases


def test_effects_are_on_minus_off_within_each_mode() -> None:
    rows = {(row.metric, row.mode): row for row in summary.effects(two_by_two())}
    row = rows[HEADLINE, "oneshot"]
    assert (row.flag, row.n_on, row.n_off) == ("on", 3, 3)
    assert row.difference == pytest.approx(-20.0)
    assert row.on == pytest.approx(174.1)
    assert row.off == pytest.approx(194.1)
    assert row.relative_pct == pytest.approx(-100 * 20 / 194.1)
    assert row.stats.kind == "less"
    assert row.stats.lo is not None
    assert row.stats.hi is not None
    assert row.stats.lo < -20.0 < row.stats.hi < 0
    assert row.question
    assert not rows[PEAK, "oneshot"].question


def test_speed_is_compared_as_a_ratio() -> None:
    row = next(r for r in summary.effects(two_by_two()) if r.metric == "decode/tokens_per_s" and r.mode == "oneshot")
    assert row.stats.scale == "ratio"
    assert row.stats.estimate == pytest.approx(0.8)
    assert row.stats.kind == "less"


def test_trials_that_do_not_count_are_left_out_and_listed() -> None:
    trials = two_by_two()
    spoiled = replace(trials[0], verdict="suspect", reasons=(said("swap in our tree"),),
                      turns={HEADLINE: {1: 9999.0}})
    found = summary.cells([spoiled, *trials[1:]])
    cell = next(c for c in found if c.mode == "oneshot" and c.infer_os == "off")
    assert (cell.n, cell.n_valid, cell.n_left_out) == (3, 2, 1)
    assert cell.left_out[0].reasons == ("swap in our tree",)
    assert cell.median[HEADLINE] == pytest.approx(194.125)
    row = next(r for r in summary.effects([spoiled, *trials[1:]]) if r.metric == HEADLINE and r.mode == "oneshot")
    assert (row.n_off, row.n_on, row.stats.n_blocks) == (2, 3, 2)
    assert row.difference is not None
    assert abs(row.difference + 20) < 0.1


def test_the_metrics_of_a_suspect_phase_enter_nothing_and_the_trials_other_phases_do() -> None:
    trials = [replace(trial, suspect_phases={"during_generation": (said("it has 4 of 300 samples"),)})
              if trial.block == 1 else trial for trial in two_by_two(blocks=4)]
    rows = {(row.metric, row.mode): row for row in summary.effects(trials)}
    assert rows[HEADLINE, "oneshot"].n_on == rows[HEADLINE, "oneshot"].n_off == 4
    assert rows[PEAK, "oneshot"].n_on == rows[PEAK, "oneshot"].n_off == 3
    whole = {row.metric: row.stats.n_blocks for row in summary.gap(trials).unified
             if row.turn == 1 and row.infer_os == "off"}
    assert (whole[HEADLINE], whole[PEAK]) == (4, 3)
    found = {metric: next(iter(effect_precision(trials, metric, target=1.0))).n_blocks for metric in (HEADLINE, PEAK)}
    assert found == {HEADLINE: 4, PEAK: 3}, "what ends a sweep counts the same"
    alone = [cell for cell in summary.cells(trials[:4]) if cell.mode == "oneshot"]
    assert all(PEAK not in cell.median and HEADLINE in cell.median and cell.n_valid == 1 for cell in alone)


def test_cells_give_median_and_spread() -> None:
    trials = [made("oneshot", "off", b, {HEADLINE: {1: v}}) for b, v in enumerate([10.0, 11.0, 13.0, 14.0, 50.0], 1)]
    cell = summary.cells(trials)[0]
    assert cell.median[HEADLINE] == 13.0
    assert cell.mad[HEADLINE] == 2.0
    assert cell.jumped_share[HEADLINE] == pytest.approx(0.2)


def test_cells_are_compared_only_where_everything_else_is_the_same() -> None:
    trials = [made(mode, infer_os, block, {HEADLINE: {1: base + (0 if infer_os == "off" else -saved)}}, num_ctx=ctx)
              for block in (1, 2) for mode in ("oneshot", "interactive") for infer_os in ("off", "on")
              for ctx, base, saved in (("512", 100.0, 5.0), ("4096", 200.0, 50.0))]
    rows = [r for r in summary.effects(trials) if r.mode == "oneshot"]
    assert [(r.where["num_ctx"], r.difference) for r in rows] == [("512", -5.0), ("4096", -50.0)]
    gaps = summary.gap(trials).unified
    assert {(r.where["num_ctx"], r.infer_os) for r in gaps} == {
        (c, i) for c in ("512", "4096") for i in ("off", "on")}
    assert all(r.difference == 0 for r in gaps)


def test_keys_that_always_change_together_are_named_once() -> None:
    trials = [made("oneshot", "off", 1, {HEADLINE: {1: 1.0}}, model__name=n, model__sha256=s, model__path=p)
              for n, s, p in (("small", "aa", "x"), ("big", "bb", "y"))]
    assert [dict(c.where) for c in summary.cells(trials)] == [{"model.name": "big"}, {"model.name": "small"}]


def test_modes_that_do_other_work_are_not_compared() -> None:
    trials = [made("oneshot", "off", 1, {HEADLINE: {1: 1.0}}, max_tokens="8"),
              made("interactive", "off", 1, {HEADLINE: {1: 1.0}}, max_tokens="64")]
    assert summary.gap(trials).unified == ()


def test_several_flags_against_off_are_one_family() -> None:
    trials = []
    for block in (1, 2, 3):
        for flag, shift in (("off", 0.0), ("quantization", -9.0), ("cpu_optimization", 0.1 * block)):
            trial = made("oneshot", flag, block, {HEADLINE: {1: 100.0 + shift + 0.02 * block}})
            trials.append(replace(trial, params={f"infer_os.{f}": str(f == flag) for f in
                                                 ("quantization", "cpu_optimization")}))
    rows = {r.flag: r for r in summary.effects(trials)}
    assert set(rows) == {"quantization", "cpu_optimization"}
    assert all(r.stats.family == 2 and r.stats.level == pytest.approx(0.975) for r in rows.values())
    assert "Bonferroni over 2" in (rows["quantization"].stats.method or "")
    assert rows["quantization"].stats.kind == "less"


def test_without_an_off_arm_the_flags_on_top_are_named() -> None:
    def arm(label: str, on: set[str], level: float) -> list[TrialRecord]:
        return [replace(made("oneshot", label, b, {HEADLINE: {1: level}}),
                        params={f"infer_os.{f}": str(f in on) for f in ("quantization", "memory_optimization")})
                for b in (1, 2)]
    trials = arm("quantization", {"quantization"}, 100.0) + arm("on", {"quantization", "memory_optimization"}, 90.0)
    rows = summary.effects(trials)
    assert [(r.flag, r.difference) for r in rows] == [("memory_optimization", -10.0)]


@pytest.mark.parametrize("trials", [
    [], [made("oneshot", "off", 1, {})], [made("oneshot", "off", 1, {HEADLINE: {1: 1.0}})],
    [replace(made("oneshot", i, 1, {HEADLINE: {1: 1.0}}), verdict="failed") for i in ("off", "on")],
    [made("oneshot", "off", 1, {HEADLINE: {1: math.nan}}), made("oneshot", "on", 1, {})],
])
def test_little_or_nothing_measured_is_no_crash(trials: list[TrialRecord]) -> None:
    assert len(summary.cells(trials)) == len({t.cell for t in trials})
    assert all(r.difference is None for r in summary.effects(trials))
    found = summary.gap(trials)
    assert found.as_found == ()
    assert found.unified == ()


def test_one_repetition_gives_a_difference_without_an_interval() -> None:
    rows = [r for r in summary.effects(two_by_two(blocks=1)) if r.metric == HEADLINE]
    assert [r.difference for r in rows] == pytest.approx([-20.0, -20.0])
    assert all(r.stats.lo is None and r.stats.kind == "not enough" for r in rows)
    assert rows[0].stats.verdict == "not enough trials: 1 more needed"


def test_a_metric_one_mode_lacks_is_a_row_without_a_difference() -> None:
    trials = [made("oneshot", "off", 1, {HEADLINE: {1: 5.0}}), made("interactive", "off", 1, {PEAK: {1: 7.0}})]
    rows = {r.metric: r for r in summary.gap(trials).unified}
    assert (rows[HEADLINE].oneshot, rows[HEADLINE].interactive, rows[HEADLINE].difference) == (5.0, None, None)


def test_a_block_that_two_methods_share_is_no_pair() -> None:
    """A sweep of an older version, interrupted in the second of four blocks; the later one reads 1.5 MiB less."""
    trials: list[TrialRecord] = []
    for block in (1, 2, 3, 4):
        for infer_os, saved in (("off", 0.0), ("on", 20.0)):
            later = (block, infer_os) > (2, "off")
            trials.append(replace(made("oneshot", infer_os, block, {
                HEADLINE: {1: 194.0 - saved - 1.5 * later + 0.01 * block}}), method=1 + later))
    row = next(row for row in summary.effects(trials) if row.metric == HEADLINE)
    assert (row.n_on, row.n_off, row.stats.n_blocks) == (4, 4, 3)
    assert row.stats.estimate == pytest.approx(-20.0) and (row.stats.hi or 0) - (row.stats.lo or 0) < 0.1
