"""Records as MLflow's own API shows them once they are pushed, and what a failing store, a crash or a user's hand in
MLflow does to them."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline import interrupt
from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.meter.sampler_program import SAMPLE_COLUMNS
from pipeline.meter.timeline import write_parquet
from pipeline.phases import MIB, Mark, ProcessRows, Timeline
from pipeline.record.folder import SweepFolder
from pipeline.record.owner import owner_tags
from pipeline.record.reason import Reason
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import ARTIFACTS, TrialRecord
from pipeline.track import location
from pipeline.track.push import Push, sync
from tests.conftest import ROOT

BEGAN_MS = 1_760_000_000_000
SWEEP = SweepRecord("mode_gap-1", "mode_gap", "Which mode needs more?", "slackwater run experiment=mode_gap", 4,
                    BEGAN_MS, owner=owner_tags(), tags={"host": "harbour", "boot_id": "x"})


Opener = Callable[[], Push]


@pytest.fixture
def opener(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens the store of this test, at a path with a space and a percent sign in it."""
    home = tmp_path / "100% slack water"
    home.mkdir()
    shutil.copy(empty_store / "mlflow.db", home / "mlflow.db")
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(home))
    return lambda: Push.open(Tracking())


@pytest.fixture
def push(opener: Opener) -> Push:
    return opener()


@pytest.fixture
def folder(push: Push) -> SweepFolder:
    return begun(push.location.records)


def begun(home: Path, sweep: SweepRecord = SWEEP, plan: Any = None) -> SweepFolder:
    folder = SweepFolder(home / "sweeps" / sweep.sweep_id)
    folder.begin(sweep, plan or {"order": ["a", "b"]})
    return folder


