"""What a run carries survives MLflow's alphabet and lengths, and comes back as the config had it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline import errors
from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.record.trial import TrialRecord
from pipeline.track import location, names

RESULT = TrialRecord("s-1", "oneshot-on", 2, 2, 7, "oneshot", "on", "valid", 1, 2)


def test_a_runs_name_is_the_cell_and_the_repetition() -> None:
    assert names.run_name(RESULT) == "oneshot-on r2"


def test_a_name_too_long_to_be_read_whole_still_shows_the_repetition() -> None:
    cell = "oneshot num_ctx=4096 memory_optimization"
    shown = {names.run_name(dataclasses.replace(RESULT, cell=cell, repetition=n))[: names.SHOWN] for n in (1, 2, 3)}
    assert len(shown) == 3


@pytest.mark.parametrize("value", [
    0, 1.5, -3, True, False, None, [], ["--mlock", "a,b"], {"on": {"cache_ram": 0}}, "", "true", "null", "1e5", "NaN",
    "007", '"quoted"', "plain text", "指示: {prompt}\n\n回答:", "-ngl", "[not a list", " 5 ", "1_000",
])
def test_a_param_comes_back_with_the_value_and_type_it_had(value: Any) -> None:
    found = names.decode_param(names.encode_param(value))
    assert found == value
    assert type(found) is type(value)


LONG = ["x" * 9_000, "潮\n" * 10_000, '"' * 6_001, ["a, b"] * 3_000, "a\0b", "unit \x1f record \x1e", "n\udce9e",
        "x" * 6_000, {"of": "\udce9" * 9_000}]


@pytest.mark.parametrize("value", LONG, ids=range(len(LONG)))
def test_what_mlflow_cannot_hold_is_shown_as_far_as_it_goes(value: Any) -> None:
    [text] = names.shown_params({"prompt.text": value}).values()
    assert len(text) <= names.PARAM_LIMIT and text.encode() and not {"\0", "\x1e", "\x1f"} & set(text)
    if isinstance(value, str):
        tags = names.shown_tags({"question": value, "cwd": "/"})
        assert all(len(text) <= names.TAG_LIMIT and text.encode() for text in tags.values())


def test_what_is_shown_of_a_long_text_says_that_it_was_cut() -> None:
    assert "cut from 20000 characters" in names.shown_params({"a": "x" * 20_000})["a"]


def test_two_long_keys_that_begin_alike_stay_two() -> None:
    keys = {names.key("engine." + "k" * 300 + end) for end in "ab"}
    assert len(keys) == 2
    assert all(len(key) <= 250 for key in keys)


def test_a_trial_run_again_is_another_trial_and_the_same_one_is_the_same() -> None:
    again = dataclasses.replace(RESULT, started_ms=5)
    assert names.trial_uuid(RESULT) == names.trial_uuid(dataclasses.replace(RESULT, folder=Path("/elsewhere")))
    assert names.trial_uuid(RESULT) != names.trial_uuid(again)


def test_outside_a_checkout_the_store_is_slackwater_home_then_the_data_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "site-packages" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert location.locate(Tracking()).database == tmp_path / "mine" / "mlflow.db"
    monkeypatch.delenv("SLACKWATER_HOME")
    assert location.locate(Tracking()).database == tmp_path / "data" / "slackwater" / "mlflow.db"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "pipeline")
    return tmp_path


@pytest.mark.parametrize("tracking", [Tracking(), location.named(None), Tracking(uri="local")])
def test_slackwater_home_wins_in_a_checkout_too(
        checkout: Path, tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACKWATER_HOME", str(checkout / "mine"))
    found = location.locate(tracking)
    assert found.database == checkout / "mine" / "mlflow.db"
    assert found.records == checkout / "mine"
    assert found.chosen_by == "SLACKWATER_HOME"


def test_a_tracking_uri_wins_over_the_variable_and_the_variable_over_the_local_store(
        checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5005/")
    usual = location.locate(location.named(None))
    assert (usual.uri, usual.chosen_by) == ("http://127.0.0.1:5005", "MLFLOW_TRACKING_URI")
    given = location.locate(location.named("sqlite:////mine.db"))
    assert (given.shown, given.chosen_by) == ("/mine.db", "tracking.uri")
    for tracking in (Tracking(uri=None), Tracking(uri="local")):  # tracking.uri=null and tracking=local
        assert location.locate(tracking).database == checkout / "mlruns" / "mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert location.locate(location.named(None)).database == checkout / "mlruns" / "mlflow.db"


@pytest.mark.parametrize("address", ["./mlruns", "file:///tmp/mlruns", "databricks", "sqlite://"])
def test_a_variable_that_no_store_can_have_is_passed_over_by_name(
        checkout: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    found = location.locate(location.named(None))
    assert found.database == checkout / "mlruns" / "mlflow.db"
    assert f"MLFLOW_TRACKING_URI={address}" in found.passed_over
    with pytest.raises(StoreError, match=r"tracking\.uri="):
        location.locate(Tracking(uri=address))


def test_in_a_checkout_the_store_is_its_mlruns_whatever_the_working_directory(
        checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    found = location.locate(Tracking())
    assert found.database == tmp_path / "mlruns" / "mlflow.db"
    assert found.artifacts == tmp_path / "mlruns" / "artifacts"
    assert found.records == tmp_path / "mlruns"


@pytest.mark.parametrize("uri", ["./mlruns", "/tmp/mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:",
                                 "ftp://host/x", "mlflow.db", ""])
def test_an_address_that_keeps_nothing_is_refused_with_one_that_does(uri: str) -> None:
    with pytest.raises(errors.StoreError, match=r"sqlite:////absolute/path/mlflow\.db"):
        location.locate(Tracking(uri=uri))


def test_a_password_in_the_address_is_never_shown() -> None:
    found = location.locate(Tracking(uri="postgresql://me:hunter2@db.example/mlflow"))
    assert found.shown == "postgresql://me:***@db.example/mlflow"
    assert "hunter2" in found.uri
