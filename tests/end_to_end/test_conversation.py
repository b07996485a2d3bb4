"""A user at a real terminal with a real model: typed, answered, measured, logged as a trial that was typed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.terminal import Terminal


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    return Path(shutil.copytree(empty_store, tmp_path_factory.mktemp("typed") / "store"))


@pytest.mark.thorough
def test_typed_at_a_terminal(store: Path, model_file: Path) -> None:
    uri = f"sqlite:///{store}/mlflow.db"
    command = [sys.executable, "-m", "pipeline", "run", "mode=interactive", "mode.source=stdin", "max_tokens=12",
               "num_ctx=512", "settle.window_s=0.5", "meter.rate_hz=20", f"tracking.uri={uri}"]
    with Terminal(command, 80, 60) as terminal:
        terminal.wait_for("/quit (or Ctrl-D)")
        terminal.wait_for(lambda: terminal.rows[-1] == ">")
        terminal.type("The sea\n")
        terminal.wait_for("turn 1  before")
        terminal.wait_for(lambda: terminal.rows[-1] == ">")
        terminal.type("/stats\n")
        terminal.wait_for("now, MiB: anonymous")
        terminal.type("tide " * 700 + "\n")  # more than the context takes
        terminal.wait_for("too long")
        terminal.wait_for(lambda: terminal.rows[-1] == ">")
        terminal.type("/unload\n")
        terminal.wait_for("The model is unloaded")
        terminal.wait_for(lambda: terminal.rows[-1] == ">")
        terminal.type("and the tide\n")
        terminal.wait_for("turn 2  before")
        terminal.wait_for(lambda: terminal.rows[-1] == ">")
        terminal.type("\x03")
        assert terminal.end(60) == 0
    assert "1 trial, " in terminal.text

    shown = subprocess.run([sys.executable, "-m", "pipeline", "show", "--json", "--store", uri], cwd=store, check=True,
                           capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    [trial] = json.loads(shown.stdout)["trials"]
    assert all("the sampler" in reason for reason in trial["reasons"]), "only a starved machine is an excuse"
    assert trial["verdict"] in ("valid", "suspect") and trial["params"]["mode.source"] == "stdin"
    turns = trial["turns"]["pre_generation/tree_rss_mib"]
    assert turns["2"] < turns["1"] - 50, "the model was away before the second turn"
    assert {"1", "2"} == set(trial["turns"]["stabilized/tree_rss_mib"])
    with sqlite3.connect(store / "mlflow.db") as connection:
        assert connection.execute("SELECT value FROM tags WHERE key = 'typed'").fetchall() == [("2 prompts",)]
    response = next(store.rglob("response.txt")).read_text()
    assert "The sea" in response and "and the tide" in response


def test_an_empty_pipe_is_refused_before_anything_is_started(tmp_path: Path, model_file: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "run", "mode=interactive", "mode.source=stdin",
                           f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"], cwd=tmp_path, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "nobody types here" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "mlflow.db").exists()