def timeline(path: Path, samples: int = 1000) -> None:
    """One reading every 10 ms, of 100 MiB and one byte more each."""
    due = np.arange(samples, dtype=np.int64) * 10_000_000 + 5_000_000_000
    columns = {name: np.full(samples, 0, dtype=np.int64) for name in SAMPLE_COLUMNS}
    columns["tree_anon"] = 100 * MIB + np.arange(samples, dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    write_parquet(path, Timeline(due, due, columns), [Mark("start", 5_000_000_000)], ProcessRows(*[nothing] * 7))


def put(folder: SweepFolder, **changes: Any) -> TrialRecord:
    """An interactive trial of two turns with its files, as a record."""
    trial = replace(TrialRecord(
        sweep_id=folder.sweep_id, cell="interactive-on", repetition=2, block=2, order=3, mode="interactive",
        infer_os="on", verdict="valid", notes=[Reason("said", {"text": "a neighbour used 1.2 cores"})],
        suspect_phases={"decode": [Reason("said", {"text": text}) for text in ("a: b", "c")]},
        started_ms=BEGAN_MS + 5_000, ended_ms=BEGAN_MS + 15_000,
        params={"engine.name": "llamacpp", "seed": 42, "model.tag": None, "engine.args": ["--mlock", "a=b"]},
        settings={"n_ctx": 2048, "cache_type_k": "q8_0"},
        turns={"stabilized/tree_rss_mib": {1: 180.5, 2: 190.25}, "as_found/tree_rss_mib": {0: 37.0},
               "released/half_life_s": {1: math.nan, 2: math.inf}}, tags={"engine": "llamacpp"}), **changes)
    staged = folder.stage(trial.order, trial.cell, trial.repetition)
    timeline(staged / "timeline.parquet")
    for name in set(ARTIFACTS) - {"timeline.parquet"}:
        (staged / name).write_text(f"this is {name}")
    return folder.put(trial, staged)


def run_of(push: Push, folder: SweepFolder, trial: TrialRecord | None = None) -> Any:
    """What MLflow has of it."""
    return push.client.get_run(folder.pushed(push.location.shown)[trial.name if trial else ""])


def pushed(push: Push, folder: SweepFolder, **changes: Any) -> Any:
    trial = put(folder, **changes)
    assert push.trial(folder, trial) is None
    return run_of(push, folder, trial)


def test_after_an_interruption_what_waits_is_left_to_sync_and_a_slow_server_is_soon_given_up(
        push: Push, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(interrupt, "_came", [signal.SIGINT])
    assert push.sweep(folder, SWEEP) is None
    assert run_of(push, folder) and push.pending(folder) == 1
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "2"
    monkeypatch.setattr(interrupt, "_came", [])
    assert "1 waiting" in str(push.sweep(folder, SWEEP)) and push.pending(folder) == 0


def test_a_trial_is_one_flat_run_in_mlflows_own_eyes(push: Push, folder: SweepFolder) -> None:
    run = pushed(push, folder)
    assert run.info.run_name == "interactive-on r2"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (BEGAN_MS + 5_000, BEGAN_MS + 15_000)
    expected = {"kind": "trial", "sweep_id": "mode_gap-1", "cell": "interactive-on", "repetition": "2", "order": "3",
                "block": "2", "mode": "interactive", "verdict": "valid", "engine": "llamacpp", "host": "harbour",
                "suspect_phases": "decode: a: b\ndecode: c", "notes": "a neighbour used 1.2 cores"}
    assert expected.items() <= run.data.tags.items()
    assert "mlflow.parentRunId" not in run.data.tags
    assert "180.5" not in run.data.tags["mlflow.note.content"]
    assert "190.2" in run.data.tags["mlflow.note.content"]
    assert run.data.params == {"engine.name": "llamacpp", "seed": "42", "model.tag": "null",
                               "engine.args": '["--mlock", "a=b"]', "settings.n_ctx": "2048",
                               "settings.cache_type_k": "q8_0"}


def test_the_shown_value_is_the_last_turns_and_every_turn_is_kept(push: Push, folder: SweepFolder) -> None:
    run = pushed(push, folder)
    assert run.data.metrics["stabilized/tree_rss_mib"] == 190.25
    history = push.client.get_metric_history(run.info.run_id, "stabilized/tree_rss_mib")
    assert {point.step: point.value for point in history} == {1: 180.5, 2: 190.25}
    assert "released/half_life_s" not in run.data.metrics, "what was not measured is absent, never a stand-in"


@pytest.mark.parametrize(("points", "expected"), [(None, 100), (40, 40), (0, 0)])
def test_a_timeline_is_made_from_its_file_and_keeps_its_times(push: Push, folder: SweepFolder, points: int | None,
                                                              expected: int) -> None:
    given = {} if points is None else {"params": {"tracking.timeline_points": points}}
    run = pushed(push, folder, **given)
    history = push.client.get_metric_history(run.info.run_id, "timeline/tree_anon_mib")
    assert len(history) == expected
    if expected:
        last = max(history, key=lambda point: point.step)
        assert (last.step, last.timestamp) == (9990, BEGAN_MS + 5_000 + 9990)
        assert last.value == pytest.approx(100 + 999 / MIB)


def test_its_artifacts_are_the_record_also_at_a_path_with_a_space_and_a_percent_sign(
        push: Push, folder: SweepFolder, tmp_path: Path) -> None:
    run = pushed(push, folder)
    assert {item.path for item in push.client.list_artifacts(run.info.run_id)} == {*ARTIFACTS, "result.json"}
    for name in ("response.txt", "result.json"):
        kept = folder.path / "trials" / "0003-interactive-on-r2" / name
        assert Path(push.client.download_artifacts(run.info.run_id, name)).read_bytes() == kept.read_bytes()
    assert push.location.artifacts is not None
    assert (push.location.artifacts / run.info.run_id / "artifacts" / "server.log").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"100% slack water"}


def test_what_is_done_to_a_run_in_mlflow_leaves_the_record_as_it_was(push: Push, folder: SweepFolder,
                                                                    tmp_path: Path) -> None:
    run = pushed(push, folder)
    kept = folder.path / "trials" / "0003-interactive-on-r2" / "response.txt"
    other = tmp_path / "response.txt"
    other.write_text("logged again")
    push.client.log_artifact(run.info.run_id, str(other))
    with Path(push.client.download_artifacts(run.info.run_id, "response.txt")).open("a") as file:
        file.write("and edited")
    assert kept.read_text() == "this is response.txt"
    push.client.delete_run(run.info.run_id)
    from mlflow.cli import gc

    done = CliRunner().invoke(gc, ["--backend-store-uri", push.location.uri, "--run-ids", run.info.run_id],
                              env={"MLFLOW_TRACKING_URI": push.location.uri})
    assert done.exit_code == 0, done.output
    assert push.location.artifacts is not None
    assert not list((push.location.artifacts / run.info.run_id).iterdir())
    assert kept.read_text() == "this is response.txt"


def test_the_prompts_are_the_runs_dataset_by_a_digest_that_changes_with_them(push: Push, folder: SweepFolder) -> None:
    prompt = {"prompt.name": "simple", "prompt.language": "en", "prompt.templates.en": "{prompt}", "prompt.text": None}
    texts = {"a": ["Why tides?", "Which wind?"], "b": ["Why tides?", "Which wind?"], "c": ["Why tides?"]}
    found = {}
    for order, (name, text) in enumerate(texts.items(), start=1):
        run = pushed(push, folder, order=order, params={**prompt, "prompt.texts.en": text})
        [given] = run.inputs.dataset_inputs
        found[name] = (given.dataset.name, given.dataset.digest)
    assert found["a"][0] == "simple (en)"
    assert found["a"] == found["b"] != found["c"]
    typed = pushed(push, folder, order=9, params={**prompt, "prompt.texts.en": ["x"], "mode.source": "stdin"})
    assert typed.inputs.dataset_inputs == []


def test_names_that_mlflow_refuses_are_pushed_all_the_same(push: Push, folder: SweepFolder) -> None:
    run = pushed(push, folder, params={"a=b,(c)": 1, "/x//y/../z": 2, "k" * 400: 3, "long": "v" * 9000, "": 4},
                 settings={}, turns={"tokens/s [%]": {1: 5.0}},
                 tags={"model (GGUF)": "ü" * 9000, "empty": "", "cwd": "/n\udce9e\0"})
    assert len(run.data.params) == 5
    assert run.data.params["a_b__c_"] == "1"
    assert "cut from 9000 characters" in run.data.params["long"]
    assert run.data.metrics["tokens/s ___"] == 5.0


def test_a_trial_is_one_run_however_often_it_is_pushed(push: Push, folder: SweepFolder) -> None:
    trial = put(folder)
    assert push.trial(folder, trial) is None
    first = run_of(push, folder, trial).info.run_id
    folder.write_pushed(push.location.shown, {})  # as on another machine, or from a copy
    assert push.trial(folder, trial) is None
    assert run_of(push, folder, trial).info.run_id == first
    assert len(push.client.search_runs([push.experiment_id])) == 1


@pytest.mark.parametrize(("verdict", "status"), [
    ("suspect", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED"), ("warm-up", "FINISHED")])
def test_a_runs_status_tells_how_the_trial_ended(push: Push, folder: SweepFolder, verdict: str, status: str) -> None:
    run = pushed(push, folder, verdict=verdict, reasons=[Reason("said", {"text": "why"})])
    assert run.info.status == status
    assert (run.data.tags["verdict"], run.data.tags["reasons"]) == (verdict, "why")


def test_a_sweep_is_one_run_from_its_start_to_its_end(push: Push, folder: SweepFolder) -> None:
    assert push.sweep(folder, SWEEP) is None
    first = run_of(push, folder)
    assert first.info.status == "RUNNING"
    ended = replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 90_000, owner={}, metrics={"trials": 2.0})
    folder.write(ended)
    folder.write_text("summary.txt", "less memory")
    folder.write_text("summary.json", "{}")
    assert push.sweep(folder, ended) is None
    run = run_of(push, folder)
    assert run.info.run_id == first.info.run_id
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", BEGAN_MS, BEGAN_MS + 90_000)
    listed = {item.path for item in push.client.list_artifacts(run.info.run_id)}
    assert listed == {"sweep.json", "plan.json", "summary.txt", "summary.json"}
    assert run.data.tags["question"] == "Which mode needs more?"
    assert run.data.metrics == {"trials": 2.0}
    assert run.info.run_name == "mode_gap sweep"


def test_a_trial_that_was_run_again_or_deleted_is_set_aside_in_mlflow_and_comes_back(push: Push, folder: SweepFolder,
                                                                                     ) -> None:
    failed = put(folder, verdict="failed")
    push.trial(folder, failed)
    again = put(folder, started_ms=BEGAN_MS + 50_000)
    push.trial(folder, again)
    assert run_of(push, folder, failed).data.tags["kind"] == "superseded"
    assert run_of(push, folder, again).data.tags["kind"] == "trial"
    folder.write_notes({"deleted": [again.name]})
    push.sweep(folder, SWEEP)
    assert [run_of(push, folder, each).data.tags["kind"] for each in (failed, again)] == ["trial", "superseded"]
    put(folder, order=4)
    folder.write_notes({"deleted": ["*"]})  # the whole sweep: nothing more of it is sent
    assert push.send(folder) == (0, [])
    assert run_of(push, folder, failed).data.tags["kind"] == "superseded"


def away(push: Push) -> Callable[[], None]:
    """The store cannot be reached until what is returned is called."""
    database = push.location.database
    assert database is not None
    database.rename(database.with_name("away.db"))
    database.mkdir()

    def back() -> None:
        database.rmdir()
        database.with_name("away.db").rename(database)

    return back


def test_a_store_that_fails_costs_no_trial_and_sync_sends_it_once(push: Push, folder: SweepFolder) -> None:
    ended = replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 90_000, owner={})
    back, trial = away(push), put(folder)
    folder.write(ended)
    assert "`slackwater sync`" in str(push.trial(folder, trial))
    assert push.pending(folder) == 2
    assert "No such" not in str(sync().notes) and sync().sent == 0
    back()
    assert [sync().sent, sync().sent, push.pending(folder)] == [2, 0, 0]
    run = run_of(push, folder, trial)
    assert (run.info.start_time, run.info.end_time) == (BEGAN_MS + 5_000, BEGAN_MS + 15_000)


def test_a_store_that_stays_away_is_said_once_and_at_the_sweeps_end_not_for_every_trial(
        push: Push, folder: SweepFolder) -> None:
    away(push)
    notes = [push.trial(folder, put(folder, order=order)) for order in range(1, 5)]
    ended = push.sweep(folder, replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 9))
    assert [note is not None for note in notes] == [True, False, False, False]
    assert "summary and 4 of its trials wait" in str(ended)


def test_the_end_of_a_sweep_that_its_store_did_not_take_is_sent_later(push: Push, folder: SweepFolder) -> None:
    assert push.sweep(folder, SWEEP) is None
    back = away(push)
    ended = replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 90_000, owner={})
    folder.write(ended)
    assert "summary and 0 of its trials wait" in str(push.sweep(folder, ended))
    back()
    assert [sync().sent, sync().sent] == [1, 0]
    assert run_of(push, folder).info.status == "FINISHED"


