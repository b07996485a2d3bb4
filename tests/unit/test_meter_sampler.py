"""The sampler keeps its deadlines, its records and its manners: it dies with its parent and says why it died."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MeterError
from pipeline.meter.sampler import Sampler, lost_slots
from pipeline.meter.sampler_program import SAMPLE_BYTES, SAMPLE_CHUNK
from pipeline.phases import MIB


def test_start_hands_over_with_the_first_sample_taken_and_stop_reports_the_cost(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        assert len(sampler.timeline().t_ns) >= 1
        time.sleep(0.5)
        report = sampler.stop()
        assert sampler.stop() is report
        assert not sampler.alive()
    assert 40 <= report.samples + report.lost_slots <= 80
    assert 1 < report.rss_mib < 40
    assert 0 < report.cpu_pct < 50
    assert 0 < report.lateness_p50_ms <= report.lateness_p99_ms
    assert len(sampler.timeline().t_ns) == report.samples


def test_tree_columns_are_zero_while_nothing_is_followed(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        time.sleep(0.05)
        assert not sampler.timeline().tree_rss.any()
        followed_ns = time.monotonic_ns()
        sampler.follow(os.getpid())
        time.sleep(0.1)
        sampler.unfollow()
        left_ns = time.monotonic_ns()
        time.sleep(0.1)
        timeline = sampler.timeline()
    inside = (timeline.t_ns > followed_ns + 20_000_000) & (timeline.t_ns < left_ns - 20_000_000)
    while_followed = timeline.tree_rss[inside]
    assert len(while_followed)
    assert (while_followed > MIB).all()
    assert not timeline.tree_rss[timeline.t_ns > left_ns].any()
    assert (timeline.columns["system_total"] > timeline.columns["system_available"]).all()


def test_since_is_the_tail_of_the_timeline(tmp_path: Path) -> None:
    with Sampler(tmp_path, 200, 0.2) as sampler:
        time.sleep(0.2)
        cut = time.monotonic_ns()
        time.sleep(0.2)
        tail = sampler.since(cut)
        whole = sampler.timeline()
        early = sampler.since(0)
    assert len(tail.t_ns) >= 20
    assert (tail.t_ns >= cut).all()
    np.testing.assert_array_equal(tail.t_ns, whole.t_ns[whole.t_ns >= cut][:len(tail.t_ns)])
    assert early.t_ns[0] == whole.t_ns[0]


def test_rows_of_processes_add_up_to_the_samples(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        sampler.follow(os.getpid(), exclude=frozenset({sampler.pid}))
        time.sleep(0.2)
        sampler.stop()
    timeline, rows = sampler.timeline(), sampler.processes()
    counted = timeline.columns["tree_processes"] > 0
    assert counted.sum() >= 10
    for name in ("anon", "file", "shmem", "hwm"):
        summed = [getattr(rows, name)[rows.t_ns == t].sum() for t in timeline.t_ns[counted]]
        np.testing.assert_array_equal(summed, timeline.columns[f"tree_{name}"][counted])
    assert sampler.pid not in rows.pid


def test_lost_slots_are_deadlines_without_a_sample() -> None:
    due = np.array([0, 10, 20, 50, 60], dtype=np.int64) * 1_000_000
    assert lost_slots(due, 100) == 2
    assert lost_slots(due[:1], 100) == 0


def test_slots_that_passed_are_lost_not_made_up(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        time.sleep(0.1)
        os.kill(sampler.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(sampler.pid, signal.SIGCONT)
        time.sleep(0.1)
        report = sampler.stop()
    assert 25 <= report.lost_slots <= 40
    assert (np.diff(sampler.timeline().due_ns) > 0).all()


def test_following_what_does_not_exist_is_one_clear_error_and_sampling_goes_on(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        with pytest.raises(MeterError, match="Process 4194304 cannot be followed: it does not exist"):
            sampler.follow(4194304)
        sampler.follow(os.getpid())
        assert sampler.alive()


def test_a_dead_sampler_is_an_error_and_its_samples_are_kept(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        time.sleep(0.1)
        os.kill(sampler.pid, signal.SIGKILL)
        time.sleep(0.1)
        for call in (sampler.unfollow, sampler.stop, sampler.report, lambda: sampler.since(0)):
            with pytest.raises(MeterError, match="ended during the measurement, killed by signal 9"):
                call()
        assert len(sampler.timeline().t_ns) >= 3


def test_a_full_disk_ends_the_sampler_with_the_reason(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        # A limit on the file's size is how a disk that takes no more looks to write(2).
        resource.prlimit(sampler.pid, resource.RLIMIT_FSIZE, (3000, 3000))
        sampler.follow(os.getpid())
        deadline = time.monotonic() + 5
        while sampler.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(MeterError, match=r"ended during the measurement.*(File too large|signal 25)"):
            sampler.stop()
        assert len(sampler.timeline().t_ns) >= 20


def test_samples_go_on_over_the_end_of_a_chunk_and_a_disk_that_is_full_then_is_named(tmp_path: Path) -> None:
    with Sampler(tmp_path, 2000, 0.2) as sampler:
        chunk = SAMPLE_CHUNK // SAMPLE_BYTES
        resource.prlimit(sampler.pid, resource.RLIMIT_FSIZE, (2 * SAMPLE_CHUNK, 2 * SAMPLE_CHUNK))
        deadline = time.monotonic() + 10
        while sampler.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(MeterError, match=r"ended during the measurement.*(File too large|signal 25)"):
            sampler.stop()
        timeline = sampler.timeline()
    assert len(timeline.t_ns) == 2 * chunk
    assert (np.diff(timeline.due_ns) > 0).all()
    assert (timeline.columns["system_total"] == timeline.columns["system_total"][0]).all()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"No such file or directory: .*missing"):
        Sampler(tmp_path / "missing", 100, 0.2).start()


def test_the_sampler_dies_with_its_parent(tmp_path: Path) -> None:
    program = ("import os, sys, time; from pathlib import Path; from pipeline.meter.sampler import Sampler; "
               "s = Sampler(Path(sys.argv[1]), 100, 0.2).start(); s.follow(os.getpid()); print(s.pid, flush=True); "
               "time.sleep(60)")
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    handle = os.pidfd_open(pid)
    assert not select.select([handle], [], [], 0.2)[0]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert select.select([handle], [], [], 5)[0], "the sampler outlived its parent"
    os.close(handle)
    parent.stdout.close()


def test_the_sampler_has_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        assert os.getsid(sampler.pid) == sampler.pid


def test_the_program_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2) as sampler:
        maps = Path("/proc", str(sampler.pid), "maps").read_text()
    assert "site-packages" not in maps
    assert "numpy" not in maps
