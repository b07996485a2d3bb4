"""Two named sets of trials against each other: known truths, refusals, limits for CI. No store is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from pipeline.cli import main
from pipeline.errors import ConfigError
from pipeline.record.find import Subject, in_file
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import METHOD, TrialRecord
from pipeline.report import compare_page
from pipeline.report.compare_page import Comparison, gather
from pipeline.stats import gate
from pipeline.stats.between import Change, match
from pipeline.stats.differing import differences, other_work
from tests.unit.made_records import BEGAN_MS, HEADLINE, cell, export, sweep, trial

LATER_MS = BEGAN_MS + 86_400_000


def files(folder: Path, a: list[TrialRecord], b: list[TrialRecord], later: SweepRecord | None = None) -> list[str]:
    return [str(export(folder / "a", a)),
            str(export(folder / "b", b, later or sweep(b[0].sweep_id, LATER_MS, kernel="6.2")))]


def compared(names: list[str], *limits: str, different: bool = False) -> Comparison:
    return gather(find(names[0]), find(names[1]), limits, different)


def find(name: str) -> Subject:
    found = in_file(name)
    assert found is not None
    return found


def headline(found: Comparison) -> list[Change]:
    return [change for change in found.changes if change.metric == HEADLINE]


def test_cells_of_one_sweep_are_compared_by_blocks(tmp_path: Path) -> None:
    """The machine drifts by 100 MiB per block, the flags save 20: only pairing can see it."""
    drifting = [300.0, 400.0, 500.0, 600.0]
    noise = [0.1, -0.1, 0.05, -0.05]
    one = cell("oneshot-off", drifting) + cell("oneshot-on", [d - 20 + e for d, e in zip(drifting, noise, strict=True)])
    name = str(export(tmp_path / "one", one))
    found = compared([f"{name}:oneshot-off", f"{name}:oneshot-on"])
    assert found.paired
    change = headline(found)[0]
    assert change.stats.kind == "less"
    assert change.stats.estimate == pytest.approx(-20.0, abs=1e-5)
    assert change.stats.method is not None and "paired" in change.stats.method
    assert change.relative_pct == pytest.approx(100 * -20 / 450)
    assert {d.group for d in found.differences} == {"config", "engine"}


def test_two_sweeps_are_compared_by_welch(tmp_path: Path) -> None:
    a, b = [200.0, 201.0, 199.5, 200.5], [230.0, 236.0, 225.0, 233.0]
    found = compared(files(tmp_path, cell("oneshot-off", a), cell("oneshot-off", b, sweep="tide-2")))
    change = headline(found)[0]
    truth = ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert (change.stats.lo, change.stats.hi) == pytest.approx((truth.low, truth.high))
    assert change.stats.kind == "more" and not found.paired
    assert "days or machines are not covered" in found.scope
    assert [(d.key, d.a, d.b) for d in found.differences] == [("kernel", "6.1", "6.2")]


def test_a_shared_reference_cell_takes_the_day_out(tmp_path: Path) -> None:
    """On the second day everything is 50 MiB more; `on` with another knob saves 5 MiB more than before."""
    noise = [0.0, 0.4, -0.4, 0.2]
    first = cell("oneshot-off", [200 + e for e in noise]) + cell("oneshot-on", [180 + e for e in noise])
    second = cell("oneshot-off", [250 + e for e in noise], sweep="tide-2") + cell(
        "oneshot-on", [225.1 + e for e in noise], sweep="tide-2", settings={"repack": False})
    names = files(tmp_path, first, second)
    change = headline(compared([f"{names[0]}:oneshot-on", f"{names[1]}:oneshot-on"]))[0]
    assert change.reference == "oneshot-off"
    assert change.stats.estimate == pytest.approx(-4.9, abs=1e-5)
    whole = {c.cell_a: c for c in headline(compared(names))}
    assert whole["oneshot-off"].reference == "", "the same cell on two days: the day is the question"
    assert whole["oneshot-off"].stats.estimate == pytest.approx(50.0)
    assert whole["oneshot-on"].stats.family == 2


def test_cells_are_matched_by_name_then_by_mode_and_flags() -> None:
    a = [trial("oneshot-off", 1, 1.0), trial("oneshot-on", 1, 1.0), trial("interactive-off", 1, 1.0)]
    b = [trial("oneshot-off", 1, 1.0), trial("oneshot-on-num_ctx=8", 1, 1.0), trial("oneshot-npu", 1, 1.0)]
    pairs, only_a, only_b = match(a, b)
    assert pairs == [("oneshot-off", "oneshot-off")]
    assert set(only_a) == {"oneshot-on", "interactive-off"} and set(only_b) == {"oneshot-on-num_ctx=8", "oneshot-npu"}
    assert match([a[1]], [b[2]])[0] == [("oneshot-on", "oneshot-npu")]


def test_only_what_differs_is_listed_and_a_path_is_nothing_where_the_digest_agrees() -> None:
    a = cell("oneshot-off", [1, 2], model__path="/a/m.gguf", num_ctx=512)
    b = cell("oneshot-off", [1, 2], model__path="/b/m.gguf", num_ctx=1024, version="1.1",
             settings={"model": "/b/m.gguf", "n_threads": 2})
    listed = [(d.group, d.key, d.a, d.b) for d in differences(a, b, {"host": "x"}, {"host": "y", "boot_id": "7"})]
    assert listed == [("config", "num_ctx", "512", "1024"), ("engine", "engine_version", "1.0", "1.1"),
                      ("engine", "settings.n_threads", "not recorded", "2"), ("machine", "host", "x", "y")]


def test_other_models_and_other_work_are_refused_unless_asked_for(tmp_path: Path) -> None:
    names = files(tmp_path, cell("oneshot-off", [1, 2]),
                  cell("oneshot-off", [1, 2], sweep="tide-2", digest="sha256:bb"))
    with pytest.raises(ConfigError, match=r"the models differ: small .aa. against small .bb.") as refused:
        compared(names)
    assert "--allow-different-work" in str(refused.value)
    assert compared(names, different=True).other_work.startswith("the models differ")
    longer = {"during_generation/prompt_tokens": {1: 500.0}}
    a, b = cell("oneshot-off", [1, 2]), cell("oneshot-off", [1, 2], metrics=longer, num_ctx=1024)
    assert other_work(a, b) == "the work differs: 12 against 500 prompt tokens at turn 1"
    asked = {"design__factor": ["num_ctx"]}
    a, b = cell("oneshot-off", [1, 2], **asked), cell("oneshot-off", [1, 2], metrics=longer, num_ctx=1024, **asked)
    assert other_work(a, b) == ""


def test_what_makes_no_comparison_is_one_error_with_a_way_out(tmp_path: Path) -> None:
    one = str(export(tmp_path / "one", cell("oneshot-off", [1, 2]) + cell("oneshot-on", [1, 2])))
    with pytest.raises(ConfigError, match=r"share trials(?s:.*)tide-1:oneshot-off\n  tide-1:oneshot-on"):
        compared([one, one])
    with pytest.raises(ConfigError, match=r"several cells(?s:.*)tide-1:oneshot-off"):
        find(f"{one}:oneshot")
    with pytest.raises(ConfigError, match=r"There is no file .*/gone"):
        find(str(tmp_path / "gone"))
    failed = str(export(tmp_path / "failed", cell("oneshot-off", [1, 2], sweep="tide-2", verdict="failed")))
    with pytest.raises(ConfigError, match=r"no two cells with a valid trial(?s:.*)failed: it was made so"):
        compared([f"{one}:oneshot-off", failed])
    other = cell("interactive-off", [1, 2], sweep="tide-3") + cell("interactive-on", [1, 2], sweep="tide-3")
    with pytest.raises(ConfigError, match="have no cell in common"):
        compared([one, str(export(tmp_path / "other", other))])


MEASURED = (HEADLINE, "decode/tokens_per_s", "stabilized/system_used_pct", "load/duration_s")


@pytest.mark.parametrize(("text", "metric", "sign", "limit", "unit", "change"), [
    (f"{HEADLINE} > +2%", HEADLINE, ">", 2.0, "%", True),
    (f"{HEADLINE}>=+1.5MiB", HEADLINE, ">=", 1.5, "MiB", True),
    (f"{HEADLINE} > 600 MiB", HEADLINE, ">", 600.0, "MiB", False),
    (f"{HEADLINE} > 600", HEADLINE, ">", 600.0, "MiB", False),
    ("decode/tokens_per_s < -5%", "decode/tokens_per_s", "<", -5.0, "%", True),
    ("stabilized/system_used_pct > 80%", "stabilized/system_used_pct", ">", 80.0, "%", False),
    ("stabilized/system_used_pct > +2 points", "stabilized/system_used_pct", ">", 2.0, "points", True),
])
def test_a_limit_is_read(text: str, metric: str, sign: str, limit: float, unit: str, change: bool) -> None:
    found = gate.parse(text, MEASURED)
    assert (found.metric, found.sign, found.limit, found.unit, found.is_change) == (metric, sign, limit, unit, change)


@pytest.mark.parametrize(("text", "said"), [
    (f"{HEADLINE} +2%", "is not understood"), (f"{HEADLINE} > two", "is not understood"), ("", "is not understood"),
    (f"{HEADLINE} > +2 %%", "not %%"), (f"{HEADLINE} = 2%", "is not understood"),
    (f"{HEADLINE} > +2", "is % or MiB, not left out"), (f"{HEADLINE} > 2%", r"written with its sign: \+2%"),
    (f"{HEADLINE} > +2 GiB", "is % or MiB, not GiB"), ("decode/tokens_per_s < 5 MiB", "not MiB"),
    ("stabilised/tree_rss_mib > +2%", f"Did you mean {HEADLINE}(?s:.*)  {HEADLINE}"),
])
def test_a_limit_that_cannot_be_read_says_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        gate.parse(text, MEASURED)


def test_a_change_is_judged_by_its_whole_interval(tmp_path: Path) -> None:
    """B is 3 % more than A's 200 MiB, ± about 0.7 %: an estimate beyond a limit of 2.9 % decides nothing."""
    a, b = [200.0, 201.0, 199.0, 200.0], [206.0, 207.0, 205.0, 206.0]
    outcomes = {f"{HEADLINE} > +2%": "failed", f"{HEADLINE} > +2.9%": "undecided", f"{HEADLINE} > +3.1%": "undecided",
                f"{HEADLINE} > +5%": "passed", f"{HEADLINE} > +5 MiB": "undecided", f"{HEADLINE} > +4 MiB": "failed",
                f"{HEADLINE} > 206.5": "passed", f"{HEADLINE} > 205": "failed", f"{HEADLINE} < -1%": "passed",
                "decode/tokens_per_s < -2%": "failed", "decode/tokens_per_s < -0.8 /s": "undecided"}
    found = compared(files(tmp_path, cell("oneshot-off", a), cell("oneshot-off", b, sweep="tide-2")), *outcomes)
    judged = {one.gate: one for one in found.gates}
    assert {text: one.outcome for text, one in judged.items()} == outcomes
    assert judged[f"{HEADLINE} > +2%"].value == pytest.approx(3.0)
    assert [judged[text].tripped for text in list(outcomes)[:4]] == [True, True, False, False]
    assert [judged[text].certain for text in list(outcomes)[:4]] == [True, False, False, True]
    assert judged[f"{HEADLINE} > 206.5"].value == 206.0 and judged[f"{HEADLINE} > 206.5"].lo is None
    near, far = judged[f"{HEADLINE} > +3.1%"].more_blocks, judged[f"{HEADLINE} > +5 MiB"].more_blocks
    assert near is not None and far is not None and near > far >= 1
    assert gate.overall(found.gates) == "failed" and gate.overall([]) is None


