"""What the meters report, held against a program that allocates exact amounts at exact times."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.clear import clear_program
from pipeline.config import Clear
from pipeline.meter.model_file import evict
from pipeline.meter.sampler import Sampler, lost_slots
from pipeline.meter.tree import become_subreaper, children, members, read_peaks, read_tree, reset_peaks
from pipeline.phases import MIB
from tests.truth.program import Program


@pytest.fixture
def program() -> Iterator[Program]:
    with Program() as running:
        yield running


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[Sampler]:
    with Sampler(tmp_path, 100, 0.2) as running:
        yield running


def test_512_mib_are_reported_as_512_mib(program: Program, sampler: Sampler) -> None:
    sampler.follow(program.pid)
    before = read_tree(members(program.pid))
    program.tell("hold", name="weights", kind="anon", mib=512)
    after = read_tree(members(program.pid))
    time.sleep(0.1)
    sampled = int(sampler.since(after.t_ns).tree_rss[-1])
    pss = [sum(p.pss or 0 for p in reading.processes) for reading in (before, after)]
    assert after.rss - before.rss == pytest.approx(512 * MIB, rel=0.01)
    assert sampled - before.rss == pytest.approx(512 * MIB, rel=0.01)
    assert pss[1] - pss[0] == pytest.approx(512 * MIB, rel=0.01)


@pytest.mark.parametrize("hold_ms", [5, 20, 50])
def test_the_peak_of_a_short_spike_is_the_kernels(program: Program, hold_ms: float) -> None:
    program.tell("spike", mib=1, hold_ms=1)
    for _ in range(5):
        before = read_tree([program.pid], with_pss=False).rss
        assert reset_peaks([program.pid]) == []
        assert read_peaks([program.pid])[program.pid] == pytest.approx(before, abs=0.25 * MIB)
        program.tell("spike", mib=64, hold_ms=hold_ms)
        assert read_peaks([program.pid])[program.pid] - before == pytest.approx(64 * MIB, rel=0.01)
        assert read_tree([program.pid], with_pss=False).rss - before < MIB


@pytest.mark.parametrize("kind", ["anon", "file", "shmem"])
def test_only_the_kind_that_moved_moves(program: Program, sampler: Sampler, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\1" * (100 * MIB))
    sampler.follow(program.pid)
    time.sleep(0.1)
    before = sampler.timeline().columns
    answer = program.tell("hold", name="x", kind=kind, mib=100, path=str(path))
    time.sleep(0.1)
    after = sampler.since(answer["end_ns"]).columns
    moved = {name: int(after[f"tree_{name}"][-1] - before[f"tree_{name}"][-1]) for name in ("anon", "file", "shmem")}
    assert moved.pop(kind) == pytest.approx(100 * MIB, rel=0.005)
    assert all(abs(other) < 0.5 * MIB for other in moved.values())


def test_file_pages_are_told_apart_as_the_models_and_the_programs(program: Program, tmp_path: Path) -> None:
    weights, library = tmp_path / "weights.bin", tmp_path / "library.so"
    for path, mib in ((weights, 50), (library, 20)):
        path.write_bytes(b"\1" * (mib * MIB))
        program.tell("hold", name=path.name, kind="file", path=str(path))
    (process,) = read_tree([program.pid], model=[weights]).processes
    assert process.file_model == 50 * MIB
    assert process.file >= 70 * MIB
    (blind,) = read_tree([program.pid]).processes
    assert blind.file_model is None, "no file was named: nothing is told apart"


def test_a_library_reads_the_same_just_installed_and_in_use_for_long(tmp_path: Path) -> None:
    library = tmp_path / "library.so"

    def mapped() -> int:
        """Resident bytes of the library where a program needs every 64th page of it."""
        clear_program(Clear(name="unload", evict_model=True), [library])
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            assert memory[::64 * mmap.PAGESIZE]
            (process,) = read_tree([os.getpid()], model=[library]).processes
        assert process.file_model is not None
        return process.file_model

    with library.open("wb", buffering=0) as file:     # as pip writes it: its pages lie in large folios
        for _ in range(32):
            file.write(b"\1" * MIB)
    if not evict(library).verified:
        pytest.skip("this file system keeps every file in memory")
    long_in_use = mapped()
    library.unlink()
    with library.open("wb", buffering=0) as file:
        for _ in range(32):
            file.write(b"\1" * MIB)
    assert mapped() == pytest.approx(long_in_use, abs=0.5 * MIB), "without the clearing: 31 MiB against 14"


def test_memory_shared_by_two_processes_counts_once_in_pss_and_twice_in_rss(program: Program) -> None:
    program.tell("hold", name="both", kind="shmem", mib=100)
    alone = read_tree(members(program.pid))
    program.tell("child", mib=0.1)
    # The child has touched none of the shared pages yet: only what both map is split.
    both = read_tree(members(program.pid))
    assert len(both.processes) == 2
    assert sum(p.pss or 0 for p in both.processes) - sum(p.pss or 0 for p in alone.processes) < 10 * MIB
    assert sum(p.pss or 0 for p in both.processes) > 100 * MIB


def test_children_that_take_turns_peak_at_one_share_and_are_bounded_by_two(program: Program, sampler: Sampler) -> None:
    sampler.follow(program.pid)
    for _ in range(5):  # a sampler whose CPU was taken away says so, and could not see; the bound is the kernel's
        answer = program.tell("alternate", mib=128, hold_ms=60, rounds=3)
        timeline = sampler.since(answer["begin_ns"])
        joint = int(timeline.tree_rss.max()) - int(timeline.tree_rss.min())
        if lost_slots(timeline.due_ns, 100) == 0 and joint > 126 * MIB:
            break
    marks = read_peaks(answer["pids"])
    bound = sum(marks.values()) - sum(p.rss for p in read_tree(answer["pids"], with_pss=False).processes)
    assert joint == pytest.approx(128 * MIB, abs=2 * MIB)
    assert bound == pytest.approx(256 * MIB, abs=2 * MIB)


def test_a_detached_child_is_counted_through_the_subreaper(sampler: Sampler) -> None:
    become_subreaper()
    helpers = frozenset(children(os.getpid()))
    assert sampler.pid in helpers
    with Program() as server:
        sampler.follow(server.pid, os.getpid(), helpers)
        time.sleep(0.1)
        before = int(sampler.timeline().tree_rss[-1])
        detached = server.tell("detach", mib=100)["pid"]
        time.sleep(0.1)
        counted = int(sampler.timeline().tree_rss[-1]) - before
        seen = members(server.pid, os.getpid(), helpers)
        assert detached not in members(server.pid)
    os.waitpid(detached, 0)  # ended with the server's pipe; ours to reap
    assert detached in seen
    assert sampler.pid not in seen
    # 100 MiB of its own; the pages it shares with its parent since the fork count for both in RSS.
    assert 100 * MIB <= counted < 115 * MIB


def test_what_stands_still_is_read_less_often_and_every_movement_and_phase_at_the_full_rate(
        program: Program, tmp_path: Path) -> None:
    with Sampler(tmp_path, 100, 0.2, still_hz=20) as sampler:
        sampler.follow(program.pid)
        time.sleep(0.6)
        phase_ns = time.monotonic_ns()
        sampler.attend(0.2)
        time.sleep(0.6)
        moved = program.tell("hold", name="x", kind="anon", mib=64)
        time.sleep(0.6)
        timeline, report = sampler.timeline(), sampler.stop()
    t, rate = timeline.t_ns, timeline.columns["rate_hz"]
    for began_ns in (phase_ns, moved["begin_ns"]):
        assert (rate[(t > began_ns - 200_000_000) & (t < began_ns)] == 20).all(), "nothing had moved"
    for until_ns, began_ns in ((200_000_000, phase_ns), (250_000_000, moved["end_ns"])):
        assert (rate[(t > began_ns + 60_000_000) & (t < began_ns + until_ns - 20_000_000)] == 100).all()
    assert rate[-1] == 20
    assert report.samples < 0.9 * (timeline.due_ns[-1] - timeline.due_ns[0]) / 10_000_000
    assert report.lost_slots == lost_slots(timeline.due_ns, rate)


def test_a_vforked_child_in_its_parents_memory_is_not_counted_twice(
        program: Program, sampler: Sampler, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program.tell("hold", name="x", kind="anon", mib=100)
    sampler.follow(program.pid)
    time.sleep(0.1)
    alone = int(sampler.timeline().tree_rss[-1])
    program.send("vfork", fifo=str(fifo))
    time.sleep(0.4)
    begin = time.monotonic_ns()
    time.sleep(0.2)
    assert len(members(program.pid)) == 2
    both = sampler.since(begin).tree_rss
    os.close(os.open(fifo, os.O_WRONLY))
    program.answer()
    assert len(both) >= 5
    assert both.max() - alone < MIB


def test_a_child_that_vanishes_is_forgotten_and_nothing_breaks(program: Program, sampler: Sampler) -> None:
    sampler.follow(program.pid)
    for _ in range(10):
        child = program.tell("child", mib=20)["pid"]
        time.sleep(0.03)
        program.tell("end_child", pid=child)
    time.sleep(0.3)
    timeline = sampler.timeline()
    assert timeline.columns["tree_processes"].max() == 2
    assert timeline.columns["tree_processes"][-1] == 1
    assert timeline.tree_rss[-1] == pytest.approx(read_tree([program.pid]).rss, abs=0.25 * MIB)
    assert read_tree([child]).processes == ()
    assert read_peaks([child]) == {}
    assert reset_peaks([child]) == []
