"""The GGUF header reader, on files written here byte by byte after docs/gguf.md of ggml."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import resource
import struct
import time
import types
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.engine import checks
from pipeline.engine.checks import check_context, check_memory, memory_need
from pipeline.errors import ConfigError
from pipeline.model.files import read_model
from pipeline.model.gguf import bytes_per_element
from tests.ggufs import SMOLLM, header, text, write, write_model

GPT_OSS = {
    "general.architecture": "gpt-oss", "gpt-oss.context_length": 131072, "gpt-oss.block_count": 24,
    "gpt-oss.embedding_length": 2880, "gpt-oss.attention.head_count": 64, "gpt-oss.attention.head_count_kv": 8,
    "gpt-oss.attention.key_length": 64, "gpt-oss.attention.value_length": 64, "gpt-oss.attention.sliding_window": 128,
}


def model(folder: Path, keys: dict[str, Any]) -> Path:
    return write(folder / "model.gguf", keys, [("a", [256, 4], 3, 0), ("b", [64], 0, 640)], 640 + 256)


def test_the_header_says_what_was_written(tmp_path: Path) -> None:
    vocabulary = {"tokenizer.ggml.tokens": [f"token {i} ü" for i in range(200_000)],
                  "tokenizer.ggml.scores": [0.5] * 5000, "general.name": "after the vocabulary"}
    header = read_model(model(tmp_path, vocabulary | SMOLLM))
    assert (header.architecture, header.context_length, header.block_count) == ("llama", 8192, 30)
    assert header.metadata["general.name"] == "after the vocabulary"
    assert header.metadata["tokenizer.ggml.tokens"] == 200_000
    assert header.weight_types == {"q4_1": 1024 // 32 * 20, "f32": 64 * 4}
    assert header.quantisation == "q4_1"
    assert header.file_bytes == header.expected_bytes


@pytest.mark.parametrize(("type_name", "mib"), [("f16", 45.0), ("q8_0", 23.90625), ("f32", 90.0)])
def test_kv_cache_of_a_plain_model_as_llama_cpp_prints_it(tmp_path: Path, type_name: str, mib: float) -> None:
    assert read_model(model(tmp_path, SMOLLM)).kv_bytes(2048, 0, type_name, type_name) == mib * 2**20


def test_kv_cache_of_a_model_with_windowed_layers(tmp_path: Path) -> None:
    header = read_model(model(tmp_path, GPT_OSS))
    # llama.cpp's own lines for num_ctx 4096 and n_ubatch 512: 96.00 MiB full, 18.00 MiB for 768 windowed cells.
    assert header.kv_bytes(4096, 768, "f16", "f16") == (96 + 18) * 2**20


def test_layers_may_differ_in_heads_and_in_having_a_cache_at_all(tmp_path: Path) -> None:
    by_layer = SMOLLM | {"llama.block_count": 3, "llama.attention.head_count_kv": [3, 0, 1]}
    assert read_model(model(tmp_path, by_layer)).kv_layer_bytes("f16", "f16") == [768.0, 0.0, 256.0]
    hybrid = SMOLLM | {"llama.full_attention_interval": 4, "llama.block_count": 8}
    assert sum(read_model(model(tmp_path, hybrid)).full_attention_layers()) == 2


def test_bytes_per_element() -> None:
    assert (bytes_per_element("f16"), bytes_per_element("q8_0"), bytes_per_element("q4_1")) == (2, 34 / 32, 20 / 32)
    with pytest.raises(ConfigError, match="q9 is not a ggml type"):
        bytes_per_element("q9")


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ConfigError, match=r"model\.safetensors is not GGUF: it begins with b'PK"):
        read_model(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is not GGUF"):
        read_model(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_model(tmp_path / "absent.gguf")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_model(tmp_path)


def test_a_truncated_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path = model(tmp_path, SMOLLM)
    whole = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(whole - 1)
    with pytest.raises(ConfigError, match=rf"is truncated: it has {whole - 1:,} bytes, its header asks for {whole:,}"):
        read_model(path)
    for length in range(5, whole - 896, 7):
        with path.open("r+b") as stream:
            stream.truncate(whole)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ConfigError, match=r"truncated or damaged|is truncated"):
            read_model(path)
        model(tmp_path, SMOLLM)


def test_a_file_cut_inside_its_vocabulary_is_truncated(tmp_path: Path) -> None:
    path = model(tmp_path, {"tokenizer.ggml.tokens": ["token"] * 300_000} | SMOLLM)
    path.write_bytes(path.read_bytes()[:2_000_000])
    with pytest.raises(ConfigError, match="truncated or damaged"):
        read_model(path)


def test_a_context_longer_than_the_training_is_refused_with_the_maximum(tmp_path: Path) -> None:
    header = read_model(model(tmp_path, SMOLLM))
    check_context(header.context_length, 8192, 64)
    with pytest.raises(ConfigError, match=r"num_ctx=8193 is more than the 8192 tokens .* num_ctx=8192 or less"):
        check_context(header.context_length, 8193, 64)
    with pytest.raises(ConfigError, match=r"max_tokens=64 leaves no room for a prompt in num_ctx=64"):
        check_context(header.context_length, 64, 64)


def test_the_memory_need_is_close_to_what_the_server_was_seen_to_hold(tmp_path: Path) -> None:
    need = sum(memory_need(read_model(model(tmp_path, SMOLLM)), 2048, 1, 512, "f16", "f16").values()) / 2**20
    assert need == pytest.approx(45.0 + 16.6, rel=0.1)  # KV and compute as llama.cpp's log has them; the file is tiny
    need = sum(memory_need(read_model(model(tmp_path, GPT_OSS)), 4096, 1, 512, "f16", "f16").values()) / 2**20
    assert need == pytest.approx(
        96 + 18 + 97.1, rel=0.1)


def test_more_memory_than_the_machine_has_is_refused() -> None:
    assert check_memory({"weights": 1}, "x") is None
    with pytest.raises(ConfigError, match=r"x needs about 1048576\.0 GiB of memory, and this machine gives"):
        check_memory({"kv": 2**50}, "x")


def test_an_estimate_never_refuses_what_may_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "memory_limit", lambda: 8 * 2**30)
    monkeypatch.setattr(psutil, "swap_memory", lambda: types.SimpleNamespace(total=0))
    said = check_memory({"weights": 2**30, "kv": 10 * 2**30}, "x")
    assert said == "x needs about 11.0 GiB of memory by its header, and this machine gives 8.0 GiB: it may not fit"
    assert "may not fit" in str(check_memory({"weights": 9 * 2**30}, "x", mapped=True))
    with pytest.raises(ConfigError, match=r"x needs about 9\.0 GiB"):
        check_memory({"weights": 9 * 2**30}, "x")  # is read, every byte of it


DEEPSEEK: dict[str, Any] = {
    "general.architecture": "deepseek2", "deepseek2.block_count": 27, "deepseek2.embedding_length": 2048,
    "deepseek2.attention.head_count": 16, "deepseek2.attention.head_count_kv": 1,
    "deepseek2.attention.key_length": 576, "deepseek2.attention.value_length": 512,
    "deepseek2.attention.key_length_mla": 192, "deepseek2.attention.value_length_mla": 128,
}


def test_latent_attention_keeps_one_compressed_k_and_no_v(tmp_path: Path) -> None:
    found = read_model(model(tmp_path, DEEPSEEK))
    assert found.kv_bytes(4096, 0, "f16", "f16") == 27 * 576 * 2 * 4096
    old = {key: value for key, value in DEEPSEEK.items() if not key.endswith("_mla")}  # unsplit, as in 2024
    assert read_model(model(tmp_path, old)).kv_bytes(4096, 0, "f16", "f16") == 27 * (576 + 512) * 2 * 4096


def test_a_recurrent_layer_keeps_no_kv_cache(tmp_path: Path) -> None:
    keys = SMOLLM | {"llama.block_count": 3}
    recurrent = [("blk.0.ssm_in.weight", [32], 0, 640), ("blk.1.ssm_in.weight", [32], 0, 640)]
    hybrid = [*recurrent, ("blk.2.attn_k.weight", [32], 0, 640)]
    assert read_model(write_model(tmp_path / "h.gguf", keys, hybrid)).kv_layer_bytes("f16", "f16") == [0, 0, 768]
    found = read_model(write_model(tmp_path / "r.gguf", keys, recurrent))
    assert not found.keeps_kv
    assert found.kv_bytes(4096, 0, "f16", "f16") == 0


# What a partial or damaged download may have, and what only malice would write: none of it is believed.

def number(value: int) -> bytes:
    return struct.pack("<Q", value)


def kind(value: int) -> bytes:
    return struct.pack("<I", value)


LLAMA = text("general.architecture") + kind(8) + text("llama")


def begun(tensors: int, keys: int) -> bytes:
    return b"GGUF" + kind(3) + number(tensors) + number(keys)


def one_key(value_kind: int, data: bytes) -> bytes:
    return begun(0, 1) + text("a.b") + kind(value_kind) + data


CRAFTED: dict[str, bytes] = {
    "key_length": begun(0, 1) + number(2**48 - 1) + bytes(100),
    "key_count": begun(0, 2**60) + bytes(100),
    "tensor_count": begun(2**60, 0) + bytes(100),
    "text_length": one_key(8, number(2**62) + bytes(100)),
    "array_count": one_key(9, kind(4) + number(2**60) + bytes(100)),
    "texts_count": one_key(9, kind(8) + number(2**62) + bytes(100)),
    "a_text_of_many": one_key(9, kind(8) + number(3) + number(2**64 - 9) + bytes(100)),
    "array_of_arrays": one_key(9, (kind(9) + number(1)) * 10_000),
    "value_type": one_key(99, bytes(100)),
    "same_key_twice": begun(0, 2) + (text("a.b") + kind(4) + kind(1)) * 2 + bytes(100),
    "empty_key": begun(0, 2) + bytes(100),
    "alignment_text": begun(0, 2) + LLAMA + text("general.alignment") + kind(8) + text("32") + bytes(512),
    "alignment_zero": begun(0, 2) + LLAMA + text("general.alignment") + kind(4) + kind(0) + bytes(512),
    "dimensions": begun(1, 1) + LLAMA + text("t") + kind(2**32 - 1) + bytes(100),
    "shape": begun(1, 1) + LLAMA + text("t") + kind(4) + number(2**63) * 4 + kind(0) + number(0) + bytes(100),
    "unknown_type_shape": begun(1, 1) + LLAMA + text("t") + kind(4) + number(2**63) * 4 + kind(99) + bytes(100),
    "architecture_number": begun(0, 1) + text("general.architecture") + kind(4) + kind(1) + bytes(100),
    "big_endian": b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(100),
}
WRONG: dict[str, dict[str, Any]] = {
    "per_layer_too_few": {"llama.attention.head_count_kv": [1, 1]},
    "layers_text": {"llama.block_count": "3"}, "layers_many": {"llama.block_count": 2**31},
    "heads_text": {"llama.attention.head_count": "9"}, "heads_texts": {"llama.attention.head_count": ["9"] * 3},
    "width_list": {"llama.embedding_length": [64] * 3}, "length_float": {"llama.attention.key_length": 64.5},
    "skipped_list": {"llama.attention.head_count_kv": [1] * 5000},
}
CRAFTED |= {
    name: header({"general.architecture": "llama", "llama.block_count": 3, "llama.embedding_length": 64, **keys}, [])
    + bytes(512) for name, keys in WRONG.items()
}


@pytest.mark.parametrize("name", CRAFTED)
def test_no_value_of_a_header_is_believed(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(CRAFTED[name])
    with pytest.raises(ConfigError, match=rf"{name}\.gguf is (truncated or damaged|GGUF version \d+ \(big endian\))"):
        read_model(path)


def test_zero_heads_and_zero_layers_divide_nothing(tmp_path: Path) -> None:
    zero = {"llama.attention.head_count": 0, "llama.attention.head_count_kv": 0, "llama.full_attention_interval": 0}
    assert read_model(model(tmp_path, SMOLLM | zero)).kv_bytes(2048, 512, "f16", "f16") == 0
    assert read_model(model(tmp_path, {"general.architecture": "llama"})).kv_bytes(2048, 512, "f16", "f16") == 0


def test_a_name_that_is_not_utf_8_is_shown_with_a_replacement(tmp_path: Path) -> None:
    found = read_model(model(tmp_path, SMOLLM | {"general.name": "Café".encode("latin-1")}))
    assert found.facts()["model_general_name"] == "Caf\N{REPLACEMENT CHARACTER}"


def test_a_hole_where_a_vocabulary_should_be_is_no_long_wait(tmp_path: Path) -> None:
    """Zeros read as texts of no length: as many as the largest vocabularies have, and no more."""
    path = tmp_path / "hole.gguf"
    for count in (2**20, 2**22):
        path.write_bytes(one_key(9, kind(8) + number(count)))
        with path.open("r+b") as stream:
            stream.truncate(2**28)
        began = time.monotonic()
        with pytest.raises(ConfigError, match=r"names no architecture|truncated or damaged"):
            read_model(path)
        assert time.monotonic() - began < 2


def damage(whole: bytes, rng: random.Random) -> tuple[bytes, bool]:
    """A header with bits flipped or its end cut off, and whether a hole follows it."""
    if rng.random() < 0.35:
        return whole[:rng.randrange(len(whole))], rng.random() < 0.3
    data = bytearray(whole)
    middle = len(data) - 20_000  # most of a header is vocabulary, which is skipped
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.choice((rng.randrange(2000), rng.randrange(len(data)), rng.randrange(middle, len(data))))
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data), True


def fuzz(model_file: Path, path: Path, times: int) -> tuple[int, float, float]:
    """(good ones, worst seconds, MiB of memory that reading them took at the most)."""
    good, worst, size = 0, 0.0, model_file.stat().st_size
    with model_file.open("rb") as stream:
        whole = stream.read(1_800_000)
    rng, before = random.Random(13), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(times):
        data, hole = damage(whole, rng)
        path.write_bytes(data)
        if hole:
            with path.open("r+b") as out:
                out.truncate(size)
        began = time.monotonic()
        with contextlib.suppress(ConfigError):
            found = dataclasses.replace(read_model(path), expected_bytes=0)
            found.kv_bytes(2048, 512, "q8_0", "f16")
            assert found.facts()
            good += found.quantisation != ""
        worst = max(worst, time.monotonic() - began)
    return good, worst, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_damaged_headers_are_an_error_of_ours_at_once_and_in_little_memory(model_file: Path, tmp_path: Path) -> None:
    good, worst_s, grown_mib = fuzz(model_file, tmp_path / "damaged.gguf", 50)
    assert good > 0
    assert worst_s < 2
    assert grown_mib < 200


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_five_thousand_of_them(model_file: Path, tmp_path: Path) -> None:
    good, worst_s, grown_mib = fuzz(model_file, tmp_path / "damaged.gguf", 5000)
    assert good > 200
    assert worst_s < 2
    assert grown_mib < 300
