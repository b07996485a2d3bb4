"""Knobs by their own names on Ollama: in force and proved like a flag's, or refused by the name that was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.engine import load_engine
from pipeline.engine.base import Request
from pipeline.engine.ollama.plan import resolved_settings
from pipeline.errors import ConfigError
from tests.contract.test_ollama import Double, double, ignore, phantom
from tests.contract.test_ollama_attached import attached, users_server

__all__ = ["double", "phantom"]  # fixtures


def with_knobs(config: Config, **knobs: Any) -> Config:
    config.knob = knobs
    return config


def test_a_knob_is_proved_like_a_flags(double: Double) -> None:
    config = with_knobs(double.config(), cache_type="q4_0", n_parallel=2, load_mode="mmap", cache_ram_mib=0)
    plan = load_engine(config).plan()
    assert plan.knobs["cache_type"] == [
        "cache_type=q4_0 (kv_cache_type) overrides infer_os.quantization, which would set f16"]
    assert plan.knobs["load_mode"][0].startswith("load_mode=mmap (use_mmap) overrides infer_os.memory_optimization")
    server = double.start(config)
    server.generate(Request("tide", 4, 1), ignore)
    proofs = {proof.knob: (proof.asked, proof.state) for proof in server.proofs()}
    assert proofs["kv_cache_type"] == ("q4_0", "confirmed")
    assert proofs["num_parallel"] == (2, "confirmed")
    assert proofs["use_mmap"] == (True, "confirmed")
    assert proofs["cache_ram_mib"] == (0, "confirmed")


def test_a_running_server_must_already_have_what_only_a_start_can_set(double: Double) -> None:
    url, _ = users_server(double, OLLAMA_KV_CACHE_TYPE="q8_0")
    plan = load_engine(with_knobs(attached(double, url), cache_type="q8_0", n_threads=1)).plan()
    assert (plan.settings["kv_cache_type"], plan.settings["num_thread"]) == ("q8_0", 1)
    with pytest.raises(ConfigError, match=r"^knob\.cache_type needs settings .* start only.*OLLAMA_KV_CACHE_TYPE=q4_0"):
        load_engine(with_knobs(attached(double, url), cache_type="q4_0")).plan()


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
def test_layers_asked_for_by_name_are_refused_by_that_name(double: Double) -> None:
    with pytest.raises(ConfigError, match=r"^knob\.n_gpu_layers cannot be honoured.*no GPU"):
        load_engine(with_knobs(double.config(), n_gpu_layers=20)).plan()


def test_what_would_be_dropped_in_silence_is_refused(double: Double) -> None:
    with pytest.raises(ConfigError, match=r"^knob\.cache_ram_mib: Ollama 0\.24\.0 has nothing behind cache_ram_mib"):
        resolved_settings(with_knobs(double.config(), cache_ram_mib=0), "0.24.0")
    published = {"environment": {"OLLAMA_NUM_PARALLEL": "1"}}
    with pytest.raises(ConfigError, match=r"^knob\.cache_type is a variable of the server.*OLLAMA_KV_CACHE_TYPE"):
        resolved_settings(with_knobs(double.config(published), cache_type="q8_0"), "0.33.0")
    kept = resolved_settings(with_knobs(double.config(published), n_threads=1), "0.33.0")
    assert kept.settings["num_thread"] == 1
