"""Help for users, words that are wrong, and what none of it may import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context
from rich.cells import cell_len

from pipeline import config, language
from pipeline.cli import help as pages
from pipeline.cli import main
from pipeline.cli.commands import slackwater
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def english_afterwards() -> object:
    yield
    language.speak(language.ENGLISH)


@pytest.mark.parametrize("lang", language.languages())
def test_the_page_names_every_verb_and_fits_80_columns(lang: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", f"lang={lang}"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in slackwater.commands)
    assert str(config.CONF_DIR) in text
    assert [line for line in text.splitlines() if cell_len(line) > 80 and str(config.CONF_DIR) not in line] == []


@pytest.mark.parametrize("lang", language.languages())
@pytest.mark.parametrize("verb", slackwater.commands)
def test_a_verbs_own_help_has_its_flags_and_not_the_whole_page(
        verb: str, lang: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help", f"lang={lang}"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"slackwater {verb}")
    assert all(flag.usage in text for flag in slackwater.commands[verb].flags)
    assert "model.path=FILE.gguf" not in text
    assert [line for line in text.splitlines() if cell_len(line) > 80] == []


def test_what_run_can_choose_from_includes_your_own_experiments(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine_alone.yaml").touch()
    monkeypatch.chdir(tmp_path)
    text = slackwater.commands["run"].get_help(Context(slackwater))
    assert "mine_alone" in text and "mode_gap" in text and "oneshot" in text


@pytest.mark.thorough
@pytest.mark.parametrize("example", [command for command, _ in pages.EXAMPLES])
def test_each_example_of_the_page_works(example: str, model_file: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["slackwater"])  # Hydra's main reads and sets it
    words = [word.replace("FILE.gguf", str(model_file)) for word in example.split()]
    assert words[0] == "slackwater"
    assert main([*words[1:], "--dry-run"]) == 0
    assert "Nothing was started." in capsys.readouterr().out


def test_a_document_is_the_same_in_every_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["slackwater"])
    monkeypatch.setenv("SLACKWATER_LANG", "ja")
    asked = ["run", "mode=oneshot,interactive", "repetitions=1", "--dry-run"]
    assert main([*asked, "--json", "lang=ja"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["notes"] and plan["expected"]["asks"]
    assert not re.search("[ぁ-んァ-ヶ]", json.dumps(plan, ensure_ascii=False))
    assert main(asked) == 0
    assert "何も起動していません" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    heavy = ("mlflow", "scipy", "hydra", "omegaconf", "numpy", "rich", "babel", "dataclasses")
    code = (f"import sys; known = set(sys.modules); from pipeline.cli import main; main(['--help']); "
            f"print([m for m in {heavy} if m in set(sys.modules) - known], file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(("words", "said"), [
    (["shwo"], "shwo is not a command. Did you mean show?"),
    (["frobnicate"], "frobnicate is not a command. Commands: run, runs, show"),
    (["show", "--jsn"], "--jsn is not a flag of show. Did you mean --json?"),
    (["show", "--nothing"], "--nothing is not a flag of show. Flags: --json, --store URI."),
    (["completion", "--json"], "--json is not understood: completion has no flags."),
    (["show", "--json=yes"], "--json takes no value."),
    (["show", "last", "first"], "first is too much for show: slackwater show [SWEEP]"),
    (["compare", "last"], "compare needs more than that: slackwater compare A B"),
    (["watch"], "watch needs more than that: slackwater watch PID|NAME|URL"),
    (["show", "--store"], "--store needs a URI, such as"),
    (["run", "--dryrun"], "--dryrun is not a flag of run. Did you mean --dry-run?"),
    (["help", "shwo"], "shwo is not a command. Did you mean show?"),
    (["ui", "--port", "http"], "--port http is not allowed"),
    (["--hlp"], "--hlp is not a flag of run"),
    (["runs", "lang=xx"], "lang=xx is not known. Languages: en, ja."),
    (["runs", "lang=en,ja"], "lang=en,ja is not known"),
])
def test_a_wrong_word_gets_one_clear_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith(f"slackwater: {said}")
    assert out.err.count("\n") == 1


@pytest.mark.parametrize("words", [["show", "--nothing", "--help"], ["compare", "-h"], ["ui", "--port", "x", "--help"]])
def test_who_asks_for_help_gets_it_whatever_else_is_wrong(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"slackwater {words[0]} ")


def test_values_stand_behind_a_flag_or_an_equals_sign(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ui", "--port", "x1"], ["ui", "--port=x1"]):
        assert main(words) == 2
        assert "--port x1 is not allowed" in capsys.readouterr().err


def test_a_language_of_the_environment_that_does_not_exist_is_named(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLACKWATER_LANG", "klingon")
    assert main(["runs"]) == 2
    assert "SLACKWATER_LANG=klingon is not known. Languages: en, ja." in capsys.readouterr().err
    assert main(["--help", "lang=en"]) == 0
