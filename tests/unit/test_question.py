"""What a sweep asks, and what it is answered: question metrics, growth per turn, theory beside a slope, warm-ups."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.answer import answer
from pipeline.report.document import Sweep, analyse, document
from pipeline.report.sweep_page import print_sweep
from pipeline.stats import drift, growth, slope, summary
from tests.unit.test_stats_summary import HEADLINE, made, two_by_two

SPEED = "decode/tokens_per_s"


def asking(trials: list[TrialRecord], *metrics: str) -> list[TrialRecord]:
    return [replace(one, params={**one.params, "question_metrics": list(metrics)})
            for one in trials]


def page(trials: list[TrialRecord]) -> str:
    out = io.StringIO()
    print_sweep(Console(file=out, width=100), Sweep("s-1"), analyse(trials))
    return " ".join(out.getvalue().split())


def test_the_metrics_that_a_sweep_asks_about_come_first_and_the_rest_is_exploration() -> None:
    trials = asking([one for one in two_by_two() if one.mode == "oneshot"], SPEED, HEADLINE)
    rows = summary.effects(trials)
    assert [row.metric for row in rows if row.question] == [SPEED, HEADLINE]
    assert [row.metric for row in rows][:2] == [SPEED, HEADLINE]
    assert "The question is: tokens/s, settled; all else is exploration." in page(trials)
    assert document(Sweep("s-1"), trials, analyse(trials))["question_metrics"] == [SPEED, HEADLINE]
    said = answer(analyse(trials))
    assert "The flags save 20.0 MiB." in said
    assert "tokens/s: less by 20" in said


def test_an_effect_that_is_resolved_and_tiny_is_not_called_a_saving() -> None:
    trials: list[TrialRecord] = [made("oneshot", flags, block, {HEADLINE: {1: 200.0 + 0.01 * block - lower}})
                           for block in (1, 2, 3) for flags, lower in (("off", 0.0), ("on", 0.4))]
    assert summary.effects(trials)[0].stats.kind == "less"
    assert answer(analyse(trials)) == "The flags change next to nothing: −0.40 MiB."


def test_a_sweep_that_says_nothing_asks_about_settled_memory() -> None:
    assert {row.metric for row in summary.effects(two_by_two()) if row.question} == {HEADLINE}


def growing(cell: str, block: int, levels: list[float]) -> TrialRecord:
    infer_os, _, distinct = cell.partition(" ")
    return made("interactive", infer_os, block, {HEADLINE: dict(enumerate(levels, start=1))},
                prompt__distinct=distinct)


def test_growth_begins_after_the_first_turn_and_goes_by_turns_not_trials() -> None:
    """A step at the second turn is not a leak; what a server adds every turn is."""
    trials: list[TrialRecord] = []
    for block in (1, 2, 3):
        wobble = 0.01 * block
        trials.append(growing("off True", block, [100, 102, 104 + wobble, 106, 108 + wobble]))
        trials.append(growing("off False", block, [100, 102, 102, 102, 102]))
    found = {one.where["prompt.distinct"]: one for one in growth.growths(trials)}
    assert found["True"].per_turn == pytest.approx(2.0, abs=0.02)
    assert found["True"].stats.kind == "more"
    lo, hi = found["True"].stats.lo, found["True"].stats.hi
    assert lo is not None and hi is not None and lo < 2.0 < hi
    assert found["False"].per_turn == 0
    assert found["False"].stats.kind == "identical"
    said = answer(analyse(trials))
    assert "distinct True grows by 2.0" in said
    assert "The others grow by no more than" in said
    assert "Growth per turn" in page(trials)


def test_two_turns_show_no_growth_and_one_trial_no_interval() -> None:
    assert growth.growths([growing("off True", 1, [100, 102])]) == []
    found = growth.growths([growing("off True", 1, [100, 102, 104])])
    assert found[0].stats.kind == "not enough"
    assert wording.growth_text(found[0]) == "+2.0 MiB per turn, not enough trials: 1 more needed"


def test_a_slope_is_shown_against_what_the_model_file_says() -> None:
    trials: list[TrialRecord] = [
        made("oneshot", "off", block, {HEADLINE: {1: 150 + context / 64 + 0.001 * block},
                                       slope.PLANNED: {0: context / 64}}, num_ctx=str(context))
        for block in (1, 2, 3) for context in (1024, 2048, 4096, 8192)]
    found = slope.slopes(trials)[0]
    assert found.kib_per_unit == pytest.approx(16.0)
    assert found.planned_kib_per_unit == pytest.approx(16.0)
    assert "by the model file's header its KV cache takes 16.00" in wording.slope_text(found)
    without = [replace(one,
                       turns={HEADLINE: one.turns[HEADLINE]}) for one in trials]
    assert slope.slopes(without)[0].planned_kib_per_unit is None


def test_a_warm_up_is_listed_and_is_in_nothing_else() -> None:
    trials = two_by_two()
    first = replace(trials[0], verdict="warm-up", block=0, order=0,
                    turns={HEADLINE: {1: 9999.0}})
    with_it, without = analyse([first, *trials]), analyse(trials)
    assert with_it.cells == without.cells
    assert (with_it.gap, with_it.effects, with_it.drift) == (without.gap, without.effects, without.drift)
    assert with_it.blocks == without.blocks == 3
    assert [order for order, _ in with_it.warm_ups] == [0]
    assert "Warm-up, not counted: trial 0." in page([first, *trials])
    assert "Left out" not in page([first, *trials])


@pytest.mark.parametrize(("per_block", "found"), [(0.012, False), (1.0, True)])
def test_drift_too_small_to_matter_is_no_finding(per_block: float, found: bool) -> None:
    trials: list[TrialRecord] = [
        made("oneshot", flags, block, {HEADLINE: {1: 200 + per_block * block + (0.0 if flags == "off" else -20.0)}})
        for block in range(1, 7) for flags in ("off", "on")]
    tests = [test for test in drift.drift(trials) if test.test == "block means"]
    assert [test.found for test in tests] == [found]
    assert tests[0].p <= 0.05
    if not found:
        assert "too little to matter" in tests[0].text


def test_drift_of_a_difference_is_judged_by_the_size_of_the_difference() -> None:
    def sweep(effect: float) -> list[TrialRecord]:
        return [made("oneshot", flags, block, {HEADLINE: {1: 200.0 if flags == "off" else 200 - effect + 0.2 * block}})
                for block in range(1, 7) for flags in ("off", "on")]

    def seen(effect: float) -> bool:
        return any(test.found for test in drift.drift(sweep(effect)) if test.test == "paired differences")

    assert seen(effect=4.0)  # a megabyte of drift under an effect of four
    assert not seen(effect=40.0)
