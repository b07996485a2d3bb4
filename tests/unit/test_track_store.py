"""Trials and sweeps as MLflow's own API sees them, and what a failing store, a crash or a crowd does to them."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.config import Tracking
from pipeline.errors import ConfigError, StoreError
from pipeline.record.owner import owner_tags
from pipeline.record.reason import Reason, as_reason, codes_of
from pipeline.result import ARTIFACTS, TrialResult
from pipeline.text import to_json
from pipeline.track import location, rows
from pipeline.track.read import read_sweeps, read_trials
from pipeline.track.source import ClientSource, Source, SqlSource
from pipeline.track.spool import Spool
from pipeline.track.store import Store, open_store
from pipeline.track.summary import SweepSummary
from pipeline.track.sync import send
from tests.conftest import ROOT

BEGAN_MS = 1_760_000_000_000
SWEEP = SweepSummary("mode_gap-1", "mode_gap", "Which mode needs more?", "slackwater run experiment=mode_gap", 4,
                     {"order": ["a", "b"]}, BEGAN_MS)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with nothing in it; making one takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(location, "PACKAGE", folder / "lib" / "pipeline")
        patch.setenv("SLACKWATER_HOME", str(folder / "home"))
        open_store(Tracking(uri=f"sqlite:///{folder}/mlflow.db"))
    return folder / "mlflow.db"


Opener = Callable[[], Store]


@pytest.fixture
def opener(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens the store of this test, at a path with a space and a percent sign in it."""
    home = tmp_path / "100% slack water"
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(home))
    return lambda: open_store(Tracking())


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


