"""The worked examples of docs/structure.md: their files, put into a copy of the checkout, do what the page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(300)      # real runs, on whatever machine this is

PAGE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
SECTIONS = PAGE.partition("## Adding things")[2].split("\n### ")[1:]
EXAMPLES = {section.partition("\n")[0]: section for section in SECTIONS}
FILE = re.compile(r"^`([^`\n]+)`:\n\n```(?:python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```sh\n(.*?)\n```(?:\n\n```text\n(.*?)\n```)?", re.MULTILINE | re.DOTALL)


def said(checkout: Path, *words: str) -> str:
    """What `slackwater …` or `python …` prints in that checkout; it has to succeed."""
    program = {"slackwater": [sys.executable, "-m", "pipeline"], "python": [sys.executable]}[words[0]]
    done = subprocess.run([*program, *words[1:]], cwd=checkout, text=True, capture_output=True, timeout=110,
                          env=os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "200"}, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_an_example_of_each_thing_that_can_be_added() -> None:
    assert sorted(EXAMPLES) == ["A design", "A meter", "A package of your own", "A settle rule", "An engine",
                                "An experiment"]


@pytest.mark.thorough
@pytest.mark.parametrize("example", sorted(EXAMPLES.keys() - {"A package of your own"}))
def test_an_example_does_what_the_page_says(
        example: str, spaced_checkout: Path, model_file: Path, empty_store: Path) -> None:
    if not (spaced_checkout / "mlruns" / "mlflow.db").exists():
        shutil.copytree(empty_store, spaced_checkout / "mlruns", dirs_exist_ok=True)
    section = EXAMPLES[example]
    files = FILE.findall(section)
    commands = COMMAND.findall(section)
    assert files
    assert len(commands) == 1
    for name, content in files:
        target = spaced_checkout / name
        assert not target.exists(), f"{name} is in the project already: the example would overwrite it"
        assert target.parent.is_dir(), f"{name} has no room on the map"
        target.write_text(content, encoding="utf-8")
    command, expected = commands[0]
    for contract in (name for name, _content in files if name.startswith("tests/")):
        said(spaced_checkout, "python", "-m", "pytest", "-q", "-n0", contract)
    printed = said(spaced_checkout, *shlex.split(command))
    assert expected in printed
    if example == "A meter":
        [trial] = json.loads(said(spaced_checkout, "slackwater", "show", "--json"))["trials"]
        assert trial["metrics"]["stabilized/huge_pages_anon_mib"] >= 0
    if example == "An engine":
        trials = json.loads(said(spaced_checkout, "slackwater", "show", "--json"))["trials"]
        held = {trial["cell"]: trial["metrics"]["stabilized/tree_rss_mib"] for trial in trials}
        assert held["oneshot-memory_optimization"] - held["oneshot-off"] == pytest.approx(-32, rel=0.01)


@pytest.mark.thorough
def test_the_examples_keep_the_rules_of_the_house(tmp_path: Path) -> None:
    """Users copy them: lint and types hold for them as for the code."""
    paths = []
    for section in EXAMPLES.values():
        for name, content in FILE.findall(section):
            if name.endswith(".py"):
                paths.append(tmp_path / Path(name).name)
                paths[-1].write_text(content, encoding="utf-8")
    assert len(paths) == 8
    for checker in (["ruff", "check"], ["mypy", "--strict"]):
        done = subprocess.run([sys.executable, "-m", *checker, *(str(path) for path in paths)], cwd=ROOT, text=True,
                              capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
