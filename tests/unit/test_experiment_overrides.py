"""An experiment with something changed on the command line: its cells stay those of the file, or it is said why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode

from pipeline.config import CONF_DIR
from pipeline.defaults import named_environments
from pipeline.errors import ConfigError
from pipeline.outcome import environment_label
from pipeline.sweep.cells import cell_names
from pipeline.sweep.composed import ComposedOnce, combinations, compose_cells
from pipeline.sweep.experiments import load_experiment, register
from pipeline.sweep.hydra_app import expose_plugins, register_schema
from pipeline.sweep.one_path import Loader
from pipeline.sweep.overrides import override_of
from pipeline.sweep.plan import plan_sweep

EXPERIMENTS = {"as_published": 2, "context_length": 4, "infer_os_effect": 7, "infer_os_factorial": 1,
               "kv_cache_type": 2, "mode_gap": 4, "prompt_cache_growth": 4}
"""Cells of each shipped file; the factorial's flags are added once it is known what the machine can honour."""

HARMLESS = [
    "mode.think_time_s=0", "mode.turns=1", "mode.keep_alive_s=0", "mode.history=false", "mode.preload=true",
    "infer_os.memory_optimization=true", "infer_os.quantization=false", "engine.raw=false", "engine.stop_limit_s=20",
    "engine.knobs.n_batch=256", "knob.threads=1", "model=qwen3-4b", "model.name=mine", "prompt=creative",
    "prompt.language=ja", "prompt.fill=0.5", "clear=none", "clear.evict_model=true", "settle=fixed",
    "settle.limit_s=30", "meter=minimal", "meter.rate_hz=50", "design=fixed", "design.warmup=1", "stop.limit=9",
    "tracking.experiment=mine", "repetitions=1", "max_tokens=16", "seed=7", "engine.trial_limit_s=900", "lang=ja",
]


@pytest.fixture(autouse=True)
def registered() -> None:
    expose_plugins()
    register_schema()


def hydra(*words: str) -> tuple[ComposedOnce, object, dict[str, str], list[str]]:
    """The loader, the composed sweep, the file's sweep and the command line, as the sweeper gets them."""
    name = register(list(words))
    app = Hydra("slackwater", loader := Loader(create_config_search_path(str(CONF_DIR))))
    overrides = [override_of(word) for word in words]
    params = load_experiment(name).get("hydra", {}).get("sweeper", {}).get("params", {}) if name else {}
    return ComposedOnce(loader), app.compose_config("config", overrides, RunMode.MULTIRUN), params, overrides


def cells(*words: str) -> tuple[list[str], list[str]]:
    """The cells' names, and what is said of them."""
    loader, master, params, overrides = hydra(*words)
    found, gave_way = combinations(loader, params, overrides)  # type: ignore[arg-type]
    kept, configs, notes = compose_cells(loader, master, found)  # type: ignore[arg-type]
    return cell_names(configs, kept), [*gave_way, *notes]


def test_every_experiment_keeps_its_cells_with_every_harmless_override() -> None:
    loader = Loader(create_config_search_path(str(CONF_DIR)))
    for experiment, planned in EXPERIMENTS.items():
        params = load_experiment(experiment).get("hydra", {}).get("sweeper", {}).get("params", {})
        for override in HARMLESS:
            found, notes = combinations(loader, params, [f"experiment={experiment}", override])
            assert (len(found), notes) == (planned, []), f"{experiment} {override}"
            value = override.partition("=")[2]
            assert all(cell[-1].lower().endswith(f"={value}") for cell in found), "it reaches every cell"
    shipped = {path.stem for path in (Path(__file__).parents[2] / "experiments").glob("*.yaml")}
    assert shipped == set(EXPERIMENTS), "a new experiment has its row here"


@pytest.mark.thorough
def test_every_experiment_composes_with_a_setting_below_each_group() -> None:
    for experiment, planned in EXPERIMENTS.items():
        found, notes = cells(f"experiment={experiment}", "mode.think_time_s=0", "prompt.language=ja", "settle=fixed",
                             "clear.evict_model=true", "meter.rate_hz=50", "design.warmup=1", "engine.raw=false")
        assert (len(found), notes) == (planned, []), experiment


def test_a_setting_applies_to_the_cells_that_can_take_it_and_the_plan_names_the_others() -> None:
    assert cells("experiment=mode_gap", "infer_os=off", "mode.turns=5") == (
        ["oneshot-off", "interactive-off"], ["mode.turns=5 does not apply to mode=oneshot, which cannot take it"])
    assert cells("experiment=mode_gap", "infer_os=off", "mode.turns=1,3") == (
        ["oneshot-off-turns=1", "interactive-off-turns=1", "interactive-off-turns=3"],
        ["mode.turns=3 does not apply to mode=oneshot, which cannot take it"])


def test_a_sweep_over_a_flag_takes_the_place_of_the_sweep_over_infer_os_and_says_so() -> None:
    assert cells("experiment=mode_gap", "mode=oneshot", "infer_os.quantization=true,false") == (
        ["oneshot-quantization", "oneshot-off"],
        ["infer_os.quantization=true,false takes the place of the experiment's infer_os=off,on"])


@pytest.mark.parametrize(("words", "said"), [
    (("experiment=mode_gap", "infer_os=off", "mode.turns=0"), "mode.turns=0 is not allowed"),
    (("experiment=kv_cache_type", "infer_os.quantization=true"),
     "cannot be combined with the sweep over infer_os: it makes infer_os=off and infer_os=quantization the same"),
])
def test_what_cannot_be_combined_is_refused_by_name(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cells(*words)
    assert said in str(caught.value)


@pytest.mark.parametrize("given", ["infer_os.quantization=false", "infer_os=on"])
def test_a_design_that_switches_the_flags_does_not_pass_over_one_that_is_given(given: str) -> None:
    with pytest.raises(ConfigError, match="cannot be combined with design=factorial"):
        plan_sweep(*hydra("experiment=infer_os_factorial", given), None, None)  # type: ignore[arg-type]


def test_an_environment_is_the_whole_of_it_and_has_a_name_of_its_own(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/mine.yaml").write_text(
        "mode: oneshot\ninfer_os: as_published\ninfer_os.environment: {OLLAMA_NUM_PARALLEL: 4}\n")
    monkeypatch.chdir(tmp_path)
    for words in (["experiment=mine"], [
            "mode=oneshot", "infer_os=as_published", "infer_os.environment={OLLAMA_NUM_PARALLEL:4}"]):
        loader, master, params, overrides = hydra(*words)
        found, _ = combinations(loader, params, overrides)  # type: ignore[arg-type]
        kept, configs, _ = compose_cells(loader, master, found)  # type: ignore[arg-type]
        assert configs[0].infer_os.environment == {"OLLAMA_NUM_PARALLEL": "4"}, "nothing of the published six"
        assert cell_names(configs, kept) == ["oneshot-OLLAMA_NUM_PARALLEL=4"]
    assert cells("mode=oneshot", "infer_os.environment={},{OLLAMA_DEBUG:2}") == (
        ["oneshot-server_defaults", "oneshot-OLLAMA_DEBUG=2"], [])


def test_environments_are_called_by_a_files_name_or_by_what_they_say() -> None:
    published = dict(next(each for each, name in named_environments().items() if name == "as_published"))
    assert environment_label(published) == "as_published" and environment_label({}) == "server_defaults"
    assert environment_label({"A": "1", "B": "x"}) == "A=1,B=x"
    odd, other = environment_label({"A": "x y" * 40}), environment_label({"A": "x y" * 41})
    assert odd != other and re.fullmatch(r"environment-[0-9a-f]{8}", odd)
