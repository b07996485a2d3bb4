"""The knobs of the embedded engine: which there are, what their other names are, what one decides of another.

Pure values and functions. What flags set of them is conf/engine/llamacpp.yaml, whether the server complied is
effective.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pipeline.engine.base import Scalar
from pipeline.engine.knob_aliases import Common, Decided, Words
from pipeline.engine.knobs import NOTHING_STARTED, Knob
from pipeline.errors import ConfigError
from pipeline.language import N_

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")  # common/arg.cpp, kv_cache_types
UNQUANTIZED = ("f32", "f16", "bf16")
MOST_SLOTS = 256  # LLAMA_MAX_SEQ
MOST_THREADS = 512  # GGML_MAX_N_THREADS

KNOBS: Mapping[str, Knob] = {
    "n_parallel": Knob(int, least=1, most=MOST_SLOTS), "n_batch": Knob(int, least=1), "n_ubatch": Knob(int, least=1),
    "n_threads": Knob(int, least=1, most=MOST_THREADS, cores=True), "n_threads_http": Knob(int, least=1, most=512),
    "n_gpu_layers": Knob(int), "flash_attn": Knob(bool), "cache_type_k": Knob(str, KV_TYPES),
    "cache_type_v": Knob(str, KV_TYPES), "load_mode": Knob(str, ("none", "mmap", "mlock", "mmap_mlock", "direct_io")),
    "lazy_mode": Knob(bool), "repack": Knob(bool), "kv_unified": Knob(bool), "swa_full": Knob(bool),
    "cache_ram_mib": Knob(int), "cache_idle_slots": Knob(bool), "cache_prompt": Knob(bool),
    "n_ctx_checkpoints": Knob(int), "warmup": Knob(bool), "fit": Knob(bool),
}

# common/arg.cpp: flags, and what follows LLAMA_ARG_
_FLAGS = {
    "n_parallel": ("np", "parallel", "slots"), "n_batch": ("b", "batch_size", "batch"),
    "n_ubatch": ("ub", "ubatch_size", "ubatch"), "n_threads": ("t", "threads"), "n_threads_http": ("threads_http",),
    "n_gpu_layers": ("ngl", "gpu_layers"), "flash_attn": ("fa",), "cache_type_k": ("ctk",), "cache_type_v": ("ctv",),
    "load_mode": ("lm",), "kv_unified": ("kvu",), "cache_ram_mib": ("cram", "cache_ram"),
    "n_ctx_checkpoints": ("ctxcp", "ctx_checkpoints", "swa_checkpoints"),
}
_MAPPED = ("mmap", "mmap_mlock")


def decide(settings: Mapping[str, Scalar], chosen: Collection[str]) -> Iterator[Decided]:
    """See Words.decide."""
    cache, idle = settings["cache_ram_mib"], settings["cache_idle_slots"]
    if "cache_ram_mib" in chosen and "cache_idle_slots" not in chosen:
        yield Decided("cache_ram_mib", "cache_idle_slots", bool(cache),
                      N_("the prompt cache is where idle slots are kept"))
    elif cache == 0 and idle:
        raise _contradiction("cache_idle_slots=true", "a prompt cache, and cache_ram_mib is 0", "cache_ram_mib=8192")
    mode = settings["load_mode"]
    if mode not in _MAPPED and "load_mode" in chosen and "lazy_mode" not in chosen:
        yield Decided("load_mode", "lazy_mode", False, N_("only a mapped file can be read on demand"))
    elif mode not in _MAPPED and settings["lazy_mode"]:
        raise _contradiction("lazy_mode=true", f"a mapped file, and load_mode is {mode}", "load_mode=mmap")
    batch, ubatch = int(settings["n_batch"]), int(settings["n_ubatch"])
    if ubatch > batch and "n_batch" in chosen and "n_ubatch" in chosen:
        raise _contradiction(f"n_ubatch={ubatch}", f"a batch that holds it, and n_batch is {batch}",
                             f"n_batch={ubatch}")
    if ubatch > batch and "n_ubatch" in chosen:
        yield Decided("n_ubatch", "n_batch", ubatch, N_("a batch is computed in parts of n_ubatch"))
    elif ubatch > batch and "n_batch" in chosen:
        yield Decided("n_batch", "n_ubatch", batch, N_("no part is larger than its batch"))


def _contradiction(knob: str, needs: str, remedy: str) -> ConfigError:
    return ConfigError(f"{knob} needs {needs}. Set knob.{remedy} with it, or leave it out. {NOTHING_STARTED}")


WORDS = Words(
    common={"cache_type": Common(("cache_type_k", "cache_type_v"))},
    aliases={flag: name for name, flags in _FLAGS.items() for flag in flags},
    nothing={"max_loaded_models": "it holds one model", "go_memory_limit_mib": "it is not written in Go"},
    decide=decide,
)
