"""The folder of a sweep: written whole or not at all, never changed, and what counts follows from the files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.record import index
from pipeline.record.find import Sweeps, say_reading
from pipeline.record.folder import SweepFolder
from pipeline.record.owner import owner_tags
from pipeline.record.reason import Reason
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from tests.conftest import ROOT

SWEEP = SweepRecord(sweep_id="mode_gap-261126-120000", experiment="mode_gap", question="why?", command="slackwater run",
                    planned_trials=2, started_ms=1_700_000_000_000, owner=owner_tags(), tags={"host": "here"})


def trial(order: int = 1, verdict: str = "valid", cell: str = "oneshot-on", **more: object) -> TrialRecord:
    return replace(TrialRecord(
        sweep_id=SWEEP.sweep_id, cell=cell, repetition=1, block=1, order=order, mode="oneshot", infer_os="on",
        verdict=verdict, started_ms=1_700_000_000_000 + order, ended_ms=1_700_000_006_000 + order,  # type: ignore[arg-type]
        reasons=(Reason("said", {"text": "it said so"}),) if verdict == "failed" else (),
        params={"num_ctx": 2048, "model.path": None}, turns={"stabilized/tree_rss_mib": {1: 100.5, 2: 101.0}},
        tags={"host": "here", "cell_digest": f"digest of {cell}"}, method=2), **more)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "sweeps" / SWEEP.sweep_id)
    folder.begin(SWEEP, {"cells": [{"cell": "oneshot-on"}]})
    return folder


def test_a_trial_comes_back_as_it_was_put(folder: SweepFolder) -> None:
    staged = folder.stage(1, "oneshot-on", 1)
    (staged / "server.log").write_text("a line\n")
    put = folder.put(trial(), staged)
    (read,) = folder.trials()
    assert read == put == trial().at(folder.path / "trials/0001-oneshot-on-r1")
    assert read.metrics == {"stabilized/tree_rss_mib": 101.0}
    assert read.artifact("server.log") == b"a line\n"
    assert read.artifact("response.txt") is None
    assert not list((folder.path / "trials").glob(".partial*"))


def test_files_of_a_trial_and_its_plan_are_read_only(folder: SweepFolder) -> None:
    put = folder.put(trial(), folder.stage(1, "oneshot-on", 1))
    assert {path.stat().st_mode & 0o777 for path in put.folder.iterdir()} == {0o444}
    assert (folder.path / "plan.json").stat().st_mode & 0o777 == 0o444


def test_a_further_attempt_counts_if_it_came_to_something_and_the_other_is_superseded(folder: SweepFolder) -> None:
    folder.put(trial(verdict="failed"))
    again = folder.put(trial(verdict="valid"))
    assert again.name == "0001-oneshot-on-r1.2"
    assert [t.name for t in folder.trials()] == ["0001-oneshot-on-r1.2"]
    assert [t.name for t in folder.superseded()] == ["0001-oneshot-on-r1"]
    folder.put(trial(verdict="interrupted"))
    assert [t.name for t in folder.trials()] == ["0001-oneshot-on-r1.2"], "what was measured is not lost to a Ctrl-C"


def test_a_deleted_trial_does_not_count_and_comes_back(folder: SweepFolder) -> None:
    put = folder.put(trial())
    folder.put(trial(order=2))
    folder.write_notes({"deleted": [put.name]})
    assert [t.order for t in folder.trials()] == [2]
    assert [t.order for t in folder.superseded()] == [1]
    folder.write_notes({})
    assert [t.order for t in folder.trials()] == [1, 2]


def test_what_was_half_written_is_no_trial(folder: SweepFolder) -> None:
    (folder.stage(1, "oneshot-on", 1) / "result.json").write_text("{")
    assert folder.trials() == []
    folder.sweep_up()
    assert list((folder.path / "trials").iterdir()) == []


def test_a_sweep_whose_owner_died_is_interrupted(folder: SweepFolder) -> None:
    assert folder.sweep().status == "running"
    folder.write(replace(SWEEP, owner={**owner_tags(), "pid_start": "1"}))
    assert folder.sweep().status == "interrupted"


def test_a_sweep_of_that_name_is_never_begun_twice(folder: SweepFolder) -> None:
    with pytest.raises(StoreError, match="already exists"):
        folder.begin(SWEEP, {})


def test_push_notes_are_for_this_user_alone(folder: SweepFolder) -> None:
    folder.write_pushed("http://server:5000", {"": "a" * 32, "0001-oneshot-on-r1": "b" * 32})
    assert folder.pushed("http://server:5000")["0001-oneshot-on-r1"] == "b" * 32
    assert folder.pushed("elsewhere") == {}
    assert [path.stat().st_mode & 0o777 for path in (folder.path / "pushed").iterdir()] == [0o600]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 99}', '{"schema_version": 2}',
                                  '{"schema_version": 2, "metrics": 5}'])
def test_a_record_that_cannot_be_understood_is_one_error_that_names_it(folder: SweepFolder, text: str) -> None:
    put = folder.put(trial())
    (put.folder / "result.json").chmod(0o644)
    (put.folder / "result.json").write_text(text)
    with pytest.raises(StoreError, match=r"0001-oneshot-on-r1/result\.json cannot be read"):
        folder.trials()


def test_sweeps_are_found_by_id_prefix_cell_and_run(folder: SweepFolder, tmp_path: Path) -> None:
    put = folder.put(trial())
    folder.put(trial(order=2, cell="oneshot-off"))
    folder.write_pushed("here", {"": "a" * 32, put.name: "b" * 32})
    sweeps = Sweeps(tmp_path, "here")
    assert sweeps.ids() == [SWEEP.sweep_id]
    assert sweeps.sweep("mode").trials == sweeps.sweep("last").trials == {"valid": 2}
    assert [t.order for t in sweeps.subject("mode:oneshot-off").trials] == [2]
    assert [t.run_id for t in sweeps.subject("b" * 32).trials] == ["b" * 32]
    assert sweeps.subject("a" * 32).cell == ""
    with pytest.raises(ConfigError, match="No sweep in here"):
        sweeps.sweep("another")


def test_the_index_says_what_the_records_say(folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             ) -> None:
    folder.put(trial())
    sweeps = Sweeps(tmp_path, "here")
    assert [sweep.trials for sweep in sweeps.all()] == [{"valid": 1}]
    folder.put(trial(order=2, verdict="suspect"))
    old = 1_700_000_000_000_000_000
    for path in (folder.path, folder.path / "trials"):
        os.utime(path, ns=(old, old))
    assert [sweep.trials for sweep in sweeps.all()] == [{"valid": 1, "suspect": 1}]
    monkeypatch.setattr(index, "_document", None)  # from here on the index alone can answer
    assert [sweep.trials for sweep in sweeps.all()] == [{"valid": 1, "suspect": 1}]
    (took,) = sweeps.earlier({"digest of oneshot-on"}, "here")[:1]
    assert took.seconds == 5.999 + 0.001


def test_without_a_place_for_the_index_it_is_done_without(folder: SweepFolder, tmp_path: Path) -> None:
    folder.put(trial())
    (tmp_path / "sweeps" / ".index.db").mkdir()
    assert [sweep.trials for sweep in Sweeps(tmp_path, "here").all()] == [{"valid": 1}]


def test_a_large_sweep_is_read_from_the_index_with_the_metrics_of_a_page(
        folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MANY", 2)
    made = [folder.put(trial(order, turns={"a/b_mib": {1: order, 2: order + 0.5}, "c/d_mib": {0: 1 / 3}}))
            for order in (1, 2)]
    old = 1_700_000_000_000_000_000
    for path in (folder.path / "trials", folder.path):
        os.utime(path, ns=(old, old))
    sweeps = Sweeps(tmp_path, "here")
    assert sweeps.summary(SWEEP.sweep_id, {"a/b_mib"}) == made
    monkeypatch.setattr(SweepFolder, "attempt", None)  # from here on the index alone can answer
    again = Sweeps(tmp_path, "here")
    assert again.sweep("last").trials == {"valid": 2}
    found = again.summary(SWEEP.sweep_id, {"a/b_mib"})
    assert [one.turns for one in found] == [{"a/b_mib": {1: order, 2: order + 0.5}} for order in (1, 2)]
    assert [replace(one, turns={}) for one in found] == [replace(one, turns={}) for one in made]
    with pytest.raises(TypeError):
        again.summary(SWEEP.sweep_id, {"a/b_mib", "c/d_mib"})


def test_reading_many_trials_is_said_on_a_terminal_and_nowhere_else(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say_reading(100, 5000)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for done in (1, 100, 5000):
        say_reading(done, 5000)
    say_reading(100, 500)
    assert capsys.readouterr().err == "\r\033[Ktrials read: 100 of 5000\r\033[K"


def test_the_password_of_the_store_is_not_kept(folder: SweepFolder) -> None:
    put = folder.put(trial(params={"tracking.uri": "postgresql://me:secret@host/db"}))
    assert folder.trials() == [put]
    assert put.params == {"tracking.uri": "postgresql://me:***@host/db"}
    assert b"secret" not in (put.folder / "result.json").read_bytes()


def test_the_record_of_an_interactive_trial_is_small_and_says_all_that_was_measured() -> None:
    """As the default config measures it: three turns, the embedded engine."""
    written = (ROOT / "tests/data/interactive_result.json").read_bytes()
    trial = TrialRecord.from_json(written)
    assert trial.turns["stabilized/tree_rss_mib"].keys() == {1, 2, 3}
    assert trial.turns["initialization/tree_rss_mib"].keys() == {0}
    again = trial.to_json()
    assert TrialRecord.from_json(again) == trial
    assert len(again.encode()) <= 20_000


@pytest.mark.parametrize("turns", [{0: 5.0}, {1: 0.25, 2: 3.0}, {1: 7.0}, {2: 1.5}, {0: 1.0, 1: 2.0}, {}])
def test_a_metric_of_any_turns_is_the_same_read_again(turns: dict[int, float]) -> None:
    one = trial(turns={"during_generation/tree_rss_peak_mib": turns})
    assert TrialRecord.from_json(one.to_json()).turns == one.turns


@pytest.mark.parametrize("names", ["abc", "bca", "cab"])
def test_a_forecast_is_made_from_the_latest_sweeps_whatever_they_are_called(tmp_path: Path, names: str) -> None:
    for number, name in enumerate(names):
        began = replace(SWEEP, sweep_id=name, started_ms=SWEEP.started_ms + number)
        folder = SweepFolder(tmp_path / "sweeps" / name)
        folder.begin(began, {})
        for order in range(1, 1 + index.LATEST):
            folder.put(trial(order, sweep_id=name, ended_ms=SWEEP.started_ms + order + 1000 * number))
    took = Sweeps(tmp_path, "here").earlier({"digest of oneshot-on"}, "here")
    assert [one.seconds for one in took] == [2.0] * index.LATEST
