"""Counting tokens as a model's server will: with the model file's tokenizer and no weights, else by asking the server.

The tokenizer is llama.cpp's, in a child process: it gets a model of a few MiB that has the file's vocabulary and chat
template and one layer of holes, so that a count costs the same for every model. What a prompt says is prompts.py.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

from pipeline.config import Config
from pipeline.engine.base import EngineBase, Request, Scalar
from pipeline.engine.llamacpp import LlamaServer
from pipeline.model import gguf_file
from pipeline.scratch import scratch

Count = Callable[[str], int]
"""Tokens of a prompt, template of the server and special tokens included. Raises EngineError."""

_WIDTH, _F16, _F32 = 32, 1, 0
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_ALIGNMENT = 32

_SETTINGS: dict[str, Scalar] = {
    "n_ctx": 64, "n_parallel": 1, "n_batch": 32, "n_ubatch": 32, "n_threads": 1, "n_threads_http": 1,
    "n_gpu_layers": 0, "flash_attn": False, "cache_type_k": "f16", "cache_type_v": "f16", "load_mode": "mmap",
    "lazy_mode": False, "repack": False, "kv_unified": False, "swa_full": False, "cache_ram_mib": 0,
    "cache_idle_slots": False, "cache_prompt": False, "n_ctx_checkpoints": 0, "warmup": False, "fit": False,
}


@contextlib.contextmanager
def by_file(path: Path, config: Config) -> Iterator[Count]:
    """Counts with a GGUF file's tokenizer. Raises ConfigError: no GGUF; EngineError: a tokenizer that is not usable."""
    with scratch() as folder:
        vocabulary = write_vocabulary(path, folder / "vocabulary.gguf")
        server = LlamaServer(config, {"model": str(vocabulary), **_SETTINGS}, vocabulary, folder / "server.log")
        try:
            yield lambda prompt: server.tokens(prompt, config.engine.raw)
        finally:
            server.stop()


@contextlib.contextmanager
def by_server(engine: EngineBase) -> Iterator[Count]:
    """Counts by requests for one token to a server of the cell, which is started for it. Raises EngineError."""
    with scratch() as folder:
        server = engine.start(folder / "server.log")
        try:
            yield lambda prompt: server.generate(
                Request(prompt=prompt, max_tokens=1, seed=engine.config.seed, raw=engine.config.engine.raw),
                lambda kind, t_ns: None).prompt_tokens
        finally:
            server.stop()


def write_vocabulary(source: Path, target: Path) -> Path:
    """A model with the tokenizer of `source` and one layer of holes: a sparse file that loads at once.

    Raises ConfigError: `source` is not GGUF."""
    vocabulary = int(gguf_file.read_file(source).metadata.get("tokenizer.ggml.tokens", 0))
    entries = [
        _text("general.architecture", "llama"),
        *(_entry(f"llama.{key}", _UINT32, struct.pack("<I", value)) for key, value in (
            ("context_length", 64), ("embedding_length", _WIDTH), ("block_count", 1), ("feed_forward_length", _WIDTH),
            ("attention.head_count", 1), ("attention.head_count_kv", 1), ("vocab_size", vocabulary))),
        _entry("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)),
        *gguf_file.raw_entries(source, "tokenizer."),
    ]
    square = {f"blk.0.{name}.weight": [_WIDTH, _WIDTH] for name in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    shapes = {"token_embd.weight": [_WIDTH, vocabulary], **square, "output_norm.weight": [_WIDTH],
              "blk.0.attn_norm.weight": [_WIDTH], "blk.0.ffn_norm.weight": [_WIDTH]}
    tensors, at = [], 0
    for name, shape in shapes.items():
        kind, size = (_F16, 2) if len(shape) > 1 else (_F32, 4)
        tensors.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at))
        at += -(-prod(shape) * size // _ALIGNMENT) * _ALIGNMENT
    with target.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join([*entries, *tensors]))
        stream.truncate(-(-stream.tell() // _ALIGNMENT) * _ALIGNMENT + at)
    return target


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _text(key: str, value: str) -> bytes:
    return _entry(key, _STRING, _string(value))


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
