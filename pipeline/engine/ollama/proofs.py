"""Asked, arrived, effective: what a running Ollama did with each setting of a cell (DESIGN 5.3). Pure functions.

The evidence is gathered by server.py; nothing here reads a process or a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.engine import llamacpp_log
from pipeline.engine.base import Buffer, Proof, Scalar
from pipeline.engine.knobs import as_text, prove
from pipeline.engine.ollama.environment import AUTO, as_read
from pipeline.engine.ollama.settings import CHILD_ONLY, ENVIRONMENT

Step = tuple[str | None, str]
"""A value (None: nothing shows it) and where it was seen."""

_UNIT_S = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3}

# Knob → llama.cpp's names for it, where they differ.
_IN_ENGINE = {
    "num_parallel": ("n_parallel",), "num_batch": ("n_batch", "n_ubatch"), "num_thread": ("n_threads",),
    "kv_cache_type": ("cache_type_k", "cache_type_v"), "flash_attention": ("flash_attn",), "use_mmap": ("load_mode",),
}

# What each variable of the original changes in the engine, where the server reads it (envconfig, llm/llama_server.go).
_BEHIND = {
    "OLLAMA_MAX_LOADED_MODELS": "how many models stay loaded; no setting of the engine",
    "OLLAMA_NUM_PARALLEL": "slots of the engine; 1 is the default",
    "OLLAMA_LOAD_TIMEOUT": "how long a load may stall; no setting of the engine",
}


@dataclass(frozen=True)
class Evidence:
    """What could be read of a server with a model in it; empty: not readable, or not there."""

    serve_environment: Mapping[str, str]
    config_line: Mapping[str, str] | None
    child_command: Sequence[str]
    child_environment: Mapping[str, str]
    load_text: str
    """The server's log since the last load began."""
    in_force: Mapping[str, tuple[str, str]]
    """Since 0.30: llama.cpp's settings by its own names, and where each was read (effective.py)."""
    buffers: Sequence[Buffer]
    model_path: str | None
    """The child's --model, links resolved."""
    model_logged: str | None
    """The file that llama.cpp says it loads, links resolved."""
    keeps: bool | None
    """Does /api/ps say that the model stays?"""
    request: Mapping[str, str] = field(default_factory=dict)
    """Before 0.30: the load request in the log."""
    mapped: bool | None = None
    """Is the weights file mapped into the child?"""

    @property
    def old(self) -> bool:
        """Is the engine one of those before 0.30?"""
        return "runner" in self.child_command

    def argument(self, *names: str) -> str | None:
        """Value behind the first of these flags on the child's command line."""
        for name in names:
            if name in self.child_command:
                at = list(self.child_command).index(name) + 1
                return self.child_command[at] if at < len(self.child_command) else ""
        return None


NOTHING_SEEN = Evidence({}, None, (), {}, "", {}, (), None, None, None)
"""Of a server that is gone."""


def proofs(settings: Mapping[str, Scalar], evidence: Evidence) -> list[Proof]:
    """One Proof per setting, in the settings' order."""
    published = {name[4:]: as_text(value) for name, value in settings.items() if name.startswith("env.")}
    found = []
    for name, asked in settings.items():
        if name.startswith("env."):
            continue
        (arrived, _), (effective, source) = _arrived(name, asked, evidence), _effective(name, asked, evidence)
        if asked == AUTO and arrived in (None, AUTO):  # nobody asked: what came of it is in force
            found.append(Proof(name, asked, arrived, effective, "confirmed" if effective else "not observable", source))
        else:
            found.append(prove(name, asked, arrived, effective, source))
    return found + published_proofs(published, evidence)


def published_proofs(variables: Mapping[str, str], evidence: Evidence) -> list[Proof]:
    """For each variable that was set as published: does the server read it at all, and what does it change?"""
    found, changing = [], []
    for name, asked in variables.items():
        arrived = evidence.serve_environment.get(name)
        line = evidence.config_line
        if line is None:
            found.append(Proof(f"env.{name}", asked, arrived, None, "not observable", "no log of the server to read"))
        elif name not in line:
            found.append(Proof(f"env.{name}", asked, arrived, None, "not observable",
                               'not in the "server config" line: the server does not read it, it changes nothing'))
        else:
            value = line[name]
            same = _same_value(asked, value)
            behind = _BEHIND.get(name, "see the settings of the engine")
            if name not in _BEHIND:
                changing.append(name)
            found.append(Proof(f"env.{name}", asked, arrived, asked if same else value,
                               "confirmed" if same else "contradicted", f'"server config" {name}:{value}; {behind}'))
    if variables and evidence.config_line is not None:
        read = [name for name in variables if name in evidence.config_line]
        said = (f"{len(read)} of {len(variables)} variables are read ({', '.join(read) or 'none'}); "
                + (f"{', '.join(changing)} may change the engine" if changing
                   else "none changes a setting of the engine"))
        found.append(Proof("environment as published", len(variables), None, said, "not observable",
                           '"server config" line'))
    return found


def _arrived(name: str, asked: Scalar, seen: Evidence) -> Step:
    if name in CHILD_ONLY:
        return _in_environment(name, seen.child_environment, seen.old), "/proc/PID/environ of the child"
    if name in ("max_loaded_models", "go_memory_limit_mib"):
        return _in_environment(name, seen.serve_environment, seen.old), "/proc/PID/environ"
    if name == "model":
        return seen.model_path, "/proc/PID/cmdline of the child"
    if not seen.child_command or seen.old:
        return _in_environment(name, seen.serve_environment, seen.old), "/proc/PID/environ"
    return _on_command_line(name, seen), "/proc/PID/cmdline of the child"


