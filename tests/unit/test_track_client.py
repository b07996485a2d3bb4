"""MLflow's client is impatient, and silent about what it raises."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from pipeline import interrupt
from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.track.client import make_client, store_errors
from pipeline.track.location import locate


def test_a_locked_database_costs_two_seconds_hears_ctrl_c_and_shows_no_trace_of_mlflows(
        empty_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    location = locate(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    client = make_client(location)
    run = client.create_run("0").info.run_id
    with sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="database is locked"), store_errors(location, "being written"):
            client.set_tag(run, "name", "value")
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupt.listening(is_program=False):
            client.set_tag(run, "name", "value")
        assert time.monotonic() - began < 10
    interrupt._came.clear()
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
