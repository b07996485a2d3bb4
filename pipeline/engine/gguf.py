"""The header of a GGUF file: architecture, sizes, tensors, and what its KV cache costs.

Reads only what planning needs, in milliseconds; tokenizers and tensor data are never decoded. The format:
docs/gguf.md in the ggml repository.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import ConfigError

_BYTE_ORDER = "<"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_ARRAY = 4096  # per-layer numbers are shorter; vocabularies are longer and skipped
_BUFFER_BYTES = 1 << 20

# (elements per block, bytes per block), from ggml's type_traits: ggml/src/ggml.c and ggml/src/ggml-common.h.
TYPE_SIZES: Mapping[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 36), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1), 25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18),
}
_BY_NAME = {name: (elements, size) for name, elements, size in TYPE_SIZES.values()}

# Every n-th layer attends to the whole context, the others to a window; where the file does not say so itself
# (llama.cpp, src/llama-model.cpp, set_swa_pattern).
_FULL_EVERY = {"gpt-oss": 2, "gptoss": 2, "gemma2": 2, "gemma3": 6, "cohere2": 4, "llama4": 4}


@dataclass(frozen=True)
class Tensor:
    """One tensor's place in the file; bytes None: a type that ggml had not when this was written."""

    name: str
    type: str
    elements: int
    offset: int
    bytes: int | None


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself. Per-layer values have length `block_count`."""

    path: Path
    version: int
    metadata: Mapping[str, Any]
    """Every key; arrays of strings and long arrays as their length (int)."""
    tensors: Sequence[Tensor]
    file_bytes: int
    expected_bytes: int
    """Where the last tensor ends; tensors of unknown types count with nothing."""

    def _of_arch(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def _per_layer(self, key: str, default: int) -> list[int]:
        value = self._of_arch(key, default)
        return [int(v) for v in value] if isinstance(value, list) else [int(value)] * self.block_count

    @property
    def architecture(self) -> str:
        """Such as llama, gpt-oss."""
        return str(self.metadata["general.architecture"])

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for."""
        value = self._of_arch("context_length")
        return None if value is None else int(value)

    @property
    def block_count(self) -> int:
        """Number of layers."""
        return int(self._of_arch("block_count", 0))

    @property
    def embedding_length(self) -> int:
        """Width of the model."""
        return int(self._of_arch("embedding_length", 0))

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a windowed layer sees; None: no such layers."""
        value = self._of_arch("attention.sliding_window")
        return int(value) if value else None

    @property
    def weight_types(self) -> Mapping[str, int]:
        """Bytes of tensors per ggml type, most first."""
        totals: Counter[str] = Counter()
        for tensor in self.tensors:
            totals[tensor.type] += tensor.bytes or 0
        return dict(totals.most_common())

    @property
    def quantisation(self) -> str:
        """The ggml type that holds most of the weights."""
        return next(iter(self.weight_types), "unknown")

    def full_attention_layers(self) -> list[bool]:
        """Per layer: does its KV cache hold the whole context (True) or a window, or nothing (False)?"""
        layers = range(self.block_count)
        interval = self._of_arch("full_attention_interval")  # hybrids: the other layers are recurrent
        if interval:
            return [(i + 1) % int(interval) == 0 for i in layers]
        if self.sliding_window is None:
            return [True] * self.block_count
        pattern = self._of_arch("attention.sliding_window_pattern", _FULL_EVERY.get(self.architecture))
        if isinstance(pattern, list):
            return [not windowed for windowed in pattern]
        return [(i + 1) % int(pattern) == 0 for i in layers] if pattern else [True] * self.block_count

    def kv_layer_bytes(self, type_k: str, type_v: str) -> list[float]:
        """Per layer: bytes of K and V for one token, in these ggml types (f16, q8_0, …)."""
        heads = self._per_layer("attention.head_count", 1)
        heads_kv = self._per_layer("attention.head_count_kv", heads[0] if heads else 1)
        width = self.embedding_length // max(heads[0], 1) if heads else 0
        length_k = int(self._of_arch("attention.key_length", width))
        length_v = int(self._of_arch("attention.value_length", width))
        return [n * (length_k * bytes_per_element(type_k) + length_v * bytes_per_element(type_v)) for n in heads_kv]

    def kv_bytes_per_token(self, type_k: str, type_v: str) -> float:
        """Bytes of KV cache that one more token of context costs, windowed layers left out."""
        layers = zip(self.full_attention_layers(), self.kv_layer_bytes(type_k, type_v), strict=True)
        return sum(size for full, size in layers if full)

    def kv_bytes(self, cells: int, window_cells: int, type_k: str, type_v: str) -> int:
        """Bytes of KV cache for `cells` tokens; windowed layers hold `window_cells` at most."""
        layers = zip(self.full_attention_layers(), self.kv_layer_bytes(type_k, type_v), strict=True)
        return round(sum(size * (cells if full else min(cells, window_cells)) for full, size in layers))


def bytes_per_element(type_name: str) -> float:
    """Bytes that one element costs in a ggml type; 8.5/8 for q8_0. Raises ConfigError for an unknown type."""
    if type_name not in _BY_NAME:
        raise ConfigError(f"{type_name} is no ggml type. Known: {', '.join(sorted(_BY_NAME))}.")
    elements, size = _BY_NAME[type_name]
    return size / elements


def read_header(path: Path) -> Header:
    """Read a GGUF's header; a file that has not changed is read once per process.

    Raises ConfigError if the file cannot be read, is no GGUF, is truncated, or is of a version we do not know."""
    try:
        stat = path.stat()
        return _read(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"model file {path} cannot be read: {error.strerror}. Check model.path.") from error


@lru_cache(maxsize=16)
def _read(path: Path, size: int, mtime_ns: int) -> Header:
    with path.open("rb", buffering=_BUFFER_BYTES) as stream:
        magic = stream.read(4)
        if magic != b"GGUF":
            raise ConfigError(f"model file {path} is no GGUF: it begins with {magic!r}, a GGUF with b'GGUF'. "
                              "Give a GGUF file, such as those that llama.cpp's convert_hf_to_gguf.py writes.")
        try:
            return _Reader(stream).header(path, size)
        except (struct.error, UnicodeDecodeError, KeyError, EOFError) as error:
            raise ConfigError(f"model file {path} is truncated or damaged: it has {size:,} bytes and ends or breaks "
                              f"inside its header ({error}). Fetch it again.") from error


class _Reader:
    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def take(self, count: int) -> bytes:
        data = self.stream.read(count)
        if len(data) != count:
            raise EOFError(f"{count} bytes wanted, {len(data)} left")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(_BYTE_ORDER + code, self.take(struct.calcsize(_BYTE_ORDER + code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        return self.number(_SCALARS[kind])

    def array(self) -> list[Any] | int:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            self.skip_strings(count)
            return int(count)
        if kind == _ARRAY:
            for _ in range(count):
                self.array()
            return int(count)
        code = _SCALARS[kind]
        size = struct.calcsize(code) * count
        if count > _LONGEST_ARRAY:
            self.stream.seek(size, 1)
            return int(count)
        return list(struct.unpack(f"{_BYTE_ORDER}{count}{code}", self.take(size)))

    def skip_strings(self, count: int) -> None:
        # A vocabulary has 100,000 of them: walk over blocks of the file instead of two reads per string.
        unpack = struct.Struct(_BYTE_ORDER + "Q").unpack_from
        data, at, left = b"", 0, count
        while left:
            self.stream.seek(at - len(data), 1)
            data, at = self.stream.read(_BUFFER_BYTES), 0
            if len(data) < 8:
                raise EOFError("an array of strings is cut")
            try:
                while left:
                    at += 8 + unpack(data, at)[0]
                    left -= 1
            except struct.error:  # the next length lies behind this block
                continue
        self.stream.seek(at - len(data), 1)

    def header(self, path: Path, file_bytes: int) -> Header:
        version = self.number("I")
        if version not in (2, 3):
            raise ConfigError(f"model file {path} is GGUF version {version}; versions 2 and 3 (little endian) are "
                              "understood. Convert it with a current llama.cpp.")
        tensor_count, key_count = self.number("Q"), self.number("Q")
        metadata = {}
        for _ in range(key_count):
            key = self.string()
            metadata[key] = self.value(self.number("I"))
        tensors = [self.tensor() for _ in range(tensor_count)]
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-self.stream.tell() // alignment) * alignment
        expected = start + max((t.offset + (t.bytes or 0) for t in tensors), default=0)
        if expected > file_bytes:
            raise ConfigError(f"model file {path} is truncated: it has {file_bytes:,} bytes, its header asks for "
                              f"{expected:,}. Fetch it again.")
        if "general.architecture" not in metadata:
            raise ConfigError(f"model file {path} names no architecture (general.architecture): it is no model.")
        return Header(path, version, metadata, tensors, file_bytes, expected)

    def tensor(self) -> Tensor:
        name = self.string()
        shape = [self.number("Q") for _ in range(self.number("I"))]
        kind, offset, elements = self.number("I"), self.number("Q"), prod(shape)
        if kind not in TYPE_SIZES:
            return Tensor(name, f"type {kind}", elements, offset, None)
        type_name, block, size = TYPE_SIZES[kind]
        return Tensor(name, type_name, elements, offset, elements // block * size)
