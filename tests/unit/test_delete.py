"""What a user deletes counts nowhere, stays on the disk and comes back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main, run_commands
from pipeline.record.folder import SweepFolder
from pipeline.record.owner import owner_tags
from tests.unit.made_records import BEGAN_MS, cell, record, sweep, trial


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with an earlier sweep, and a later one whose first trial was measured twice."""
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path))
    record(tmp_path, cell("oneshot-off", [200.0, 201.0]))
    record(tmp_path, [trial("oneshot-off", 1, 900.0, sweep="tide-2", order=1, verdict="failed"),
                      trial("oneshot-off", 1, 200.0, sweep="tide-2", order=1),
                      trial("oneshot-off", 2, 400.0, sweep="tide-2", order=2)], sweep("tide-2", BEGAN_MS + 1))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_deleted_trial_is_in_no_comparison_and_show_says_so_until_it_comes_back(
        home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "delete", "last:1", "--yes") == {
        "schema_version": 1, "sweep_id": "tide-2", "order": 1, "deleted": True}
    shown = said(capsys, "show")
    assert [one["order"] for one in shown["trials"]] == [2]
    assert [(one["order"], one["attempt"], one["deleted"]) for one in shown["superseded"]] == [
        (1, 1, True), (1, 2, True)], "no earlier attempt takes its place"
    assert main(["show"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "Deleted, and in nothing below: 1 trial. `slackwater delete tide-2:1 --undo` brings one back." in page
    assert main(["delete", "tide-2:1", "--undo"]) == 0
    capsys.readouterr()
    assert [one["order"] for one in said(capsys, "show")["trials"]] == [1, 2]


def test_a_sweep_that_runs_is_not_deleted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SweepFolder(home / "sweeps" / "tide-2")
    folder.write(replace(folder.bare(), status="running", owner=owner_tags()))
    assert main(["delete", "tide-2", "--yes"]) == 2
    assert f"tide-2 is running (process {os.getpid()} on " in capsys.readouterr().err
    assert folder.deleted() == frozenset()


def test_a_deleted_sweep_leaves_runs_and_last_and_is_found_by_its_id(
        home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete", "tide-2", "--yes"]) == 0
    told = capsys.readouterr().out
    assert f"it stays on the disk, in {home}/sweeps/tide-2." in told
    assert told.endswith("slackwater delete tide-2 --undo\n")
    assert [one["sweep_id"] for one in said(capsys, "runs")["sweeps"]] == ["tide-1"]
    assert said(capsys, "show")["sweep"]["sweep_id"] == "tide-1"
    assert said(capsys, "show", "tide")["sweep"]["sweep_id"] == "tide-1"
    assert main(["show", "tide-2"]) == 0
    assert "This sweep was deleted. `slackwater delete tide-2 --undo` brings it back." in " ".join(
        capsys.readouterr().out.split())
    assert len(SweepFolder(home / "sweeps" / "tide-2").attempts()) == 3
    assert main(["delete", "tide-2", "--undo"]) == 0
    capsys.readouterr()
    assert said(capsys, "show")["sweep"]["sweep_id"] == "tide-2"


@pytest.mark.parametrize(("words", "why"), [
    (["delete", "last"], "nobody is at a terminal here: add --yes"),
    (["delete", "last", "--json"], "add --yes"),
    (["delete", "last:3", "--yes"], "tide-2 has no trial 3: expected SWEEP or SWEEP:ORDER with the number of a trial"),
    (["delete", "last:oneshot-off", "--yes"], "tide-2 has no trial oneshot-off"),
    (["delete", "last", "--undo"], "tide-2 is not deleted"),
    (["delete"], "delete needs more than that"),
])
def test_what_cannot_be_deleted_is_exit_code_2_and_nothing_is_marked(
        words: list[str], why: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert why in capsys.readouterr().err
    assert not list(home.rglob("notes.json"))


@pytest.mark.parametrize(("answer", "deleted"), [("y", True), ("", False), ("n", False)])
def test_at_a_terminal_it_asks_first(answer: str, deleted: bool, home: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    assert main(["delete", "last"]) == 0
    assert asked == ["Delete tide-2 with 2 trials? [y/N] "]
    assert bool(list(home.rglob("notes.json"))) is deleted


def test_a_run_that_was_deleted_in_mlflow_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SweepFolder(home / "sweeps" / "tide-2")
    folder.write_pushed(f"{home}/mlflow.db", {"0002-oneshot-off-r2": "a" * 32}, deleted=["0002-oneshot-off-r2"])
    assert main(["show"]) == 0
    assert "In MLflow the runs of these trials were deleted; here they count: 2." in " ".join(
        capsys.readouterr().out.split())


def test_a_finished_sweep_without_a_deleted_trial_is_measured_to_the_end(
        home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = SweepFolder(home / "sweeps" / "tide-2")
    folder.write(replace(folder.bare(), planned_trials=2, tags={"arguments": '["mode=oneshot"]', "cwd": str(home)}))
    measured: list[list[str]] = []

    def measure(flags: object, words: list[str], *rest: object) -> int:
        measured.append(words)
        return 0

    monkeypatch.setattr(run_commands, "measure", measure)
    assert main(["resume"]) == 0
    assert "all its trials are there" in capsys.readouterr().out and not measured
    assert main(["delete", "last:2", "--yes"]) == main(["resume"]) == 0
    assert "all its trials are there" not in capsys.readouterr().out
    assert measured == [["mode=oneshot"]]
