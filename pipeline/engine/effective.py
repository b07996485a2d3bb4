"""Which settings are in force in a llama.cpp server: its log, its memory maps and the model file, taken together.

Names are those of engine/llamacpp.py; reading single lines is llamacpp_log.py. What the server did counts: the
contexts, caches, buffers and pools that it says it made, its maps, its locked memory, its refusals; a line that repeats
a request does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.engine import llamacpp_log, process
from pipeline.engine.base import Buffer, Scalar
from pipeline.engine.checks import MAPPED
from pipeline.model.files import files_of, read_model
from pipeline.phases import MIB

_LOCKED_SHARE = 0.9
"""Of the weights, from which they count as locked: buffers are aligned, and a header is not locked."""
# Types that llama.cpp repacks on common CPUs (ggml/src/ggml-cpu/repack.cpp); with others there is nothing to observe.
_REPACKABLE = frozenset({"q4_0", "q4_k", "iq4_nl", "mxfp4"})


def _load_mode(word: str, mapped: bool, locked: int | None, buffers: Sequence[Buffer]) -> tuple[str | None, str]:
    """How the weights are held, by what the server did (its maps, its locked memory), and where that was read. `word`:
    what its log calls it, which repeats the request and counts only where nothing can be seen.

    None: read into its own memory, and whether past the page cache nobody can tell."""
    weights = sum(buffer.bytes for buffer in buffers if buffer.component in ("weights", "repacked"))
    if locked is None:
        agrees = mapped == (word in MAPPED)
        return (word if agrees else "mmap" if mapped else "none"), "VmLck: not readable"
    seen = f"VmLck: {locked / MIB:.0f} of {weights / MIB:.0f} MiB"
    if locked >= _LOCKED_SHARE * weights > 0:
        return ("mmap_mlock" if mapped else "mlock"), seen
    if mapped:
        return "mmap", seen
    return (None if word == "direct_io" else "none"), seen


def in_force(text: str, asked: Mapping[str, Scalar], pid: int, model: Path) -> dict[str, tuple[str, str]]:
    """Setting → (value in force, where it was read), for what the last load in the log `text` and `pid` show.

    A setting that nothing shows is left out. `pid` is the process that holds the model."""
    found = llamacpp_log.parse(text)
    shown = {name: (finding.value, f"log: {finding.line}") for name, finding in found.settings.items()}
    opening = llamacpp_log.opens(text, os.fsencode(model).decode("utf-8", "surrogateescape"))  # the log is UTF-8
    if opening is not None:
        shown["model"] = (str(model), f"log: {opening}")
    on_cpu = bool(found.buffers) and all(buffer.device.startswith(("CPU", "AMX")) for buffer in found.buffers)
    if "n_gpu_layers" not in shown and on_cpu:
        shown["n_gpu_layers"] = ("0", "log: no layer is offloaded, every buffer is on the CPU")
    mapped = process.maps_file(pid, *files_of(model))
    if mapped is not None and on_cpu and "load_mode" in shown:
        word, source = shown.pop("load_mode")
        state = f"maps: the file is {'mapped' if mapped else 'not mapped'}"
        shown["mapped"] = (str(mapped).lower(), state)
        mode, seen = _load_mode(word, mapped, process.locked_bytes(pid), found.buffers)
        if mode is not None:
            refusals = "".join(f"; log: {line}" for line in llamacpp_log.lock_refusals(text))
            shown["load_mode"] = (mode, f"{state}; {seen}; {source}{refusals}")
        if not mapped:
            shown["lazy_mode"] = ("false", "maps: the file is not mapped, nothing can be read on demand")
    if any(buffer.component == "repacked" for buffer in found.buffers):
        shown["repack"] = ("true", "log: there is a buffer of repacked weights")
    # The other way round proves nothing: a CPU may have no layout of its own to repack into.
    elif not found.unrecognised and asked.get("repack") is False and _REPACKABLE & set(read_model(model).weight_types):
        shown["repack"] = ("false", "log: no buffer of repacked weights")
    return shown