def test_a_limit_never_passes_on_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two speeds 400-fold apart on either side: +78 % (−93 … +4234) was passed once, exit code 0."""
    speeds = [[{"decode/tokens_per_s": {1: speed}} for speed in side] for side in ((50.0, 0.5), (80.0, 1.0))]
    a, b = ([trial("oneshot-off", block, 200.0, sweep=f"tide-{n}", metrics=one) for block, one in enumerate(side, 1)]
            for n, side in enumerate(speeds, 1))
    names, limit = files(tmp_path, a, b), "decode/tokens_per_s < -5%"
    judged = compared(names, limit).gates[0]
    assert (judged.outcome, judged.why) == ("undecided", gate.SAYS_NOTHING) and judged.more_blocks
    assert main(["compare", *names, "--fail-if", limit]) == 3
    page = " ".join(capsys.readouterr().out.split())
    line = page[page.index(f"undecided: {limit}: "):page.index(compare_page.JUDGED_BY)]
    assert "more blocks would decide" in line and "…" not in line
    assert main(["compare", *names, "--fail-if", limit, "--undecided", "pass", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "undecided"
    assert main(["compare", *names, "--fail-if", limit, "--undecided=pass", "--fail-if", f"{HEADLINE} > 100"]) == 1
    assert main(["compare", *names, "--fail-if", limit, "--undecided", "maybe"]) == 2
    assert "expected fail or pass" in capsys.readouterr().err


def test_a_cell_without_a_valid_trial_is_undecided_beside_one_that_passes(tmp_path: Path) -> None:
    a = cell("oneshot-off", [200.0, 201.0]) + cell("oneshot-on", [180.0, 181.0])
    lost = cell("oneshot-on", [180.0, 181.0], sweep="tide-2", verdict="failed")
    names = files(tmp_path, a, cell("oneshot-off", [200.0, 201.0], sweep="tide-2") + lost)
    for limit in (f"{HEADLINE} > +20%", f"{HEADLINE} > 600"):
        assert {one.cell_b: (one.outcome, one.why) for one in compared(names, limit).gates} == {
            "oneshot-off": ("passed", ""), "oneshot-on": ("undecided", gate.NOTHING_IN_B)}


def test_a_cell_that_measures_no_such_thing_on_either_side_is_not_asked(tmp_path: Path) -> None:
    loads = {"load/duration_s": {1: 2.0}}
    a, b = (cell("oneshot-off", [200.0, 201.0], sweep=sweep) + cell("interactive-off", [1.0, 1.1], sweep=sweep,
                                                                    metrics=loads) for sweep in ("tide-1", "tide-2"))
    judged = compared(files(tmp_path, a, b), "load/duration_s > 3s").gates
    assert [(one.cell_b, one.outcome) for one in judged] == [("interactive-off", "passed")]


def test_one_trial_has_no_interval_and_leaves_a_change_undecided(tmp_path: Path) -> None:
    names = files(tmp_path, cell("oneshot-off", [200.0]), cell("oneshot-off", [210.0], sweep="tide-2"))
    found = compared(names, f"{HEADLINE} > +2%", f"{HEADLINE} > 205")
    change = headline(found)[0]
    assert change.difference == 10.0
    assert change.stats.verdict == "not enough trials: 1 more needed" and change.stats.lo is None
    assert [(one.outcome, one.why, one.more_blocks) for one in found.gates] == [
        ("undecided", "not enough trials: 1 more needed", 1), ("failed", "", None)]


def test_two_methods_are_said_first_and_leave_a_change_undecided(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = [replace(one, method=METHOD) for one in cell("oneshot-off", [250.0, 251.0], sweep="tide-2")]
    names = files(tmp_path, cell("oneshot-off", [200.0, 201.0]), later)
    assert main(["compare", *names, "--fail-if", f"{HEADLINE} > +2%", "--fail-if", f"{HEADLINE} < 600MiB"]) == 1
    page = capsys.readouterr().out
    assert page.startswith("Careful: A was measured by method 1, B by method 2")
    assert main(["compare", *names, "--fail-if", f"{HEADLINE} > +2%", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["methods"] == {"a": [1], "b": [2]} and document["outcome"] == "undecided"
    assert document["gates"][0]["why"] == "A was measured by method 1, B by method 2"
    assert document["gates"][0]["tripped"] is True
    main(["compare", *names, "--fail-if", f"{HEADLINE} > +2%", "lang=ja"])
    assert "Aは方式1" in capsys.readouterr().out


def test_another_processor_leaves_a_change_undecided_and_another_kernel_does_not(tmp_path: Path) -> None:
    a, b = cell("oneshot-off", [200.0, 201.0]), cell("oneshot-off", [200.0, 201.0], sweep="tide-2")
    limit = f"{HEADLINE} > +20%"
    assert compared(files(tmp_path, a, b), limit).gates[0].outcome == "passed"
    (tmp_path / "elsewhere").mkdir()
    names = files(tmp_path / "elsewhere", a, b, sweep("tide-2", LATER_MS, cores_usable="8"))
    judged = compared(names, limit).gates[0]
    assert (judged.outcome, judged.why) == (
        "undecided", "A and B ran on different machines (cores_usable: 4 → 8)")


def test_the_command_sets_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = files(tmp_path, cell("oneshot-off", [200.0, 201.0]), cell("oneshot-off", [230.0, 231.0], sweep="tide-2"))
    assert main(["compare", *names, "--fail-if", f"{HEADLINE} > +20%"]) == 0
    page = capsys.readouterr().out
    assert page.index("What differs") < page.index("Effects, B − A")
    assert compare_page.JUDGED_BY in " ".join(page.split())
    assert main(["compare", *names, "--fail-if", f"{HEADLINE} > +2%", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert [(one["tripped"], one["outcome"]) for one in document["gates"]] == [(True, "failed")]
    assert document["outcome"] == "failed"
    effect = next(one for one in document["effects"] if one["metric"] == HEADLINE)
    assert (effect["difference"], effect["n_a"], effect["n_b"]) == (30.0, 2, 2)
    assert main(["compare", names[0]]) == 2
    assert "compare needs more than that: slackwater compare A B" in capsys.readouterr().err
