"""Ctrl-C, SIGTERM and SIGHUP at any instant: the program ends by them, at once and without a trace."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

EVERYTHING = bool(os.environ.get("CI") or os.environ.get("SLACKWATER_TEST_ALL"))


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words], cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLACKWATER_HOME": str(home)})


def caught(pid: int) -> set[int]:
    """The signals that the process has handlers for (proc(5), SigCgt)."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigCgt:")), 16)
    return {number for number in range(1, 32) if mask >> (number - 1) & 1}


def until_it_listens(process: subprocess.Popen[str]) -> None:
    """The interpreter's own start is not ours: it takes SIGINT alone."""
    until = time.monotonic() + 30
    while signal.SIGTERM not in caught(process.pid):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize(("words", "times"), [
    (("run", "mode=oneshot", "--dry-run"), 30 if EVERYTHING else 3), (("show",), 30 if EVERYTHING else 2)])
def test_a_signal_at_any_instant_is_the_end_with_its_exit_code_and_no_trace(
        words: tuple[str, ...], times: int, store_of_3c8a73e: Path, model_file: Path) -> None:
    home = store_of_3c8a73e
    whole = start(home, *words)
    until_it_listens(whole)
    began = time.monotonic()
    _, said = whole.communicate(timeout=120)
    lasts_s = time.monotonic() - began
    assert whole.returncode == 0, said
    drawn, seed = random.Random(), random.SystemRandom().randrange(2**32)
    drawn.seed(seed)
    for _ in range(times):
        number, after_s = drawn.choice((signal.SIGINT, signal.SIGTERM)), drawn.uniform(0, lasts_s)
        process = start(home, *words)
        until_it_listens(process)
        time.sleep(after_s)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        case = f"seed {seed}: {number.name} after {after_s:.3f} s: {process.returncode}\n{said}"
        # -number: by the system's own hand, when Python has taken its handlers away at its very end
        assert process.returncode in (128 + number, -number, 0), case
        assert not said, case
