"""One process at a time, on this machine or at a file; a wait has a limit, ends by a signal, and says for what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import interrupt, lock
from pipeline.errors import ConfigError, StoreError
from pipeline.sweep.lock import holder, machine_lock
from tests.conftest import ROOT

HOLD = ("import time; from pipeline.sweep.lock import machine_lock\n"
        "with machine_lock('fail', print): print('held', flush=True); time.sleep(60)")


@contextmanager
def another(**environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds this machine for a sweep."""
    running = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               env={**os.environ, **environment})
    try:
        assert running.stdout is not None and running.stdout.readline() == "held\n"
        yield running
    finally:
        running.kill()
        running.communicate()


def test_one_sweep_holds_the_machine_for_every_tmpdir_and_user_and_is_named(tmp_path: Path) -> None:
    with another(TMPDIR=str(tmp_path), HOME=str(tmp_path), SLACKWATER_HOME=str(tmp_path)) as other:
        assert holder() == str(other.pid)
        with pytest.raises(ConfigError, match=rf"another sweep runs on this machine \(process {other.pid}\)"), \
                machine_lock("fail", print):
            pass


def test_the_lock_ends_with_a_killed_owner_and_what_it_started_does_not_inherit_it() -> None:
    said: list[str] = []
    with machine_lock("fail", print):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # as a server is started
    try:
        with another() as other:
            threading.Timer(0.3, other.kill).start()
            with machine_lock("wait", said.append):
                assert said == [f"another sweep runs on this machine (process {other.pid}): waiting for it"]
                assert holder() == str(os.getpid())
        assert holder() == ""
    finally:
        child.kill()
        child.wait()


def test_a_wait_for_a_lock_ends_at_its_limit_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "some lock"
    with lock.on_file(path, StoreError), \
            pytest.raises(StoreError, match=r"holds .*some lock, .*at most 0.3 s.*fuser -v '.*some lock'"), \
            lock.on_file(path, StoreError, 0.3):
        pass
    with lock.on_file(path, StoreError, 0.3):
        pass


@pytest.mark.parametrize("held_back", [False, True])
def test_a_wait_for_a_lock_ends_by_the_first_signal(held_back: bool, tmp_path: Path) -> None:
    """Also while signals are held back, to send what was measured: for a wait nothing is left half done."""
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with interrupt.listening(is_program=False), lock.on_file(tmp_path / "lock", StoreError):
        if held_back:
            with interrupt.held_back(), pytest.raises(StoreError, match="holds"), \
                    lock.on_file(tmp_path / "lock", StoreError):
                pass
        else:
            with pytest.raises(KeyboardInterrupt), lock.on_file(tmp_path / "lock", StoreError):
                pass
    assert time.monotonic() - began < 3
    interrupt._came.clear()


def test_a_lock_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"The lock .*\.lock cannot be opened: File exists"), \
            lock.on_file(tmp_path / "file" / ".lock", StoreError):
        pass
