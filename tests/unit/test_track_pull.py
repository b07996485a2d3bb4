"""A server's sweeps: listed by name, fetched when they are named, exactly as they were measured elsewhere."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Tracking
from pipeline.record.folder import SweepFolder
from pipeline.track import location, pull
from pipeline.track.location import Location
from pipeline.track.pull import Fetched
from pipeline.track.push import Push
from tests.unit.test_track_push import BEGAN_MS, SWEEP, begun, put


@pytest.fixture
def theirs(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """A colleague's store, pushed to from their machine."""
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "theirs"))
    (tmp_path / "theirs").mkdir()
    shutil.copy(empty_store / "mlflow.db", tmp_path / "theirs" / "mlflow.db")
    push = Push.open(Tracking())
    monkeypatch.setattr(pull, "check", lambda location, write: True)
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "mine"))
    return push


def here(push: Push) -> Fetched:
    """The same store as a machine sees it that reaches it over a network, and has a home of its own."""
    return Fetched(Location(push.location.uri, "http://theirs", location.home()))


def ended(folder: SweepFolder, push: Push, **changes: object) -> None:
    sweep = replace(SWEEP, sweep_id=folder.sweep_id, status="finished", ended_ms=BEGAN_MS + 90_000, owner={},
                    **changes)  # type: ignore[arg-type]
    folder.write(sweep)
    assert push.sweep(folder, sweep) is None


def test_a_sweep_comes_when_it_is_named_as_it_was_measured_and_says_that_it_is_foreign(theirs: Push) -> None:
    long = "x" * 20_000
    folder = begun(theirs.location.records, plan={"cells": [{"cell": "interactive-on"}]})
    trials = [put(folder, order=order, params={"prompt.text": long}, turns={"a/b": {1: 0.1 + order}})
              for order in (1, 2, 3)]
    folder.write_notes({"deleted": [trials[2].name]})
    folder.write_text("summary.txt", "less memory")
    assert theirs.send(folder) == (3, [])
    ended(folder, theirs, tags={**SWEEP.tags, "arguments": long})
    sweeps = here(theirs)
    [listed] = sweeps.all()
    assert (listed.sweep_id, listed.status, listed.origin) == ("mode_gap-1", "finished", "pulled")
    assert not listed.fetched
    subject = sweeps.subject("last")
    assert [trial.to_json() for trial in subject.trials] == [trial.to_json() for trial in trials[:2]]
    assert subject.trials[0].artifact("timeline.parquet") == trials[0].artifact("timeline.parquet")
    assert subject.sweep.tags["arguments"] == long and subject.sweep.origin == "pulled"
    assert subject.plan["cells"] == [{"cell": "interactive-on"}]
    pulled = SweepFolder(subject.sweep.folder)
    assert pulled.path.is_relative_to(location.home())
    assert pulled.text("summary.txt") == "less memory"
    assert [trial.name for trial in sweeps.subject(subject.trials[1].run_id).trials] == [trials[1].name]


def test_a_sweep_that_still_runs_brings_what_is_new_when_it_is_named_again(theirs: Push) -> None:
    folder = begun(theirs.location.records)
    theirs.trial(folder, put(folder, order=1))
    theirs.sweep(folder, SWEEP)
    assert here(theirs).sweep("last").trials == {"valid": 1}
    kept = here(theirs).folder("mode_gap-1").path / "trials" / "0001-interactive-on-r2"
    before = kept.stat().st_mtime_ns
    theirs.trial(folder, put(folder, order=2))
    assert here(theirs).sweep("last").trials == {"valid": 2}
    ended(folder, theirs)
    again = here(theirs).sweep("mode_gap-1")
    assert (again.status, again.trials, kept.stat().st_mtime_ns) == ("finished", {"valid": 2}, before)


def test_a_sweep_that_was_measured_here_is_read_from_its_own_record(theirs: Push) -> None:
    folder = begun(location.home())
    theirs.trial(folder, put(folder))
    ended(folder, theirs)
    sweeps = here(theirs)
    assert (sweeps.sweep("last").origin, sweeps.sweep("last").trials) == ("", {"valid": 1})
    SweepFolder(sweeps.sweep("last").folder).write_notes({"deleted": ["0003-interactive-on-r2"]})
    assert folder.deleted() == {"0003-interactive-on-r2"}