def _on_command_line(name: str, seen: Evidence) -> str | None:
    parallel = seen.argument("-np", "--parallel")
    if name == "num_parallel":
        return parallel
    if name == "num_ctx":
        total = seen.argument("-c", "--ctx-size")
        return None if total is None else _each(total, parallel)
    if name == "num_batch":
        return _both(seen.argument("-b"), seen.argument("-ub"))
    if name == "num_thread":
        return seen.argument("-t", "--threads") or "not passed"
    if name == "num_gpu":
        return seen.argument("-ngl") or "not passed"
    if name == "use_mmap":
        return {None: "true", "none": "false", "dio": "false"}.get(seen.argument("--load-mode"), "true")
    if name == "kv_cache_type":
        passed = _both(seen.argument("--cache-type-k"), seen.argument("--cache-type-v"))
        variable = seen.serve_environment.get(ENVIRONMENT[name], "").strip(" \"'")
        nobody_asked = bool(seen.serve_environment) and not variable
        return passed or (None if nobody_asked else "not passed")
    if name == "flash_attention":
        word = seen.argument("--flash-attn")
        return {"on": "true", "off": "false", None: "not passed"}.get(word, word)
    return None


def _effective(name: str, asked: Scalar, seen: Evidence) -> Step:
    if name == "max_loaded_models":
        value = (seen.config_line or {}).get(ENVIRONMENT[name])
        return value, f'"server config" {ENVIRONMENT[name]}:{value}'
    if name == "keep_alive":
        if seen.keeps is None:
            return None, "/api/ps"
        return (as_text(asked) if seen.keeps else "ends"), "/api/ps expires_at"
    if name == "model":
        return seen.model_logged, "log: loading model"
    if name == "num_gpu":
        return _layers(asked, seen)
    if seen.old:
        return _effective_before_030(name, seen)
    return _in_engine(name, seen)


def _in_engine(name: str, seen: Evidence) -> Step:
    if name == "num_ctx":
        total, slots = seen.in_force.get("n_ctx"), seen.in_force.get("n_parallel")
        if total is None or slots is None:
            return None, ""
        return str(int(total[0]) // int(slots[0])), f"{total[1]}, {slots[1]}"
    if name == "use_mmap" and "mapped" in seen.in_force:
        return seen.in_force["mapped"]
    values = [seen.in_force[each] for each in _IN_ENGINE.get(name, (name,)) if each in seen.in_force]
    if len(values) < len(_IN_ENGINE.get(name, (name,))):
        return None, ""
    value = _both(*(value for value, _ in values))
    if name == "use_mmap":
        value = {"mmap": "true", "mmap_mlock": "true", "none": "false", "mlock": "false",
                 "direct_io": "false"}.get(str(value), value)
    return value, ", ".join(dict.fromkeys(source for _, source in values))


def _effective_before_030(name: str, seen: Evidence) -> Step:
    fields = {"num_parallel": "Parallel", "num_batch": "BatchSize", "num_thread": "NumThreads", "use_mmap": "UseMmap",
              "kv_cache_type": "KvCacheType", "flash_attention": "FlashAttention", "num_ctx": "KvSize"}
    key = fields.get(name)
    if key is None or key not in seen.request:
        return None, ""
    value, source = seen.request[key], f"log: msg=load {key}:{seen.request[key]}"
    if name == "use_mmap" and seen.mapped is not None and value != str(seen.mapped).lower():
        return str(seen.mapped).lower(), f"{source}, but maps: the file is {'' if seen.mapped else 'not '}mapped"
    if name == "num_ctx":
        value = _each(value, seen.request.get("Parallel"))
    if name == "flash_attention":
        value = {"enabled": "true", "disabled": "false", "true": "true", "false": "false"}.get(value.lower(), value)
    if name == "kv_cache_type":
        value = value or "f16"
    return value, source


def _layers(asked: Scalar, seen: Evidence) -> Step:
    said = llamacpp_log.offloaded(seen.load_text)
    if said is not None:
        on_gpu, layers, line = said
        if layers and on_gpu == layers and int(asked) >= layers:
            return as_text(asked), f"log: {line}"
        return str(on_gpu), f"log: {line}"
    if seen.old and "GPULayers" in seen.request:
        value = seen.request["GPULayers"]
        return re.split(r"\[", value)[0] or "0", f"log: msg=load GPULayers:{value}"
    if seen.buffers and all(buffer.device.startswith("CPU") for buffer in seen.buffers):
        return "0", "log: every buffer is the CPU's"
    return None, ""


def _each(total: str, slots: str | None) -> str:
    """The context of one slot; the words themselves where they are no numbers."""
    slots = slots or "1"
    whole = re.compile(r"[1-9][0-9]{0,11}")
    return str(int(total) // int(slots)) if whole.fullmatch(total) and whole.fullmatch(slots) else f"{total}/{slots}"


def _both(*values: str | None) -> str | None:
    words = dict.fromkeys("not passed" if value is None else value for value in values)
    return None if list(words) == ["not passed"] else "/".join(words)


def _in_environment(name: str, environment: Mapping[str, str], old: bool) -> str | None:
    """A variable as the server reads it; None: not set."""
    if ENVIRONMENT.get(name) not in environment:
        return None
    return as_text(as_read(name, environment, old))


def _same_value(asked: str, said: str) -> bool:
    seconds = _seconds(said)
    return asked == said or (seconds is not None and seconds in (_seconds(asked), _seconds(f"{asked}s")))


def _seconds(text: str) -> float | None:
    """A Go duration such as 1m0s in seconds; None: not one."""
    parts = re.findall(r"([\d.]+)(h|ms|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return math.fsum(float(number) * _UNIT_S[unit] for number, unit in parts)
