"""Asked, arrived, effective, read from the logs of a real Ollama 0.33.0 under twelve settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine import llamacpp_log
from pipeline.engine.base import Proof, Scalar
from pipeline.engine.ollama import log
from pipeline.engine.ollama.proofs import NOTHING_SEEN, Evidence, proofs

LOGS = Path(__file__).parents[1] / "data/ollama/0.33.0/log"
PUBLISHED = {
    "env.OLLAMA_MAX_LOADED_MODELS": "1", "env.OLLAMA_NUM_PARALLEL": "1", "env.OLLAMA_LOAD_TIMEOUT": "60",
    "env.OLLAMA_NUM_THREADS": "2", "env.OLLAMA_GPU_LAYERS": "20", "env.ONNXRUNTIME_PROVIDERS": "CPUExecutionProvider",
}
OLD_LOAD = ('level=INFO source=runner.go:1278 msg=load request="{Operation:commit LoraPath:[] '
            "Parallel:1 BatchSize:512 FlashAttention:Enabled KvSize:2048 KvCacheType:q8_0 NumThreads:2 GPULayers:[] "
            'MultiUserCache:false ProjectorPath: MainGPU:0 UseMmap:false}"\n')


def evidence(name: str) -> Evidence:
    """What a trial would have gathered from this recording."""
    text = (LOGS / f"{name}.stderr.log").read_text()
    command = [line for line in text.splitlines() if 'msg="starting llama-server"' in line][-1]
    found = llamacpp_log.parse(text)
    return Evidence(
        serve_environment={key.removeprefix("env."): str(value) for key, value in PUBLISHED.items()},
        config_line=log.server_config(text), child_command=command.partition('cmd="')[2].rstrip('"').split(),
        child_environment={"LLAMA_ARG_CACHE_RAM": "0", "LLAMA_ARG_CTX_CHECKPOINTS": "0"}, load_text=text,
        in_force={key: (finding.value, f"log: {finding.line}") for key, finding in found.settings.items()},
        buffers=found.buffers, model_path=None, model_logged=None, keeps=None,
    )


def proved(name: str, **asked: Scalar) -> Mapping[str, Proof]:
    return {proof.knob: proof for proof in proofs(asked, evidence(name))}


@pytest.mark.parametrize(("name", "asked"), [
    ("kv-q8-fa1", {"kv_cache_type": "q8_0", "flash_attention": True, "num_ctx": 2048, "num_batch": 512}),
    ("parallel-4", {"num_parallel": 4, "num_ctx": 2048}),
    ("mmap-true", {"use_mmap": True}),
    ("as-published", {"use_mmap": False, "num_gpu": 0, "num_thread": 2} | {"num_ctx": 2048}),
    ("threads-1", {"num_thread": 1}),
    ("cache-ram-0", {"cache_ram_mib": 0, "n_ctx_checkpoints": 0}),
    ("gpt-oss-20b", {"repack": True, "num_ctx": 4096, "max_loaded_models": 0}),
])
def test_what_took_effect_is_confirmed_with_the_line_that_says_so(name: str, asked: Mapping[str, Scalar]) -> None:
    seen = evidence(name)
    # The recordings were made without -ngl, -t and an own limit of models: what was not passed cannot be confirmed.
    passed = [*seen.child_command, "-ngl", "0", "-t", str(asked.get("num_thread", 2))]
    limit = {"OLLAMA_MAX_LOADED_MODELS": "0"}
    for proof in proofs(asked, replace(seen, child_command=passed, serve_environment=limit)):
        if proof.knob == "repack":  # llama.cpp's log is read by effective.py, which needs the model's file
            held = [buffer.bytes for buffer in seen.buffers if buffer.component == "repacked"]
            assert held == [round(9682.03 * 2**20)]
            continue
        assert proof.state == "confirmed", proof
        assert proof.source


@pytest.mark.parametrize(("name", "asked", "effective"), [
    ("gpu-layers-20-on-cpu", {"num_gpu": 20}, "0"),
    ("ctx-100000", {"num_ctx": 100000}, "8192"),
    ("parallel-4", {"num_batch": 512}, "1024"),
    ("kv-q8-unset", {"kv_cache_type": "f16"}, "q8_0"),
    ("as-published", {"use_mmap": True}, "false"),
    ("as-published", {"num_parallel": 4}, "1"),
])
def test_a_silent_correction_by_the_server_is_a_contradiction(name: str, asked: Mapping[str, Scalar],
                                                             effective: str) -> None:
    (proof,) = proofs(asked, evidence(name))
    assert (proof.state, proof.effective) == ("contradicted", effective)


def test_the_published_environment_is_reported_variable_by_variable() -> None:
    found = proved("as-published", **PUBLISHED)
    read = {name for name, proof in found.items() if proof.state == "confirmed"}
    assert read == {"env.OLLAMA_MAX_LOADED_MODELS", "env.OLLAMA_NUM_PARALLEL", "env.OLLAMA_LOAD_TIMEOUT"}
    for name in set(PUBLISHED) - read:
        assert found[name].state == "not observable"
        assert "does not read it" in found[name].source
    said = found["environment as published"].effective
    assert said is not None
    assert said.startswith("3 of 6 variables are read")
    assert said.endswith("none changes a setting of the engine")


def test_the_recorded_child_of_the_published_environment_is_the_default_one() -> None:
    default, published = evidence("gpu-layers-20-on-cpu").child_command, evidence("as-published").child_command
    port = published.index("--port") + 1
    at = default.index("-ngl")
    del default[at:at + 2]  # type: ignore[attr-defined]
    assert [*published[:port], *published[port + 1:]] == [*default[:port], *default[port + 1:]]


def test_a_server_that_is_gone_proves_nothing_and_contradicts_nothing() -> None:
    asked: dict[str, Scalar] = {"num_ctx": 2048, "flash_attention": True, "num_gpu": 0, "keep_alive": -1}
    assert {proof.state for proof in proofs(asked, NOTHING_SEEN)} == {"not observable"}


def test_before_030_the_settings_are_in_the_load_request() -> None:
    command = ["/opt/ollama/bin/ollama", "runner", "--model", "/srv/m", "--port", "4711"]
    old = replace(NOTHING_SEEN, child_command=command, request=log.load_request(OLD_LOAD))
    asked: dict[str, Scalar] = {
        "num_ctx": 2048, "num_parallel": 1, "num_batch": 512, "num_thread": 2, "use_mmap": False, "num_gpu": 0,
        "kv_cache_type": "q8_0", "flash_attention": True,
    }
    found = {proof.knob: proof for proof in proofs(asked, old)}
    assert {proof.state for proof in found.values()} == {"confirmed"}, found
    unmapped = replace(old, request={**old.request, "UseMmap": "true"}, mapped=False)
    (mapped,) = proofs({"use_mmap": True}, unmapped)
    assert (mapped.state, mapped.effective) == ("contradicted", "false"), "an engine that never maps may be asked to"
    wrong = {proof.knob: proof for proof in proofs({**asked, "num_ctx": 4096, "kv_cache_type": "f16"}, old)}
    assert [name for name, proof in wrong.items() if proof.state == "contradicted"] == ["num_ctx", "kv_cache_type"]


def test_the_claim_of_ps_leaves_out_a_sliding_window_models_full_cache() -> None:
    held = sum(buffer.bytes for buffer in evidence("gpt-oss-20b").buffers)
    claimed = 13_901_171_260  # /api/ps of the same run
    assert (held - claimed) / 2**20 == pytest.approx(96.0, abs=0.1)
