"""What a cell asks of Ollama: which knob is an environment variable of the server, which an option of every call.

Pure functions. How flags choose knobs is knobs.py, whether the server complied is proofs.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.engine.base import Request, Scalar
from pipeline.engine.knob_aliases import Common, Words
from pipeline.engine.knobs import NOTHING_STARTED, Knob, as_text
from pipeline.errors import ConfigError

KV_TYPES = ("f16", "q8_0", "q4_0", "f32", "bf16", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What llama.cpp takes as a cache type. Ollama passes any word on, and the answer to a wrong one gives no reason."""

KNOBS: Mapping[str, Knob] = {
    "max_loaded_models": Knob(int, least=1),
    "num_parallel": Knob(int, least=1, most=256),  # LLAMA_MAX_SEQ
    "kv_cache_type": Knob(str, KV_TYPES),
    "flash_attention": Knob(bool),
    "cache_ram_mib": Knob(int),
    "n_ctx_checkpoints": Knob(int),
    "repack": Knob(bool),
    "use_mmap": Knob(bool),
    "num_batch": Knob(int, least=1),
    "num_thread": Knob(int, least=1, most=512, cores=True),  # GGML_MAX_N_THREADS
    "num_gpu": Knob(int),
    "go_memory_limit_mib": Knob(int),
}

ENVIRONMENT: Mapping[str, str] = {
    "max_loaded_models": "OLLAMA_MAX_LOADED_MODELS",
    "num_parallel": "OLLAMA_NUM_PARALLEL",
    "kv_cache_type": "OLLAMA_KV_CACHE_TYPE",
    "flash_attention": "OLLAMA_FLASH_ATTENTION",
    "cache_ram_mib": "LLAMA_ARG_CACHE_RAM",
    "n_ctx_checkpoints": "LLAMA_ARG_CTX_CHECKPOINTS",
    "repack": "LLAMA_ARG_REPACK",
    "go_memory_limit_mib": "GOMEMLIMIT",
}
"""Knobs that only a start of the server can set. LLAMA_ARG_* reach the child, which inherits the environment."""

_COMMON = {
    "cache_type": Common(("kv_cache_type",)), "n_parallel": Common(("num_parallel",)),
    "n_batch": Common(("num_batch",)), "n_threads": Common(("num_thread",)), "n_gpu_layers": Common(("num_gpu",)),
    "flash_attn": Common(("flash_attention",)), "load_mode": Common(("use_mmap",), {"mmap": True, "none": False}),
}
_HALF = "it gives both halves of the cache one type, knob.cache_type"
_NONE = "it neither passes the setting on nor reads a variable for it"
WORDS = Words(
    common=_COMMON,
    aliases={own: name for name, common in _COMMON.items() for own in common.settings} | {
        variable.lower(): next((name for name, common in _COMMON.items() if own in common.settings), own)
        for own, variable in ENVIRONMENT.items() if variable.startswith("OLLAMA_")},
    nothing={"n_ubatch": "it passes num_batch on as both batch sizes, knob.n_batch", "cache_type_k": _HALF,
             "cache_type_v": _HALF, **dict.fromkeys(("lazy_mode", "kv_unified", "swa_full", "cache_idle_slots",
                                                     "cache_prompt", "warmup", "fit", "n_threads_http"), _NONE)},
)
"""Ollama's words: its options and its variables."""

CHILD_ONLY = ("cache_ram_mib", "n_ctx_checkpoints", "repack")
"""Knobs of llama-server, which is Ollama's engine since 0.30: the engines before it have no prompt cache, no
checkpoints and no switch for repacking."""

OPTIONS = ("num_ctx", "num_batch", "num_thread", "num_gpu", "use_mmap")
"""Knobs that stand in every call: another value, or none, makes the server load the model anew (needsReload)."""

FOR_EVER = -1
"""keep_alive of every call; the runner unloads by itself (DESIGN 4)."""


def environment(settings: Mapping[str, Scalar]) -> dict[str, str]:
    """The variables behind those settings that are read at the server's start; `env.NAME` is passed as it is."""
    values = {ENVIRONMENT[name]: variable(name, value) for name, value in settings.items() if name in ENVIRONMENT}
    published = {name[4:]: as_text(value) for name, value in settings.items() if name.startswith("env.")}
    return values | published


def options(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The load-time options, the same on every call of a trial."""
    return {name: settings[name] for name in OPTIONS if name in settings}


def load_body(model: str, settings: Mapping[str, Scalar]) -> dict[str, object]:
    """A request that only loads: no prompt."""
    return {"model": model, "options": options(settings), "keep_alive": FOR_EVER, "stream": False}


def unload_body(model: str) -> dict[str, object]:
    """A request that only unloads; there is no /api/unload."""
    return {"model": model, "keep_alive": 0, "stream": False}


def generate_body(model: str, settings: Mapping[str, Scalar], request: Request, truncate: bool) -> dict[str, object]:
    """A request for one streamed answer. `truncate` off: a prompt that is too long shall be refused, not cut."""
    run_time = {"num_predict": request.max_tokens, "seed": request.seed, "temperature": 0}
    return {
        "model": model, "prompt": request.prompt, "raw": request.raw, "stream": True, "truncate": truncate,
        "options": options(settings) | run_time, "keep_alive": FOR_EVER,
    }


def check(settings: Mapping[str, Scalar], num_ctx: int) -> None:
    """Raises ConfigError for settings that the server would refuse without a reason, or correct without a word."""
    kv_type, flash = settings.get("kv_cache_type"), settings.get("flash_attention")
    if kv_type not in (None, "f32", "f16", "bf16") and flash is False:
        raise ConfigError(f"kv_cache_type={kv_type} with flash_attention=false: a quantized KV cache needs flash "
                          "attention, and the server would fail at the load. Set flash_attention to true. "
                          f"{NOTHING_STARTED}")
    batch = settings.get("num_batch")
    if isinstance(batch, int) and batch > num_ctx:
        raise ConfigError(f"engine.knobs.num_batch={batch} is more than num_ctx={num_ctx}; the server would cut it "
                          f"silently. Choose engine.knobs.num_batch={num_ctx} or a larger context. {NOTHING_STARTED}")


def variable(name: str, value: Scalar) -> str:
    """A setting as it stands in the environment."""
    if name == "go_memory_limit_mib":
        return f"{value}MiB" if value else "off"
    return str(int(value)) if isinstance(value, bool) else str(value)
