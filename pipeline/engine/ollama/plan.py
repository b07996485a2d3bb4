"""What a cell asks of an Ollama, ours or one that runs already: its settings, checked, and the model's name there.

Starts nothing and asks no server.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Config
from pipeline.engine import checks
from pipeline.engine.knobs import NOTHING_STARTED, Resolved, refuse, resolve
from pipeline.engine.ollama import model_store
from pipeline.engine.ollama import settings as ollama_settings
from pipeline.engine.ollama.start import older
from pipeline.errors import ConfigError
from pipeline.machine import usable_cores
from pipeline.model.files import title
from pipeline.model.gguf import Header

_GPU_FILES = ("nvidia[0-9]*", "kfd", "dri/renderD*", "dxg")


def resolved_settings(config: Config, version: str) -> Resolved:
    """Settings behind the cell's flags and knobs, or its published environment. Raises ConfigError: see knobs.resolve;
    a server of this version has nothing behind a flag or knob; a knob that the published environment leaves out."""
    published = config.infer_os.environment
    flags = dataclasses.replace(config.infer_os, environment=None)
    resolved = resolve(config.engine, flags, ollama_settings.KNOBS, usable_cores(), config.knob, ollama_settings.WORDS)
    settings, notes = dict(resolved.settings), list(resolved.notes)
    if published is not None:
        # The flags as they were published: these variables, and no knob of ours, in the server's environment; but
        # Go's collector is held as steady as in every cell.
        dropped = ollama_settings.ENVIRONMENT.keys() - {"go_memory_limit_mib"}
        for name in sorted(dropped & resolved.chosen.keys()):
            raise ConfigError(f"{resolved.chosen[name]} is a variable of the server, and infer_os.environment says "
                              f"exactly which it has. Put {ollama_settings.ENVIRONMENT[name]} there, or leave one of "
                              f"them out. {NOTHING_STARTED}")
        settings = {name: value for name, value in settings.items() if name not in dropped}
        settings |= {f"env.{name}": value for name, value in published.items()}
    if older(version):
        for name in ollama_settings.CHILD_ONLY:
            if name in resolved.chosen:
                raise ConfigError(f"{resolved.chosen[name]}: Ollama {version} has nothing behind {name}, which came "
                                  f"with 0.30. {NOTHING_STARTED}")
        settings = {name: value for name, value in settings.items() if name not in ollama_settings.CHILD_ONLY}
        if config.infer_os.memory_optimization:
            notes.append(f"Ollama {version} has no prompt cache, no checkpoints, no switch for repacking (these came "
                         "with 0.30): infer_os.memory_optimization changes use_mmap and max_loaded_models only")
        kv_type = settings.get("kv_cache_type", "f16")
        if kv_type not in ("f16", "q8_0", "q4_0"):
            raise ConfigError(f"kv_cache_type={kv_type}: Ollama {version} knows f16, q8_0 and q4_0, and ignores "
                              f"others. {NOTHING_STARTED}")
    return dataclasses.replace(resolved, settings=settings | {"keep_alive": ollama_settings.FOR_EVER}, notes=notes)


def check_cell(config: Config, resolved: Resolved,
               header: Header | None) -> tuple[list[str], Mapping[str, int]]:
    """Checks of a cell against model and machine that need no server: notes, and bytes by component (Plan.memory).

    Raises ConfigError."""
    settings = resolved.settings
    ollama_settings.check(settings, config.num_ctx)
    checks.check_context(header.context_length if header else None, config.num_ctx, config.max_tokens)
    if int(settings.get("num_gpu", 0)) > 0 and not _has_gpu():
        raise refuse(resolved.chosen.get("num_gpu", "infer_os.gpu_acceleration=true"), config.engine.name,
                     "this machine has no GPU (nothing in /dev/nvidia*, /dev/kfd, /dev/dri); Ollama would take the "
                     "number of layers and ignore it")
    if header is None:
        return [], {}
    slots, batch = int(settings.get("num_parallel", 1)), int(settings["num_batch"])
    kv_type = str(settings.get("kv_cache_type", "f16"))
    num_ctx, _ = checks.context_in_force(config.num_ctx)
    need = checks.memory_need(header, num_ctx, slots, batch, kv_type, kv_type)
    note = checks.check_memory(need, f"{title(config.model)} with num_ctx={num_ctx} in {slots} slots",
                               mapped=settings.get("use_mmap") is True)
    return [note] if note else [], need


def model_name(config: Config) -> model_store.Name:
    """The name under which the server is asked for the model. Raises ConfigError: no name, or none that can be."""
    if config.model.kind != "ollama":
        called = re.sub(r"[^A-Za-z0-9_.-]", "-", title(config.model)).lstrip(".-")[:60]
        return model_store.Name.parse(called or "model")
    if not config.model.tag:
        raise ConfigError(f"model={config.model.name} needs model.tag: the name as `ollama pull` takes it, such as "
                          f"gpt-oss:20b. {NOTHING_STARTED}")
    return model_store.Name.parse(config.model.tag)


def _has_gpu() -> bool:
    return any(True for pattern in _GPU_FILES for _ in Path("/dev").glob(pattern))
