"""Meters are here or absent with a reason; pressure, cgroup, system and tree on recorded and on live trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.meter import cgroup, model_file, pressure, system, tree
from pipeline.meter.base import Absent, Available, Found, Target, find_all
from pipeline.phases import MIB
from pipeline.testing import MeterContract


def test_every_meter_of_the_issue_is_found_or_absent_with_a_reason() -> None:
    found = {one.name: one for one in find_all(target=Target([os.getpid()]))}
    assert found.keys() >= {"cgroup", "gpu", "model_file", "npu", "pressure", "system", "tree"}
    for one in found.values():
        assert isinstance(one, Available) or one.reason
    for name in ("system", "tree"):
        here = found[name]
        assert isinstance(here, Available)
        reading = here.meter.read([os.getpid()])
        assert reading
        assert all(key.endswith(("_bytes", "_pct")) for key in reading)


def test_an_empty_machine_has_no_meters_and_no_zeros(tmp_path: Path) -> None:
    found = find_all(tmp_path)
    assert len(found) >= 7
    for one in found:
        assert isinstance(one, Absent)
        assert one.reason


def test_the_trees_reading_adds_up() -> None:
    found = tree.find()
    assert isinstance(found, Available)
    reading = found.meter.read([os.getpid()])
    assert reading["rss_bytes"] == reading["anon_bytes"] + reading["file_bytes"] + reading["shmem_bytes"]
    assert 0 < reading["uss_bytes"] <= reading["pss_bytes"] <= reading["rss_bytes"] + MIB


ZONEINFO = """Node 0, zone   Normal
  per-node stats
      nr_inactive_anon 100
  pages free     5000
  pagesets
    cpu: 0
              count:    300
              high:     400
              batch:    63
  vm stats threshold: 40
    cpu: 1
              count:    212
              high:     400
              batch:    63
  node_unreclaimable:  0