def trial(folder: Path, **changes: Any) -> TrialResult:
    """An interactive trial of two turns with its artifacts in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARTIFACTS:
        (folder / name).write_text(f"this is {name}")
    result = TrialResult(
        sweep_id="mode_gap-1", cell="interactive-on", repetition=2, block=2, order=3, mode="interactive", infer_os="on",
        verdict="valid", reasons=[], notes=["a neighbour used 1.2 cores"],
        suspect_phases={"decode": ["a: b", "c"], "load": ["d"]}, started_ms=BEGAN_MS + 5_000,
        ended_ms=BEGAN_MS + 15_000, params={"engine.name": "llamacpp", "seed": 42, "model.tag": None,
                                            "engine.args": ["--mlock", "a=b"]},
        settings={"n_ctx": 2048, "cache_type_k": "q8_0"},
        metrics={"stabilized/tree_rss_mib": {1: 180.5, 2: 190.25}, "as_found/tree_rss_mib": {0: 37.0},
                 "released/half_life_s": {1: math.nan, 2: math.inf}},
        series={"tree_rss_mib": [(10 * i, 100.0 + i) for i in range(300)]}, tags={"engine": "llamacpp"},
        folder=str(folder))
    return dataclasses.replace(result, **changes)


def mlflow_client(store: Store) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(store.location.uri)


def test_a_trial_is_one_flat_run_in_mlflows_own_eyes(store: Store, tmp_path: Path) -> None:
    recorded = store.record(trial(tmp_path / "t"))
    assert recorded.note is None
    client = mlflow_client(store)
    run = client.get_run(recorded.run_id)
    assert run.info.run_name == "interactive-on r2"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (BEGAN_MS + 5_000, BEGAN_MS + 15_000)
    expected = {"kind": "trial", "sweep_id": "mode_gap-1", "cell": "interactive-on", "repetition": "2", "order": "3",
                "block": "2", "mode": "interactive", "verdict": "valid", "engine": "llamacpp"}
    assert expected.items() <= run.data.tags.items()
    assert "mlflow.parentRunId" not in run.data.tags
    assert "180.5" not in run.data.tags["mlflow.note.content"]
    assert "190.2" in run.data.tags["mlflow.note.content"]
    assert run.data.params == {"engine.name": "llamacpp", "seed": "42", "model.tag": "null",
                               "engine.args": '["--mlock", "a=b"]', "settings.n_ctx": "2048",
                               "settings.cache_type_k": "q8_0"}


def test_rows_of_ours_and_of_mlflows_are_the_same_and_an_unknown_schema_is_left_to_mlflow(
        opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    for schema, name in ((rows.SCHEMA, "ours"), ("of another year", "mlflows")):
        monkeypatch.setattr(rows, "SCHEMA", schema)
        store = opener()
        result = trial(tmp_path / name, order=len(seen) + 1, repetition=len(seen) + 1)
        run_id = store.record(result).run_id
        assert run_id is not None
        client = mlflow_client(store)
        run = client.get_run(run_id)
        history = {key: [(point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, key)]
                   for key in run.data.metrics}
        own = ("order", "repetition", "trial_uuid", "mlflow.runName", "mlflow.note.content")
        tags = {key: value for key, value in run.data.tags.items() if key not in own}
        seen.append((run.info.status, run.info.end_time, run.data.params, run.data.metrics, history, tags,
                     sorted(file.path for file in client.list_artifacts(run_id))))
    assert seen[0] == seen[1]
    assert len(seen[0][4]) == 3


def test_the_shown_value_is_the_last_turns_and_every_turn_is_kept(store: Store, tmp_path: Path) -> None:
    run_id = store.log_trial(trial(tmp_path / "t"))
    client = mlflow_client(store)
    assert client.get_run(run_id).data.metrics["stabilized/tree_rss_mib"] == 190.25
    history = client.get_metric_history(run_id, "stabilized/tree_rss_mib")
    assert {point.step: point.value for point in history} == {1: 180.5, 2: 190.25}


def test_what_was_not_measured_is_absent_and_never_a_stand_in(store: Store, tmp_path: Path) -> None:
    run_id = store.log_trial(trial(tmp_path / "t"))
    assert "released/half_life_s" not in mlflow_client(store).get_run(run_id).data.metrics


def test_a_timeline_keeps_its_times(store: Store, tmp_path: Path) -> None:
    run_id = store.log_trial(trial(tmp_path / "t"))
    history = mlflow_client(store).get_metric_history(run_id, "timeline/tree_rss_mib")
    assert len(history) == 300
    last = max(history, key=lambda point: point.step)
    assert (last.step, last.timestamp, last.value) == (2990, BEGAN_MS + 5_000 + 2990, 399.0)


def test_artifacts_are_read_back_from_a_path_with_a_space_and_a_percent_sign(store: Store, tmp_path: Path) -> None:
    run_id = store.log_trial(trial(tmp_path / "t"))
    client = mlflow_client(store)
    assert {item.path for item in client.list_artifacts(run_id)} == set(ARTIFACTS)
    assert Path(client.download_artifacts(run_id, "response.txt")).read_text() == "this is response.txt"
    assert store.location.artifacts is not None
    assert (store.location.artifacts / run_id / "artifacts" / "server.log").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"100% slack water", "t"}


def test_the_prompts_are_the_runs_dataset_by_a_digest_that_changes_with_them(store: Store, tmp_path: Path) -> None:
    prompt = {"prompt.name": "simple", "prompt.language": "en", "prompt.templates.en": "{prompt}", "prompt.text": None}
    texts = {"a": ["Why tides?", "Which wind?"], "b": ["Why tides?", "Which wind?"], "c": ["Why tides?"]}
    found = {}
    for order, (name, text) in enumerate(texts.items()):
        run_id = store.log_trial(trial(tmp_path / name, order=order, params={**prompt, "prompt.texts.en": text}))
        [given] = mlflow_client(store).get_run(run_id).inputs.dataset_inputs
        found[name] = (given.dataset.name, given.dataset.digest)
    assert found["a"][0] == "simple (en)"
    assert found["a"] == found["b"] != found["c"]
    typed = store.log_trial(trial(tmp_path / "t", order=9, params={**prompt, "prompt.texts.en": ["x"],
                                                                   "mode.source": "stdin"}))
    assert mlflow_client(store).get_run(typed).inputs.dataset_inputs == []


def test_names_that_mlflow_refuses_are_logged_all_the_same(store: Store, tmp_path: Path) -> None:
    awkward = trial(tmp_path / "t", params={"a=b,(c)": 1, "/x//y/../z": 2, "k" * 400: 3, "long": "v" * 9000, "": 4},
                    metrics={"tokens/s [%]": {1: 5.0}}, tags={"model (GGUF)": "ü" * 9000, "empty": ""})
    run = mlflow_client(store).get_run(store.log_trial(awkward))
    assert len(run.data.params) == 5 + 2 + 2, "the long one once more, in two parts"
    assert run.data.params["a_b__c_"] == "1"
    assert "cut from 9000 characters" in run.data.params["long"]
    assert run.data.metrics["tokens/s ___"] == 5.0


def test_the_same_trial_logged_twice_is_one_run(store: Store, tmp_path: Path) -> None:
    result = trial(tmp_path / "t")
    assert store.log_trial(result) == store.log_trial(result)
    assert len(store.trials("mode_gap-1")) == 1
    rerun = dataclasses.replace(result, started_ms=result.started_ms + 1)
    assert store.log_trial(rerun) != store.log_trial(result)


@pytest.mark.parametrize(("changes", "status"), [
    ({"verdict": "suspect", "reasons": [Reason("swapped", {"mib": 3.0})]}, "FINISHED"),
    ({"verdict": "failed", "reasons": ["killed by signal 9"]}, "FAILED"),
    ({"verdict": "failed", "reasons": ["interrupted"], "extra": {"interrupted": True}}, "KILLED"),
])
def test_a_runs_status_tells_how_the_trial_ended(store: Store, tmp_path: Path, changes: dict[str, Any],
                                                 status: str) -> None:
    run_id = store.log_trial(trial(tmp_path / "t", **changes))
    assert mlflow_client(store).get_run(run_id).info.status == status
    (one,) = store.trials("mode_gap-1")
    assert list(one.reasons) == changes["reasons"]
    assert codes_of(one)["reasons"] == [as_reason(text).to_dict() for text in changes.get("reasons", ())]


def test_a_sweep_is_one_run_from_its_start_to_its_end(store: Store) -> None:
    first = store.record_sweep(SWEEP)
    assert mlflow_client(store).get_run(first.run_id).info.status == "RUNNING"
    ended = dataclasses.replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 90_000,
                                texts={"summary.txt": "less memory", "summary.json": "{}"})
    assert store.record_sweep(ended).run_id == first.run_id
    client = mlflow_client(store)
    run = client.get_run(first.run_id)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", BEGAN_MS, BEGAN_MS + 90_000)
    assert {item.path for item in client.list_artifacts(first.run_id)} == {"plan.json", "summary.txt", "summary.json"}
    assert run.data.tags["question"] == "Which mode needs more?"
    assert run.info.run_name == "mode_gap sweep"


def test_records_say_what_was_measured(store: Store, tmp_path: Path) -> None:
    store.record_sweep(SWEEP)
    run_id = store.record(trial(tmp_path / "t")).run_id
    store.record(trial(tmp_path / "u", order=1, cell="oneshot-on", verdict="failed", reasons=["a", "b"]))
    sweep = store.find_sweep("last")
    assert (sweep.sweep_id, sweep.experiment) == ("mode_gap-1", "mode_gap")
    assert (sweep.planned_trials, sweep.status) == (4, "running")
    assert sweep.trials == {"valid": 1, "failed": 1}
    first, second = store.trials("mode_gap-1")
    assert (first.order, first.verdict, first.reasons) == (1, "failed", ["a", "b"])
    assert (second.run_id, second.cell, second.repetition, second.block) == (run_id, "interactive-on", 2, 2)
    assert second.params == {"engine.name": "llamacpp", "seed": 42, "model.tag": None,
                             "engine.args": ["--mlock", "a=b"]}
    assert second.settings == {"n_ctx": 2048, "cache_type_k": "q8_0"}
    assert second.metrics == {"stabilized/tree_rss_mib": 190.25, "as_found/tree_rss_mib": 37.0}
    assert second.turns == {"stabilized/tree_rss_mib": {1: 180.5, 2: 190.25}, "as_found/tree_rss_mib": {0: 37.0}}
    assert second.notes == ["a neighbour used 1.2 cores"]
    assert second.suspect_phases == {"decode": ["a: b", "c"], "load": ["d"]}


def test_a_store_that_fails_costs_no_trial_and_sync_sends_it_once(store: Store, tmp_path: Path) -> None:
    database = store.location.database
    assert database is not None
    store.record_sweep(SWEEP)
    away = database.with_name("away.db")
    database.rename(away)
    database.mkdir()
    recorded = store.record(trial(tmp_path / "t"))
    assert recorded.run_id is None
    assert recorded.note is not None
    assert "slackwater sync" in recorded.note
    database.rmdir()
    away.rename(database)
    assert [item.sweep_id for item in store.pending()] == ["mode_gap-1"]
    assert store.sync().sent == 1
    assert (store.sync().sent, store.pending()) == (0, [])
    [found] = store.trials("mode_gap-1")
    assert (found.started_ms, found.ended_ms) == (BEGAN_MS + 5_000, BEGAN_MS + 15_000)


def test_a_trial_half_logged_is_completed_as_the_same_run(store: Store, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rows, "write", full)
        assert "No space left" in str(store.record(trial(tmp_path / "t")).note)
    recorded = store.record(trial(tmp_path / "u", order=4))
    assert recorded.note == "The store answers again: 1 waiting results were sent."
    records = store.trials("mode_gap-1")
    assert [(record.order, record.verdict) for record in records] == [(3, "valid"), (4, "valid")]
    assert mlflow_client(store).get_run(records[0].run_id).info.status == "FINISHED"
    assert len(mlflow_client(store).list_artifacts(records[0].run_id)) == len(ARTIFACTS)
    assert not list(store.spool.root.rglob("result.json"))


def test_params_are_read_once_for_runs_that_share_them_and_never_from_a_run_that_lost_its_own(
        store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of the cell died before its params were logged; a later one had another config."""
    def killed(*args: object) -> None:
        raise OSError(4, "Interrupted system call")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_log_values", killed)
        with pytest.raises(StoreError):
            store.log_trial(trial(tmp_path / "t", order=1))
    for order, seed in ((2, 42), (3, 42), (4, 43)):
        store.log_trial(trial(tmp_path / "t", order=order, params={"seed": seed, "mode.name": "interactive"}))
    found = {record.order: record.params.get("seed") for record in store.trials("mode_gap-1")}
    assert found == {1: None, 2: 42, 3: 42, 4: 43}
    digests = [record.tags.get("params_digest") for record in store.trials("mode_gap-1")]
    assert digests[0] is None and digests[1] == digests[2] != digests[3]


