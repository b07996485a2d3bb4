"""The header of a GGUF model: architecture, sizes, tensors, and what its KV cache costs.

What a file says of itself is read in gguf_file.py; that a model may be several files is files.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

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


_ATTENTION = re.compile(r"blk\.(\d{1,5})\.attn_(?:k|qkv|kv_a_mqa|kv_b|k_b)\.weight\Z")
_RECURRENT = re.compile(r"\.(?:ssm|time_mix|shortconv)[_.]")


class Length(int):
    """How many entries an array has that was not read."""


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
    """What a model's files say about it: metadata of the first, tensors and bytes of all. Per-layer values have length
    `block_count`."""

    files: Sequence[Path]
    """In the order of the parts; one, unless the model is split."""
    version: int
    metadata: Mapping[str, Any]
    """Every key; arrays of strings and long arrays as their Length."""
    tensors: Sequence[Tensor]
    file_bytes: int
    expected_bytes: int
    """Where the last tensor ends, over all files; tensors of unknown types count with nothing."""

    @property
    def path(self) -> Path:
        """The file that a server is given; it finds the others by name."""
        return self.files[0]

    def _of_arch(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def _per_layer(self, key: str, default: int) -> list[int]:
        value = self._of_arch(key, default)
        layers = self.block_count
        return [int(v) for v in value][:layers] if isinstance(value, list) else [int(value)] * layers

    def facts(self) -> dict[str, str]:
        """What a trial's provenance says of its model."""
        names = self.metadata.get("general.name")
        split = {"model_files": str(len(self.files))} if len(self.files) > 1 else {}
        return {"model_file": str(self.path), "model_bytes": str(self.file_bytes), **split,
                "model_architecture": self.architecture, "model_quantisation": self.quantisation,
                **({"model_general_name": " ".join(names.split())} if isinstance(names, str) and names.strip() else {})}

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
            return [not windowed for windowed in pattern][:self.block_count]
        return [(i + 1) % int(pattern) == 0 for i in layers] if pattern else [True] * self.block_count

    @property
    def is_mla(self) -> bool:
        """Multi-head latent attention: one compressed K per token, V is a view of it (llama.cpp, hparams.is_mla)."""
        return bool(self._of_arch("attention.key_length_mla")) and bool(self._of_arch("attention.value_length_mla"))

    def caching_layers(self) -> list[bool]:
        """Per layer: does it attend, and so keep K and V of tokens? A recurrent layer keeps a state of fixed size."""
        names = [tensor.name for tensor in self.tensors]
        attending = {int(found[1]) for name in names if (found := _ATTENTION.match(name))}
        if not attending and not any(_RECURRENT.search(name) for name in names):
            return [True] * self.block_count  # names that we do not know
        own = self.block_count - int(self._of_arch("attention.shared_kv_layers", 0))  # the last ones use another's
        return [layer in attending and layer < own for layer in range(self.block_count)]

    @property
    def keeps_kv(self) -> bool:
        """Is there a KV cache at all?"""
        return any(self.kv_layer_bytes("f16", "f16"))

    def head_lengths(self) -> list[tuple[int, int]]:
        """Per layer: elements of one head's K and V in the cache; V of MLA has none."""
        heads = self._per_layer("attention.head_count", 1)
        width = self.embedding_length // max(heads[0], 1) if heads else 0
        lengths = []
        for full in self.full_attention_layers():
            key, value = (int(self._of_arch(f"attention.{name}_length", width)) for name in ("key", "value"))
            if not full:  # some models have smaller heads where they see a window
                key = int(self._of_arch("attention.key_length_swa", key))
                value = int(self._of_arch("attention.value_length_swa", value))
            lengths.append((key, 0 if self.is_mla else value))
        return lengths

    def kv_layer_bytes(self, type_k: str, type_v: str) -> list[float]:
        """Per layer: bytes of K and V for one token, in these ggml types (f16, q8_0, …)."""
        heads = self._per_layer("attention.head_count", 1)
        heads_kv = self._per_layer("attention.head_count_kv", heads[0] if heads else 1)
        per_k, per_v = bytes_per_element(type_k), bytes_per_element(type_v)
        return [caches * n * (key * per_k + value * per_v) for caches, n, (key, value) in
                zip(self.caching_layers(), heads_kv, self.head_lengths(), strict=True)]

    def kv_bytes(self, cells: int, window_cells: int, type_k: str, type_v: str) -> int:
        """Bytes of KV cache for `cells` tokens; windowed layers hold `window_cells` at most."""
        layers = zip(self.full_attention_layers(), self.kv_layer_bytes(type_k, type_v), strict=True)
        return round(sum(size * (cells if full else min(cells, window_cells)) for full, size in layers))


def block_elements(type_name: str) -> int:
    """How many elements a ggml type packs together; 1 for f16, 32 for q8_0. Raises ConfigError for an unknown type."""
    bytes_per_element(type_name)
    return _BY_NAME[type_name][0]


def bytes_per_element(type_name: str) -> float:
    """Bytes that one element costs in a ggml type; 8.5/8 for q8_0. Raises ConfigError for an unknown type."""
    if type_name not in _BY_NAME:
        raise ConfigError(f"{type_name} is not a ggml type. Known: {', '.join(sorted(_BY_NAME))}.")
    elements, size = _BY_NAME[type_name]
    return size / elements
