"""The doctor says what is wrong and how to mend it, and blocks only what cannot be trusted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipeline.meter import doctor
from pipeline.meter.doctor import Examination, examine
from pipeline.meter.sampler import SamplerReport
from pipeline.meter.system import Disturbance
from tests.truth.program import Program


def test_this_machine_is_examined_in_about_a_second_and_every_concern_has_a_remedy() -> None:
    began = time.monotonic()
    found = examine()
    assert time.monotonic() - began < 30
    names = {fact.name for fact in found.facts}
    assert {"machine", "memory", "kernel", "cgroup", "swap", "transparent huge pages", "zswap", "overcommit",
            "sampler"} <= names
    assert {meter.name for meter in found.meters} >= {"tree", "system", "pressure", "cgroup", "gpu", "npu"}
    for concern in found.concerns:
        assert concern.what.endswith(".")
        assert concern.remedy
    assert found.trustworthy == all(concern.level == "note" for concern in found.concerns)


def test_a_large_neighbour_is_named_and_our_own_children_are_not() -> None:
    with Program() as program:
        program.tell("hold", name="x", kind="anon", mib=150)
        assert program.pid not in [neighbour.pid for neighbour in examine().neighbours]
        strangers = doctor._neighbours(Path("/"), ours=())
        sizes = {neighbour.pid: neighbour.rss for neighbour in strangers}
        if len(strangers) < doctor.NEIGHBOURS_SHOWN:
            assert sizes[program.pid] > 150 * 2**20
        assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_the_server_of_a_running_sweep_is_no_neighbour_and_nothing_is_advised_to_be_ended(tmp_path: Path) -> None:
    status = "Name:\tserver\n" + "".join(f"{key}:\t400000 kB\n" for key in (
        "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmSwap"))
    environs = {"41": b"", "42": b"A=1\0SLACKWATER_SERVER=41-7\0", "43": b"SLACKWATER_SERVER=9999-7\0", "44": b"A=1\0"}
    for pid, environ in environs.items():
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "status").write_text(status)
        (tmp_path / "proc" / pid / "cmdline").write_bytes(b"server\0")
        (tmp_path / "proc" / pid / "environ").write_bytes(environ)
    found = _machine(tmp_path)
    assert {one.pid for one in found.neighbours} == {43, 44}, "a server whose owner is gone is one to be ended"
    assert any("A sweep of slackwater runs here (process 41)" in concern.what for concern in found.concerns)
    found = _machine(tmp_path / "alone", free=1_000)
    assert any(concern.remedy.startswith("End ") for concern in found.concerns)
    for sweep in ("41", "unknown"):
        found = _machine(tmp_path / f"swept-{sweep}", free=1_000, sweep=sweep)
        assert not [concern for concern in found.concerns if concern.remedy.startswith("End ")]
        assert any(f"A sweep of slackwater runs here (process {sweep})" in concern.what for concern in found.concerns)


MEMINFO = """MemTotal:       16000000 kB
MemFree:         {free} kB
MemAvailable:    {free} kB
Buffers:               0 kB
Cached:                0 kB
SwapCached:            0 kB
SReclaimable:          0 kB
SwapTotal:       {swap} kB
SwapFree:        {swap} kB
"""


def _machine(root: Path, *, free: int = 12_000_000, swap: int = 0, thp: str = "madvise", zswap: str = "N",
             overcommit: int = 0, limit: str = "max", quota: str = "max 100000", sweep: str = "") -> Examination:
    files = {
        "proc/meminfo": MEMINFO.format(free=free, swap=swap), "proc/vmstat": "pgmajfault 1\n",
        "proc/stat": "cpu  1 0 1 100 0 0 0 0 0 0\n", "proc/cpuinfo": "model name\t: Test CPU\n",
        "proc/sys/kernel/osrelease": "6.12.0-test\n", "proc/self/cgroup": "0::/box/server\n",
        "proc/self/smaps_rollup": "", "proc/self/task/1/children": "", "proc/loadavg": "0.10 0.20 0.30 1/100 1000\n",
        "proc/sys/vm/overcommit_memory": f"{overcommit}\n", "proc/sys/vm/swappiness": "60\n",
        "sys/module/zswap/parameters/enabled": f"{zswap}\n", "sys/fs/cgroup/box/memory.max": f"{limit}\n",
        "sys/fs/cgroup/box/cpu.max": f"{quota}\n",
        "sys/kernel/mm/transparent_hugepage/enabled": " ".join(
            f"[{word}]" if word == thp else word for word in ("always", "madvise", "never")) + "\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return examine(root=root, sweep=sweep)


def test_a_quiet_machine_has_nothing_to_mend(tmp_path: Path) -> None:
    found = _machine(tmp_path)
    assert found.concerns == []
    assert found.trustworthy
    facts = {fact.name: fact.value for fact in found.facts}
    assert facts["kernel"] == "6.12.0-test"
    assert facts["machine"].startswith("Test CPU")
    assert (facts["cgroup"], facts["swap"], facts["zswap"]) == ("v2", "none", "off")
    assert (facts["transparent huge pages"], facts["overcommit"]) == ("madvise", "heuristic (0)")


@pytest.mark.parametrize(("setting", "said", "level"), [
    ({"free": 500_000}, "Only 488 MiB of 15625 MiB are available", "blocks"),
    ({"swap": 2_000_000}, "Swap is on (1953 MiB, swappiness 60)", "note"),
    ({"swap": 2_000_000, "zswap": "Y"}, "zswap is on", "note"),
    ({"thp": "always"}, "Transparent huge pages are always on", "note"),
    ({"overcommit": 2}, "Overcommit is off", "note"),
    ({"limit": str(2**30)}, "A cgroup limits memory here to 1024 MiB", "note"),
    ({"quota": "50000 100000"}, "A cgroup limits this container to 0.5 of ", "note"),
])
def test_what_spoils_a_measurement_is_named(
        tmp_path: Path, setting: dict[str, object], said: str, level: str) -> None:
    found = _machine(tmp_path, **setting)  # type: ignore[arg-type]
    matching = [concern for concern in found.concerns if concern.what.startswith(said)]
    assert [concern.level for concern in matching] == [level]
    assert found.trustworthy == (level == "note")


def test_memory_pressure_now_blocks_and_a_busy_neighbour_does_not() -> None:
    quiet = Disturbance(1.0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.0)
    assert doctor._about_activity(quiet, []) == []
    pressed = Disturbance(1.0, 0, 4096, 0, 0, 30.0, 20.0, 0.0, 0.0, 1.5, 0.2)
    assert [concern.level for concern in doctor._about_activity(pressed, [])] == ["blocks", "note", "note"]


def test_a_sampler_that_cannot_keep_its_rate_blocks() -> None:
    good = SamplerReport(60, 0, 0.1, 0.3, 1.0, 11.0, 100.0)
    assert doctor._about_sampler(good, 100) == []
    for late in (SamplerReport(50, 10, 0.1, 0.3, 1.0, 11.0, 100.0), SamplerReport(60, 0, 0.1, 12.0, 1.0, 11.0, 100.0)):
        (concern,) = doctor._about_sampler(late, 100)
        assert concern.level == "blocks"
        assert "cannot keep 100 Hz" in concern.what


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_permissions_that_are_missing_are_named() -> None:
    os.seteuid(65534)
    try:
        said = " ".join(concern.what for concern in doctor._about_permissions(Path("/")))
    finally:
        os.seteuid(0)
    assert "show neither PSS" in said
