"""What users have from 3c8a73e goes on to work: its store, its export, and programs that read its JSON by name.

`names.json` holds, by command, the exit code and every name in the document that 3c8a73e itself wrote of this store.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.record import archive
from tests.conftest import ROOT

KEPT = ROOT / "tests" / "data" / "3c8a73e"
NAMES: dict[str, dict[str, Any]] = json.loads((KEPT / "names.json").read_text(encoding="utf-8"))
FINISHED, FAILED, INTERRUPTED = "run-261126-085547", "run-261126-085931", "run-261126-085640"
OFF, ON, LIMIT = f"{FINISHED}:oneshot-off", f"{FINISHED}:oneshot-quantization", "stabilized/tree_rss_mib > +2%"
COMMANDS: dict[str, list[str]] = {
    "runs": ["runs"], "show finished": ["show", FINISHED], "show failed": ["show", FAILED],
    "show interrupted": ["show", INTERRUPTED], "compare passed": ["compare", OFF, ON, "--fail-if", LIMIT],
    "compare failed": ["compare", ON, OFF, "--fail-if", LIMIT], "compare wrong": ["compare", FINISHED, FINISHED],
    "export": ["export", FINISHED, "out.zip"], "report": ["report", FINISHED, "-o", "out.html"],
}
FREE = frozenset(("params", "metrics", "turns", "settings", "median", "mad", "jumped_share", "where", "trial_s"))
"""Their keys are the sweep's, not the document's."""


def names(value: Any, at: str = "") -> Iterator[str]:
    """".trials[].cell" and so on, as they stand in names.json."""
    if isinstance(value, dict) and at.rpartition(".")[2].removesuffix("[]") in FREE:
        yield at + "{}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{at}.{key}"
            yield from names(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from names(inner, f"{at}[]")


def lacks(document: Any, command: str) -> list[str]:
    """Names of 3c8a73e that the document does not have."""
    return sorted(set(NAMES[command]["names"]) - set(names(document)))


@pytest.fixture(scope="module")
def old_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store for reading: its sweeps become records once, as each is named."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(KEPT / "store.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_of_3c8a73e_is_read_with_the_names_and_exit_codes_it_had(
        command: str, old_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = main([*COMMANDS[command], "--json", "--store", f"sqlite:///{old_store}/mlflow.db"])
    said = capsys.readouterr()
    assert code == NAMES[command]["exit_code"], said.err
    document = json.loads(said.out or "null")
    assert lacks(document, command) == []
    if command.startswith("show"):
        assert {trial["method"] for trial in document["trials"]} == {1}
        # what was interrupted was called failed, with that as its reason
        assert ["failed" if trial["reasons"] == ["interrupted"] else trial["verdict"]
                for trial in document["trials"]] == NAMES[command]["verdicts"]
    if command == "export":
        assert {trial.method for trial in archive.opened(tmp_path / "out.zip").trials()} == {1}


def test_an_export_of_3c8a73e_is_imported_and_compared_as_it_was(
        tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", f"sqlite:///{shutil.copytree(empty_store, tmp_path / 'store')}/mlflow.db"]
    assert main(["import", str(KEPT / "finished.zip"), "--json", *store]) == NAMES["import"]["exit_code"]
    assert lacks(json.loads(capsys.readouterr().out), "import") == []
    assert main(["show", FINISHED, "--json", *store]) == 0
    imported = json.loads(capsys.readouterr().out)
    assert lacks(imported, "show finished") == [] and imported["methods"] == [1]
    sides = [f"{KEPT / 'finished.zip'}:{cell}" for cell in ("oneshot-off", "oneshot-quantization")]
    assert main(["compare", *sides, "--json", "--fail-if", LIMIT]) == NAMES["compare passed"]["exit_code"]
    assert lacks(json.loads(capsys.readouterr().out), "compare passed") == []


@pytest.mark.thorough
def test_a_sweep_of_3c8a73e_is_measured_again_as_it_was_and_told_what_differs(
        store_of_3c8a73e: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["rerun", FINISHED, "--dry-run", "--json", "--store", f"sqlite:///{store_of_3c8a73e}/mlflow.db"])
    said = capsys.readouterr()
    assert code == NAMES["rerun"]["exit_code"], said.err
    assert lacks(json.loads(said.out), "rerun") == []
    assert "differs now: method of measuring: 1 → 2" in said.err