def test_in_a_ci_job_what_was_not_pushed_is_lost_and_said(push: Push, folder: SweepFolder,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder)
    monkeypatch.delenv("CI", raising=False)
    assert push.lost(folder) is None, "this machine keeps its folder, and `slackwater sync` sends it"
    monkeypatch.setenv("CI", "true")
    assert "2 results of this sweep are not in" in str(push.lost(folder))
    push.send(folder)
    assert push.lost(folder) is None


def test_a_trial_half_pushed_is_completed_as_the_same_run(push: Push, folder: SweepFolder,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    push.sweep(folder, SWEEP)

    def full(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    half, whole = put(folder), put(folder, order=4)
    with monkeypatch.context() as patch:
        patch.setattr(push, "_values", full)
        assert "No space left" in str(push.trial(folder, half))
    assert push.trial(folder, whole) == "The store answers again: 1 waiting results were sent."
    assert run_of(push, folder, half).info.status == "FINISHED"
    assert len(push.client.search_runs([push.experiment_id], "tags.kind = 'trial'")) == 2


def test_a_run_deleted_in_mlflow_is_not_pushed_again_and_is_noted(push: Push, folder: SweepFolder) -> None:
    folder.write(replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 9, owner={}))
    first, second = put(folder, order=1), put(folder, order=2)
    assert sync().sent == 3
    push.client.delete_run(run_of(push, folder, first).info.run_id)
    assert sync().sent == 0
    assert folder.push_note(push.location.shown)["deleted"] == [first.name]
    push.client.delete_run(run_of(push, folder, second).info.run_id)
    folder.write_pushed(push.location.shown, {})  # the notes were lost
    sync()
    assert folder.push_note(push.location.shown)["deleted"] == [first.name, second.name]
    assert len(push.client.search_runs([push.experiment_id], "tags.kind = 'trial'")) == 0
    push.client.restore_run(run_of(push, folder, first).info.run_id)
    sync()
    assert folder.push_note(push.location.shown)["deleted"] == [second.name]


def test_each_sweep_is_sent_to_the_store_and_experiment_it_was_measured_for(push: Push, tmp_path: Path,
                                                                            empty_store: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(empty_store / "mlflow.db", tmp_path / "other" / "mlflow.db")
    ended = replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 9, owner={})
    for number, shown in enumerate([str(tmp_path / "other/mlflow.db"), "postgresql://me:***@db/mlflow"]):
        tags = {"tracking_uri": shown, "tracking_experiment": "mine"}
        put(begun(push.location.records, replace(ended, sweep_id=f"waiting-{number}", tags=tags)))
    synced = sync()
    assert synced.sent == 2 and len(synced.notes) == 1
    other = Push.open(Tracking(uri=f"sqlite:///{tmp_path}/other/mlflow.db", experiment="mine"))
    assert {run.data.tags["sweep_id"] for run in other.client.search_runs([other.experiment_id])} == {"waiting-0"}
    assert "2 waiting for postgresql://me:***@db/mlflow" in synced.notes[0] and "--store URI" in synced.notes[0]


def test_a_sweep_that_runs_is_left_to_its_owner_and_one_that_was_imported_goes_to_this_store(push: Push) -> None:
    put(begun(push.location.records))
    tags = {"tracking_uri": push.location.shown, "host": "their-machine"}
    imported = begun(push.location.records, replace(SWEEP, sweep_id="theirs-1", status="finished", owner={}, tags=tags,
                                                    ended_ms=BEGAN_MS + 9, origin="imported"))
    put(imported)
    assert sync().sent == 2
    runs = push.client.search_runs([push.experiment_id])
    assert {run.data.tags["sweep_id"] for run in runs} == {"theirs-1"}
    assert {run.data.tags["host"] for run in runs} == {"their-machine"}, "never that of who pushes"


def test_summary_runs_of_a_dead_owner_are_closed_as_interrupted_and_no_others(push: Push, opener: Opener) -> None:
    mine = owner_tags()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    owners = {"mine": mine, "gone": mine | {"pid": str(child.pid)}, "reused": mine | {"pid_start": "1"},
              "older-boot": mine | {"boot_id": "x"}, "other-host": mine | {"host": "x", "pid": str(child.pid)}}
    folders = {}
    for name, owner in owners.items():
        running = replace(SWEEP, sweep_id=name, started_ms=1_000, owner=owner)
        folders[name] = begun(push.location.records, running)
        push.sweep(folders[name], running)
    again = opener()
    closed = {name for name, folder in folders.items() if run_of(again, folder).info.status == "KILLED"}
    assert closed == {"gone", "reused", "older-boot"}


def test_a_store_that_moved_is_filled_again_from_the_records(push: Push, folder: SweepFolder, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 9, owner={}))
    pushed(push, folder)
    push.location.home.rename(tmp_path / "moved")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "moved"))
    assert sync().sent == 2
    again = Push.open(Tracking())
    [run] = again.client.search_runs([again.experiment_id], "tags.kind = 'trial'")
    assert Path(again.client.download_artifacts(run.info.run_id, "response.txt")).read_text() == "this is response.txt"
    assert {path.name for path in tmp_path.iterdir()} == {"moved"}


