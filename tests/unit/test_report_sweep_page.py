"""The page at the end of a sweep, as users and pipes get it."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.answer import answer
from pipeline.report.document import Sweep, analyse, document
from pipeline.report.runs_page import print_runs
from pipeline.report.sweep_page import print_sweep
from tests.unit.made_records import said
from tests.unit.test_stats_summary import HEADLINE, made, two_by_two

SWEEP = Sweep("mode_gap-1", question="Does one-shot need more memory than interactive?", model="smollm2-135m",
              engine="llamacpp", engine_version="2026.10", num_ctx=2048, trials_planned=12)


def page(trials: list[TrialRecord], width: int = 80, sweep: Sweep = SWEEP) -> str:
    out = io.StringIO()
    print_sweep(Console(file=out, width=width), sweep, analyse(trials), [("slackwater ui", "every trial")],
                [("oneshot-npu", "no engine has an NPU path")])
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_line_fits_and_a_pipe_gets_plain_text(width: int) -> None:
    text = page(two_by_two(), width)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    for expected in ("Does one-shot", "tree RSS, MiB", "system used, %", "+162.1 MiB", "identical (3 of 3)",
                     "less by 20.0", "slackwater ui", "no engine has an NPU path"):
        assert expected in text


def test_the_answer_explains_the_artefact_and_names_the_saving() -> None:
    text = " ".join(page(two_by_two()).split())
    assert ("One-shot needs no more than interactive: the old comparison's +162.1 MiB appear only if one mode is read "
            "before the model is loaded and the other after. The flags save 20.0 MiB.") in text
    assert "As found: each mode read at its own, different moment" in text


def test_a_real_gap_is_not_talked_away() -> None:
    trials = [made(mode, "off", block, {HEADLINE: {1: 100.0 + 0.01 * block + (30.0 if mode == "oneshot" else 0.0)}})
              for block in (1, 2, 3) for mode in ("oneshot", "interactive")]
    assert answer(analyse(trials)) == "One-shot needs 30.0 MiB more than interactive."


def test_undecided_is_said_and_not_dressed_up() -> None:
    values = {"oneshot": (120.0, 140.0, 99.0), "interactive": (100.0, 100.0, 102.0)}
    trials: list[TrialRecord] = [made(mode, "off", block, {HEADLINE: {1: values[mode][block - 1]}})
                           for block in (1, 2, 3) for mode in values]
    assert "is undecided" in answer(analyse(trials))
    assert re.search(r"undecided: about \d+ more trials", page(trials))


def test_a_saving_of_memory_is_never_called_faster() -> None:
    assert "faster" not in page(two_by_two())
    assert "slower" not in page(two_by_two())


def test_what_does_not_count_is_listed_with_its_reason() -> None:
    trials = two_by_two()
    first = trials[0]
    text = " ".join(page([replace(first, verdict="failed", order=7, reasons=(said("died [red]of[/red] signal 9"),)),
                          *trials[1:]]).split())
    assert "Left out: trial 7 (oneshot · off), failed: died [red]of[/red] signal 9" in text
    assert "12 trials, 11 valid, 1 failed" in text


def test_long_names_are_cut_without_losing_what_tells_cells_apart() -> None:
    trials: list[TrialRecord] = [made("oneshot", "off", 1, {HEADLINE: {1: 1.0}}, model__name=f"{'x' * 70}-{i}")
                           for i in range(30)]
    text = page(trials, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"-{i}" in text or "…" in text for i in range(30))
    short = [made("oneshot", "off", 1, {HEADLINE: {1: 1.0}}, num_ctx=str(512 * 2**i)) for i in range(7)]
    assert all(f"num_ctx {512 * 2**i}" in page(short) for i in range(7))


@pytest.mark.parametrize("trials", [[], [made("oneshot", "off", 1, {})], two_by_two(1)[:1],
                                    [replace(made("oneshot", "off", 1, {}), verdict="failed")]])
def test_little_or_nothing_is_printed_without_a_crash(trials: list[TrialRecord]) -> None:
    for width in (20, 60, 80, 200):
        assert page(trials, width)


def test_not_measured_is_a_dash_and_not_a_zero() -> None:
    line = next(line for line in page([made("oneshot", "off", 1, {HEADLINE: {1: 5.0}})]).splitlines()
                if line.startswith("oneshot · off"))
    assert line.split()[-6:] == ["–", "–", "–", "–", "5.0", "–"]


def test_colour_only_underlines_what_the_words_say() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="standard")
    print_sweep(console, SWEEP, analyse(two_by_two()))
    assert "\x1b[36mless by 20.0" in out.getvalue()


def test_the_list_of_sweeps() -> None:
    out = io.StringIO()
    print_runs(Console(file=out, width=80), [
        Sweep("mode_gap-1", question="Why?", started_ms=0, trials_planned=12, trials_finished=12, trials_valid=11),
        Sweep("x", status="interrupted", trials_planned=12, trials_finished=3, trials_valid=3)])
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["sweep", "started", "trials", "question"]
    assert "12/12, 11 valid" in lines[1]
    assert lines[1].endswith("Why?")
    assert "3/12 interrupted" in lines[2]
    empty = io.StringIO()
    print_runs(Console(file=empty), [])
    assert "No sweep" in empty.getvalue()


@pytest.mark.parametrize(("x", "unit", "text"), [(162.08, "MiB", "+162.1 MiB"), (-0.84, "points", "−0.8 points"),
                                                 (0.0, "MiB", "0.0 MiB"), (-0.0194, "MiB", "−0.019 MiB")])
def test_signed_differences(x: float, unit: str, text: str) -> None:
    assert wording.signed(x, unit) == text


@pytest.mark.parametrize(("values", "text"), [((1.0, 1.3, 0.9), "%)"), ((1.0, 2.0, 0.7), "(×"),
                                             ((1.0, 9.0, 0.2), "(how much is unknown)")])
def test_a_wide_ratio_is_a_factor_and_not_thousands_of_percent(values: tuple[float, ...], text: str) -> None:
    trials = [made("oneshot", arm, block, {"decode/tokens_per_s": {1: 50 * (values[block - 1] if arm == "on" else 1)}})
              for block in (1, 2, 3) for arm in ("off", "on")]
    said = wording.comparison(next(row for row in analyse(trials).effects).stats)
    assert said.startswith("undecided")
    assert text in said


def test_the_account_says_where_the_settled_memory_is_and_adds_up() -> None:
    metrics = {"stabilized/tree_rss_mib": 194.0, "initialization/tree_rss_mib": 23.0, "engine/weights_mib": 92.0,
               "engine/kv_mib": 45.0, "engine/compute_mib": 16.0, "engine/output_mib": 0.5,
               "engine/unexplained_mib": 17.5}
    printed = page([made("oneshot", "off", 1, {name: {1: value} for name, value in metrics.items()})])
    [head] = [line for line in printed.splitlines() if line.startswith("where it is, MiB")]
    assert head.split()[4:] == ["empty", "weights", "KV", "compute", "unexplained"]
    values = printed.splitlines()[printed.splitlines().index(head) + 1].split()[-5:]
    assert sum(map(float, values)) == 194.0


def test_a_difference_that_is_resolved_but_tiny_is_called_the_same_and_still_named() -> None:
    trials: list[TrialRecord] = [
        made(mode, "off", block, {HEADLINE: {1: 100.0 + 0.001 * block + (0.06 if mode == "oneshot" else 0.0)}})
        for block in (1, 2, 3) for mode in ("oneshot", "interactive")]
    assert answer(analyse(trials)) == "One-shot and interactive need the same, but for 0.060 MiB."


def test_arms_that_did_different_work_are_not_compared_and_that_is_said() -> None:
    trials: list[TrialRecord] = [
        made("oneshot", arm, block, {HEADLINE: {1: 100.0 + 0.01 * block + (20.0 if arm == "off" else 0.0)},
                                     "during_generation/output_tokens": {1: 16.0 if arm == "off" else 1.0}})
        for block in (1, 2, 3) for arm in ("off", "on")]
    analysis = analyse(trials)
    assert analysis.effects == []
    assert "1 generated tokens against 16" in analysis.refused[0]
    assert "Not compared: " in page(trials)
    assert "save" not in answer(analysis)


def test_a_sweep_that_a_later_version_went_on_with_says_so_on_its_page_and_in_its_document() -> None:
    trials = [replace(one, method=1 + (one.block > 2)) for one in two_by_two()]
    mixed = analyse(trials)
    said = "Careful: its trials were measured by methods 1 and 2, which may read the same cell differently."
    assert said in " ".join(page(trials).split())
    assert said not in " ".join(page(two_by_two()).split())
    found = document(Sweep("s"), trials, mixed)
    assert found["methods"] == [1, 2] and {one["method"] for one in found["trials"]} == {1, 2}


@pytest.mark.parametrize(("lo", "hi", "text"), [
    (-4.2, 0.1, "−4.2 … +0.1"), (0.003, 4.2, "0.003 … 4.2"), (-0.02, -0.0004, "0.0004 … 0.02"),
    (0.0, 4.2, "0.0 … 4.2")])
def test_a_bound_that_is_not_zero_is_not_printed_as_zero(lo: float, hi: float, text: str) -> None:
    assert wording.bounds(lo, hi, 1) == text
