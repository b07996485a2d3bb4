"""NPUs: Intel's through sysfs (intel_vpu), AMD's XDNA through the fdinfo of processes that opened it.

Sources: Documentation/ABI/testing/sysfs-driver-ivpu and ABI/obsolete/sysfs-driver-ivpu,
Documentation/gpu/drm-usage-stats.rst, Documentation/accel/amdxdna/amdnpu.rst. Checked on recorded data only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.errors import MeterError
from pipeline.language import N_, sentence
from pipeline.meter import base
from pipeline.metrics import PHASE, WITH_SERVER, Metric, Section

_XDNA = "amdxdna_accel_driver"
_UNITS = {"": 1, "ns": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


_NPU = "/sys/class/accel (Intel), DRM fdinfo (AMD XDNA)"

SECTION = Section(
    N_("NPU"),
    N_("Read once at a phase's moment. Checked against recorded data; `slackwater doctor` says what this "
       "machine has."), (
        Metric(f"{PHASE}/npu_used_mib", N_("All buffers resident on an Intel NPU."), _NPU, N_("Linux 6.15 or newer."),
               phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_busy_us", N_("Time an Intel NPU was busy, since the trial's first reading."), _NPU,
               N_("The whole device's."), phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_clock_mhz", N_("Clock of an Intel NPU, 0 while it sleeps."), _NPU, phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_tree_used_mib", N_("What an AMD NPU's driver charges to the server's tree."), _NPU,
               phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_tree_busy_us", N_("Time an AMD NPU worked for the tree, since the trial's first reading."),
               _NPU, phases=WITH_SERVER),
    ))
"""What the metric dictionary says of these figures."""


class Meter(base.Meter):
    """One NPU. Intel advises against reading busy time more than once a second."""

    name = "npu"
    source = "/sys/class/accel and DRM fdinfo"
    checked = "on recorded data"

    def __init__(self, root: Path, device: Path, driver: str) -> None:
        self.root = root
        self.device = device
        self.driver = driver

    def read(self, pids: Collection[int] = ()) -> base.Reading:
        """Intel: busy_us since boot, used_bytes of all resident buffers, clock_mhz. XDNA: tree_used_bytes and
        tree_busy_us of `pids`. A figure this driver version does not offer is left out."""
        if not self.device.exists():
            raise MeterError(f"{self.device} is gone. Expected the NPU to stay; was its driver unloaded?")
        return self._read_intel() if self.driver == "intel_vpu" else self._read_xdna(pids)

    def _read_intel(self) -> base.Reading:
        sources = {"busy_us": ("npu_busy_time_us",), "used_bytes": ("npu_memory_utilization",),  # Linux 6.11, 6.15
                   "clock_mhz": ("freq/current_freq", "npu_current_frequency_mhz")}  # Linux 7.2, before that 6.15
        values: dict[str, float] = {}
        for quantity, names in sources.items():
            for name in names:
                with contextlib.suppress(OSError):
                    values.setdefault(quantity, int((self.device / name).read_text("utf-8")))
        return values

    def _read_xdna(self, pids: Collection[int]) -> base.Reading:
        clients: dict[str, dict[str, int]] = {}
        for pid in pids:
            for fields in _fdinfo(self.root / "proc" / str(pid) / "fdinfo"):
                if fields.get("drm-driver") == _XDNA:
                    # A descriptor that was duplicated or inherited is the same client (drm-usage-stats.rst).
                    clients[fields.get("drm-client-id", "")] = _xdna_client(fields)
        names = {name for client in clients.values() for name in client}
        return {name: sum(client.get(name, 0) for client in clients.values()) for name in names}


def find(root: Path = Path("/"), target: base.Target = base.NOTHING) -> base.Found:
    """The first accel device whose driver is known; the others are named in the reason or the note."""
    devices: dict[Path, str] = {}
    for node in sorted((root / "sys/class/accel").glob("accel[0-9]*")):
        link = node / "device/driver"
        devices[node] = link.resolve().name if link.exists() else "no driver"
    listed = ", ".join(f"{node.name} ({driver})" for node, driver in devices.items())
    if not devices:
        return base.Absent("npu", sentence(
            N_("no accel device under {folder}"), folder="/sys/class/accel"))
    for node, driver in devices.items():
        if driver in ("intel_vpu", "amdxdna"):
            others = f"; here: {listed}" if len(devices) > 1 else ""
            return base.Available(Meter(root, node / "device", driver), note=f"{node.name}, driver {driver}{others}")
    return base.Absent("npu", f"{listed}: only intel_vpu and amdxdna are read")


def _fdinfo(folder: Path) -> Iterator[dict[str, str]]:
    """Each open file of a process as key → value, as far as this user may look."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return  # ended, or another user's
    for entry in entries:
        with contextlib.suppress(OSError):
            lines = entry.read_text("utf-8", errors="replace").splitlines()
            yield {key.strip(): value.strip() for key, value in (line.split(":", 1) for line in lines if ":" in line)}


def _xdna_client(fields: dict[str, str]) -> dict[str, int]:
    """Memory from the standard drm-total-* keys or, before those, what the driver states under its own name.

    heap-alloc is cut out of the heap buffer, which internal-alloc holds already, so it is not added."""
    values: dict[str, int] = {}
    totals = [value for key, value in fields.items() if key.startswith("drm-total-")]
    own = [fields[key] for key in (f"{_XDNA}-internal-alloc", f"{_XDNA}-external-alloc") if key in fields]
    if totals or own:
        values["tree_used_bytes"] = sum(map(_amount, totals or own))
    engines = [value for key, value in fields.items()
               if key.startswith("drm-engine-") and not key.startswith("drm-engine-capacity-")]
    if engines:
        values["tree_busy_us"] = sum(map(_amount, engines)) // 1000
    return values


def _amount(text: str) -> int:
    number, _, unit = text.partition(" ")
    return int(number) * _UNITS[unit.strip()]
