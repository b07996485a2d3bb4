"""Cores and memory are counted as the kernel would give them: affinity, and the cgroups of a container."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pipeline import machine
from pipeline.errors import ConfigError
from pipeline.meter.doctor import machine_facts
from pipeline.model.digest import cache_folder


def cgroups(root: Path, own: str, **files: str) -> Path:
    """A root folder with /proc/self/cgroup and files below /sys/fs/cgroup."""
    texts = {"proc/self/cgroup": own}
    texts |= {"sys/fs/cgroup/" + name: text for name, text in files.items()}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "4:memory:/docker/0a1b\n3:cpu,cpuacct:/docker/0a1b\n0::/docker/0a1b\n"


@pytest.mark.parametrize(("own", "files", "quota"), [
    ("0::/box\n", {"box/cpu.max": "150000 100000\n"}, 1.5),
    ("0::/box\n", {"box/cpu.max": "max 100000\n"}, None),
    ("0::/box\n", {}, None),
    ("", {}, None),
    # the tightest on the way up counts, whoever set it
    ("0::/slice/box\n", {"slice/box/cpu.max": "300000 100000\n", "slice/cpu.max": "25000 50000\n"}, 0.5),
    # a container without a cgroup namespace sees its host's path, and its own files at the top of the mount
    ("0::/docker/0a1b\n", {"cpu.max": "200000 100000\n"}, 2.0),
    (V1, {"cpu/docker/0a1b/cpu.cfs_quota_us": "50000\n", "cpu/docker/0a1b/cpu.cfs_period_us": "100000\n"}, 0.5),
    (V1, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
    (V1, {"cpu/docker/0a1b/cpu.cfs_quota_us": "-1\n", "cpu/docker/0a1b/cpu.cfs_period_us": "100000\n"}, None),
    (V1, {"cpu/docker/0a1b/cpu.cfs_quota_us": "no number\n"}, None),
])
def test_the_tightest_cpu_quota_of_our_cgroups_is_found(
        tmp_path: Path, own: str, files: dict[str, str], quota: float | None) -> None:
    assert machine.cpu_quota(cgroups(tmp_path, own, **files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [("max", 8), ("800000", 8), ("350000", 3), ("100000", 1), ("20000", 1)])
def test_only_whole_cores_of_a_quota_are_given_to_threads(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    root = cgroups(tmp_path, "0::/box\n", **{"box/cpu.max": f"{quota} 100000\n"})
    assert machine.usable_cores(root) == cores


def test_affinity_counts_where_it_is_tighter_than_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert machine.usable_cores(cgroups(tmp_path, "0::/box\n", **{"box/cpu.max": "600000 100000\n"})) == 2


def test_the_doctor_counts_cores_as_the_checks_of_a_cell_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    root = cgroups(tmp_path, "0::/box\n", **{"box/cpu.max": "350000 100000\n"})
    (root / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemFree: 500 kB\nMemAvailable: 500 kB\nBuffers: 0 kB\n"
                                       "Cached: 0 kB\nSwapCached: 0 kB\nSReclaimable: 0 kB\nSwapTotal: 0 kB\n"
                                       "SwapFree: 0 kB\n")
    facts = {fact.name: fact.value for fact in machine_facts(root)}
    assert f" 3 of {os.cpu_count()} cores usable" in facts["machine"]


def test_the_memory_limit_is_the_tightest_cgroup_or_the_machine(tmp_path: Path) -> None:
    assert 0 < machine.memory_limit() <= psutil.virtual_memory().total
    root = cgroups(tmp_path, "0::/slice/box\n", **{"slice/box/memory.max": "max\n", "slice/memory.max": "1048576\n"})
    assert machine.cgroup_memory_limit(root) == 1048576
    v1 = cgroups(tmp_path / "v1", V1, **{"memory/memory.limit_in_bytes": "2097152\n"})
    assert machine.cgroup_memory_limit(v1) == 2097152


def test_a_user_without_a_home_is_told_which_variable_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "SLACKWATER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"has no home folder.*Set HOME=FOLDER, or SLACKWATER_CACHE=FOLDER"):
        cache_folder()
    monkeypatch.setenv("SLACKWATER_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_nobody_else_counts_cores() -> None:
    package = Path(machine.__file__).parent
    counting = [path.relative_to(package).as_posix() for path in package.rglob("*.py")
                if "sched_getaffinity" in (text := path.read_text(encoding="utf-8")) or "psutil.cpu_count" in text]
    # the doctor names what a quota takes away, and the number of all cores that the machine has
    assert sorted(counting) == ["machine.py", "meter/doctor.py"]


def test_a_limit_of_a_cgroup_and_a_fact_of_the_machine_are_read_in_one_place() -> None:
    package = Path(machine.__file__).parent
    words = ("\"memory.max\"", "limit_in_bytes", "cpu.max", "random/boot_id", "platform.node")
    reading = {path.relative_to(package).as_posix() for path in package.rglob("*.py")
               if any(word in path.read_text(encoding="utf-8") for word in words)}
    assert reading == {"machine.py"}


def test_the_facts_have_the_names_that_two_machines_are_compared_by() -> None:
    assert machine.facts().keys() == {*machine.FACTS, "boot_id"}
    assert all(machine.facts()[name] for name in ("host", "kernel", "cores_usable", "memory_total", "boot_id"))
