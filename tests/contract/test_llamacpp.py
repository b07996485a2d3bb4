"""What only the embedded engine promises: refusals before a start, a lean child, proofs that can fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config import Config, Engine, InferOs, Model
from pipeline.engine import checks, llamacpp, llamacpp_available, process, tokens
from pipeline.engine.base import Request
from pipeline.engine.knobs import as_text
from pipeline.engine.llamacpp_settings import KNOBS
from pipeline.errors import ConfigError, EngineError, PromptTooLongError
from pipeline.model import weights
from pipeline.testing import config_of


@pytest.fixture(scope="session")
def default_model() -> Model:
    model: Model = config_of("model=smollm2-135m").model
    weights.resolve(model)
    return model


@pytest.fixture
def configure(default_model: Model) -> Callable[..., Config]:
    def build(model: Model | None = None, knobs: dict[str, Any] | None = None, infer_os: InferOs | None = None,
              **fields: Any) -> Config:
        engine: Engine = config_of("engine=llamacpp").engine
        engine.knobs |= knobs or {}
        return Config(model=model or default_model, engine=engine, infer_os=infer_os or InferOs(), max_tokens=8,
                      **fields)

    return build


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Config], llamacpp.LlamaServer]]:
    servers: list[llamacpp.LlamaServer] = []

    def started(config: Config) -> llamacpp.LlamaServer:
        servers.append(llamacpp.Engine(config).start(tmp_path / "server.log"))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


def own(path: Path) -> Model:
    return Model(name="gguf", kind="file", path=str(path))


def silent(kind: str, t_ns: int) -> None:
    pass


def refused(config: Config, message: str) -> None:
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ConfigError, match=message):
        llamacpp.Engine(config).plan()
    assert psutil.Process().children(recursive=True) == before


def test_every_flag_that_cannot_be_honoured_is_refused(configure: Callable[..., Config]) -> None:
    refused(configure(infer_os=InferOs(npu_optimization=True)), "llama.cpp has no NPU path.*Nothing was started")
    if any(device["type"] != "CPU" for device in llamacpp_available.devices()):
        pytest.skip("this build of xllamacpp sees a GPU")
    refused(configure(infer_os=InferOs(gpu_acceleration=True)),
            r"infer_os\.gpu_acceleration=true .* engine llamacpp: xllamacpp .* sees no GPU, only CPU.*Nothing was")


def test_a_context_that_the_model_or_the_machine_cannot_hold_is_refused(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(configure(num_ctx=8193), "num_ctx=8193 is more than the 8192 tokens")
    many = configure(num_ctx=8192)
    many.engine.flags["parallel_processing"].off = {"n_parallel": 256}
    many.engine.flags["quantization"].off = {"cache_type_k": "f32", "cache_type_v": "f32"}
    monkeypatch.setattr(checks, "memory_limit", lambda: 16 * 2**30)
    refused(many, r"num_ctx=8192 in 256 slots needs about 90\..* GiB of memory, and this machine gives 16\.0 GiB")


def test_a_quantized_cache_without_flash_attention_is_refused(configure: Callable[..., Config]) -> None:
    refused(configure(knobs={"flash_attn": False}, infer_os=InferOs(quantization=True)),
            "cache_type_v=q8_0 needs flash_attn=true")


def test_a_bad_model_file_is_refused(configure: Callable[..., Config], tmp_path: Path) -> None:
    refused(configure(own(tmp_path / "absent.gguf")), r"absent\.gguf cannot be read: No such file")
    (tmp_path / "text.gguf").write_text("not a model")
    refused(configure(own(tmp_path / "text.gguf")), "is not GGUF")
    with pytest.raises(ConfigError, match="only Ollama knows"):
        llamacpp.Engine(configure(Model(name="gpt-oss-20b", kind="ollama", tag="gpt-oss:20b"))).plan()


def test_a_model_that_is_not_fetched_yet_is_planned_and_noted(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path))
    engine = llamacpp.Engine(configure())
    assert engine.model_path is None
    assert any("fetched first" in note for note in engine.plan().notes)
    with pytest.raises(EngineError, match="is not there"):
        engine.start(tmp_path / "log")


def test_a_truncated_copy_is_refused_and_a_damaged_one_fails_with_the_engines_reason(
    configure: Callable[..., Config], start: Callable[[Config], llamacpp.LlamaServer], default_model: Model,
    tmp_path: Path,
) -> None:
    whole = weights.resolve(default_model)
    with whole.open("rb") as stream:
        head = stream.read(4 * 2**20)
    copy = tmp_path / "a copy.gguf"
    copy.write_bytes(head)
    refused(configure(own(copy)), f"truncated: it has {len(head):,} bytes, its header asks for 98,362,432")
    # A header whose tensor has another name: only llama.cpp finds that out. The weights are a hole.
    copy.write_bytes(head.replace(b"blk.0.attn_q.weight", b"xlk.0.attn_q.weight"))
    os.truncate(copy, whole.stat().st_size)
    server = start(configure(own(copy)))
    with pytest.raises(EngineError, match=r"failed to load: .*tensor 'blk\.0\.attn_q\.weight' not found") as raised:
        server.load(silent)
    assert "\n" not in str(raised.value)
    assert server.alive() is None


def test_a_path_with_a_space_and_signs_arrives_whole(
    configure: Callable[..., Config], start: Callable[[Config], llamacpp.LlamaServer], default_model: Model,
    tmp_path: Path,
) -> None:
    link = tmp_path / "my models = ü" / "a b.gguf"
    link.parent.mkdir()
    link.symlink_to(weights.resolve(default_model))
    server = start(configure(own(link)))
    server.load(silent)
    (proof,) = [proof for proof in server.proofs() if proof.knob == "model"]
    assert (proof.state, proof.arrived) == ("confirmed", str(link))


def test_the_child_is_lean_before_a_load_and_the_library_stays_out_of_this_process(
    configure: Callable[..., Config], start: Callable[[Config], llamacpp.LlamaServer]
) -> None:
    server = start(configure())
    assert psutil.Process(server.pid).memory_info().rss < 40 * 2**20
    assert not any("xllamacpp" in mapped.path for mapped in psutil.Process().memory_maps())


def test_a_plan_costs_little(configure: Callable[..., Config]) -> None:
    config = configure()
    began = time.process_time()
    llamacpp.Engine(config).plan()
    assert time.process_time() - began < 1.5  # process time, in which a cold or starved CPU shows too


def test_prompt_and_answer_that_do_not_fit_together_are_named(
    configure: Callable[..., Config], start: Callable[[Config], llamacpp.LlamaServer]
) -> None:
    server = start(configure(num_ctx=256, knobs={"n_batch": 256, "n_ubatch": 256}))
    with pytest.raises(PromptTooLongError, match="counts 241 prompt tokens and stopped after 15 of 60"):
        server.generate(Request("Hi " * 240, 60, 42), silent)


@pytest.mark.parametrize(("knob", "claimed"), [
    ("n_batch", 1024), ("n_ctx", 4096), ("n_parallel", 4), ("n_threads", 7), ("cache_type_k", "q8_0"),
    ("cache_type_v", "q8_0"), ("flash_attn", False), ("load_mode", "mmap"), ("cache_ram_mib", 0),
    ("n_ctx_checkpoints", 0), ("cache_idle_slots", False), ("n_gpu_layers", 20), ("warmup", False), ("fit", True),
    ("kv_unified", True), ("n_threads_http", 3), ("model", "/other.gguf"),
])
def test_a_setting_that_did_not_take_effect_is_contradicted(
    loaded_once: llamacpp.LlamaServer, knob: str, claimed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {proof.state for proof in loaded_once.proofs() if proof.knob == knob} == {"confirmed"}
    monkeypatch.setattr(loaded_once, "_settings", {**loaded_once._settings, knob: claimed})
    # Neither the command line nor what is in force agrees; what is in force has to say so alone.
    monkeypatch.setattr(process, "command_line", lambda pid: [f"{knob}={as_text(claimed)}"])
    (proof,) = [proof for proof in loaded_once.proofs() if proof.knob == knob]
    assert (proof.state, proof.arrived) == ("contradicted", as_text(claimed))


WORDS = [(name, word) for name, knob in KNOBS.items()
         for word in (knob.words if knob.kind is str else (True, False) if knob.kind is bool else ())]


@pytest.mark.thorough
@pytest.mark.parametrize(("knob", "word"), WORDS)
def test_every_word_that_a_knob_allows_takes_effect_on_the_real_engine(
    configure: Callable[..., Config], start: Callable[[Config], llamacpp.LlamaServer], knob: str, word: Any
) -> None:
    knobs = {knob: word, **({"load_mode": "mmap"} if (knob, word) == ("lazy_mode", True) else {})}
    server = start(configure(knobs=knobs))
    server.load(silent)
    contradicted = [proof for proof in server.proofs() if proof.state == "contradicted"]
    if word in ("mlock", "mmap_mlock") and any("failed to mlock" in proof.source for proof in contradicted):
        pytest.skip(f"this machine refuses to lock: {contradicted[0].source}")
    assert contradicted == []


@pytest.fixture(scope="module")
def loaded_once(default_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[llamacpp.LlamaServer]:
    config = Config(model=default_model, engine=config_of("engine=llamacpp").engine, infer_os=InferOs())
    server = llamacpp.Engine(config).start(tmp_path_factory.mktemp("log") / "server.log")
    try:
        server.load(silent)
        yield server
    finally:
        server.stop()


@pytest.mark.thorough
def test_a_prompt_that_is_computed_for_longer_than_the_limit_without_a_token_is_waited_for(
    configure: Callable[..., Config], start: Callable[[Config], llamacpp.LlamaServer]
) -> None:
    config = configure()
    server = start(config)
    server.load(silent)
    config.engine.no_progress_s = 0.5
    at: dict[str, int] = {}
    answer = server.generate(Request("tide " * 1500, max_tokens=8, seed=1), lambda kind, t_ns: at.update({kind: t_ns}))
    assert answer.output_tokens == 8
    assert at["first_token"] - at["request_sent"] > 2 * 0.5e9, "the machine is too fast for this test"


def test_the_files_tokenizer_counts_what_the_server_counts_without_its_weights(
    configure: Callable[..., Config], start: Callable[[Config], llamacpp.LlamaServer], tmp_path: Path
) -> None:
    config = configure()
    path = weights.resolve(config.model)
    server = start(config)
    for raw in (True, False):
        config.engine.raw = raw
        with tokens.by_file(path, config) as count:
            for prompt in ("Why tides?", "海に潮の満ち引きがあるのはなぜですか。<|im_start|>", "tide " * 100):
                answer = server.generate(Request(prompt, max_tokens=1, seed=1, raw=raw), silent)
                assert count(prompt) == answer.prompt_tokens
    vocabulary = tokens.write_vocabulary(path, tmp_path / "vocabulary.gguf")
    assert vocabulary.stat().st_blocks * 512 < path.stat().st_size / 20
