"""The metric dictionary against the code that logs: no name without an entry, no entry that nothing logs.

What can be logged is asked of the code itself: a trial's record in which everything was measured, and the meters that
ship, those of devices on the trees and doubles of their own tests. A meter that was added has MeterContract for that.
"""

from __future__ import annotations

import ast
import json
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from pipeline import language, metrics
from pipeline.cli import main
from pipeline.config import PACKAGE, Config, Mode, Place
from pipeline.engine.base import Buffer, Generation
from pipeline.engine.checks import memory_need
from pipeline.meter import cgroup, gpu, model_file, npu, pressure, system, tree
from pipeline.meter.base import Available, Found, Target
from pipeline.meter.model_file import Eviction
from pipeline.meter.sampler import SamplerReport
from pipeline.meter.system import Disturbance
from pipeline.meter.timeline import downsample
from pipeline.metrics import COMPONENTS, MOMENTS, PARTS
from pipeline.model.gguf import Header
from pipeline.outcome import metrics_of
from pipeline.phases import MIB, Mark, Peaks, ProcessReading, Span, Timeline, TreeReading
from pipeline.plugins import METERS
from pipeline.trial import Record
from tests.conftest import ROOT
from tests.unit import test_meter_devices as devices
from tests.unit import test_meter_found as found_meters

S = 1_000_000_000
COLUMNS = ("tree_anon", "tree_file", "tree_shmem", "tree_swap", "tree_hwm", "tree_processes", "system_total",
           "system_available", "system_free", "system_cached", "system_swap_used")


def readings(root: Path) -> dict[str, Mapping[str, float]]:
    """Meter → quantity → value, with everything that any version of the source gives."""
    def of(*many: Found) -> Mapping[str, float]:
        values: dict[str, float] = {}
        for found in many:
            assert isinstance(found, Available), found
            values |= found.meter.read([10])
        return values

    folders = [root / name for name in ("v2", "gpus", "intel", "xdna", "psi", "system")]
    for folder in folders:
        folder.mkdir()
    v2, gpus, intel, xdna, psi, whole = folders
    found_meters._cgroup_v2(v2, [10])
    nvml = devices.FakeNvml([devices._device(compute={10: devices.GIB}), devices._device()])
    devices._accel(intel, "intel_vpu", {"npu_busy_time_us": "5\n", "npu_memory_utilization": "4096\n",
                                        "npu_current_frequency_mhz": "1400\n"})
    devices._accel(xdna, "amdxdna", {})
    (xdna / "proc/10/fdinfo").mkdir(parents=True)
    (xdna / "proc/10/fdinfo/3").write_text(devices.XDNA_STANDARD.format(client=1))
    for folder in (psi, whole):
        (folder / "proc").mkdir()
        (folder / "proc/vmstat").write_text("pgmajfault 7\npswpin 1\npswpout 2\n")
        (folder / "proc/stat").write_text("cpu  1 2 3 4 5 6 7 8 0 0\n")
    (psi / "proc/pressure").mkdir()
    (psi / "proc/pressure/memory").write_text("some avg10=0.10 avg60=0.00 avg300=0.00 total=5\n"
                                              "full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n")
    (whole / "proc/meminfo").write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 50 kB\nCached: 20 kB\n")
    (whole / "proc/zoneinfo").write_text(found_meters.ZONEINFO)
    weights = root / "weights.gguf"
    weights.write_bytes(b"w" * 8192)
    return {"cgroup": of(cgroup.find(v2, Target([10]))),
            "gpu": of(gpu.find(devices._proc(gpus, 10), nvml=nvml)),
            "model_file": of(model_file.find(target=Target(model_path=weights))),
            "npu": of(npu.find(intel), npu.find(xdna)),
            "pressure": of(pressure.find(psi)), "system": of(system.find(whole)), "tree": of(tree.find())}


def everything(root: Path) -> Record:
    """The record of an interactive trial of one turn in which nothing was missing."""
    record = Record()
    order = ("baseline", "initialization", "pre_generation", "load", "prefill", "decode", "post_generation",
             "stabilized", "released")
    at = {name: (second * S, (second + 1) * S) for second, name in enumerate(order)}
    at["during_generation"] = (at["load"][0], at["decode"][1])
    turn = {name: 0 if name in ("baseline", "initialization", "released") else 1 for name in at}
    record.spans = [Span(name, turn[name], *edges) for name, edges in at.items()]
    record.peaks = [Peaks(span, {10: 2 * MIB}, {10: MIB}) for span in record.spans if span.name in PARTS]
    record.marks = [Mark("request_sent", at["load"][0], 1), Mark("first_token", at["decode"][0], 1)]
    process = ProcessReading(10, "server", 1, 1, 1, 1, 1, 1, 1, 1)
    meters = readings(root)
    read = {f"{meter}_{quantity}": value for meter, values in meters.items() for quantity, value in values.items()}
    for phase in set(MOMENTS) - {"baseline"}:
        record.readings[phase, turn[phase]] = TreeReading(0, [process], 1)
        record.meter_readings[phase, turn[phase]] = dict(read)
    # as trial.py asks for them
    record.meter_readings["during_generation", 1] = {name: value for name, value in read.items() if "peak" in name}
    record.generations = {1: Generation("tide", 5, 0, 8, "length", False, prefill_s=1.0, decode_s=1.0, load_s=1.0)}
    record.settled = {1: (True, 2.0)}
    record.late_faults = {1: (at["decode"][0], at["stabilized"][1], 0)}
    record.unload_ns = at["released"][0]
    record.buffers = [Buffer(component, device, MIB) for component in COMPONENTS for device in ("CPU", "CUDA0")]
    record.buffers = [*record.buffers, Buffer("claimed", "/api/ps", MIB)]
    record.eviction = record.program_eviction = Eviction(MIB, 0, True)
    record.spent_s = dict.fromkeys(stages(), 1.0)
    record.disturbed = Disturbance(9, 0, 0, 0, 0, 0.0, 0.0, 1.0, 0.1, 0.0, stolen_cpu_cores=0.0)
    return record


