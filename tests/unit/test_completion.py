"""TAB: what is offered for a line, quickly, and that real shells put it on the line."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.cli.candidates import CHOICES
from pipeline.cli.commands import slackwater
from pipeline.cli.completion import SCRIPTS
from pipeline.cli.completion import offered as candidates
from pipeline.config import CONF_DIR, GROUPS
from pipeline.errors import ConfigError
from tests.conftest import ROOT
from tests.terminal import Terminal


def offered(line: str) -> list[str]:
    return [word for word, _purpose in candidates(slackwater, line)]


@pytest.mark.parametrize(("line", "words"), [
    ("slackwater sh", ["show"]),
    ("cd /tmp; FOO=1 /opt/bin/slackwater sh", ["show"]),
    ("slackwater run mode=", ["mode=interactive", "mode=oneshot"]),
    ("slackwater run mode=o", ["mode=oneshot"]),
    ("slackwater mode=o", ["mode=oneshot"]),
    ("slackwater run mode=oneshot,", ["mode=oneshot,interactive"]),
    ("slackwater run experiment=mode", ["experiment=mode_gap"]),
    ("slackwater run infer_os.quant", ["infer_os.quantization="]),
    ("slackwater run infer_os.quantization=", ["infer_os.quantization=true", "infer_os.quantization=false"]),
    ("slackwater run design.when_busy=", ["design.when_busy=wait", "design.when_busy=fail"]),
    ("slackwater run num", ["num_ctx="]),
    ("slackwater run num_ctx=", ["num_ctx=2048"]),
    ("slackwater run engine=ollama engine.knobs.go", ["engine.knobs.go_memory_limit_mib="]),
    ("slackwater run engine.knobs.go", []),
    ("slackwater run kno", ["knob."]),
    ("slackwater run knob.cache_t", ["knob.cache_type=", "knob.cache_type_k=", "knob.cache_type_v="]),
    ("slackwater run knob.cache_type=f16,q8", ["knob.cache_type=f16,q8_0"]),
    ("slackwater run knob.flash_attn=", ["knob.flash_attn=true", "knob.flash_attn=false"]),
    ("slackwater run engine=ollama knob.load_mode=", ["knob.load_mode=mmap", "knob.load_mode=none"]),
    ("slackwater run engine=ollama knob.n_u", []),
    ("slackwater run --dr", ["--dry-run"]),
    ("slackwater run --dry-run --dr", []),
    ("slackwater run lang=", ["lang=en", "lang=ja"]),
    ("slackwater show lang=j", ["lang=ja"]),
    ("slackwater completion z", ["zsh"]),
    ("slackwater show --st", ["--store"]),
    ("slackwater compare a b --undecided p", ["pass"]),
    ("slackwater compare a b --fail-if released/half", ["released/half_life_s"]),
    ("slackwater metrics stabilized/tree_r", ["stabilized/tree_rss_mib", "stabilized/tree_read_back_faults"]),
    ("slackwater help sy", ["sync"]),
    ("slackwater --dr", ["--dry-run"]),
    ("slackwater --ver", ["--version"]),
    ("slackwater run place", []),
    ("slackwater run hydra/launcher=ba", ["hydra/launcher=basic"]),
    ("slackwater frob", []),
])
def test_what_is_offered(line: str, words: list[str]) -> None:
    assert offered(line) == words


def test_every_verb_group_and_option_is_offered() -> None:
    assert set(slackwater.commands) <= set(offered("slackwater "))
    assert {f"{group}=" for group in GROUPS} <= set(offered("slackwater run "))
    for group in GROUPS:
        assert offered(f"slackwater run {group}=") == [f"{group}={path.stem}"
                                                       for path in sorted((CONF_DIR / group).glob("*.yaml"))]
    assert not any("base_" in word or word.startswith("place") for word in offered("slackwater run "))


def test_the_words_offered_for_a_setting_are_those_that_the_schema_takes() -> None:
    for key, words in CHOICES.items():
        group, _, name = key.partition(".")
        if group == "prompt":
            continue  # its languages are those of its own texts
        for word in words:
            GROUPS[group](**{name: word})
        with pytest.raises(ConfigError):
            GROUPS[group](**({"name": "precision"} if group == "stop" else {}), **{name: "something else"})


def test_sweeps_are_offered_by_the_names_of_their_folders_the_newest_first(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path))
    assert offered("slackwater show ") == ["last"]
    for name in ("gap-261125-120000", "tide-261126-090000", "gap-261126-100000", ".partial"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
    assert offered("slackwater show ") == ["last", "gap-261126-100000", "tide-261126-090000", "gap-261125-120000"]
    assert offered("slackwater compare gap-261126-100000 gap") == ["gap-261126-100000", "gap-261125-120000"]
    assert offered(f"slackwater show --store sqlite:///{tmp_path}/sweeps/mlflow.db ") == ["last"]


def test_files_are_offered_where_a_file_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sweep.zip").touch()
    monkeypatch.chdir(tmp_path)
    assert offered("slackwater import s") == ["sub/", "sweep.zip"]
    assert offered("slackwater export last s") == ["sub/", "sweep.zip"]
    assert offered("slackwater run model.path=sw") == ["model.path=sweep.zip"]
    assert offered("slackwater report -o sw") == ["sweep.zip"]


def test_an_answer_comes_while_the_finger_is_on_the_key() -> None:
    """Half a second in a program of its own on a quiet machine; here the work behind it, without Python's start."""
    candidates(slackwater, "slackwater run ")
    began = time.perf_counter()
    for line in ("slackwater ", "slackwater run mo", "slackwater run engine.", "slackwater run experiment="):
        candidates(slackwater, line)
    assert time.perf_counter() - began < 5


def test_an_unknown_shell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh is not a known shell. Shells: bash, zsh, fish." in capsys.readouterr().err
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == SCRIPTS["bash"]


START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(slackwater completion bash)"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; source <(slackwater completion zsh)"),
    "fish": (["fish", "--no-config", "-i"], "slackwater completion fish | source"),
}


@pytest.mark.parametrize("shell", START)
def test_a_real_shell_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "slackwater"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline "$@"\n')
    program.chmod(0o755)
    command, source = START[shell]
    with Terminal(command, 100, TERM="xterm", PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHONPATH=str(ROOT), PS1="> ",
                  HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path),
                  SLACKWATER_HOME=str(tmp_path)) as terminal:
        terminal.type(f"{source}; echo rea''dy\n")
        terminal.wait_for("ready")
        for typed, shown in (("slackwater comple\t", "slackwater completion"),
                             ("slackwater run mode=on\t", "mode=oneshot"),
                             ("slackwater run num\t99", "num_ctx=99"),
                             ("slackwater run mode=oneshot,in\t", "mode=oneshot,interactive"),
                             ("slackwater run infer_os.memory_optimization=t\t", "infer_os.memory_optimization=true")):
            terminal.type(typed)
            terminal.wait_for(shown)
            terminal.type("\x15")  # the line is thrown away
            time.sleep(0.2)
        terminal.type("exit\n")