@pytest.mark.parametrize("of_client", [False, True], ids=["by SQL", "by MLflow's client"])
def test_long_and_odd_texts_are_read_back_whole(store: Store, tmp_path: Path, of_client: bool) -> None:
    prompt, odd = "潮の 音\n" * 4_000, "/home/n\udce9e/a\0b\x1e"
    arguments = to_json(["mode=oneshot", f"prompt.text={prompt}"])
    tags = {"arguments": arguments, "cwd": odd, "question_metrics": to_json(["a/b"] * 3_000)}
    store.record_sweep(dataclasses.replace(SWEEP, question=prompt, command=prompt, tags=tags))
    said = [f"why {number}: {'x' * 5_000}" for number in range(3)]
    assert store.record(trial(tmp_path / "t", params={"prompt.text": prompt, "model.path": odd}, reasons=said,
                              cell=f"oneshot-off-text={prompt}{odd}")).run_id
    source: Source = ClientSource(store.location, mlflow_client(store)) if of_client else SqlSource(store.location)
    [sweep], [one] = read_sweeps(source), read_trials(source)
    assert (sweep.question, sweep.command) == (prompt, prompt)
    assert {name: sweep.tags[name] for name in tags} == tags
    assert one.params == {"prompt.text": prompt, "model.path": odd}
    assert (one.reasons, one.cell) == (said, f"oneshot-off-text={prompt}{odd}")