def stages() -> Iterator[str]:
    """What trial.py spends its time on: every `self.spend("…")`."""
    for node in ast.walk(ast.parse((ROOT / "pipeline/trial.py").read_text())):
        match node:
            case ast.Call(func=ast.Attribute(attr="spend"), args=[ast.Constant(value=str(stage))]):
                yield stage


@pytest.fixture(scope="module")
def produced(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every name that the code can log."""
    t_ns = np.arange(0, 9 * S, S // 20, dtype=np.int64)
    columns = {name: np.full(len(t_ns), MIB, dtype=np.int64) for name in COLUMNS}
    columns["tree_anon"] = np.where(t_ns > 8.1 * S, 1, 100) * MIB      # the unload gives something back
    timeline = Timeline(t_ns, t_ns, columns)
    record = everything(tmp_path_factory.mktemp("machine"))
    report = SamplerReport(900, 0, 0.1, 0.5, 2.0, 11.0, 100.0)
    config = Config(mode=Mode(name="interactive", turns=1), place=Place(block=1))
    names = set(metrics_of(record, timeline, report, config))
    header = types.SimpleNamespace(sliding_window=None, kv_bytes=lambda *_: 1, file_bytes=1, embedding_length=1)
    assert set(vars(header)) <= set(dir(Header)) | set(Header.__dataclass_fields__)
    names |= {f"plan/{component}_mib" for component in memory_need(header, 8, 1, 8, "f16", "f16")}  # type: ignore[arg-type]
    return names | {f"timeline/{name}" for name in downsample(timeline, 0)}


def test_every_name_that_can_be_logged_has_one_entry(produced: set[str]) -> None:
    assert len(produced) > 250
    said = {name: [metric.name for metric in metrics.entries() if metric.pattern.fullmatch(name)] for name in produced}
    assert {name: found for name, found in said.items() if len(found) != 1} == {}


def test_every_entry_is_logged_at_every_phase_it_names(produced: set[str]) -> None:
    added = METERS.all().keys() - {"cgroup", "gpu", "model_file", "npu", "pressure", "system", "tree"}
    never = []
    for metric in metrics.entries():
        if metric.name.startswith(tuple(f"{metrics.PHASE}/{meter}_" for meter in added)):
            continue
        for name in metric.names():
            pattern = re.compile(re.sub(r"<[a-z]+>", "[a-z0-9_]+", name))
            if not any(map(pattern.fullmatch, produced)):
                never.append(name)
    assert never == []


def test_an_entry_says_its_unit_and_ends_its_sentences() -> None:
    for metric in metrics.entries():
        assert metric.unit
        assert metric.source
        for sentence in (metric.meaning, metric.pitfall):
            assert sentence == "" or sentence.endswith((".", ")")), sentence
    assert len({metric.name for metric in metrics.entries()}) == len(metrics.entries())


@pytest.mark.parametrize(("asked", "found"), [
    ("stabilized/tree_rss_mib", ["<phase>/tree_rss_mib"]),
    ("<phase>/tree_rss_mib", ["<phase>/tree_rss_mib"]),
    ("engine/kv_cuda1_mib", ["engine/<component>_<device>_mib"]),
    ("half_life", ["released/half_life_s"]),
    ("baseline/tree_rss_mib", []),
])
def test_a_name_or_a_part_of_one_finds_its_entries(asked: str, found: list[str]) -> None:
    assert [metric.name for metric in metrics.search(asked)] == found


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    language.speak(language.ENGLISH)


def test_the_page_lists_every_entry_and_one_name_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    whole = capsys.readouterr().out
    assert all(metric.name in whole for metric in metrics.entries())
    assert max(map(cell_len, whole.splitlines())) <= 80
    assert main(["metrics", "lang=ja"]) == 0
    japanese = capsys.readouterr().out
    assert max(map(cell_len, japanese.splitlines())) <= 80 and "…" not in japanese
    assert "ツリー" in japanese and all(metric.name in japanese for metric in metrics.entries())
    assert main(["metrics", "released/half_life_s"]) == 0
    entry = metrics.find("released/half_life_s")
    one = capsys.readouterr().out
    assert entry is not None
    assert all(part in " ".join(one.split()) for part in (entry.meaning, entry.source, entry.pitfall))
    assert main(["metrics", "half_life", "--json"]) == 0
    [document] = json.loads(capsys.readouterr().out)["metrics"]
    assert (document["name"], document["unit"]) == ("released/half_life_s", "s")


def test_a_name_that_no_metric_has_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "stabilised/tree_rss_mib"]) == 2
    assert "Did you mean stabilized/tree_rss_mib?" in capsys.readouterr().err


def test_the_phases_and_what_is_the_same_work_are_listed_in_one_place() -> None:
    elsewhere = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set) and path.name != "metrics.py":
                words = {each.value for each in node.elts if isinstance(each, ast.Constant)}
                if len(words & set(metrics.PHASES)) > 3 or words >= set(metrics.WORK):
                    elsewhere.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert elsewhere == []
