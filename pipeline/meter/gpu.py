"""NVIDIA GPUs through NVML: what the devices hold, and what of it belongs to the tree.

Other makers' GPUs are named as absent. Source: NVML API reference (nvmlDeviceGetMemoryInfo,
nvmlDeviceGetComputeRunningProcesses). Checked against a fake NVML, not on hardware.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.errors import MeterError
from pipeline.language import N_, sentence
from pipeline.meter import base
from pipeline.metrics import PHASE, WITH_SERVER, Metric, Section

_MAKERS = {"0x1002": "AMD", "0x8086": "Intel", "0x10de": "NVIDIA"}


_NVML = "NVML (nvidia-ml-py)"

SECTION = Section(
    N_("NVIDIA GPUs"),
    N_("Read once at a phase's moment. Checked against recorded data; `slackwater doctor` says what this "
       "machine has."), (
        Metric(f"{PHASE}/gpu_used_mib", N_("Memory in use on all NVIDIA devices."), _NVML,
               N_("Of all programs. On older drivers it includes the driver's own reserve."), phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_reserved_mib", N_("What the driver keeps for itself."), _NVML, phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_total_mib", N_("What the devices have."), _NVML, phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_tree_used_mib", N_("What NVML charges to the server's tree."), _NVML,
               N_("Absent in a container (NVML speaks of the host's process ids), under vGPU, and where it does not "
                  "say."), phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_device<n>_used_mib", N_("Memory in use on one device, where there are several."), _NVML,
               phases=WITH_SERVER),
    ))
"""What the metric dictionary says of these figures."""


class Meter(base.Meter):
    """All NVIDIA devices together, and one by one where there are several."""

    name = "gpu"
    source = "NVML"
    checked = "on recorded data"

    def __init__(self, nvml: Any, root: Path) -> None:
        self.nvml = nvml
        self.root = root
        self.devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

    def names(self) -> list[str]:
        """The devices' names, in NVML's order."""
        return [str(self.nvml.nvmlDeviceGetName(device)) for device in self.devices]

    def read(self, pids: Collection[int] = ()) -> base.Reading:
        """used, reserved (the driver's own) and total of the devices, and tree_used: what NVML charges to `pids`.

        tree_used is left out where NVML does not say (vGPU, MIG without permission) or names processes that
        are not in this /proc: inside a container it speaks of the host's process ids."""
        values: dict[str, float] = {"used_bytes": 0, "total_bytes": 0}
        charged: int | None = 0
        try:
            for index, device in enumerate(self.devices):
                used, reserved, total = self._memory(device)
                values["used_bytes"] += used
                values["total_bytes"] += total
                if reserved is not None:
                    values["reserved_bytes"] = values.get("reserved_bytes", 0) + reserved
                if len(self.devices) > 1:
                    values[f"device{index}_used_bytes"] = used
                mine = self._charged(device, pids)
                charged = None if mine is None or charged is None else charged + mine
        except self.nvml.NVMLError as error:
            raise MeterError(f"NVML stopped answering: {error}. Expected a working NVIDIA driver; "
                             "see nvidia-smi.") from error
        if charged is not None:
            values["tree_used_bytes"] = charged
        return values

    def _memory(self, device: Any) -> tuple[int, int | None, int]:
        """(used by allocations, reserved by the driver, total); older drivers count the reserved part as used."""
        try:
            memory = self.nvml.nvmlDeviceGetMemoryInfo(device, version=self.nvml.nvmlMemory_v2)
        except self.nvml.NVMLError:
            memory = self.nvml.nvmlDeviceGetMemoryInfo(device)
            return int(memory.used), None, int(memory.total)
        return int(memory.used), int(memory.reserved), int(memory.total)

    def _charged(self, device: Any, pids: Collection[int]) -> int | None:
        largest: dict[int, int | None] = {}  # a process with a compute and a graphics context is listed twice
        for ask in (self.nvml.nvmlDeviceGetComputeRunningProcesses, self.nvml.nvmlDeviceGetGraphicsRunningProcesses):
            try:
                listed = ask(device)
            except self.nvml.NVMLError:
                return None
            for process in listed:
                before, now = largest.get(process.pid, 0), process.usedGpuMemory
                largest[process.pid] = None if now is None or before is None else max(before, int(now))
        if any(not (self.root / "proc" / str(pid)).exists() for pid in largest):
            return None
        mine = [largest[pid] for pid in pids if pid in largest]
        known = [used for used in mine if used is not None]
        return sum(known) if len(known) == len(mine) else None


def find(root: Path = Path("/"), target: base.Target = base.NOTHING, nvml: Any = None) -> base.Found:
    """Here if the NVIDIA driver's NVML answers and has a device. `nvml` stands in for pynvml in tests."""
    others = _other_gpus(root)
    beside = f"; also here, and not read: {', '.join(others)}" if others else ""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")  # not before it is needed: nothing else here needs NVML
        except ImportError:
            return base.Absent("gpu", "the package nvidia-ml-py is not installed" + beside)
    try:
        nvml.nvmlInit()
        meter = Meter(nvml, root)
    except nvml.NVMLError as error:
        if others:
            return base.Absent("gpu", f"{', '.join(others)}: only NVIDIA GPUs are read, and there is none ({error})")
        return base.Absent("gpu", sentence(N_("no NVIDIA driver: {error}"), error=error))
    if not meter.devices:
        return base.Absent("gpu", "NVML lists no device" + beside)
    return base.Available(meter, note=", ".join(meter.names()) + beside)


def _other_gpus(root: Path) -> list[str]:
    """GPUs of other makers, from /sys/class/drm/card*/device (PCI vendor ids)."""
    found = []
    for card in sorted((root / "sys/class/drm").glob("card[0-9]*")):
        vendor = card / "device/vendor"
        if "-" not in card.name and vendor.exists():  # card0-HDMI-A-1 is a connector
            code = vendor.read_text("utf-8").strip()
            maker = _MAKERS.get(code, f"vendor {code}")
            if maker != "NVIDIA":
                found.append(f"{card.name} ({maker})")
    return found
