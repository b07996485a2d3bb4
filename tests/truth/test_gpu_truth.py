"""NVML's figures against a program that holds known amounts of GPU memory; skipped with the reason without a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.meter import gpu
from pipeline.meter.base import Absent
from pipeline.phases import MIB

PROGRAM = Path(__file__).with_name("gpu_program.py")
Tell = Callable[[str], str]


@pytest.fixture
def meter() -> gpu.Meter:
    found = gpu.find()
    if isinstance(found, Absent):
        pytest.skip(f"no GPU to hold NVML against: {found.reason}")
    assert isinstance(found.meter, gpu.Meter)
    return found.meter


@pytest.fixture
def program() -> Iterator[tuple[int, Tell]]:
    with subprocess.Popen([sys.executable, "-I", "-S", str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        if (said := process.stdout.readline().strip()) != "ready":
            pytest.skip(f"no GPU memory to be had: {said}")

        def tell(command: str) -> str:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(command + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield process.pid, tell
        process.stdin.close()


@pytest.mark.parametrize("mib", [64, 512, 2048])
def test_what_a_process_holds_on_the_device_is_what_nvml_says_of_both(
        meter: gpu.Meter, program: tuple[int, Tell], mib: int) -> None:
    pid, tell = program
    tell("hold 1")  # the context, its heaps and the kernel of a memset are there before the first reading
    before = meter.read([pid])
    assert tell(f"hold {mib}") == "done"
    held = meter.read([pid])
    # the driver hands out blocks of 2 MiB
    assert (held["used_bytes"] - before["used_bytes"]) / MIB == pytest.approx(mib, rel=0.01, abs=4)
    if "tree_used_bytes" in held:  # not inside a container, where NVML speaks of the host's process ids
        assert (held["tree_used_bytes"] - before["tree_used_bytes"]) / MIB == pytest.approx(mib, rel=0.01, abs=4)
        assert before["tree_used_bytes"] > 0
    assert tell("free") == "done"
    assert (meter.read([pid])["used_bytes"] - before["used_bytes"]) / MIB == pytest.approx(0, abs=4)
