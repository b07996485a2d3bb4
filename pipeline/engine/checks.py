"""Checks of a cell against its model file and this machine, before any server is started; shared by engines.

What flags resolve to is knobs.py; what only one engine demands stands in that engine's file.
"""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from pipeline.engine.knobs import NOTHING_STARTED
from pipeline.engine.machine import memory_limit, usable_cores
from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.model.gguf import Header

_GIB = 2**30
_COMPUTE_FACTOR = 16
"""Compute buffer in units of n_ubatch × width × 4 B: 14 measured on SmolLM2-135M, 16.5 on gpt-oss:20b's shape."""

_ESTIMATE_ERROR = 2
"""KV cache and compute buffer may be so many times smaller than estimated (an architecture that we do not know)."""


def check_context(header: Header | None, num_ctx: int, max_tokens: int) -> None:
    """Raises ConfigError if the context leaves no room for a prompt, or is longer than the model was trained for."""
    if max_tokens >= num_ctx:
        raise ConfigError(f"max_tokens={max_tokens} leaves no room for a prompt in num_ctx={num_ctx}. Choose fewer "
                          f"tokens or a larger context. {NOTHING_STARTED}")
    trained = header.context_length if header else None
    if trained is not None and num_ctx > trained:
        raise ConfigError(f"num_ctx={num_ctx} is more than the {trained} tokens that this model was trained for; the "
                          f"server would cut it silently. Choose num_ctx={trained} or less. {NOTHING_STARTED}")


def check_batch(n_batch: int, n_ctx: int) -> None:
    """Raises ConfigError if the batch is larger than the context: llama.cpp takes it, and cuts it without an error."""
    if n_batch > n_ctx:
        raise ConfigError(f"n_batch={n_batch} is more than the whole context of {n_ctx} tokens, and the server would "
                          f"cut it. Choose num_ctx={n_batch} or more, or engine.knobs.n_batch={n_ctx} "
                          f"engine.knobs.n_ubatch={n_ctx}. {NOTHING_STARTED}")


def memory_need(header: Header, num_ctx: int, slots: int, n_ubatch: int, type_k: str, type_v: str) -> dict[str, int]:
    """Bytes a server will hold, roughly: weights once, KV cache of all slots (windowed layers as such), compute."""
    window = -(-((header.sliding_window or 0) + n_ubatch) // 256) * 256  # padded as in llama-kv-cache-iswa.cpp
    kv = header.kv_bytes(num_ctx, window, type_k, type_v) * slots
    return {"weights": header.file_bytes, "kv": kv,
            "compute": n_ubatch * header.embedding_length * 4 * _COMPUTE_FACTOR}


def check_memory(parts: Mapping[str, int], what: str, mapped: bool = False) -> str | None:
    """A note if the estimate exceeds what is free. Raises ConfigError only where no error of the estimate could make
    it fit: weights that are read (`mapped`: they are not, and may be read again and again) and half of all else."""
    need, limit, free = sum(parts.values()), memory_limit(), psutil.virtual_memory().available
    weights = parts.get("weights", 0)
    surely = (0 if mapped else weights) + (need - weights) // _ESTIMATE_ERROR
    if surely > limit + psutil.swap_memory().total:
        raise ConfigError(f"{what} needs about {need / _GIB:.1f} GiB of memory, and this machine gives "
                          f"{limit / _GIB:.1f} GiB. Choose a smaller num_ctx or a smaller model. {NOTHING_STARTED}")
    if need > limit:
        return (f"{what} needs about {need / _GIB:.1f} GiB of memory by its header, and this machine gives "
                f"{limit / _GIB:.1f} GiB: it may not fit")
    if need > free:
        return f"{what} needs about {need / _GIB:.1f} GiB of memory and only {free / _GIB:.1f} GiB are available now"
    return None


def asks(threads: object) -> tuple[str, ...]:
    """What a server of ours wants of the machine besides memory, for a person to read before it starts.

    `threads`: the server's number of them, if a setting says so."""
    cores = _("{n} of {cores} cores while tokens are made").format(n=threads, cores=usable_cores())
    return (*([cores] if threads is not None else []), _("a port of its own on 127.0.0.1"))
