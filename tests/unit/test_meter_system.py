"""System readings agree with psutil, and disturbance is a plain difference."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.errors import MeterError
from pipeline.meter.system import Interference, ProcessUse, disturbance, read_system, snapshot, with_found
from pipeline.phases import MIB


def test_a_reading_means_what_psutil_means() -> None:
    ours, theirs, swap = read_system(), psutil.virtual_memory(), psutil.swap_memory()
    assert ours.total == theirs.total
    assert ours.percent == pytest.approx(theirs.percent, abs=1.0)
    for name in ("used", "available", "free", "cached"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=200 * MIB)
    assert (ours.swap_total, ours.swap_used) == (swap.total, swap.used)


def test_a_machine_without_proc_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="proc/meminfo cannot be read"):
        read_system(tmp_path)


def _tree(root: Path, *, pressure: bool) -> None:
    (root / "proc/pressure").mkdir(parents=True)
    (root / "proc/7").mkdir()
    (root / "proc/vmstat").write_text("pgmajfault 5\npswpin 10\npswpout 20\n")
    (root / "proc/stat").write_text("cpu  100 10 50 9000 400 1 2 3 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    if pressure:
        (root / "proc/pressure/memory").write_text(
            "some avg10=1.50 avg60=0.10 avg300=0.00 total=250000\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=1000\n")
    (root / "proc/7/stat").write_text(
        "7 (a b) (c)) S 1 7 7 0 -1 4194304 900 0 3 4 150 50 30 20 20 0 1 0 777 1000 10 18446744073709551615\n")


@pytest.mark.parametrize("pressure", [True, False])
def test_a_snapshot_of_recorded_files(tmp_path: Path, pressure: bool) -> None:
    _tree(tmp_path, pressure=pressure)
    taken = snapshot([7, 8], own_pids=[], root=tmp_path)
    tick = os.sysconf("SC_CLK_TCK")
    assert taken.tree == {(7, 777): ProcessUse(250 / tick, 7)}, "with the children that have ended"
    assert (taken.swapped_in_bytes, taken.swapped_out_bytes, taken.major_faults) == (40960, 81920, 5)
    assert (taken.cpu_busy_s, taken.cpu_stolen_s) == pytest.approx((163 / tick, 3 / tick))
    expected = (250000, 1000, 1.5, 0.25) if pressure else (None, None, None, None)
    assert (taken.memory_some_us, taken.memory_full_us,
            taken.memory_some_avg10_pct, taken.memory_full_avg10_pct) == expected


def test_disturbance_is_what_others_did_between_two_snapshots() -> None:
    before = Interference(0, 0, 0, 10, 1_000_000, 0, 0.0, 0.0, 100.0,
                          tree={(5, 1): ProcessUse(10.0, 1)}, own={(6, 1): ProcessUse(1.0, 0)})
    after = Interference(10_000_000_000, 4096, 8192, 15, 1_500_000, 0, 0.0, 0.0, 125.0,
                         tree={(5, 1): ProcessUse(20.0, 3), (5, 2): ProcessUse(1.0, 0)},
                         own={(6, 1): ProcessUse(1.5, 0)}, cpu_stolen_s=3.0)
    seen = disturbance(before, after)
    assert (seen.seconds, seen.swapped_in_bytes, seen.swapped_out_bytes, seen.major_faults) == (10.0, 4096, 8192, 5)
    assert seen.tree_major_faults == 2
    assert seen.memory_some_pct == pytest.approx(5.0)
    assert seen.memory_full_pct == 0.0
    assert seen.tree_cpu_cores == pytest.approx(1.1)
    assert seen.own_cpu_cores == pytest.approx(0.05)
    assert seen.other_cpu_cores == pytest.approx(1.35)
    assert seen.stolen_cpu_cores == pytest.approx(0.3)


def test_an_engine_that_its_server_has_killed_is_no_neighbour() -> None:
    # Ollama ends the process with the model at an unload; what is left of the tree then is the parent that reaped it
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    serve = f"import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {burn!r}]); print(); input()"
    before = snapshot()
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", serve], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        seen = disturbance(before, snapshot([server.pid]))
        server.communicate(b"\n")
    assert seen.tree_cpu_cores * seen.seconds >= 0.35


def test_what_an_attached_server_used_before_the_trial_is_not_the_trials() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    before = Interference(0, 0, 0, 0, None, None, None, None, 0.0, boot_s=1000.0)
    use = ProcessUse(500.0, 90)
    found = replace(before, tree={(5, 999 * tick): use, (6, 1001 * tick): use})
    assert with_found(before, found).tree == {(5, 999 * tick): use}, "ours began within the trial: all of it counts"


def test_our_own_work_is_told_apart_from_a_neighbours() -> None:
    before = snapshot()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    seen = disturbance(before, snapshot())
    assert seen.own_cpu_cores * seen.seconds == pytest.approx(0.3, abs=0.05)
    assert seen.tree_cpu_cores == 0.0
