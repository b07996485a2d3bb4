"""What the header or the settings already tell of a cell is asked as it will be in force, or refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, Engine, InferOs
from pipeline.engine.checks import check_model, check_path, check_settings, context_in_force
from pipeline.errors import ConfigError
from pipeline.model.files import read_model
from tests.ggufs import SMOLLM, Tensors, write, write_model

CONFIG = Config(engine=Engine(name="llamacpp"), infer_os=InferOs())
QUANTISED = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
ATTENDING: Tensors = [("blk.0.attn_k.weight", [32], 0, 640)]


def checked(path: Path, settings: dict[str, Any], config: Config = CONFIG) -> list[str]:
    return check_model(read_model(path), path, config, settings)


def test_a_context_is_asked_as_it_will_be_in_force() -> None:
    assert context_in_force(2048) == (2048, [])
    assert context_in_force(1000) == (1024, ["num_ctx=1000 is 1024 in force: llama.cpp makes it a multiple of 256"])


def test_settings_of_which_the_server_would_drop_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_ubatch=1024 is more than n_batch=512, .* Nothing was started"):
        check_settings({"n_batch": 512, "n_ubatch": 1024})
    for mode in ("none", "mlock", "direct_io"):
        with pytest.raises(ConfigError, match=rf"lazy_mode=true with load_mode={mode}: .*load_mode=mmap or mmap_mlock"):
            check_settings({"lazy_mode": True, "load_mode": mode})
    check_settings({"lazy_mode": True, "load_mode": "mmap", "n_batch": 512, "n_ubatch": 512})
    check_settings({"lazy_mode": False, "load_mode": "none"})


@pytest.mark.parametrize(("kind", "refused"), [("q8_0", True), ("q4_0", True), ("iq4_nl", True), ("f16", False)])
def test_heads_that_a_cache_type_cannot_pack_are_named(tmp_path: Path, kind: str, refused: bool) -> None:
    keys = SMOLLM | {"llama.embedding_length": 160, "llama.attention.head_count": 2, "llama.block_count": 1}
    path = write_model(tmp_path / "head80.gguf", keys, ATTENDING)
    for knob, half in (("cache_type_k", "K"), ("cache_type_v", "V"), ("kv_cache_type", "K")):
        if refused:
            with pytest.raises(ConfigError, match=rf"{knob}={kind} packs 32 numbers .* head80\.gguf has 80 \({half}\)"):
                checked(path, {knob: kind})
        else:
            assert checked(path, {knob: kind}) == []
    assert checked(path, {"cache_type_k": kind, "cache_type_v": "f16", "flash_attn": False}) == []  # seen to generate
    assert checked(write_model(tmp_path / "head64.gguf", more=ATTENDING), QUANTISED) == []


def test_a_quantised_cache_where_there_is_none_is_refused_by_the_flags_name(tmp_path: Path) -> None:
    keys, recurrent = SMOLLM | {"llama.block_count": 1}, [("blk.0.ssm_in.weight", [32], 0, 640)]
    path = write_model(tmp_path / "mamba.gguf", keys, recurrent)
    on = Config(engine=Engine(name="llamacpp"), infer_os=InferOs(quantization=True))
    with pytest.raises(ConfigError, match=r"infer_os\.quantization=true cannot be.*mamba\.gguf keeps no KV cache"):
        checked(path, QUANTISED, on)
    with pytest.raises(ConfigError, match=r"nothing that cache_type_k=q8_0 acts on"):
        checked(path, {"cache_type_k": "q8_0", "cache_type_v": "f16"})
    assert checked(path, {"cache_type_k": "f16", "cache_type_v": "f16"}) == []


@pytest.mark.parametrize(("keys", "what"), [
    ({"general.type": "mmproj"}, "a projector"), ({"general.architecture": "clip"}, "a projector"),
    ({"general.type": "adapter"}, "an adapter"), ({"general.type": "imatrix"}, "an importance matrix"),
    ({"general.architecture": "bert"}, r"an encoder \(bert\)"), ({"llama.attention.causal": False}, "an encoder"),
    ({"llama.block_count": 0}, "a model without layers"),
])
def test_a_file_that_cannot_generate_is_refused_before_a_start(tmp_path: Path, keys: dict[str, Any], what: str) -> None:
    path = write_model(tmp_path / "odd.gguf", SMOLLM | keys)
    with pytest.raises(ConfigError, match=rf"odd\.gguf cannot generate text: it is {what}.*Nothing was started"):
        checked(path, {})


def test_a_vocabulary_and_a_part_of_a_model_cannot_generate_either(tmp_path: Path) -> None:
    for tensors, keys, what in (([], {"tokenizer.ggml.tokens": ["a"]}, "a vocabulary without weights"),
                                ([("a", [32], 0, 0)], {}, "a model without a tokenizer"),
                                ([("a", [32], 0, 0)], {"tokenizer.ggml.tokens": ["a"]}, "without token embeddings")):
        with pytest.raises(ConfigError, match=what):
            checked(write(tmp_path / "odd.gguf", SMOLLM | keys, tensors, 128), {})


def test_a_model_for_embeddings_that_can_generate_is_noted(tmp_path: Path) -> None:
    assert "made for embeddings" in checked(write_model(tmp_path / "e.gguf", SMOLLM | {"llama.pooling_type": 3}), {})[0]


def test_a_path_that_is_not_utf_8_is_refused_by_the_byte() -> None:
    check_path(Path("/models/潮 Müller.gguf"))
    with pytest.raises(ConfigError, match=r"a\ufffd\.gguf: its path holds the byte 0xfc, which is not UTF-8"):
        check_path(Path(os.fsdecode(b"/models/a\xfc.gguf")))
