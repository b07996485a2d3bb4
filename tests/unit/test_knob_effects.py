"""A swept knob is compared with its first value, like a flag with off: in tables, JSON and the stop rule."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from pipeline.record.trial import TrialRecord
from pipeline.report.answer import answer
from pipeline.report.document import Sweep, analyse, document
from pipeline.report.html.findings import costs, effects_table
from pipeline.report.html.findings import effects as plot_of
from pipeline.report.sweep_page import print_sweep
from pipeline.stats.arms import effect_groups, refused
from pipeline.stats.drift import drift
from pipeline.stats.stopping import effect_precision
from pipeline.stats.summary import EffectRow, effects
from tests.unit.made_records import HEADLINE, trial

SAVED = {"f16": 0.0, "q8_0": -20.0, "q4_0": -32.0}


def made(cells: Sequence[tuple[str, str, Mapping[str, Any]]], values: Mapping[str, float], *, blocks: int = 5,
         swept: Mapping[str, Sequence[Any]] | None = None) -> list[TrialRecord]:
    """Trials of cells (mode, flag or off, knobs): 200 MiB and what each knob's value adds, and 0.1 MiB of noise."""
    found: list[TrialRecord] = []
    for mode, flag, knobs in cells:
        name = "-".join([mode, flag, *(f"{knob}={value}" for knob, value in knobs.items())])
        for block in range(1, blocks + 1):
            size = 200.0 + sum(values.get(str(value), 0.0) for value in knobs.values()) + 0.1 * ((block * 7) % 3)
            size += values.get(flag, 0.0) + 0.01 * ((block * len(name)) % 5)
            one = trial(f"{mode}-{flag}", block, size, **{f"knob__{key}": value for key, value in knobs.items()})
            params = {**one.params, "infer_os.quantization": flag == "quantization"}
            tags = {**one.tags, **({"swept_knobs": json.dumps({f"knob.{k}": v for k, v in swept.items()})}
                                   if swept else {})}
            found.append(replace(one, cell=name, params=params, tags=tags, order=len(found) + 1))
    return found


def cache_types(*modes: str, tagged: bool = True) -> list[TrialRecord]:
    values = ["f16", "q8_0", "q4_0"]
    return made([(mode, "off", {"cache_type": value}) for mode in modes or ("oneshot",) for value in values], SAVED,
                swept={"cache_type": values} if tagged else None)


def headline(trials: Sequence[TrialRecord]) -> list[EffectRow]:
    return [row for row in effects(trials) if row.metric == HEADLINE]


def test_every_value_but_the_first_has_an_effect_per_mode_as_one_family() -> None:
    rows = headline(cache_types("oneshot", "interactive"))
    assert [(row.mode, row.flag, row.knob, row.against) for row in rows] == [
        (mode, f"cache_type={value}", "cache_type", "f16") for mode in ("oneshot", "interactive")
        for value in ("q8_0", "q4_0")]
    assert {row.stats.family for row in rows} == {2}
    assert [round(row.difference or 0) for row in rows] == [-20, -32, -20, -32]
    assert {row.stats.kind for row in rows} == {"less"}


def test_a_sweep_of_before_the_tag_has_its_smallest_value_as_reference() -> None:
    assert {row.against for row in headline(cache_types(tagged=False))} == {"f16"}
    slots = made([("oneshot", "off", {"n_parallel": n}) for n in (8, 16, 4)], {"8": 40, "16": 120})
    assert [(row.flag, row.against) for row in headline(slots)] == [("n_parallel=8", "4"), ("n_parallel=16", "4")]


def test_flags_in_the_same_sweep_are_compared_as_before() -> None:
    trials = made([("oneshot", flag, {"n_parallel": n}) for flag in ("off", "quantization") for n in (1, 4)],
                  {"4": 135.0, "quantization": -20.0}, swept={"n_parallel": [1, 4]})
    rows = headline(trials)
    assert [(row.flag, dict(row.where), round(row.difference or 0)) for row in rows] == [
        ("quantization", {"knob.n_parallel": "1"}, -20), ("quantization", {"knob.n_parallel": "4"}, -20),
        ("n_parallel=4", {"infer_os": "off"}, 135), ("n_parallel=4", {"infer_os": "quantization"}, 135)]


def test_of_two_knobs_each_is_read_where_the_other_stands_at_its_first_value() -> None:
    trials = made([("oneshot", "off", {"cache_type": kind, "n_parallel": n}) for kind in ("f16", "q8_0")
                   for n in (4, 1)], {**SAVED, "4": 135.0},
                  swept={"cache_type": ["f16", "q8_0"], "n_parallel": [4, 1]})
    rows = headline(trials)
    assert [(row.flag, row.against, round(row.difference or 0), row.n_on) for row in rows] == [
        ("cache_type=q8_0", "f16", -20, 5), ("n_parallel=1", "4", -135, 5)]


def test_a_switch_is_written_in_small_letters() -> None:
    (row,) = headline(made([("oneshot", "off", {"repack": value}) for value in (True, False)], {"False": -60.0},
                           swept={"repack": [True, False]}))
    assert (row.flag, row.against) == ("repack=false", "true")


def test_arms_that_did_other_work_are_not_compared_and_that_is_said() -> None:
    def other(one: TrialRecord) -> TrialRecord:
        return replace(one, turns={**one.turns, "during_generation/prompt_tokens": {1: 99.0}})

    trials = [other(one) if "q8_0" in one.cell else one for one in cache_types()]
    assert [row.flag for row in headline(trials)] == ["cache_type=q4_0"]
    (line,) = refused(trials)
    assert "cache_type=q8_0 and oneshot-off-cache_type=f16 did different work" in line


def test_the_stop_rule_waits_for_the_knobs() -> None:
    found = effect_precision(cache_types(), HEADLINE, target=1.0)
    assert len(found) == 2
    assert all(one.reached for one in found)
    assert not any(one.reached for one in effect_precision(cache_types(), HEADLINE, target=0.0001))
    assert [group.knob for group in effect_groups(cache_types())] == ["cache_type"]
    assert any("cache_type=q4_0" in test.text for test in drift(cache_types()))


def test_page_answer_and_document_name_the_knob_and_what_it_is_compared_with() -> None:
    trials = cache_types()
    analysis, out = analyse(trials), io.StringIO()
    print_sweep(Console(file=out, width=100), Sweep("s"), analysis, [], [])
    text = out.getvalue()
    assert "cache_type, against f16" in text
    assert "settled, cache_type=q8_0" in text
    assert "Bonferroni over 2 values" in text
    assert "on − off" not in text
    assert "cache_type=q4_0 (against f16) saves 32.0 MiB." in answer(analysis)
    row = next(one for one in document(Sweep("s"), trials, analysis)["effects"] if one["flag"] == "cache_type=q8_0")
    assert (row["knob"], row["against"]) == ("cache_type", "f16")


def test_the_reports_tables_have_the_values_as_heads() -> None:
    analysis = analyse(cache_types())
    plot = plot_of(analysis)
    assert plot is not None
    assert "Effects: each arm − its reference" in plot.title
    assert "cache_type=q8_0 (against f16)" in plot.description
    assert list(effects_table(analysis.effects).heads)[1:3] == ["reference", "arm"]
    assert [list(table.heads)[1:3] for table in costs(analysis)[1]] == [["f16", "q8_0"], ["f16", "q4_0"]]
