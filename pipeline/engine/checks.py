"""Checks of a cell against its model file and this machine, before any server is started; shared by engines.

Either a cell is asked as it will be in force, and a note says so, or it is refused by name. Rules of llama.cpp; where
each stands is said with it. What flags resolve to is knobs.py; what only one engine demands stands with that engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import psutil

from pipeline.config import Config
from pipeline.engine.base import Scalar
from pipeline.engine.knobs import NOTHING_STARTED, refuse
from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.machine import memory_limit, usable_cores
from pipeline.model.gguf import Header, block_elements
from pipeline.record.reason import Reason
from pipeline.text import printable

MAPPED = frozenset({"mmap", "mmap_mlock"})
"""Load modes in which the weights are a mapping of the file."""

_CONTEXT_STEP = 256  # src/llama-context.cpp: n_ctx_seq = GGML_PAD(…, 256)

# Architectures that read a text and write none (src/llama-arch.cpp); besides those that say causal = false.
_ENCODERS = frozenset({"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3",
                       "neo-bert", "eurobert", "t5encoder", "gemma-embedding", "wavtokenizer-dec"})
_KINDS = {"mmproj": "a projector (what a vision or audio model puts before its text model)", "adapter": "an adapter",
          "imatrix": "an importance matrix", "vocab": "a vocabulary"}
_QUANTISED_KNOBS = ("cache_type_k", "cache_type_v", "kv_cache_type")
_GIB = 2**30
_COMPUTE_FACTOR = 16
"""Compute buffer in units of n_ubatch × width × 4 B: 14 measured on SmolLM2-135M, 16.5 on gpt-oss:20b's shape."""

_ESTIMATE_ERROR = 2
"""KV cache and compute buffer may be so many times smaller than estimated (an architecture that we do not know)."""


def newer_note(program: str, version: str, newest: tuple[int, ...]) -> list[str]:
    """A note on a program that is newer than any that was checked; nothing for others."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:len(newest)]) <= newest:
        return []
    return [Reason("newer_engine", {"engine": program, "version": version, "newest": ".".join(map(str, newest))})]


def check_context(trained: int | None, num_ctx: int, max_tokens: int) -> None:
    """Raises ConfigError if the context leaves no room for a prompt, or is longer than the model was trained for."""
    if max_tokens >= num_ctx:
        raise ConfigError(f"max_tokens={max_tokens} leaves no room for a prompt in num_ctx={num_ctx}. Choose fewer "
                          f"tokens or a larger context. {NOTHING_STARTED}")
    if trained is not None and num_ctx > trained:
        raise ConfigError(Reason("num_ctx_too_long", {"n": num_ctx, "limit": trained}))


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
        return Reason("memory_may_not_fit", {"what": what, "need_gib": need / _GIB, "limit_gib": limit / _GIB})
    if need > free:
        return Reason("memory_is_short", {"what": what, "need_gib": need / _GIB, "free_gib": free / _GIB})
    return None


def asks(threads: object) -> tuple[str, ...]:
    """What a server of ours needs of the machine besides memory, for the user to read before it starts.

    `threads`: the server's number of them, if a setting says so."""
    cores = _("{n} of {cores} cores while tokens are made").format(n=threads, cores=usable_cores())
    return (*([cores] if threads is not None else []), _("a port of its own on 127.0.0.1"))


