"""Every shipped experiment: it begins with its question, it composes, and on a small model it ends with an answer.

The runs are cut to the smallest that still answers: one block, a few tokens, half the cells. In this process, since
starting the program for each would take longer than measuring; without pictures, which have tests of their own.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import EXPERIMENTS_DIR, GROUPS, options
from pipeline.sweep.composed import typed
from pipeline.sweep.experiments import load_experiment, register
from pipeline.sweep.hydra_app import compose
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(300)

EXPERIMENTS = sorted(path.stem for path in EXPERIMENTS_DIR.glob("*.yaml"))
NEEDED = {"mode_gap", "infer_os_effect", "infer_os_factorial", "context_length", "kv_cache_type",
          "prompt_cache_growth", "as_published"}
QUICK = ["max_tokens=4", "num_ctx=512", "settle=fixed", "stabilization_delay_s=0.1", "meter.window_s=0.05",
         "meter.rate_hz=50", "tracking.timeline_points=0", "repetitions=1"]

CUT: dict[str, tuple[list[str], str]] = {
    "infer_os_effect": (["infer_os=off,quantization,npu_optimization"], "Read once, quantization makes a difference"),
    # memory_optimization and quantization, whatever the machine: four cells
    "infer_os_factorial": (["engine.flags.parallel_processing.on={n_parallel:1}",
                            "engine.flags.cpu_optimization.on={n_threads:all_but_one}"], "Saving memory: "),
    "context_length": (["num_ctx=512,1024", "prompt.fill=0.25"], "KiB per token"),
    "kv_cache_type": (["prompt.fill=0.25"], "With quantization, first token: "),
    "prompt_cache_growth": (["mode.turns=3", "infer_os=off", "prompt.distinct=true", "prompt.fill=0.25"],
                            "MiB per turn"),
    "as_published": ([], "Read once, as_published makes a difference"),
}
"""Overrides that cut an experiment, and words that its answer must have. mode_gap is run by test_sweep.py."""


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides for an Ollama that is none, with a model that it takes for one."""
    from tests.doubles.ollama.ggufs import write_phantom

    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "users"))
    model = write_phantom(tmp_path / "phantom.gguf", weights_mib=8)
    (tmp_path / "behaviour.json").write_text("{}")
    binary = tmp_path / "ollama"
    program = ROOT / "tests/doubles/ollama/ollama"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{program}" --behaviour '
                      f'"{tmp_path}/behaviour.json" "$@"\n')
    binary.chmod(0o755)
    return [f"engine.binary={binary}", "model=gguf", f"model.path={model}"]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not run anything yet, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["slackwater"])
    monkeypatch.setattr("pipeline.report.timeline_plot.write_png", lambda *arguments: None)
    monkeypatch.setattr("pipeline.sweep.conduct.tell_concerns", lambda run, rate_hz: [])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    folder = tmp_path_factory.mktemp("experiments") / "store"
    shutil.copytree(empty_store, folder)
    return f"tracking.uri=sqlite:///{folder}/mlflow.db"


def test_what_the_project_promises_is_there() -> None:
    assert set(EXPERIMENTS) >= NEEDED
    assert {*CUT, "mode_gap"} == set(EXPERIMENTS), "an experiment without a run here or in test_sweep.py"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_begins_with_its_question_and_names_its_metrics(name: str) -> None:
    first, second = (EXPERIMENTS_DIR / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith("question: ") and "?" in first
    assert second.startswith("question_metrics: [") and "/" in second


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes(name: str) -> None:
    """With the first of every value that it sweeps; the others are options that there are."""
    register([f"experiment={name}"])
    params = load_experiment(name).get("hydra", {}).get("sweeper", {}).get("params", {})
    values = {key: str(text).split(",") for key, text in params.items()}
    for key, choices in values.items():
        assert len(choices) > 1, f"{key} is not swept"
        assert key not in GROUPS or set(choices) <= options(key).keys()
    first = [f"{key}={choices[0]}" for key, choices in values.items()]
    config = typed(compose([f"experiment={name}", *first]))
    assert config.question.endswith(("?", "."))
    assert config.question_metrics
    assert config.repetitions >= 2, "one repetition has no interval"


@pytest.mark.usefixtures("session", "model_file")
@pytest.mark.thorough
@pytest.mark.parametrize("name", CUT)
def test_an_experiment_ends_with_its_answer(name: str, request: pytest.FixtureRequest, store: str,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    cut, answer = CUT[name]
    more = request.getfixturevalue("double") if name == "as_published" else []
    code = main(["run", f"experiment={name}", *more, *QUICK, *cut, store])
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
    page = said.out.replace("\n", " ")
    assert answer in page, said.out
    assert "Traceback" not in said.err
