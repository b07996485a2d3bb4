"""A store that an earlier version made becomes records: every trial once with its verdict, the database as it was."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.record.find import Sweeps
from pipeline.track import location, opened, pull, takeover
from pipeline.track.push import sync

FINISHED, INTERRUPTED, FAILED = "run-261126-085547", "run-261126-085640", "run-261126-085931"
WAITING = 3


def grown(database: Path, sweep_id: str, trials: int) -> None:
    """The sweep with so many more trials: rows as that version wrote them, under further ids."""
    with sqlite3.connect(database) as store:
        runs = [row[0] for row in store.execute(
            "SELECT s.run_uuid FROM tags s JOIN tags k ON k.run_uuid = s.run_uuid AND k.key = 'kind' "
            "AND k.value = 'trial' WHERE s.key = 'sweep_id' AND s.value = ?", (sweep_id,))]
        for number in range(trials):
            run, new = runs[number % len(runs)], f"{number:032d}"
            for table in ("runs", "tags", "params", "latest_metrics", "metrics"):
                names = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
                copied = ", ".join("?" if name == "run_uuid" else f'"{name}"' for name in names)
                store.execute(f"INSERT INTO {table} SELECT {copied} FROM {table} WHERE run_uuid = ?", (new, run))
            store.execute("UPDATE runs SET start_time = start_time + ? WHERE run_uuid = ?", (number + 1, new))
            store.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = 'order'", (str(100 + number), new))
    store.close()


def verdicts(database: Path) -> dict[str, Counter[str]]:
    """Sweep → verdict → trials, as that version counted them."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
        rows = store.execute(
            "SELECT s.value, CASE WHEN r.status = 'KILLED' THEN 'interrupted' ELSE v.value END FROM tags s "
            "JOIN tags k ON k.run_uuid = s.run_uuid AND k.key = 'kind' AND k.value = 'trial' "
            "JOIN tags v ON v.run_uuid = s.run_uuid AND v.key = 'verdict' JOIN runs r ON r.run_uuid = s.run_uuid "
            "AND r.lifecycle_stage = 'active' WHERE s.key = 'sweep_id'").fetchall()
    store.close()
    return {sweep_id: Counter(verdict for each, verdict in rows if each == sweep_id) for sweep_id, _ in rows}


def put_in_spool(home: Path, sweep_id: str, orders: range) -> None:
    """Trials that a store did not take, as that version kept them."""
    for order in orders:
        folder = home / "spool" / sweep_id / f"{order:04d}-oneshot-on-r9"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({
            "schema_version": 1, "sweep_id": sweep_id, "cell": "oneshot-on", "repetition": 9, "block": 9,
            "order": order, "mode": "oneshot", "infer_os": "on", "verdict": "suspect", "reasons": ["it swapped"],
            "notes": [], "started_ms": 1_795_700_000_000 + order, "ended_ms": 1_795_700_009_000, "params": {"seed": 1},
            "settings": {}, "metrics": {"stabilized/tree_rss_mib": {"1": 99.5}}, "series": {}, "tags": {"host": "vm"},
            "folder": str(folder), "extra": {"interrupted": False}, "suspect_phases": {}}))
        (folder / "response.txt").write_text("an answer")
    (home / "spool" / sweep_id / "owner.txt").write_text(f"{home / 'mlflow.db'}\n1\n1\nslackwater")


@pytest.fixture
def home(store_of_3c8a73e: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this machine's store."""
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(store_of_3c8a73e))
    return store_of_3c8a73e


def digest(home: Path) -> str:
    return hashlib.sha256((home / "mlflow.db").read_bytes()).hexdigest()


def test_its_sweeps_are_known_by_name_and_come_when_they_are_named(home: Path) -> None:
    before = digest(home)
    sweeps = opened.sweeps(None)
    assert [(sweep.sweep_id, sweep.status, sweep.fetched) for sweep in sweeps.all()] == [
        (FINISHED, "finished", False), (INTERRUPTED, "interrupted", False), (FAILED, "failed", False)]
    subject = sweeps.subject(FINISHED)
    assert len(subject.trials) == subject.sweep.trials["valid"] == 8
    assert (subject.sweep.origin, subject.sweep.tag("arguments")[:1]) == ("taken over", ["mode=oneshot,interactive"])
    assert len(subject.plan["cells"]) == 4
    trial = subject.trials[0]
    assert (trial.params["num_ctx"], trial.settings["n_ctx"]) == (2048, 2048)
    assert trial.tags["host"] == "vm" and "sweep_id" not in trial.tags
    assert trial.artifact("config.yaml") and trial.artifact("provenance.json")
    interactive = next(trial for trial in subject.trials if trial.mode == "interactive")
    assert interactive.turns["stabilized/tree_rss_mib"].keys() == {1}
    assert interactive.turns["as_found/tree_rss_mib"].keys() == {0}
    assert not any(name.startswith("timeline/") for name in interactive.turns)
    by_run = opened.sweeps(None).subject(trial.run_id)
    assert by_run.trials == [trial] and [sweep.fetched for sweep in sweeps.all()] == [True, False, False]
    assert digest(home) == before, "the database is not altered"


