"""A temporary folder goes with its process, whatever ended that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.scratch import scratch
from tests.conftest import ROOT

HOLD = ("from pipeline.scratch import scratch; import time\n"
        "with scratch() as folder: print(folder, flush=True); time.sleep(60)")


def test_what_a_killed_process_left_goes_and_what_a_living_one_or_someone_else_has_stays(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "slackwater-scratch-of-another").mkdir()
    (tmp_path / "slackwater-scratch-link").symlink_to(tmp_path / "slackwater-scratch-of-another")
    running = [subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                env={**os.environ, "TMPDIR": str(tmp_path)}) for _ in range(2)]
    killed, alive = (Path(each.stdout.readline().strip()) for each in running if each.stdout)
    running[0].kill()
    running[0].wait()
    with scratch() as young:
        assert killed.is_dir() and young.is_dir()  # it may have been made in this moment
    assert not young.exists()
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    if os.geteuid() == 0:
        os.chown(tmp_path / "slackwater-scratch-of-another", 65534, 65534)
    (alive / "of a sweep").touch()
    os.utime(alive, (0, 0))
    with scratch():
        assert not killed.exists()
        assert (alive / "of a sweep").is_file() and (tmp_path / "slackwater-scratch-link").is_symlink()
        assert os.geteuid() or (tmp_path / "slackwater-scratch-of-another").is_dir()
    running[1].kill()
    running[1].communicate()
