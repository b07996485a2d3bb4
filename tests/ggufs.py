"""GGUF files written byte by byte, after docs/gguf.md of ggml: small models, parts of models, damaged ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

U16, U32, F32, BOOL, STRING, ARRAY = 2, 4, 6, 7, 8, 9
Tensors = list[tuple[str, list[int], int, int]]
"""(name, shape, ggml type, offset)"""

SMOLLM: dict[str, Any] = {
    "general.architecture": "llama", "llama.context_length": 8192, "llama.block_count": 30,
    "llama.embedding_length": 576, "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3,
}
VOCABULARY: dict[str, Any] = {"tokenizer.ggml.tokens": ["a", "b"]}


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def item(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return BOOL, struct.pack("<?", value)
        case int():
            return U32, struct.pack("<I", value)
        case float():
            return F32, struct.pack("<f", value)
        case str() | bytes():
            return STRING, text(value)
        case list():
            items = [item(each) for each in value]
            kind = items[0][0] if items else U32
            return ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(data for _, data in items)
    raise AssertionError(value)


def header(keys: dict[str, Any], tensors: Tensors) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        kind, data = item(value)
        out += text(key) + struct.pack("<I", kind) + data
    for name, shape, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return out


def write(path: Path, keys: dict[str, Any], tensors: Tensors, data_bytes: int) -> Path:
    """A file with a hole for its tensors."""
    out = header(keys, tensors)
    out += b"\0" * (-len(out) % 32)
    path.write_bytes(out)
    with path.open("r+b") as stream:
        stream.truncate(len(out) + data_bytes)
    return path


def write_model(path: Path, keys: dict[str, Any] = SMOLLM, more: Tensors | None = None) -> Path:
    """A model that could generate, as far as its header goes."""
    return write(path, VOCABULARY | keys, [("token_embd.weight", [256, 4], 3, 0), *(more or [])], 640 + 4096)


def write_split(folder: Path, name: str, parts: list[Tensors], keys: dict[str, Any] = SMOLLM) -> list[Path]:
    """A model in several files, as llama-gguf-split and the gguf package write them: metadata in the first."""
    count, total = len(parts), sum(map(len, parts))
    paths = []
    for number, tensors in enumerate(parts):
        own = {"split.no": number, "split.count": count, "split.tensors.count": total}
        path = folder / f"{name}-{number + 1:05}-of-{count:05}.gguf"
        paths.append(write(path, (VOCABULARY | keys if number == 0 else {}) | own, tensors, 2048 * len(tensors)))
    return paths
