"""A sweep that was interrupted goes on where it ended, and refuses to if something has changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.record.folder import SweepFolder
from pipeline.sweep.lock import machine_lock
from tests.conftest import ROOT

PLAN = ["mode=oneshot", "repetitions=3", "meter.rate_hz=50", "max_tokens=4", "settle.window_s=0.3"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def environment(store: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "SLACKWATER_HOME": str(store)}


def slackwater(store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=store, env=environment(store), text=True, capture_output=True,
                          timeout=110, check=False)


def trials(store: Path) -> list[dict[str, Any]]:
    shown = slackwater(store, "show", "--json", "--store", f"sqlite:///{store}/mlflow.db")
    found: list[dict[str, Any]] = json.loads(shown.stdout)["trials"]
    return found


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, model_file: Path, empty_store: Path) -> Path:
    """A store with a sweep of three trials that Ctrl-C ended in the second."""
    store = tmp_path_factory.mktemp("store")
    shutil.copytree(empty_store, store, dirs_exist_ok=True)
    running = subprocess.Popen(command("run", *PLAN, f"tracking.uri=sqlite:///{store}/mlflow.db"), cwd=store,
                               env=environment(store), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    heard: list[str] = []  # what it says before the first trial, and that one is done
    while not any("trial 1 of 3" in line for line in heard):
        heard.append(running.stdout.readline())
        assert heard[-1], "".join(heard) + (running.stderr.read() if running.stderr else "")
    until = time.monotonic() + 60
    second = "sweeps/*/trials/.partial-0002-*"
    while not list(store.glob(second)) and running.poll() is None and time.monotonic() < until:
        time.sleep(0.02)  # until the second trial has a folder
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "slackwater resume" in said
    return store


@pytest.fixture
def store(interrupted: Path, tmp_path: Path) -> Path:
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, lambda text: text.replace(str(interrupted), str(tmp_path)))
    return tmp_path


def rewrite(store: Path, change: Callable[[str], str]) -> None:
    """What a test's copy of a store says of its sweep."""
    [sweep] = store.glob("sweeps/[!.]*")
    SweepFolder(sweep).write_text("sweep.json", change((sweep / "sweep.json").read_text()))


@pytest.mark.thorough
def test_resume_runs_what_is_missing_and_keeps_number_and_order(store: Path) -> None:
    before = trials(store)
    assert before[0]["verdict"] in ("valid", "suspect")
    done = slackwater(store, "resume", "--store", f"sqlite:///{store}/mlflow.db")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 3 trials are done" in done.stdout
    after = trials(store)
    assert [(trial["order"], trial["repetition"]) for trial in after] == [(1, 1), (2, 2), (3, 3)]
    assert {trial["verdict"] for trial in after} <= {"valid", "suspect"}
    assert after[0]["started_ms"] == before[0]["started_ms"]
    assert all(trial["run_id"] for trial in after)
    again = slackwater(store, "resume", "--store", f"sqlite:///{store}/mlflow.db")
    assert again.returncode == 0
    assert "is finished" in again.stdout


@pytest.mark.thorough
def test_the_same_command_goes_on_by_itself_and_says_so(store: Path) -> None:
    done = slackwater(store, "run", *PLAN, f"tracking.uri=sqlite:///{store}/mlflow.db")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on" in done.stdout
    assert "--fresh" in done.stdout
    assert [trial["order"] for trial in trials(store)] == [1, 2, 3]


@pytest.mark.thorough
def test_a_changed_machine_or_engine_is_refused_with_the_difference(store: Path) -> None:
    before = trials(store)
    def older(text: str) -> str:
        sweep = json.loads(text)
        was = json.loads(sweep["tags"]["environment"])
        sweep["tags"]["environment"] = json.dumps(was | {"kernel": "5.4.0-old"})
        return json.dumps(sweep)

    rewrite(store, older)
    done = slackwater(store, "resume", "--store", f"sqlite:///{store}/mlflow.db")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "kernel: 5.4.0-old" in done.stderr
    assert "--accept-change" in done.stderr
    assert trials(store) == before


def test_an_unknown_sweep_cannot_be_resumed(store_of_3c8a73e: Path) -> None:
    store = store_of_3c8a73e
    done = slackwater(store, "resume", "nosuch", "--store", f"sqlite:///{store}/mlflow.db")
    assert done.returncode == 2
    assert "nosuch" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_sweeps_at_once_are_refused_if_asked_before_anything_is_measured(
        tmp_path: Path, empty_store: Path, model_file: Path) -> None:
    store = shutil.copytree(empty_store, tmp_path / "store")
    with machine_lock("fail", lambda text: None):
        done = slackwater(store, "run", *PLAN, "design.when_busy=fail", "--fresh",
                          f"tracking.uri=sqlite:///{store}/mlflow.db")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"process {os.getpid()}" in done.stderr
    listed = slackwater(store, "runs", "--json", "--store", f"sqlite:///{store}/mlflow.db")
    assert json.loads(listed.stdout)["sweeps"] == []
