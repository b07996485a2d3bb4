"""What llama.cpp's log says: settings in force, buffers, the model's file, prompts. Pure functions over text.

The same lines come from the embedded engine (with a time prefix) and from Ollama's child (without); the names of
settings are those of engine/llamacpp.py. Patterns of llama.cpp's lines stand here and nowhere else: where it words its
log anew, `EngineLog.unrecognised` says so, and this file is what changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.engine.base import Buffer

_MIB = 1024 * 1024

_PREFIX = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ", re.MULTILINE)
_BOOT = re.compile(r"^.*using \d+ threads for HTTP server", re.MULTILINE)
_LOAD = re.compile(r"^load_tensors: loading model tensors", re.MULTILINE)
_LOADED = re.compile(r"model loaded$", re.MULTILINE)
_BUFFER = re.compile(
    r"^(?P<who>\w+): +(?P<device>\S+) +(?P<what>model|output|KV|RS|compute) buffer size = +"
    r"(?P<mib>\d{1,12}(?:\.\d{1,9})?) MiB",
    re.MULTILINE,
)
_COMPLAINT = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [EW] |error|failed|cannot|unable|exception", re.IGNORECASE)
_NO_COMPLAINT = re.compile(r"no API key is set|reproduce them with -fit off|n_past")
_CACHE_STATE = re.compile(r"cache state: \d+ prompts, (?P<mib>\d{1,12}(?:\.\d{1,9})?) MiB")
_COMPONENTS = {"model": "weights", "output": "output", "KV": "kv", "RS": "kv", "compute": "compute"}
_REPACKED = ("CPU_REPACK", "CPU_KLEIDIAI", "AMX")
_WORDS = {"enabled": "true", "disabled": "false",
          "mmap+mlock": "mmap_mlock", "dio": "direct_io"}  # llama_load_mode_name, include/llama.h
_MODEL_FILE = re.compile(r"loaded meta data with \d+ key-value pairs and \d+ tensors from (.+) \(version ")
_NO_GPU = re.compile(r"^.*no usable GPU found, --gpu-layers option will be ignored.*$", re.MULTILINE)
_OFFLOADED = re.compile(r"offloaded (\d{1,9})/(\d{1,9}) layers to GPU")
_TOO_LONG = re.compile(r"request \((\d{1,12}) tokens\) exceeds the available context size \((\d{1,12}) tokens\)")
_CACHED = re.compile(r"cached n_tokens = (\d{1,12}), memory_seq_rm")
_LOCK_REFUSED = re.compile(r"^.*failed to (?:mlock|VirtualLock) .*$", re.MULTILINE)

# (setting, pattern): its group is the value; a later pattern of the same setting wins over an earlier one.
_BEFORE_LOAD = (
    ("n_threads_http", r"using (\d+) threads for HTTP server"),
)
_AFTER_LOAD = (
    ("load_mode", r"^load_tensors: .*\(load_mode = (\S+)\)"),
    ("n_ctx", r"^llama_context: n_ctx +=\s+(\d{1,12})"),
    ("n_parallel", r"^llama_context: n_seq_max +=\s+([1-9]\d{0,8})"),
    ("n_batch", r"^llama_context: n_batch +=\s+(\d+)"),
    ("n_ubatch", r"^llama_context: n_ubatch +=\s+(\d+)"),
    ("kv_unified", r"^llama_context: kv_unified +=\s+(\w+)"),
    ("flash_attn", r"^llama_context: flash_attn +=\s+(\w+)"),
    ("flash_attn", r"Flash Attention was auto, set to (\w+)"),
    ("cache_type_k", r"^llama_kv_cache: size = .* K \((\w+)\):"),
    ("cache_type_v", r"^llama_kv_cache: size = .* V \((\w+)\):"),
    ("n_threads", r"llama threadpool init, n_threads = (\d+)"),
    ("cache_ram_mib", r"prompt cache is enabled, size limit: (\d+) MiB"),
    ("n_ctx_checkpoints", r"context checkpoints enabled, max = (\d+)"),
    ("n_gpu_layers", _OFFLOADED.pattern),
)
# (setting, what its line says, value with the line, value without it: a finished load prints it or not)
_EITHER = (
    ("fit", "fitting params to device memory", "true", "false"),
    ("warmup", "warming up the model with an empty run", "true", "false"),
    ("cache_idle_slots", "idle slots will be saved to prompt cache", "true", "false"),
    ("cache_ram_mib", "prompt cache is disabled", "0", None),
    ("n_ctx_checkpoints", "context checkpoints disabled", "0", None),
)
# What no finished load leaves out, whatever the model and the machine.
_ALWAYS_SET = ("n_threads_http", "load_mode", "n_ctx", "n_parallel", "n_batch", "n_ubatch", "kv_unified", "flash_attn",
               "n_threads", "cache_ram_mib", "n_ctx_checkpoints")
_ALWAYS_HELD = ("weights", "kv", "output", "compute")
LINES = ("model file", *_ALWAYS_SET, *(f"{component} buffer" for component in _ALWAYS_HELD), "model loaded")
"""The lines of a finished load that are relied on, by what they say."""


@dataclass(frozen=True)
class Finding:
    """A setting in force, and the line that says so."""

    value: str
    line: str


@dataclass(frozen=True)
class EngineLog:
    """The last load that a log tells of. Empty, if there was none."""

    settings: Mapping[str, Finding]
    """Values as on a command line: true/false, numbers, f16."""
    buffers: Sequence[Buffer]
    unrecognised: Sequence[str] = LINES
    """Those of LINES that are not there in words that are known."""


def parse(text: str) -> EngineLog:
    """Settings and buffers of the last load in `text`; lines of earlier loads and of probes before it are left out."""
    text = _PREFIX.sub("", text)
    loads = list(_LOAD.finditer(text))
    if not loads:
        return EngineLog({}, ())
    load = text[loads[-1].start():]
    boots = list(_BOOT.finditer(text, 0, loads[-1].start()))
    boot = text[boots[-1].start() if boots else 0:]
    settings: dict[str, Finding] = {}
    for part, patterns in ((boot, _BEFORE_LOAD), (load, _AFTER_LOAD)):
        for name, pattern in patterns:
            for match in re.finditer(pattern, part, re.MULTILINE):
                settings[name] = Finding(_WORDS.get(match[1], match[1]), _line_at(part, match.start()))
    buffers, said = _buffers(load), {name for name, words, _value, _otherwise in _EITHER if words in boot}
    held = {"weights" if buffer.component == "repacked" else buffer.component for buffer in buffers}
    there = {"model file": model_file(boot) is not None, "model loaded": _LOADED.search(load) is not None,
             **{name: name in settings or name in said for name in _ALWAYS_SET},
             **{f"{component} buffer": component in held for component in _ALWAYS_HELD}}
    unrecognised = tuple(line for line in LINES if not there[line])
    for name, words, value, otherwise in _EITHER:
        at = boot.find(words)
        if at >= 0:
            settings[name] = Finding(value, _line_at(boot, at))
        elif otherwise is not None and not unrecognised:  # else the line may be there in other words
            settings[name] = Finding(otherwise, f"no line says {words!r}")
    return EngineLog(settings, buffers, unrecognised)


def complaints(text: str, count: int = 6) -> str:
    """The last lines that warn of something or say what went wrong, in one line; empty if there are none."""
    wrong = [line for line in text.splitlines() if _COMPLAINT.search(line) and not _NO_COMPLAINT.search(line)]
    return " | ".join(dict.fromkeys(" ".join(_PREFIX.sub("", line).split()) for line in wrong[-count:]))


def model_file(text: str) -> str | None:
    """The file that the child says it loads; None: it does not say."""
    found = _MODEL_FILE.findall(text)
    return str(found[-1]) if found else None


def too_long(text: str) -> tuple[int, int] | None:
    """(tokens of the prompt, tokens of the context) where llama.cpp refused a prompt."""
    found = _TOO_LONG.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def cached_tokens(text: str) -> int | None:
    """Prompt tokens that llama.cpp took from its slot for the last request; None: it does not say."""
    found = _CACHED.findall(text)
    return int(found[0]) if found else None


def offloaded(text: str) -> tuple[int, int, str] | None:
    """(layers on the GPU, layers in all, the line) of the last load; None: no line speaks of it."""
    ignored = _NO_GPU.search(text)
    if ignored:
        return 0, 0, " ".join(ignored[0].split())
    found = list(_OFFLOADED.finditer(text))
    return (int(found[-1][1]), int(found[-1][2]), found[-1][0]) if found else None


def opens(text: str, model: str) -> str | None:
    """The words with which the log says that this file is loaded; None: it does not."""
    words = f"loading model '{model}'"
    return words if words in text else None


def lock_refusals(text: str) -> list[str]:
    """What the log says of memory that could not be locked, each line once."""
    return list(dict.fromkeys(" ".join(line.split()) for line in _LOCK_REFUSED.findall(_PREFIX.sub("", text))))


def _line_at(text: str, at: int) -> str:
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
    return " ".join(text[start:end if end >= 0 else len(text)].split())


def _buffers(load: str) -> list[Buffer]:
    sizes: dict[tuple[str, str, str], float] = {}
    for match in _BUFFER.finditer(load):
        component = "repacked" if match["device"] in _REPACKED else _COMPONENTS[match["what"]]
        key, mib = (component, match["device"], match["who"]), float(match["mib"])
        # One line per file of a split model and per KV cache (full and windowed): these add up. The compute
        # and output buffers are sized again when the server changes its mind: there the last line counts.
        adds_up = component in ("weights", "repacked", "kv")
        sizes[key] = sizes.get(key, 0.0) + mib if adds_up else mib
    states = _CACHE_STATE.findall(load)
    if states:
        sizes["prompt_cache", "CPU", ""] = float(states[-1])
    return [Buffer(component, device, round(mib * _MIB)) for (component, device, _), mib in sizes.items()]
