"""GGUF files for the double: reading a header, and writing phantoms whose weights are a hole in the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}
KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32, "q5_0": 22 / 32,
            "q5_1": 24 / 32, "iq4_nl": 18 / 32}
ALIGNMENT = 32


@dataclass(frozen=True)
class Gguf:
    """A header: metadata (arrays as None) and tensors as (name, type, shape, bytes)."""

    metadata: dict[str, Any]
    tensors: list[tuple[str, str, list[int], int]]
    file_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def of_arch(self, key: str, default: int = 0) -> int:
        return int(self.metadata.get(f"{self.architecture}.{key}", default))

    @property
    def weight_bytes(self) -> int:
        return sum(size for _, _, _, size in self.tensors)

    def bytes_of(self, *types: str) -> int:
        return sum(size for _, kind, _, size in self.tensors if kind in types)

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for _, _, shape, _ in self.tensors)

    def kv_bytes(self, cells: int, type_k: str, type_v: str) -> tuple[int, int]:
        """(K, V) for so many cells, all layers."""
        width = self.of_arch("embedding_length") // self.of_arch("attention.head_count", 1)
        elements = self.of_arch("block_count") * self.of_arch("attention.head_count_kv", 1) * width * cells
        return round(elements * KV_BYTES[type_k]), round(elements * KV_BYTES[type_v])


def read(path: Path) -> Gguf:
    """Raises ValueError for a file that is not GGUF."""
    with open(path, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("invalid file magic")
        _version, tensor_count, key_count = struct.unpack("<IQQ", stream.read(20))
        metadata = {_string(stream): _value(stream, *struct.unpack("<I", stream.read(4))) for _ in range(key_count)}
        tensors = []
        for _ in range(tensor_count):
            name, (dimensions,) = _string(stream), struct.unpack("<I", stream.read(4))
            shape = list(struct.unpack(f"<{dimensions}Q", stream.read(8 * dimensions)))
            kind, _offset = struct.unpack("<IQ", stream.read(12))
            label, elements, size = TYPES.get(kind, (f"T{kind}", 1, 0))
            tensors.append((name, label, shape, prod(shape) // elements * size))
        return Gguf(metadata, tensors, path.stat().st_size)


def _string(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    return stream.read(length).decode(errors="replace")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _string(stream)
    if kind == 9:
        inner, count = struct.unpack("<IQ", stream.read(12))
        for _ in range(count):
            _value(stream, inner)
        return None
    code = "<" + SCALARS[kind]
    return struct.unpack(code, stream.read(struct.calcsize(code)))[0]


def write_phantom(path: Path, *, architecture: str = "llama", layers: int = 8, width: int = 1024, heads: int = 16,
                  kv_heads: int = 16, context: int = 8192, weights_mib: int = 64, weight_type: str = "Q4_1",
                  name: str = "phantom") -> Path:
    """A GGUF with one big tensor that is a hole: `weights_mib` MiB of `weight_type`, next to nothing on disk."""
    kind, (_, elements, size) = next((code, entry) for code, entry in TYPES.items() if entry[0] == weight_type)
    rows = weights_mib * 2**20 // (width // elements * size)
    metadata: list[tuple[str, str | int | float]] = [
        ("general.architecture", architecture), ("general.name", name), ("general.file_type", kind),
        ("general.parameter_count", rows * width),
        (f"{architecture}.block_count", layers), (f"{architecture}.context_length", context),
        (f"{architecture}.embedding_length", width), (f"{architecture}.feed_forward_length", width * 4),
        (f"{architecture}.attention.head_count", heads), (f"{architecture}.attention.head_count_kv", kv_heads),
        (f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5), ("tokenizer.ggml.model", "gpt2"),
    ]
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata)))
    for key, value in metadata:
        header += _packed(key)
        if isinstance(value, str):
            header += struct.pack("<I", 8) + _packed(value)
        elif isinstance(value, float):
            header += struct.pack("<If", 6, value)
        else:
            header += struct.pack("<IQ", 10, value)
    header += _packed("token_embd.weight") + struct.pack("<IQQIQ", 2, width, rows, kind, 0)
    header += bytes(-len(header) % ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(header))
    with open(path, "r+b") as stream:
        stream.truncate(len(header) + rows * (width // elements * size))
    return path


def _packed(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