"""


def test_per_cpu_free_pages_are_the_sum_over_zones_and_cpus(tmp_path: Path) -> None:
    assert system.per_cpu_free_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/zoneinfo").write_text(ZONEINFO)
    assert system.per_cpu_free_bytes(tmp_path) == 512 * os.sysconf("SC_PAGE_SIZE")


def test_pressure_that_is_switched_off_is_absent() -> None:
    found = pressure.find()
    if isinstance(found, Absent):
        pytest.skip("no PSI here")
    reading = found.meter.read()
    assert reading["some_total_us"] >= reading["full_total_us"] >= 0
    assert 0 <= reading["some_avg10_pct"] <= 100


def _cgroup_v2(root: Path, pids: list[int], **files: str) -> Path:
    folder = root / "sys/fs/cgroup/user.slice/server.scope"
    (folder / "inner").mkdir(parents=True)
    (root / "proc" / str(pids[0])).mkdir(parents=True)
    (root / "proc" / str(pids[0]) / "cgroup").write_text("0::/user.slice/server.scope\n")
    (folder / "cgroup.procs").write_text(f"{pids[0]}\n")
    (folder / "inner/cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids[1:]))
    defaults = {
        "memory.current": "209715200\n", "memory.peak": "314572800\n", "memory.swap.current": "4096\n",
        "memory.stat": "anon 104857600\nfile 94371840\nkernel 1048576\nshmem 0\n",
        "memory.events": "low 0\nhigh 2\nmax 0\noom 1\noom_kill 1\noom_group_kill 0\n"}
    for name, text in (defaults | files).items():
        (folder / name).write_text(text)
    return folder


class TestCgroup(MeterContract):
    name = "cgroup"

    @pytest.fixture
    def found(self, tmp_path: Path) -> Found:
        _cgroup_v2(tmp_path / "recorded", [10, 11], **{"memory.peak": "0\n"})
        return cgroup.find(tmp_path / "recorded", Target([10, 11]))


class TestModelFile(MeterContract):
    name = "model_file"

    @pytest.fixture
    def found(self, tmp_path: Path) -> Found:
        (tmp_path / "weights.gguf").write_bytes(b"w" * 8192)
        return model_file.find(target=Target(model_path=tmp_path / "weights.gguf"))


class TestPressure(MeterContract):
    name = "pressure"


class TestSystem(MeterContract):
    name = "system"


class TestTree(MeterContract):
    name = "tree"


def test_a_cgroup_v2_of_its_own_is_read_with_peak_and_events(tmp_path: Path) -> None:
    folder = _cgroup_v2(tmp_path, [10, 11])
    found = cgroup.find(tmp_path, Target([10, 11]))
    assert isinstance(found, Available)
    assert found.note.startswith("v2")
    reading = found.meter.read()
    assert (reading["current_bytes"], reading["peak_bytes"]) == (200 * MIB, 300 * MIB)
    assert (reading["anon_bytes"], reading["file_bytes"], reading["swap_bytes"]) == (100 * MIB, 90 * MIB, 4096)
    assert (reading["oom_kill_events_count"], reading["high_events_count"]) == (1, 2)
    found.meter.reset()
    assert (folder / "memory.peak").read_text().startswith("0\n"), "the reset must be a write to memory.peak"


def test_a_kernel_without_memory_peak_or_swap_gives_none(tmp_path: Path) -> None:
    folder = _cgroup_v2(tmp_path, [10])
    (folder / "memory.peak").unlink()
    (folder / "memory.swap.current").unlink()
    found = cgroup.find(tmp_path, Target([10]))
    assert isinstance(found, Available)
    found.meter.reset()
    assert not {"peak_bytes", "swap_bytes"} & set(found.meter.read())


def test_a_cgroup_that_others_share_is_not_used(tmp_path: Path) -> None:
    _cgroup_v2(tmp_path, [10, 11, 12])
    found = cgroup.find(tmp_path, Target([10]))
    assert isinstance(found, Absent)
    assert found.reason.startswith("shared:")
    assert "2 processes besides the server's" in found.reason


def test_the_root_cgroup_has_no_figures(tmp_path: Path) -> None:
    (tmp_path / "proc/10").mkdir(parents=True)
    (tmp_path / "proc/10/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    found = cgroup.find(tmp_path, Target([10]))
    assert isinstance(found, Absent)
    assert "has no memory.current" in found.reason


def test_cgroup_v1_is_read_by_its_own_names(tmp_path: Path) -> None:
    folder = tmp_path / "sys/fs/cgroup/memory/box"
    folder.mkdir(parents=True)
    (tmp_path / "proc/10").mkdir(parents=True)
    (tmp_path / "proc/10/cgroup").write_text("4:memory:/box\n1:cpu:/\n0::/\n")
    for name, text in (("cgroup.procs", "10\n"), ("memory.usage_in_bytes", "1000\n"),
                       ("memory.max_usage_in_bytes", "3000\n"),
                       ("memory.stat", "cache 1\nrss 2\ntotal_cache 400\ntotal_rss 500\ntotal_swap 7\n")):
        (folder / name).write_text(text)
    found = cgroup.find(tmp_path, Target([10]))
    assert isinstance(found, Available)
    assert found.note.startswith("v1")
    assert found.meter.read() == {"current_bytes": 1000, "peak_bytes": 3000, "anon_bytes": 500, "file_bytes": 400,
                                  "swap_bytes": 7}


def test_the_model_files_meter_needs_a_file_it_may_ask_about(tmp_path: Path) -> None:
    assert isinstance(model_file.find(target=Target(model_path=tmp_path / "missing.gguf")), Absent)
    weights = tmp_path / "w.gguf"
    weights.write_bytes(b"\1" * MIB)
    found = model_file.find(target=Target(model_path=weights))
    assert isinstance(found, Available)
    assert found.meter.read() == {"resident_bytes": MIB}
