"""A user's experiment file: what it says is what is swept, and every fault of it is one line with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.sweep.experiments import load_experiment


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)


def loaded(text: str | bytes) -> dict[str, Any]:
    path = Path("experiments/mine.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_experiment("mine")


def params(text: str) -> dict[str, str]:
    found: dict[str, str] = loaded(text).get("hydra", {}).get("sweeper", {}).get("params", {})
    return found


@pytest.mark.parametrize(("text", "swept"), [
    ("infer_os: [\"off\", quantization]", {"infer_os": "off,quantization"}),
    ("infer_os: [off, on]", {"infer_os": "off,on"}),
    ("mode: [oneshot, interactive]", {"mode": "oneshot,interactive"}),
    ("mode: oneshot", {"mode": "oneshot"}),
    ("mode: {turns: [1, 2]}", {"mode.turns": "1,2"}),
    ("mode.turns: [1, 2]", {"mode.turns": "1,2"}),
    ("num_ctx: [1024, 2048]", {"num_ctx": "1024,2048"}),
    ("engine: {knobs: {n_batch: [256, 512]}}", {"++engine.knobs.n_batch": "256,512"}),
    ("defaults:\n  - override /infer_os: [off, on]", {"infer_os": "off,on"}),
    ("hydra: {sweeper: {params: {infer_os: [off, on]}}}", {"infer_os": "off,on"}),
    ("hydra: {sweeper: {params: {infer_os: \"off,on\"}}}", {"infer_os": "off,on"}),
    ("hydra: {sweeper: {params: {infer_os: {quantization: [true, false]}}}}", {"infer_os.quantization": "true,false"}),
    ("question_metrics: [decode/tokens_per_s]\ndesign: {factor: [num_ctx]}\nmeter: {sources: [gpu]}", {}),
    ("seed: 1\nhydra:\n", {}), ("seed: 1\nhydra:\n  sweeper:\n", {}), ("seed: 1\ndefaults:\n", {}),
    ("seed: 1\nhydra:\n  sweeper:\n    params:\n", {}), ("seed: 1\nmode:\n", {}),
])
def test_lists_sweep_wherever_they_stand_and_empty_headings_are_nothing(text: str, swept: dict[str, str]) -> None:
    assert params(text) == swept


def test_a_defaults_list_may_be_written_as_people_write_it() -> None:
    for entry in ("override /infer_os: off", "infer_os: \"off\"", "/infer_os: off", "override infer_os: off"):
        assert loaded(f"defaults:\n  - _self_\n  - {entry}\n  - override hydra/launcher: basic\n")["defaults"] == [
            {"override /infer_os": "off"}, {"override /hydra/launcher": "basic"}]


def test_settings_stay_in_the_body_with_or_without_dots() -> None:
    assert loaded("prompt.text: 潮, 汐\nmode: {turns: 2}\ndesign.factor: [num_ctx]\n") == {
        "prompt": {"text": "潮, 汐"}, "mode": {"turns": 2}, "design": {"factor": ["num_ctx"]}}


@pytest.mark.parametrize(("text", "said"), [
    ("", "holds no settings"), ("# nothing", "holds no settings"), ("- a\n- b", "holds a list"),
    ("words", "holds text"),
    ("a: 1\n\tb: 2", "line 2: found character '\\t'"), ("seed: 1\nseed: 2", "line 2: found duplicate key seed"),
    ("mode: [oneshot", "expected ',' or ']'"), ("a: 1\n---\nb: 1", "another document"),
    ("a: &a [*a]", "cannot be read"),
    ("a: *x", "undefined alias"), ("off: 1", "False is not the name of a setting"), (b"question: \xff", "not UTF-8"),
    ("infer_os: []", "infer_os: [] holds no value"), ("num_ctx: [1, 1]", "num_ctx: 1 is in the list twice"),
    ("nun_ctx: 3", "nun_ctx is not a setting. Did you mean num_ctx?"), ("place: {order: 3}", "place.order is not"),
    ("hydra: []", "hydra: [] is not allowed"), ("hydra: {sweeper: basic}", "hydra.sweeper: basic is not allowed"),
    ("hydra: {sweeper: {params: [a]}}", "hydra.sweeper.params: ['a'] is not allowed"),
    ("hydra: {sweeper: {params: {colour: red}}}", "hydra.sweeper.params: colour is not a setting"),
    ("defaults: 3", "defaults: 3 is not allowed"), ("defaults: [off, on]", "defaults: `False` is not understood"),
    ("defaults: [mode_gap]", "defaults: `mode_gap` is not understood"),
    ("defaults:\n  - override /modle: oneshot", "Did you mean mode?"),
    ("defaults:\n  - override /mode:", "mode: null is not the name"),
    ("infer_os: [off, on]\nhydra: {sweeper: {params: {infer_os: on}}}", "infer_os is given twice"),
    ("hydra: {mode: RUN}", "hydra.mode=RUN bypasses"), ("hydra: {run: {dir: x}}", "hydra.run.dir=x"),
    ("hydra: {sweep: {dir: x}}", "hydra.sweep.dir=x"), ("hydra: {job: {chdir: true}}", "hydra.job.chdir=True"),
    ("hydra: {sweeper: {_target_: x.y}}", "hydra.sweeper._target_=x.y bypasses"),
    ("hydra: {sweeper: {max_batch_size: 1}}", "hydra.sweeper.max_batch_size is not a setting"),
    ("defaults:\n  - override hydra/sweeper: basic", "hydra/sweeper=basic bypasses"),
])
def test_a_fault_is_one_line_that_names_the_file_and_the_place(text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(text)
    assert said in str(raised.value)
    assert "mine.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)