def test_a_run_id_of_a_sweep_that_was_not_fetched_yet_names_its_trial(home: Path) -> None:
    [(killed,)] = sqlite3.connect(home / "mlflow.db").execute(
        "SELECT r.run_uuid FROM runs r JOIN tags k ON k.run_uuid = r.run_uuid AND k.value = 'trial' "
        "WHERE r.status = 'KILLED'")
    [trial] = opened.sweeps(None).subject(killed).trials
    assert (trial.sweep_id, trial.verdict, list(trial.reasons)) == (INTERRUPTED, "interrupted", ["interrupted"])


def test_a_store_that_was_looked_through_is_read_without_mlflow_until_others_write_there(
        home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.sweeps(None).sweep(FINISHED)
    monkeypatch.setattr(pull, "make_client", None)
    assert len(opened.sweeps(None).all()) == 3
    assert opened.sweeps(None).sweep(FINISHED).trials == {"valid": 8}
    with sqlite3.connect(home / "mlflow.db") as store:
        store.execute("UPDATE tags SET value = 'Which?' WHERE key = 'question'")
    store.close()
    with pytest.raises(StoreError):
        opened.sweeps(None).all()


@pytest.mark.parametrize("trials", [40, pytest.param(200, marks=pytest.mark.thorough)])
def test_each_of_its_trials_comes_once_with_its_verdict_whatever_interrupts(home: Path, trials: int) -> None:
    grown(home / "mlflow.db", FINISHED, trials - 17 - WAITING + 1)
    with sqlite3.connect(home / "mlflow.db") as store:
        store.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = ?", (f"{7:032d}",))
    store.close()
    expected, before = verdicts(home / "mlflow.db"), digest(home)
    put_in_spool(home, INTERRUPTED, range(20, 20 + WAITING))
    expected[INTERRUPTED]["suspect"] += WAITING

    def stop(sweep_id: str, done: int, of: int) -> None:
        if (sweep_id, done) == (FINISHED, 10):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull.Fetched(location.local(), stop).sweep(FINISHED)
    first = {path.name: path.stat().st_mtime_ns for path in (home / "sweeps" / FINISHED / "trials").iterdir()}
    assert len(first) == 10
    found = {sweep_id: Counter(trial.verdict for trial in opened.sweeps(None).subject(sweep_id).whole_sweep)
             for sweep_id in (FINISHED, FAILED, INTERRUPTED)}
    assert found == expected
    assert sum(count.total() for count in found.values()) == trials
    for name, mtime_ns in first.items():
        assert (home / "sweeps" / FINISHED / "trials" / name).stat().st_mtime_ns == mtime_ns
    assert digest(home) == before
    assert not list((home / "spool").iterdir()), "it is a record now"


def test_what_waited_is_pushed_and_the_rest_is_there_already(home: Path) -> None:
    put_in_spool(home, INTERRUPTED, range(20, 20 + WAITING))
    synced = sync()
    assert (synced.sent, list(synced.notes)) == (WAITING, [])
    assert all(sweep.fetched for sweep in Sweeps(home, "").all())
    assert sync().sent == 0
    assert verdicts(home / "mlflow.db")[INTERRUPTED] == {"valid": 4, "interrupted": 1, "suspect": WAITING}


def test_a_damaged_result_stays_in_the_spool_and_stops_nothing(home: Path) -> None:
    put_in_spool(home, INTERRUPTED, range(20, 22))
    damaged = home / "spool" / INTERRUPTED / "0020-oneshot-on-r9" / "result.json"
    damaged.write_text('{"schema_version": 1, "sweep')
    assert len(opened.sweeps(None).all()) == 3
    assert damaged.is_file() and not damaged.parent.with_name("0021-oneshot-on-r9").exists()


def test_texts_that_stand_in_parts_are_read_whole() -> None:
    long = "x" * 20_000
    sha = hashlib.sha256(long.encode()).hexdigest()[:12]
    tail = f" … cut from 20000 characters, sha256 {sha}"
    text = json.dumps(long)
    parts = {f"question/part {n + 1} of 3": text[n * 8000:(n + 1) * 8000] for n in range(3)}
    shown = {"question": long[:8000 - len(tail)] + tail, "cwd": "/"}
    assert takeover.whole(shown | parts) == {"question": long, "cwd": "/"}
    assert takeover.whole(shown | parts | {"question": "another"}) == {"question": "another", "cwd": "/"}