def test_what_waits_is_sent_to_the_store_and_experiment_it_was_measured_for(
        store: Store, opener: Opener, tmp_path: Path, template: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(template, tmp_path / "other" / "mlflow.db")
    other = Tracking(uri=f"sqlite:///{tmp_path}/other/mlflow.db", experiment="mine")
    for order, (shown, experiment) in enumerate([(str(tmp_path / "other/mlflow.db"), "mine"),
                                                 ("postgresql://me:***@db/mlflow", "slackwater")]):
        place = Spool(store.spool.root, shown, experiment)
        place.put(trial(tmp_path / f"t{order}", sweep_id=f"waiting-{order}"))
    assert store.sync().sent == 0
    synced = send()
    assert synced.sent == 1 and len(synced.notes) == 1
    [run] = mlflow_client(open_store(other)).search_runs([open_store(other).experiment_id])
    assert run.data.tags["sweep_id"] == "waiting-0"
    assert "postgresql://me:***@db/mlflow" in synced.notes[0] and "--store URI" in synced.notes[0]


def test_a_store_that_stays_away_is_said_once_and_at_the_sweeps_end_not_for_every_trial(
        store: Store, tmp_path: Path) -> None:
    database = store.location.database
    assert database is not None
    database.rename(database.with_name("away.db"))
    database.mkdir()
    notes = [store.record(trial(tmp_path / f"t{order}", order=order)).note for order in range(4)]
    ended = store.record_sweep(dataclasses.replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 9)).note
    assert [note is not None for note in notes] == [True, False, False, False]
    assert "summary and 4 of its trials wait" in str(ended)