def test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back(push: Push, opener: Opener) -> None:
    push.client.delete_experiment(push.experiment_id)
    with pytest.raises(StoreError, match="experiments restore -x") as found:
        opener()
    [command] = re.findall(r"\((MLFLOW_TRACKING_URI=.*)\), or", str(found.value))
    variable, *words = shlex.split(command)
    assert variable == f"MLFLOW_TRACKING_URI={push.location.uri}", "else another database is asked"
    push.client.restore_experiment(words[-1])
    opener()


@pytest.mark.timeout(300)  # each of them imports MLflow
@pytest.mark.thorough
def test_two_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    program = ("import sys, test_track_push as t\nfrom pathlib import Path\nhere, order = map(str, sys.argv[1:])"
               "\nt.location.PACKAGE = Path(here) / 'lib' / 'pipeline'\npush = t.Push.open(t.Tracking())\n"
               "folder = t.begun(Path(here), t.replace(t.SWEEP, sweep_id=f'of-{order}'))\n"
               "assert push.trial(folder, t.put(folder)) is None")
    environment = {**os.environ, "SLACKWATER_HOME": str(tmp_path),
                   "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "unit")])}
    crowd = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(number)], env=environment,
                              stderr=subprocess.PIPE, text=True) for number in range(2)]
    said = [process.communicate(timeout=250)[1] for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 2, said
    assert said == [""] * 2
    push = Push.open(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    runs = push.client.search_runs([push.experiment_id])
    assert {run.data.tags["sweep_id"] for run in runs} == {"of-0", "of-1"}
