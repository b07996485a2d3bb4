"""The GGUF header reader, on files written here byte by byte after docs/gguf.md of ggml."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.checks import check_context, check_memory, memory_need
from pipeline.engine.gguf import bytes_per_element, read_header
from pipeline.errors import ConfigError

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def item(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return BOOL, struct.pack("<?", value)
        case int():
            return U32, struct.pack("<I", value)
        case float():
            return F32, struct.pack("<f", value)
        case str():
            return STRING, text(value)
        case list():
            items = [item(each) for each in value]
            kind = items[0][0] if items else U32
            return ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(data for _, data in items)
    raise AssertionError(value)


def write(path: Path, keys: dict[str, Any], tensors: list[tuple[str, list[int], int, int]], data_bytes: int) -> Path:
    """tensors: (name, shape, ggml type, offset)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        kind, data = item(value)
        out += text(key) + struct.pack("<I", kind) + data
    for name, shape, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    out += b"\0" * (-len(out) % 32)
    path.write_bytes(out)
    with path.open("r+b") as stream:
        stream.truncate(len(out) + data_bytes)
    return path


SMOLLM = {
    "general.architecture": "llama", "llama.context_length": 8192, "llama.block_count": 30,
    "llama.embedding_length": 576, "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3,
}
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
    header = read_header(model(tmp_path, vocabulary | SMOLLM))
    assert (header.architecture, header.context_length, header.block_count) == ("llama", 8192, 30)
    assert header.metadata["general.name"] == "after the vocabulary"
    assert header.metadata["tokenizer.ggml.tokens"] == 200_000
    assert header.weight_types == {"q4_1": 1024 // 32 * 20, "f32": 64 * 4}
    assert header.quantisation == "q4_1"
    assert header.file_bytes == header.expected_bytes


@pytest.mark.parametrize(("type_name", "mib"), [("f16", 45.0), ("q8_0", 23.90625), ("f32", 90.0)])
def test_kv_cache_of_a_plain_model_as_llama_cpp_prints_it(tmp_path: Path, type_name: str, mib: float) -> None:
    assert read_header(model(tmp_path, SMOLLM)).kv_bytes(2048, 0, type_name, type_name) == mib * 2**20


def test_kv_cache_of_a_model_with_windowed_layers(tmp_path: Path) -> None:
    header = read_header(model(tmp_path, GPT_OSS))
    # llama.cpp's own lines for num_ctx 4096 and n_ubatch 512: 96.00 MiB full, 18.00 MiB for 768 windowed cells.
    assert header.kv_bytes(4096, 768, "f16", "f16") == (96 + 18) * 2**20
    assert header.kv_bytes_per_token("f16", "f16") * 4096 == 96 * 2**20


def test_layers_may_differ_in_heads_and_in_having_a_cache_at_all(tmp_path: Path) -> None:
    by_layer = SMOLLM | {"llama.block_count": 3, "llama.attention.head_count_kv": [3, 0, 1]}
    assert read_header(model(tmp_path, by_layer)).kv_layer_bytes("f16", "f16") == [768.0, 0.0, 256.0]
    hybrid = SMOLLM | {"llama.full_attention_interval": 4, "llama.block_count": 8}
    assert sum(read_header(model(tmp_path, hybrid)).full_attention_layers()) == 2


def test_bytes_per_element() -> None:
    assert (bytes_per_element("f16"), bytes_per_element("q8_0"), bytes_per_element("q4_1")) == (2, 34 / 32, 20 / 32)
    with pytest.raises(ConfigError, match="q9 is no ggml type"):
        bytes_per_element("q9")


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ConfigError, match=r"model\.safetensors is no GGUF: it begins with b'PK"):
        read_header(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="is no GGUF"):
        read_header(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


def test_a_truncated_file_says_how_much_is_missing(tmp_path: Path) -> None:
    path = model(tmp_path, SMOLLM)
    whole = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(whole - 1)
    with pytest.raises(ConfigError, match=rf"is truncated: it has {whole - 1:,} bytes, its header asks for {whole:,}"):
        read_header(path)
    for length in range(5, whole - 896, 7):
        with path.open("r+b") as stream:
            stream.truncate(whole)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ConfigError, match=r"truncated or damaged|is truncated"):
            read_header(path)
        model(tmp_path, SMOLLM)


def test_a_file_cut_inside_its_vocabulary_is_truncated(tmp_path: Path) -> None:
    path = model(tmp_path, {"tokenizer.ggml.tokens": ["token"] * 300_000} | SMOLLM)
    path.write_bytes(path.read_bytes()[:2_000_000])
    with pytest.raises(ConfigError, match="truncated or damaged"):
        read_header(path)


def test_a_context_longer_than_the_training_is_refused_with_the_maximum(tmp_path: Path) -> None:
    header = read_header(model(tmp_path, SMOLLM))
    check_context(header, 8192, 64)
    with pytest.raises(ConfigError, match=r"num_ctx=8193 is more than the 8192 tokens .* num_ctx=8192 or less"):
        check_context(header, 8193, 64)
    with pytest.raises(ConfigError, match=r"max_tokens=64 leaves no room for a prompt in num_ctx=64"):
        check_context(header, 64, 64)


def test_the_memory_need_is_close_to_what_the_server_was_seen_to_hold(tmp_path: Path) -> None:
    need = sum(memory_need(read_header(model(tmp_path, SMOLLM)), 2048, 1, 512, "f16", "f16").values()) / 2**20
    assert need == pytest.approx(45.0 + 16.6, rel=0.1)  # KV and compute as llama.cpp's log has them; the file is tiny
    need = sum(memory_need(read_header(model(tmp_path, GPT_OSS)), 4096, 1, 512, "f16", "f16").values()) / 2**20
    assert need == pytest.approx(
        96 + 18 + 97.1, rel=0.1)


def test_more_memory_than_the_machine_has_is_refused() -> None:
    assert check_memory({"weights": 1}, "x") is None
    with pytest.raises(ConfigError, match=r"x needs about 1048576\.0 GiB of memory, and this machine gives"):
        check_memory({"kv": 2**50}, "x")
