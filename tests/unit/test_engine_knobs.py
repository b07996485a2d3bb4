"""Flag → knob → setting, on the knobs that the embedded engine ships with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from pipeline.config import CONF_DIR, Engine, FlagKnobs, InferOs
from pipeline.engine.knobs import FLAGS, Knob, prove, resolve
from pipeline.engine.llamacpp_settings import KNOBS
from pipeline.errors import ConfigError

MEMORY_ON = {"load_mode": "mmap", "repack": False, "cache_ram_mib": 0, "cache_idle_slots": False,
             "n_ctx_checkpoints": 0}
MEMORY_OFF = {"load_mode": "none", "repack": True, "cache_ram_mib": 8192, "cache_idle_slots": True,
              "n_ctx_checkpoints": 32}


@pytest.fixture
def engine() -> Engine:
    shipped = OmegaConf.load(CONF_DIR / "engine" / "llamacpp.yaml")
    assert isinstance(shipped, DictConfig)
    shipped.pop("defaults")
    loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Engine), shipped))
    assert isinstance(loaded, Engine)
    return loaded


def settings(engine: Engine, cores: int = 8, **flags: Any) -> dict[str, Any]:
    return dict(resolve(engine, InferOs(**flags), KNOBS, cores).settings)


@pytest.mark.parametrize(("flag", "on", "off"), [
    ("memory_optimization", MEMORY_ON, MEMORY_OFF),
    ("quantization", {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, {"cache_type_k": "f16", "cache_type_v": "f16"}),
    ("cpu_optimization", {"n_threads": 4}, {"n_threads": 7}),
    ("parallel_processing", {"n_parallel": 4}, {"n_parallel": 1}),
    ("gpu_acceleration", {"n_gpu_layers": 20}, {"n_gpu_layers": 0}),
])
def test_a_flag_changes_its_own_knobs_and_nothing_else(
    engine: Engine, flag: str, on: dict[str, Any], off: dict[str, Any]
) -> None:
    arm_off, arm_on = settings(engine), settings(engine, **{flag: True})
    changed = {name for name in arm_off if arm_off[name] != arm_on[name]}
    assert {name: arm_on[name] for name in changed} == on
    assert {name: arm_off[name] for name in changed} == off


def test_every_knob_is_set_in_every_cell_batch_sizes_included(engine: Engine) -> None:
    for flag in (None, *FLAGS[1:]):
        cell = settings(engine, **({flag: True} if flag else {}))
        assert set(cell) == set(KNOBS)
        assert (cell["n_batch"], cell["n_ubatch"], cell["flash_attn"]) == (512, 512, True)


@pytest.mark.parametrize(("cores", "half", "all_but_one"), [(1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 2, 3), (64, 32, 63)])
def test_thread_words_leave_at_least_one(engine: Engine, cores: int, half: int, all_but_one: int) -> None:
    assert settings(engine, cores, cpu_optimization=True)["n_threads"] == half
    assert settings(engine, cores)["n_threads"] == all_but_one


def test_a_flag_without_effect_here_is_noted_and_not_an_error(engine: Engine) -> None:
    flags = InferOs(cpu_optimization=True)
    (note,) = resolve(engine, flags, KNOBS, 2).notes
    assert "infer_os.cpu_optimization changes nothing here" in note
    assert "n_threads=1" in note
    assert resolve(engine, flags, KNOBS, 4).notes == []


def test_a_refused_flag_is_an_error_with_flag_engine_and_reason(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"npu_optimization=true .* engine llamacpp: llama\.cpp has no NPU path"):
        settings(engine, npu_optimization=True)
    with pytest.raises(ConfigError, match=r"quantization=true .*no knobs for it"):
        settings(replace(engine, flags={}), quantization=True)


@pytest.mark.parametrize(("knobs", "message"), [
    ({"n_bath": 512}, r"engine\.knobs\.n_bath=512: engine llamacpp has no knob n_bath\. Knobs: .*n_batch"),
    ({"n_batch": "512"}, r"engine\.knobs\.n_batch='512' is not allowed: expected a whole number from 1\."),
    ({"n_batch": True}, r"n_batch=True is not allowed"),
    ({"n_batch": 0}, r"n_batch=0 is not allowed"),
    ({"n_batch": "half"}, r"n_batch='half' is not allowed"),
    ({"flash_attn": "on"}, r"flash_attn='on' is not allowed: expected true or false"),
])
def test_a_wrong_knob_is_an_error_that_says_what_is_allowed(
    engine: Engine, knobs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(replace(engine, knobs=engine.knobs | knobs))


def test_a_wrong_value_in_the_arm_that_is_not_used_is_found_too(engine: Engine) -> None:
    flags = engine.flags | {"quantization": FlagKnobs(on={"cache_type_k": "q9", "cache_type_v": "q8_0"},
                                                      off={"cache_type_k": "f16", "cache_type_v": "f16"})}
    with pytest.raises(ConfigError, match=r"flags\.quantization\.on\.cache_type_k='q9' .* one of f32, f16"):
        settings(replace(engine, flags=flags))


def test_unset_is_not_off(engine: Engine) -> None:
    half = engine.flags | {"cpu_optimization": FlagKnobs(on={"n_threads": 2})}
    with pytest.raises(ConfigError, match=r"cpu_optimization: n_threads is set in one arm only"):
        settings(replace(engine, flags=half))
    with pytest.raises(ConfigError, match=r"engine\.knobs lacks n_batch"):
        settings(replace(engine, knobs={name: v for name, v in engine.knobs.items() if name != "n_batch"}))


def test_two_flags_for_one_knob_are_refused(engine: Engine) -> None:
    flags = engine.flags | {"parallel_processing": FlagKnobs(on={"n_threads": 2}, off={"n_threads": 1})}
    with pytest.raises(ConfigError, match=r"n_threads is also set by engine\.flags\.cpu_optimization\.on\.n_threads"):
        settings(replace(engine, flags=flags))


def test_a_knob_that_a_flag_owns_wins_where_it_is_set_among_the_engines_knobs(engine: Engine) -> None:
    mine = replace(engine, knobs=engine.knobs | {"n_threads": 3})
    assert settings(mine)["n_threads"] == settings(mine, cpu_optimization=True)["n_threads"] == 3


def test_an_unknown_flag_in_the_engine_file_is_an_error(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"engine\.flags\.qantization is not a flag"):
        settings(replace(engine, flags=engine.flags | {"qantization": FlagKnobs()}))


@pytest.mark.parametrize(("arrived", "effective", "state"), [
    ("512", "512", "confirmed"), (None, "512", "confirmed"),
    ("512", None, "not observable"), (None, None, "not observable"),
    ("512", "1024", "contradicted"), ("1024", "512", "contradicted"), ("1024", None, "contradicted"),
])
def test_a_proof_is_only_confirmed_by_what_took_effect(arrived: str | None, effective: str | None, state: str) -> None:
    assert prove("n_batch", 512, arrived, effective).state == state


def test_a_boolean_is_proved_as_it_stands_on_a_command_line() -> None:
    assert prove("repack", False, "false", "false").state == "confirmed"
    assert prove("repack", False, "false", "true").state == "contradicted"
    assert Knob(bool).resolve(0, 1) is None