def test_runs_of_a_dead_owner_are_closed_as_interrupted_and_no_others(store: Store, opener: Opener,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    mine = owner_tags()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    owners = {"mine": mine, "gone": mine | {"pid": str(child.pid)}, "reused": mine | {"pid_start": "1"},
              "older-boot": mine | {"boot_id": "x"}, "other-host": mine | {"host": "x", "pid": str(child.pid)}}
    for name, owner in owners.items():
        monkeypatch.setattr(Store, "_owner", staticmethod(lambda owner=owner: owner))
        store.record_sweep(dataclasses.replace(SWEEP, sweep_id=name, started_ms=1_000))
    monkeypatch.undo()
    monkeypatch.setattr(location, "home", lambda: store.location.home)
    read = {record.sweep_id: record.status for record in open_store(Tracking(), write=False).sweeps()}
    assert read == {name: "running" if name in ("mine", "other-host") else "interrupted" for name in owners}
    closed = {record.sweep_id for record in opener().sweeps() if record.status == "interrupted"}
    assert closed == {"gone", "reused", "older-boot"}


def test_a_store_that_moved_keeps_its_artifacts_with_it(store: Store, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = store.log_trial(trial(tmp_path / "t"))
    moved = tmp_path / "moved"
    store.location.home.rename(moved)
    monkeypatch.setenv("SLACKWATER_HOME", str(moved))
    again = open_store(Tracking())
    later = again.log_trial(trial(tmp_path / "u", order=4))
    client = mlflow_client(again)
    for known in (run_id, later):
        assert Path(client.download_artifacts(known, "response.txt")).read_text() == "this is response.txt"
    assert {path.name for path in tmp_path.iterdir()} == {"moved", "t", "u"}


def test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back(store: Store, opener: Opener) -> None:
    client = mlflow_client(store)
    client.delete_experiment(client.get_experiment_by_name("slackwater").experiment_id)
    with pytest.raises(StoreError, match="experiments restore -x") as found:
        opener()
    [command] = re.findall(r"\((MLFLOW_TRACKING_URI=.*)\), or", str(found.value))
    variable, *words = shlex.split(command)
    assert variable == f"MLFLOW_TRACKING_URI={store.location.uri}", "else another database is asked"
    client.restore_experiment(words[-1])
    opener()


def test_a_printed_command_means_the_store_that_it_speaks_of(store: Store, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert store.location.option == store.location.setting == "", "the store it takes by itself"
    home = tmp_path / "it's another"
    home.mkdir()
    shutil.copy(store.location.database or "", home / "mlflow.db")
    other = open_store(Tracking(uri=f"sqlite:///{home}/mlflow.db"))
    for order in (1, 2):
        other.record(trial(tmp_path / "t", order=order, tags={**owner_tags()}))
    other.record_sweep(dataclasses.replace(SWEEP, status="finished", ended_ms=BEGAN_MS + 9, planned_trials=2,
                                           tags={"arguments": "[]"}))
    uri = other.location.uri
    for words in (["show", "--store", uri], ["resume", "--store", uri]):
        assert main(words) == 0
        commands = re.findall(r"slackwater (?:report|ui|rerun)\b[^`\n]*--store [^`\n]*", capsys.readouterr().out)
        assert commands
        assert all(shlex.split(command.split("   ")[0])[-2:] == ["--store", uri] for command in commands)
    with pytest.raises(ConfigError, match="slackwater runs --store"):
        other.find_sweep("nosuch")


def test_reading_an_sqlite_store_does_not_load_mlflow(store: Store, tmp_path: Path) -> None:
    store.record(trial(tmp_path / "t"))
    program = ("import sys\nfrom pipeline.config import Tracking\nfrom pipeline.track.store import open_store\n"
               f"store = open_store(Tracking(uri={store.location.uri!r}), write=False)\n"
               "assert store.find_sweep('last').trials == {'valid': 1}\nassert len(store.trials('mode_gap-1')) == 1\n"
               "heavy = {'mlflow', 'sqlalchemy', 'numpy', 'pandas'} & set(sys.modules)\nassert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)  # each of them imports MLflow
@pytest.mark.thorough
def test_two_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    # what a killed process left of an unfinished store must not matter either
    (tmp_path / ".mlflow.db.unfinished").write_text("half a database")
    program = ("import sys, test_track_store as t\nfrom pathlib import Path\nhere = Path(sys.argv[1])\n"
               "t.location.PACKAGE = here / 'lib' / 'pipeline'\nstore = t.open_store(t.Tracking())\n"
               "store.log_trial(t.trial(here / sys.argv[2], order=int(sys.argv[2])))")
    environment = {**os.environ, "SLACKWATER_HOME": str(tmp_path),
                   "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "unit")])}
    crowd = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(number)], env=environment,
                              stderr=subprocess.PIPE, text=True) for number in range(2)]
    said = [process.communicate(timeout=250)[1] for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 2, said
    assert said == [""] * 2
    records = open_store(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db"), write=False).trials("mode_gap-1")
    assert [record.order for record in records] == [0, 1]


@pytest.mark.thorough
def test_ten_thousand_trials_are_read_within_seconds(store: Store, tmp_path: Path) -> None:
    run_id = store.log_trial(trial(tmp_path / "t", params={f"group.key{i}": i for i in range(40)},
                                   metrics={f"stabilized/m{i}_mib": {1: 1.0, 2: 2.0} for i in range(60)},
                                   series={"tree_rss_mib": [(i, 1.0) for i in range(100)]}))
    assert store.location.database is not None
    with sqlite3.connect(store.location.database) as database:
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
        for table in ("runs", "tags", "params", "latest_metrics", "metrics"):
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            copied = ", ".join("printf('%032d', i)" if name == "run_uuid" else f'"{name}"' for name in names)
            database.execute(f"INSERT INTO {table} {numbers} SELECT {copied} FROM n, {table} WHERE run_uuid = ?",
                             (run_id,))
    database.close()
    began = time.process_time()
    records = store.trials()
    spent = time.process_time() - began
    assert len(records) == 1001
    assert records[7].turns["stabilized/m7_mib"] == {1: 1.0, 2: 2.0}
    assert spent < 5, "10,000 trials take ten times as long"
