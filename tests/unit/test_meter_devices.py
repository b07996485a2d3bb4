"""GPU and NPU meters on recorded trees and a fake NVML: never a zero for what is not there.

Formats: kernel documentation, ABI/testing/sysfs-driver-ivpu, gpu/drm-usage-stats.rst, accel/amdxdna/amdnpu.rst;
NVML API reference. No device was at hand when these were written.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import MeterError
from pipeline.meter import gpu, npu
from pipeline.meter.base import Absent, Available, Found
from pipeline.phases import MIB
from pipeline.testing import MeterContract

GIB = 1024 * MIB


class FakeNvml:
    """NVML as nvidia-ml-py offers it: per device used, reserved and total bytes, and its processes."""

    nvmlMemory_v2 = 33554472

    class NVMLError(Exception):
        pass

    def __init__(self, devices: list[dict[str, Any]], *, driver: bool = True, old: bool = False) -> None:
        self.devices = devices
        self.driver = driver
        self.old = old

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.devices[index]

    def nvmlDeviceGetName(self, device: dict[str, Any]) -> str:
        return str(device["name"])

    def nvmlDeviceGetMemoryInfo(self, device: dict[str, Any], version: int | None = None) -> SimpleNamespace:
        if version and self.old:
            raise self.NVMLError("Function Not Found")
        used = device["used"] + (0 if version else device["reserved"])
        more = {"reserved": device["reserved"]} if version else {}
        return SimpleNamespace(used=used, total=device["total"], **more)

    def nvmlDeviceGetComputeRunningProcesses(self, device: dict[str, Any]) -> list[SimpleNamespace]:
        if device["compute"] is None:
            raise self.NVMLError("Insufficient Permissions")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in device["compute"].items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, device: dict[str, Any]) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in device.get("graphics", {}).items()]


def _device(**changes: Any) -> dict[str, Any]:
    return {"name": "Test GPU", "used": 5 * GIB, "reserved": GIB // 2, "total": 24 * GIB, "compute": {}, **changes}


def _proc(root: Path, *pids: int) -> Path:
    for pid in pids:
        (root / "proc" / str(pid)).mkdir(parents=True)
    return root


def _gpu(root: Path, nvml: FakeNvml) -> gpu.Meter:
    found = gpu.find(root, nvml=nvml)
    assert isinstance(found, Available)
    assert isinstance(found.meter, gpu.Meter)
    return found.meter


class TestGpu(MeterContract):
    name = "gpu"

    @pytest.fixture
    def found(self, tmp_path: Path) -> Found:
        return gpu.find(_proc(tmp_path / "recorded", 10), nvml=FakeNvml([_device(compute={10: GIB}), _device()]))

    @pytest.fixture
    def absent(self, tmp_path: Path) -> Found:
        return gpu.find(tmp_path, nvml=FakeNvml([], driver=False))


class TestNpu(MeterContract):
    name = "npu"

    @pytest.fixture
    def found(self, tmp_path: Path) -> Found:
        _accel(tmp_path / "recorded", "intel_vpu", {"npu_busy_time_us": "5\n", "npu_memory_utilization": "4096\n"})
        return npu.find(tmp_path / "recorded")


def test_the_trees_share_is_what_nvml_charges_to_its_processes(tmp_path: Path) -> None:
    devices = [_device(compute={10: 3 * GIB, 11: GIB, 99: GIB}, graphics={10: 3 * GIB}), _device(compute={11: GIB})]
    meter = _gpu(_proc(tmp_path, 10, 11, 99), FakeNvml(devices))
    assert meter.read([10, 11, 12]) == {
        "used_bytes": 10 * GIB, "reserved_bytes": GIB, "total_bytes": 48 * GIB,
        "device0_used_bytes": 5 * GIB, "device1_used_bytes": 5 * GIB, "tree_used_bytes": 5 * GIB}
    assert meter.read([12])["tree_used_bytes"] == 0


@pytest.mark.parametrize("compute", [{10: None}, None, {4_000_000: GIB}],
                         ids=["value not available", "no permission", "pids of the host, seen from a container"])
def test_a_share_that_nvml_does_not_tell_is_left_out(tmp_path: Path, compute: dict[int, int | None] | None) -> None:
    reading = _gpu(_proc(tmp_path, 10), FakeNvml([_device(compute=compute)])).read([10])
    assert "tree_used_bytes" not in reading
    assert reading["used_bytes"] == 5 * GIB


def test_an_older_driver_counts_its_own_part_as_used_and_no_figure_is_made_up(tmp_path: Path) -> None:
    reading = _gpu(tmp_path, FakeNvml([_device()], old=True)).read()
    assert reading["used_bytes"] == 5.5 * GIB
    assert "reserved_bytes" not in reading


def test_a_gpu_that_stops_answering_is_an_error(tmp_path: Path) -> None:
    nvml = FakeNvml([_device()])
    meter = _gpu(tmp_path, nvml)

    def lost(*_: object, **__: object) -> None:
        raise nvml.NVMLError("GPU is lost")

    nvml.nvmlDeviceGetMemoryInfo = lost  # type: ignore[method-assign,assignment]
    with pytest.raises(MeterError, match="NVML stopped answering: GPU is lost"):
        meter.read()


def test_no_driver_and_other_makers_are_absent_with_the_reason(tmp_path: Path) -> None:
    found = gpu.find(tmp_path, nvml=FakeNvml([], driver=False))
    assert found == Absent("gpu", "no NVIDIA driver: NVML Shared Library Not Found")
    for name, vendor in (("card0", "0x1002"), ("card0-HDMI-A-1", "0x1002"), ("card1", "0x8086")):
        (tmp_path / "sys/class/drm" / name / "device").mkdir(parents=True)
        (tmp_path / "sys/class/drm" / name / "device/vendor").write_text(vendor + "\n")
    found = gpu.find(tmp_path, nvml=FakeNvml([], driver=False))
    assert isinstance(found, Absent)
    assert found.reason.startswith("card0 (AMD), card1 (Intel): only NVIDIA GPUs are read")
    here = gpu.find(tmp_path, nvml=FakeNvml([_device()]))
    assert isinstance(here, Available)
    assert here.note == "Test GPU; also here, and not read: card0 (AMD), card1 (Intel)"


def _accel(root: Path, driver: str, files: dict[str, str]) -> Path:
    """A device as /sys/class/accel shows it: accel0/device → the PCI device, whose driver is a link."""
    device = root / "sys/devices/pci0000:00/0000:00:0b.0"
    (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True)
    (root / "sys/class/accel/accel0").mkdir(parents=True)
    device.mkdir(parents=True)
    (device / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)
    (root / "sys/class/accel/accel0/device").symlink_to(device)
    for name, text in files.items():
        (device / name).parent.mkdir(exist_ok=True)
        (device / name).write_text(text)
    return device


@pytest.mark.parametrize(("files", "expected"), [
    ({"npu_busy_time_us": "123456\n"}, {"busy_us": 123456}),
    ({"npu_busy_time_us": "5\n", "npu_memory_utilization": "104857600\n", "npu_current_frequency_mhz": "1400\n"},
     {"busy_us": 5, "used_bytes": 100 * MIB, "clock_mhz": 1400}),
    ({"npu_busy_time_us": "5\n", "npu_memory_utilization": "0\n", "freq/current_freq": "0\n",
      "npu_current_frequency_mhz": "9\n"}, {"busy_us": 5, "used_bytes": 0, "clock_mhz": 0}),
], ids=["Linux 6.11", "Linux 6.15", "Linux 7.2"])
def test_an_intel_npu_gives_what_its_driver_offers(
        tmp_path: Path, files: dict[str, str], expected: dict[str, float]) -> None:
    _accel(tmp_path, "intel_vpu", files)
    found = npu.find(tmp_path)
    assert isinstance(found, Available)
    assert found.note == "accel0, driver intel_vpu"
    assert found.meter.read() == expected


XDNA_STANDARD = """pos:\t0
flags:\t02100002
drm-driver:\tamdxdna_accel_driver
drm-client-id:\t{client}
drm-pdev:\t0000:c5:00.1
drm-engine-npu:\t14003870 ns
drm-total-memory:\t65 MiB
drm-shared-memory:\t0
"""
XDNA_OWN = """drm-driver:    amdxdna_accel_driver
drm-client-id: {client}
drm-pdev:      0000:c5:00.1
amdxdna_accel_driver-heap-alloc:       60 KiB
amdxdna_accel_driver-internal-alloc:   67588 KiB
amdxdna_accel_driver-external-alloc:   0
"""


def test_an_xdna_npu_is_read_client_by_client_and_a_duplicated_descriptor_once(tmp_path: Path) -> None:
    _accel(tmp_path, "amdxdna", {})
    for pid, fd, text in ((10, 3, XDNA_STANDARD.format(client=7)), (10, 4, XDNA_STANDARD.format(client=7)),
                          (11, 3, XDNA_OWN.format(client=8)), (10, 0, "pos:\t0\nflags:\t0100000\nmnt_id:\t15\n"),
                          (99, 3, XDNA_STANDARD.format(client=9))):
        folder = tmp_path / "proc" / str(pid) / "fdinfo"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(fd)).write_text(text)
    found = npu.find(tmp_path)
    assert isinstance(found, Available)
    assert found.meter.read([10, 11, 12]) == {"tree_used_bytes": 65 * MIB + 67588 * 1024, "tree_busy_us": 14003}
    assert found.meter.read([12]) == {}


def test_no_npu_an_unknown_one_and_a_vanished_one(tmp_path: Path) -> None:
    assert npu.find(tmp_path) == Absent("npu", "no accel device under /sys/class/accel")
    device = _accel(tmp_path, "habanalabs", {})
    assert npu.find(tmp_path) == Absent("npu", "accel0 (habanalabs): only intel_vpu and amdxdna are read")
    meter = npu.Meter(tmp_path, device / "gone", "intel_vpu")
    with pytest.raises(MeterError, match="gone"):
        meter.read([os.getpid()])
