"""What `--store` takes, and what is read through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.record.folder import SweepFolder
from pipeline.track import location, opened
from tests.unit.test_record_folder import SWEEP, trial


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this machine's store."""
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def sweep_in(home: Path) -> SweepFolder:
    folder = SweepFolder(home / "sweeps" / SWEEP.sweep_id)
    folder.begin(SWEEP, {})
    put = folder.put(trial())
    folder.write_pushed(str(home / "mlflow.db"), {put.name: "b" * 32})
    return folder


def test_records_are_found_through_a_folder_and_a_database_that_need_not_be_there(home: Path, tmp_path: Path) -> None:
    sweep_in(home)
    sweep_in(tmp_path / "elsewhere")
    assert opened.sweeps(None).option == ""
    for uri in (None, str(home), f"sqlite:///{home}/mlflow.db"):
        assert opened.sweeps(uri).subject("b" * 32).sweep.folder == home / "sweeps" / SWEEP.sweep_id
    other = opened.sweeps(str(tmp_path / "elsewhere"))
    assert other.sweep("last").folder.is_relative_to(tmp_path / "elsewhere")
    assert other.option == f" --store sqlite:///{tmp_path}/elsewhere/mlflow.db"


def test_what_is_no_store_is_named(home: Path, tmp_path: Path) -> None:
    for uri in ("nonsense", "file:///tmp", str(tmp_path / "no such folder")):
        with pytest.raises(StoreError, match="not the address of a store"):
            opened.sweeps(uri)
