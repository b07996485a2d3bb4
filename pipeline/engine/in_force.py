"""Which settings are in force in a llama.cpp server: its log, its memory maps and the model file, taken together.

Names are those of engine/llamacpp.py; reading single lines is log.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.engine import log, process
from pipeline.engine.base import Scalar
from pipeline.engine.model_checks import MAPPED
from pipeline.model.files import files_of, read_model

# Types that llama.cpp repacks on common CPUs (ggml/src/ggml-cpu/repack.cpp); with others there is nothing to observe.
_REPACKABLE = frozenset({"q4_0", "q4_k", "iq4_nl", "mxfp4"})


def in_force(text: str, asked: Mapping[str, Scalar], pid: int, model: Path) -> dict[str, tuple[str, str]]:
    """Setting → (value in force, where it was read), for what the last load in the log `text` and `pid` show.

    A setting that nothing shows is left out. `pid` is the process that holds the model."""
    found = log.parse(text)
    shown = {name: (finding.value, f"log: {finding.line}") for name, finding in found.settings.items()}
    opening = f"loading model '{model}'"
    if opening in text:
        shown["model"] = (str(model), f"log: {opening}")
    on_cpu = bool(found.buffers) and all(buffer.device.startswith(("CPU", "AMX")) for buffer in found.buffers)
    if "n_gpu_layers" not in shown and on_cpu:
        shown["n_gpu_layers"] = ("0", "log: no layer is offloaded, every buffer is on the CPU")
    mapped = process.maps_file(pid, *files_of(model))
    if mapped is not None and on_cpu and "load_mode" in shown:
        mode, source = shown["load_mode"]
        state = "mapped" if mapped else "not mapped"
        agrees = mapped == (mode in MAPPED)
        value = mode if agrees else f"{mode}, but the file is {state}"
        shown["load_mode"] = (value, f"{source}; maps: the file is {state}")
        if not mapped:
            shown["lazy_mode"] = ("false", "maps: the file is not mapped, nothing can be read on demand")
    if any(buffer.component == "repacked" for buffer in found.buffers):
        shown["repack"] = ("true", "log: there is a buffer of repacked weights")
    # The other way round proves nothing: a CPU may have no layout of its own to repack into.
    elif asked.get("repack") is False and _REPACKABLE & set(read_model(model).weight_types):
        shown["repack"] = ("false", "log: no buffer of repacked weights")
    return shown
