"""Memory pressure: how long tasks waited for memory (PSI), and faults that needed the disk.

Source: Documentation/accounting/psi.rst, proc(5). Swap in and out is the system meter's.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.language import N_
from pipeline.meter import base
from pipeline.meter.system import snapshot
from pipeline.metrics import PHASE, WITH_SERVER, Metric, Section

_PSI = "/proc/pressure/memory (PSI)"

SECTION = Section(
    N_("Memory pressure"),
    N_("Read once at a phase's moment, where this machine has it (`meter.sources`)."), (
        Metric(f"{PHASE}/pressure_some_avg10_pct",
               N_("Share of the last ten seconds in which some task waited for memory."), _PSI,
               N_("The whole machine, and ten seconds reach back before the phase."), phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_full_avg10_pct",
               N_("Share of the last ten seconds in which all tasks waited for memory."), _PSI,
               N_("The whole machine, and ten seconds reach back before the phase."), phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_some_total_us",
               N_("Time in which some task waited for memory, since the trial's first reading."), _PSI,
               phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_full_total_us",
               N_("Time in which all tasks waited for memory, since the trial's first reading."), _PSI,
               phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_major_faults_count",
               N_("Page faults that needed the disk, since the trial's first reading."), "/proc/vmstat, pgmajfault",
               N_("The whole machine's; trial/tree_major_faults is the tree's."), phases=WITH_SERVER),
    ))
"""What the metric dictionary says of these figures."""


class Meter(base.Meter):
    """The whole machine's pressure."""

    name = "pressure"
    source = "/proc/pressure/memory and vmstat"
    checked = "on hardware"

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, pids: Collection[int] = ()) -> base.Reading:
        """avg10 in percent of the last ten seconds; totals and major faults are counters since boot."""
        now = snapshot(own_pids=(), root=self.root)
        values = {"some_avg10_pct": now.memory_some_avg10_pct, "full_avg10_pct": now.memory_full_avg10_pct,
                  "some_total_us": now.memory_some_us, "full_total_us": now.memory_full_us,
                  "major_faults_count": now.major_faults}
        return {name: value for name, value in values.items() if value is not None}


def find(root: Path = Path("/"), target: base.Target = base.NOTHING) -> base.Found:
    """Here on kernels with PSI (Linux 4.20, CONFIG_PSI) that was not switched off."""
    path = root / "proc/pressure/memory"
    try:
        path.read_text("utf-8")
    except FileNotFoundError:
        return base.Absent("pressure", f"{path} does not exist: Linux 4.20 or newer with CONFIG_PSI is needed")
    except OSError as error:
        return base.Absent("pressure", f"{path}: {error.strerror}; boot with psi=1")
    return base.Available(Meter(root))
