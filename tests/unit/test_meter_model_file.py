"""The page cache of the model's file: what is in it, what stays in it, and what this user may not know."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import MeterError
from pipeline.meter import model_file
from pipeline.meter.model_file import evict, resident_bytes
from pipeline.phases import MIB

SIZE = 20 * MIB


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.gguf"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_fresh_and_dirty_pages_are_evicted_and_the_eviction_is_verified(weights: Path) -> None:
    assert resident_bytes(weights) == SIZE
    eviction = evict(weights)
    assert (eviction.before, eviction.after, eviction.verified, eviction.reason) == (SIZE, 0, True, "")
    assert resident_bytes(weights) == 0


def test_both_ways_of_asking_the_kernel_agree(weights: Path) -> None:
    evict(weights)
    fd = os.open(weights, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
    os.pread(fd, 5 * MIB, 3 * MIB)
    by_mincore, by_cachestat = model_file._mincore(fd, SIZE), model_file._cachestat(fd)
    os.close(fd)
    assert by_mincore * mmap.PAGESIZE == 5 * MIB
    if by_cachestat is None:
        pytest.skip("this kernel has no cachestat")
    assert by_cachestat == by_mincore


def test_pages_that_are_mapped_stay_and_it_says_so(weights: Path) -> None:
    with weights.open("rb") as file, mmap.mmap(file.fileno(), SIZE // 2, prot=mmap.PROT_READ) as memory:
        memory[::mmap.PAGESIZE]
        eviction = evict(weights)
    assert not eviction.verified
    assert eviction.after == SIZE // 2
    assert eviction.reason == f"10.0 of 20.0 MiB stay: process {os.getpid()} maps the file"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm to write to")
def test_a_file_in_memory_stays_and_no_process_is_blamed() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(b"x" * MIB)
        file.flush()
        reason = evict(Path(file.name)).reason
    assert reason.startswith("1.0 of 1.0 MiB stay: the file lies in memory itself (tmpfs)")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_stranger_is_not_told_and_evicts_all_the_same(weights: Path) -> None:
    weights.chmod(0o644)
    for folder in (weights.parent, *weights.parent.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
            if str(folder) == "/tmp":
                break
    os.seteuid(65534)
    try:
        eviction = evict(weights)
        seen = resident_bytes(weights)
    finally:
        os.seteuid(0)
    assert seen is None
    assert (eviction.before, eviction.after, eviction.verified) == (None, None, False)
    assert "neither owns" in eviction.reason
    assert resident_bytes(weights) == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"gone\.gguf cannot be opened: No such file"):
        resident_bytes(tmp_path / "gone.gguf")