def context_in_force(num_ctx: int) -> tuple[int, list[str]]:
    """The context per slot that llama.cpp will have, and a note if that is another than asked."""
    whole = -(-num_ctx // _CONTEXT_STEP) * _CONTEXT_STEP
    if whole == num_ctx:
        return num_ctx, []
    return whole, [Reason("num_ctx_rounded", {"n": num_ctx, "whole": whole, "step": _CONTEXT_STEP})]


def check_settings(settings: Mapping[str, Scalar]) -> None:
    """Raises ConfigError for settings of which the server would quietly drop one; names as in engine/llamacpp.py."""
    n_batch, n_ubatch = settings.get("n_batch"), settings.get("n_ubatch")
    if isinstance(n_batch, int) and isinstance(n_ubatch, int) and n_ubatch > n_batch:  # llama-context.cpp: the smaller
        raise ConfigError(Reason("batch_too_small", {"n_ubatch": n_ubatch, "n_batch": n_batch}))
    if settings.get("lazy_mode") is True and settings.get("load_mode") not in MAPPED:
        raise ConfigError(f"lazy_mode=true with load_mode={settings.get('load_mode')}: tensors can only be read on "
                          f"demand from a mapped file, and the server would not do it. Choose lazy_mode=false, or "
                          f"load_mode={' or '.join(sorted(MAPPED))}. {NOTHING_STARTED}")


def check_path(path: Path) -> None:
    """Raises ConfigError for a path whose bytes are not UTF-8: llama.cpp's bindings take no other."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"model file {printable(str(path))}: its path holds the byte {error.object[error.start]:#04x}, which is "
            f"not UTF-8, and llama.cpp takes no other. Rename it, or give a link to it. {NOTHING_STARTED}") from error


def check_model(header: Header, path: Path, config: Config, settings: Mapping[str, Scalar]) -> list[str]:
    """Notes on a model that can be served with these settings.

    Raises ConfigError for a file that cannot generate, a cache type that its heads cannot be packed in, a quantised
    KV cache where there is none."""
    _check_generates(header)
    asked = {name: str(settings[name]) for name in _QUANTISED_KNOBS if name in settings}
    packed = {name: kind for name, kind in asked.items() if block_elements(kind) > 1}
    if packed and not header.keeps_kv:
        given = ", ".join(f"{name}={kind}" for name, kind in packed.items())
        reason = Reason("no_kv_cache", {
            "name": header.path.name, "architecture": header.architecture, "given": given})
        if config.infer_os.quantization and not any(name.startswith("cache_type") for name in config.knob):
            raise refuse("infer_os.quantization=true", config.engine.name, reason)
        raise ConfigError(Reason("no_kv_cache_to_quantise", {"why": reason}))
    if settings.get("flash_attn", settings.get("flash_attention")) is not False:  # without it any K can be packed
        for name, kind in packed.items():
            _check_heads(header, name, kind)
    return _notes(header, path)


def _check_generates(header: Header) -> None:
    name, architecture = header.path.name, header.architecture
    kind = str(header.metadata.get("general.type", "model"))
    own = f"{architecture}."
    if kind != "model" or architecture == "clip":
        what = _KINDS.get(kind, _KINDS["mmproj"] if architecture == "clip" else f"of the type {kind}")
    elif architecture in _ENCODERS or header.metadata.get(f"{own}attention.causal") is False:
        what = f"an encoder ({architecture}): it makes embeddings, or marks a text"
    elif not header.tensors:
        what = "a vocabulary without weights"
    elif not any(key.startswith("tokenizer.ggml.") for key in header.metadata):
        what = "a model without a tokenizer"
    elif not any(tensor.name == "token_embd.weight" for tensor in header.tensors):
        what = f"a part of a model ({architecture}, without token embeddings)"
    elif header.block_count < 1:
        what = f"a model without layers ({own}block_count)"
    else:
        return
    raise ConfigError(Reason("no_language_model", {"name": name, "what": what}))


def _check_heads(header: Header, knob: str, kind: str) -> None:
    """Rows of the cache are packed in blocks that no head may share (src/llama-context.cpp, llama_init_from_model)."""
    block = block_elements(kind)
    for key, value in header.head_lengths():
        for half, length in (("K", key), ("V", value)):
            other = {"cache_type_k": "V", "cache_type_v": "K"}.get(knob)
            if half != other and length % block:
                raise ConfigError(Reason("heads_not_packed", {
                    "knob": f"{knob}={kind}", "n": block, "name": header.path.name, "length": f"{length} ({half})"}))


def _notes(header: Header, path: Path) -> list[str]:
    notes = list[str]()
    if len(header.files) > 1 and path.name != header.path.name:
        notes.append(Reason("part_of_a_model", {
            "part": path.name, "n": len(header.files), "first": header.path.name}))
    if header.metadata.get(f"{header.architecture}.pooling_type"):
        notes.append(Reason("made_for_embeddings", {"name": header.path.name}))
    return notes
