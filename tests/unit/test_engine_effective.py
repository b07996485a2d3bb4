"""What a llama.cpp server did counts as in force; what its log repeats of the request does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.engine import llamacpp_log, process
from pipeline.engine.effective import in_force
from pipeline.engine.knobs import prove
from pipeline.phases import MIB

LOAD = """load_tensors: loading model tensors, this can take a while... (load_mode = {word})
{more}load_tensors:          CPU model buffer size =    92.11 MiB
main: model loaded
"""
REFUSED = "warning: failed to mlock 96579584-byte buffer (after previously locking 0 bytes): Cannot allocate memory\n"


@pytest.mark.parametrize(("asked", "word", "mapped", "locked_mib", "state"), [
    ("none", "none", False, 0, "confirmed"), ("mmap", "mmap", True, 0, "confirmed"),
    ("mlock", "mlock", False, 92.2, "confirmed"), ("mmap_mlock", "mmap+mlock", True, 92.2, "confirmed"),
    ("direct_io", "dio", False, 0, "not observable"),      # read, and past the page cache or not: nobody can tell
    ("mlock", "mlock", False, 0, "contradicted"),          # the log repeats the request, and nothing is locked
    ("mmap_mlock", "mmap+mlock", True, 8, "contradicted"),
    ("mmap", "mmap", False, 0, "contradicted"), ("none", "none", True, 0, "contradicted"),
    ("direct_io", "dio", True, 0, "contradicted"), ("mlock", "mlock", False, None, "confirmed"),
])
def test_how_weights_are_held_is_read_from_the_maps_and_from_what_is_locked(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, word: str, mapped: bool, locked_mib: float | None,
        state: str) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    locked = None if locked_mib is None else int(locked_mib * MIB)
    monkeypatch.setattr(process, "maps_file", lambda pid, *paths: mapped)
    monkeypatch.setattr(process, "locked_bytes", lambda pid: locked)
    text = LOAD.format(word=word, more=REFUSED if asked == "mlock" and locked == 0 else "")
    shown = in_force(text, {"load_mode": asked}, 1, model)
    proof = prove("load_mode", asked, asked, *shown.get("load_mode", (None, "")))
    assert proof.state == state
    assert ("failed to mlock" in proof.source) == ("failed to mlock" in text), "its own refusal is told"
    assert shown["mapped"][0] == str(mapped).lower()


def test_a_refusal_to_lock_is_one_line_however_often_it_is_said() -> None:
    assert llamacpp_log.lock_refusals("0.01.407.024 W " + REFUSED + REFUSED) == [REFUSED.strip()]


def test_locked_memory_is_read_from_the_kernel() -> None:
    assert process.locked_bytes(1 << 22) is None
    assert process.locked_bytes(os.getpid()) is not None
