"""Factorial plans, drift, slopes and the stopping rule, on data made with known effects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.document import Sweep, analyse, document
from pipeline.report.html import findings
from pipeline.stats import drift, factorial, growth, intervals, slope, stopping, summary
from pipeline.stats.comparison import compare
from tests.unit.test_stats_summary import HEADLINE, made, two_by_two

FLAGS = ("cpu_optimization", "memory_optimization", "quantization")


def plan(level: Callable[..., float], blocks: int = 3, runs: Sequence[tuple[int, ...]] | None = None,
         metric: str = HEADLINE) -> list[TrialRecord]:
    """A factorial plan over FLAGS; `level(block, *settings)` is what each trial reads."""
    trials: list[TrialRecord] = []
    for block in range(1, blocks + 1):
        for settings in runs or list(itertools.product((0, 1), repeat=len(FLAGS))):
            on = [flag for flag, setting in zip(FLAGS, settings, strict=True) if setting]
            trial = made("oneshot", "+".join(on) or "off", block, {metric: {1: level(block, *settings)}})
            trials.append(replace(trial, params={f"infer_os.{flag}": str(flag in on) for flag in FLAGS}))
    return trials


def test_factorial_finds_main_effects_and_interactions_over_all_settings_of_the_others() -> None:
    rng = np.random.default_rng(1)
    found = factorial.factorials(plan(lambda b, c, m, q: 200 + 5 * b - 12 * m - 9 * q + 4 * m * q
                                      + float(rng.normal(0, 0.05))))[0]
    assert (found.cells, found.blocks, found.df) == (8, 3, 14)  # 24 trials − 8 cells − 2 further blocks
    terms = {term.flags: term for term in found.terms}
    assert len(terms) == 6
    assert [t.flags for t in found.terms[:2]] == [("memory_optimization",), ("quantization",)]  # ranked
    for flags, truth in ((("memory_optimization",), -10.0), (("quantization",), -7.0),
                         (("memory_optimization", "quantization"), 2.0), (("cpu_optimization",), 0.0)):
        stats_ = terms[flags].stats
        assert stats_.lo is not None
        assert stats_.hi is not None
        assert stats_.lo < truth < stats_.hi
    assert terms["memory_optimization",].stats.kind == "less"
    assert terms["memory_optimization", "quantization"].stats.kind == "more"
    assert terms["cpu_optimization",].stats.kind == "no difference"
    assert "Bonferroni over 6" in found.method


def test_factorial_standard_error_is_the_one_of_a_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(2)
    trials = plan(lambda b, *_: 100 + b + float(rng.normal(0, 1)), blocks=4)
    found = factorial.factorials(trials)[0]
    y = np.array([t.metrics[HEADLINE] for t in trials]).reshape(4, 8)
    residual = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
    df = 3 * 7
    half = stats.t.ppf(1 - 0.05 / 2 / 6, df) * 2 * np.sqrt((residual**2).sum() / df / 32)
    assert found.df == df
    for term in found.terms:
        assert term.stats.lo is not None
        assert term.stats.hi is not None
        assert (term.stats.hi - term.stats.lo) / 2 == pytest.approx(half, rel=1e-4)


def test_a_half_fraction_names_what_it_cannot_tell_apart() -> None:
    runs = [(a, b, (a + b + 1) % 2) for a in (0, 1) for b in (0, 1)]
    found = factorial.factorials(plan(lambda b, *s: 100.0 + b - 3 * s[0] + 0.01 * b * s[1], runs=runs))[0]
    terms = {term.flags: term for term in found.terms}
    assert len(terms) == 3
    assert terms["cpu_optimization",].aliased_with == (("memory_optimization", "quantization"),)


def test_one_flag_at_a_time_is_no_factorial_plan() -> None:
    assert factorial.factorials(plan(lambda b, *s: 1.0, runs=[(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])) == []
    assert factorial.factorials(two_by_two()) == []


def test_one_block_uses_the_higher_order_interaction_or_says_that_it_cannot() -> None:
    found = factorial.factorials(plan(lambda b, c, m, q: 100.0 - 8 * m, blocks=1))[0]
    assert found.df == 1
    assert "higher-order" in found.method
    two = [t for t in plan(lambda b, c, m, q: 100.0 - 8 * m, blocks=1) if "cpu" not in t.infer_os]
    found = factorial.factorials(two)[0]
    assert all(term.stats.lo is None and term.stats.kind == "not enough" for term in found.terms)


def test_a_missing_trial_costs_a_degree_of_freedom_and_no_bias() -> None:
    trials = plan(lambda b, c, m, q: 100.0 + 10 * b - 8 * m, blocks=3)[1:]
    found = factorial.factorials(trials)[0]
    assert found.df == 13
    assert found.terms[0].estimate == pytest.approx(-8.0, abs=1e-6)


def test_factorial_speed_is_a_ratio() -> None:
    found = factorial.factorials(plan(lambda b, c, m, q: 50.0 * (0.8 if c else 1.0) * (1 + 0.001 * b * q),
                                      metric="decode/tokens_per_s"), "decode/tokens_per_s")[0]
    assert found.terms[0].flags == ("cpu_optimization",)
    assert found.terms[0].estimate == pytest.approx(0.8, rel=1e-2)
    assert found.terms[0].stats.scale == "ratio"


def test_drift_of_all_cells_is_found_and_said_not_to_harm() -> None:
    rng = np.random.default_rng(3)
    trials = [made("oneshot", arm, b, {HEADLINE: {1: 100 + 2 * b - 20 * (arm == "on") + float(rng.normal(0, 0.1))}})
              for b in range(1, 9) for arm in ("off", "on")]
    found = {test.test: test for test in drift.drift(trials)}
    assert found["block means"].found
    assert found["block means"].size == pytest.approx(2.0, abs=0.1)
    assert "slow noise" in found["block means"].text
    assert not found["paired differences"].found


def test_drift_of_the_difference_is_found_and_warned_of() -> None:
    rng = np.random.default_rng(4)
    trials = [made("oneshot", arm, b, {HEADLINE: {1: 100 + b * (arm == "on") + float(rng.normal(0, 0.1))}})
              for b in range(1, 9) for arm in ("off", "on")]
    found = next(test for test in drift.drift(trials) if test.test == "paired differences")
    assert found.found
    assert found.what == "on, oneshot"
    assert "mistrust" in found.text


def test_the_first_trial_of_each_block_is_looked_at() -> None:
    rng = np.random.default_rng(5)
    trials: list[TrialRecord] = []
    for b in range(1, 9):
        arms = ["off", "on", "quantization"]
        rng.shuffle(arms)
        trials += [replace(made("oneshot", arm, b, {HEADLINE: {1: 100 + 7 * (place == 0) + float(rng.normal(0, 0.1))
                                                              - 20 * (arm == "on")}}), order=3 * b + place)
                   for place, arm in enumerate(arms)]
    found = next(test for test in drift.drift(trials) if test.test == "first of block")
    assert found.found
    assert found.size == pytest.approx(7, abs=2.5)


def test_two_blocks_or_constant_readings_are_no_drift() -> None:
    assert drift.drift(two_by_two(2)) == []
    constant = [made("oneshot", arm, b, {HEADLINE: {1: 100.0}}) for b in range(1, 6) for arm in ("off", "on")]
    assert not any(test.found for test in drift.drift(constant))
    assert drift.drift([]) == []


def test_slope_is_scipys_line_through_level_medians() -> None:
    rng = np.random.default_rng(6)
    contexts = [512, 1024, 2048, 4096, 8192]
    trials = [made("oneshot", "off", b, {HEADLINE: {1: 100 + 12 / 1024 * c + float(rng.normal(0, 0.05))}},
                   num_ctx=str(c)) for b in (1, 2, 3) for c in contexts]
    found = slope.slopes(trials)
    assert len(found) == 1
    fit = stats.linregress(contexts, found[0].medians_mib)
    half = stats.t.ppf(0.975, 3) * fit.stderr
    assert found[0].kib_per_unit == pytest.approx(1024 * fit.slope)
    assert found[0].lo == pytest.approx(1024 * (fit.slope - half))
    assert found[0].hi == pytest.approx(1024 * (fit.slope + half))
    assert abs(found[0].kib_per_unit - 12) < 0.2
    assert found[0].n_trials == 15


def test_a_regime_has_a_line_of_its_own() -> None:
    trials = [made("oneshot", "off", 1, {HEADLINE: {1: base + k / 1024 * c}}, num_ctx=str(c), engine__batch=batch)
              for batch, base, k, contexts in (("512", 100.0, 12.0, (512, 1024, 1536, 2048)),
                                               ("2048", 160.0, 12.0, (4096, 5000, 6000, 8192)))
              for c in contexts]
    found = slope.slopes(trials, regime_key="engine.batch")
    assert [s.kib_per_unit for s in found] == pytest.approx([12.0, 12.0])
    assert len({s.regime for s in found}) == 2


def test_too_few_levels_give_a_line_without_an_interval() -> None:
    trials = [made("oneshot", "off", b, {HEADLINE: {1: c / 1024}}, num_ctx=str(c)) for b in (1, 2)
              for c in (512, 1024, 2048)]
    found = slope.slopes(trials)[0]
    assert (found.lo, found.hi) == (None, None)
    assert found.kib_per_unit == pytest.approx(1.0)
    assert slope.slopes(two_by_two()) == []


def precision(a: Sequence[float], b: Sequence[float], metric: str = HEADLINE, *, target: float | None = None,
              target_pct: float | None = None) -> stopping.Precision:
    """Where a comparison of complete blocks stands; shapes (n_blocks,)."""
    compared = compare([dict(enumerate(a))], dict(enumerate(b)), metric, looked=True)[0]
    return stopping.standing(compared, sum(b) / len(b), metric, target, target_pct)


def test_stopping_looks_at_the_width_from_the_fifth_block_on() -> None:
    a, b = [10.0, 10.1, 9.9, 10.0, 10.1, 9.9], [5.0] * 6
    assert not precision(a[:4], b[:4], target=100.0).reached
    found = precision(a[:5], b[:5], target=0.5)
    assert found.reached
    assert found.half_width == pytest.approx(
        stats.t.ppf(0.985, 4) * np.std(a[:5], ddof=1) / np.sqrt(5), rel=1e-4)
    narrow = precision(a, b, target=0.01)
    assert not narrow.reached
    assert narrow.more_blocks is not None
    assert narrow.more_blocks > 10


def test_stopping_in_percent_of_the_arm_without() -> None:
    found = precision([98.0, 99.0, 98.5, 98.2, 98.8], [100.0] * 5, target_pct=1.0)
    assert found.target == pytest.approx(1.0)
    assert found.unit == "MiB"
    speed = precision([50.0, 51, 49, 50, 50], [50.0] * 5, "decode/tokens_per_s", target_pct=5.0)
    assert speed.unit == "%"
    assert speed.reached


@pytest.mark.parametrize(("target", "target_pct"), [(None, None), (1.0, 1.0), (0.0, None), (None, -1.0)])
def test_stopping_without_one_target_is_an_error(target: float | None, target_pct: float | None) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        precision([1.0], [2.0], target=target, target_pct=target_pct)


def test_stopping_of_a_sweep_waits_for_every_comparison_named() -> None:
    trials = two_by_two(6)
    assert [p.reached for p in stopping.effect_precision(trials, target=1.0)] == [True, True]
    assert all(p.reached for p in stopping.gap_precision(trials, target=1.0))
    assert not any(p.reached for p in stopping.gap_precision(two_by_two(1), target=1.0))


def stopped_by(metric: str, trials: Sequence[TrialRecord], of: str = "effects") -> list[TrialRecord]:
    """The same trials of a sweep that `metric` ended."""
    rule = {"stop.name": "precision", "stop.of": of, "stop.metric": metric}
    return [replace(trial, params={**trial.params, **rule}) for trial in trials]


def noisy_arms(shifts: Sequence[float], blocks: int, metric: str = HEADLINE) -> list[TrialRecord]:
    rng = np.random.default_rng(11)
    flags = ("off", *FLAGS[:len(shifts)])
    return [replace(made("oneshot", flag, b, {metric: {1: 100 + shift + float(rng.normal(0, 1))}}),
                    params={f"infer_os.{name}": str(name == flag) for name in FLAGS})
            for b in range(1, blocks + 1) for flag, shift in zip(flags, (0.0, *shifts), strict=True)]


@pytest.mark.parametrize("metric", [HEADLINE, "decode/tokens_per_s"])
@pytest.mark.parametrize("arms", [1, 3])
def test_what_stops_a_sweep_is_the_interval_that_it_reports(arms: int, metric: str) -> None:
    """With three arms the width was looked at at 97 %, and 99 % were reported: stopped at 1.47, printed ± 1.83."""
    trials = stopped_by(metric, noisy_arms([-5.0, 0.0, 3.0][:arms], 8, metric))
    looked = stopping.effect_precision(trials, metric, target_pct=1.5)
    told = [row.stats for row in summary.effects(trials, (metric,), (metric,)) if row.metric == metric]
    assert len(looked) == len(told) == arms
    for one, stats_ in zip(looked, told, strict=True):
        assert stats_.lo is not None and stats_.hi is not None
        unit = 100 if stats_.scale == "ratio" else 1
        assert one.half_width == pytest.approx(unit * (stats_.hi - stats_.lo) / 2)
        assert one.level == stats_.level == pytest.approx(1 - 0.03 / arms)
        assert f"{100 * (1 - 0.03 / arms):.3g} % because it was looked at after every block" in (stats_.method or "")


def test_a_factorial_sweep_stops_by_the_terms_it_reports() -> None:
    rng = np.random.default_rng(12)
    trials = stopped_by(HEADLINE, plan(lambda b, c, m, q: 100 - 8 * m + float(rng.normal(0, 1)), blocks=5))
    looked, told = stopping.effect_precision(trials, target=2.0), factorial.factorials(trials)[0].terms
    assert [one.half_width for one in looked] == pytest.approx(
        [((term.stats.hi or 0) - (term.stats.lo or 0)) / 2 for term in told])
    assert looked[0].level == pytest.approx(1 - 0.03 / 6)


def test_a_gap_is_reported_in_the_metric_that_ended_the_sweep() -> None:
    trials = stopped_by("decode/tokens_per_s", two_by_two(5), "gap")
    looked = stopping.gap_precision(trials, "decode/tokens_per_s", target_pct=5.0)
    told = [row for row in summary.gap(trials).unified if row.metric == "decode/tokens_per_s" and row.turn == 1]
    assert len(looked) == len(told) == 2 and told[0].stats.level == pytest.approx(0.97)


@pytest.mark.parametrize(("slope_kib", "noise", "said"), [
    (12.0, 0.0, "Memory grows by 12"), (-12.0, 0.0, "Memory shrinks by 12"),
    (0.0, 1.0, "Whether memory follows num_ctx is undecided"), (0.0, 500.0, "(how much is unknown)")])
def test_a_slope_is_worded_by_its_interval(slope_kib: float, noise: float, said: str) -> None:
    levels = list(zip((512, 1024, 2048, 4096), (1.0, -1.0, 0.9, -0.3), strict=True))
    trials = [made("oneshot", "off", b, {HEADLINE: {1: 200 + slope_kib / 1024 * c + noise * off}}, num_ctx=str(c))
              for b in (1, 2) for c, off in levels]
    assert said in wording.slope_text(slope.slopes(trials)[0])


def test_a_line_is_that_of_scipy_with_its_error_and_p() -> None:
    rng = np.random.default_rng(9)
    for n in (3, 4, 10):
        x, y = np.sort(rng.uniform(0, 100, n)), rng.normal(100, 1, n)
        theirs = stats.linregress(x, y)
        assert intervals.line_through(x, y) == pytest.approx(
            (theirs.slope, theirs.intercept, theirs.stderr, theirs.pvalue), rel=1e-9)
    assert intervals.line_through([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == (0.0, 5.0, 0.0, 1.0)


def test_an_interval_that_says_nothing_is_neither_drawn_nor_printed() -> None:
    trials = [made("oneshot", arm, b, {"decode/tokens_per_s": {1: speed}})
              for b, pair in enumerate(((50.0, 80.0), (90.0, 0.5)), 1)
              for arm, speed in zip(("off", "on"), pair, strict=True)]
    analysis = analyse(trials)
    row = next(row for row in analysis.effects if row.metric == "decode/tokens_per_s")
    said = wording.comparison(row.stats, row.difference, row.off)
    assert said.endswith("(how much is unknown)") and "…" not in said and "×" not in said
    plot = findings.effects(analysis)
    assert plot is not None and "…" not in plot.description
    assert findings._marks(row.stats, row.difference)[1][1:] == (None, None)
    told = document(Sweep("s"), trials, analysis)["effects"][0]
    assert told["informative"] is False and told["lo"] is not None


def test_growth_that_says_nothing_has_no_number() -> None:
    trials = [made("interactive", "off", b, {HEADLINE: dict(enumerate(readings, 1))})
              for b, readings in enumerate(((100.0, 100.0, 300.0), (100.0, 100.0, 50.0)), 1)]
    said = wording.growth_text(growth.growths(trials)[0])
    assert said.startswith("undecided") and said.endswith("(how much is unknown)")
