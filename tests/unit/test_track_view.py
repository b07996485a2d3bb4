"""The ready view on MLflow's page: what it selects, that it is kept once per sweep, and that few are kept.

That the page shows it so is looked at in tests/browser.
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import ui
from pipeline.config import Tracking
from pipeline.record.folder import SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.track import opened, view
from pipeline.track.push import Push

PLAN = {"cells": [{"cell": "oneshot num_ctx=1024", "overrides": ["mode=oneshot", "num_ctx=1024", "model=smollm2-135m"]},
                  {"cell": "oneshot num_ctx=4096", "overrides": ["mode=oneshot", "num_ctx=4096", "model=gguf"]}]}


@pytest.fixture
def place(empty_store: Path, tmp_path: Path) -> Push:
    shutil.copy(empty_store / "mlflow.db", tmp_path / "mlflow.db")
    return Push.open(Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db"))


def unpacked(value: str) -> tuple[dict[str, Any], dict[str, Any]]:
    envelope = json.loads(value)
    return envelope, json.loads(zlib.decompress(base64.b64decode(envelope["state"].removeprefix("deflate;"))))


def tags(place: Push) -> dict[str, str]:
    return dict(place.client.get_experiment("1").tags)


def views(place: Push) -> list[str]:
    return sorted(key for key in tags(place) if key.startswith(view.TAG))


def begun(place: Push, sweep_id: str, **changes: Any) -> SweepFolder:
    """A sweep whose record is in the store and in MLflow."""
    sweep = SweepRecord(sweep_id, "", "Which?", "slackwater run", 4, 5, **changes)
    folder = SweepFolder(place.location.records / "sweeps" / sweep_id)
    folder.begin(sweep, PLAN)
    assert place.sweep(folder, sweep) is None
    return folder


def test_the_installed_mlflow_still_speaks_of_views_as_they_are_written() -> None:
    assert view.understood()


def test_a_view_shows_the_sweeps_trials_by_cell_with_what_tells_its_cells_apart() -> None:
    envelope, state = unpacked(view.envelope("gap-1", PLAN, {"valid": 4}, 5))
    assert (envelope["name"], envelope["createdAt"]) == ("gap-1", 5)
    assert state["searchFilter"] == "tags.sweep_id = 'gap-1' AND tags.kind != 'superseded'"
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "cell"}]
    assert state["selectedColumns"][:6] == ["tags.`mode`", "tags.`infer_os`", "tags.`repetition`", "tags.`verdict`",
                                            "params.`num_ctx`", "params.`model.name`"]
    assert "metrics.`stabilized/tree_rss_mib`" in state["selectedColumns"]


def test_a_mean_over_valid_trials_is_not_mixed_with_others() -> None:
    keys = unpacked(view.envelope("gap-1", PLAN, {"valid": 3, "suspect": 1}, 5))[1]["groupBy"]["groupByKeys"]
    assert [key["groupByData"] for key in keys] == ["cell", "verdict"]


def test_a_view_fits_into_a_tag_also_on_postgresql() -> None:
    """experiment_tags.value is VARCHAR(5000) there."""
    cells = [{"cell": "x" * 200, "overrides": [f"engine.knobs.{'k' * 40}{i}={j}" for i in range(30)]} for j in range(2)]
    assert len(view.envelope("s" * 200, {"cells": cells}, {"valid": 60}, 5)) < 5000


def test_a_sweep_has_one_view_however_often_it_is_written(place: Push) -> None:
    for _ in range(2):
        view.install(place.location, place.client, "1", "gap-1", PLAN, {"valid": 4}, 5)
    assert views(place) == ["mlflow.sharedViewState.slackwater-gap-1"]


def test_views_do_not_pile_up_and_those_of_a_person_stay(place: Push) -> None:
    place.client.set_experiment_tag("1", "mlflow.sharedViewState.mine", "{}")
    for began in range(view.KEPT + 3):
        view.install(place.location, place.client, "1", f"gap-{began:02d}", PLAN, {"valid": 4}, began)
    kept = views(place)
    assert len(kept) == view.KEPT + 1
    assert "mlflow.sharedViewState.mine" in kept
    assert not any(key.endswith(("gap-00", "gap-01", "gap-02")) for key in kept)


def test_a_sweep_has_its_view_from_its_start_and_gets_it_back_when_the_page_is_opened(place: Push) -> None:
    folder = begun(place, "gap-1")
    [key] = views(place)
    record = opened.sweeps(place.location.uri).sweep("last")
    assert ui._page(place.location, record) == (
        "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=slackwater-gap-1", "")
    assert "params.`num_ctx`" in unpacked(tags(place)[key])[1]["selectedColumns"]
    place.client.delete_experiment_tag("1", key)
    ui._show_view(place.location, record)
    assert views(place) == [key]
    folder.write_pushed(place.location.shown, {}, experiment_id="")
    page, note = ui._page(place.location, record)
    assert "viewStateShareKey" not in page and "slackwater sync" in note


def test_a_page_that_keeps_views_in_another_way_is_opened_plain_and_that_is_said(
        place: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(place, "gap-1")
    monkeypatch.setattr(view, "understood", lambda: False)
    page, note = ui._page(place.location, opened.sweeps(place.location.uri).sweep("last"))
    assert page == "/#/experiments/1/runs?workflowType=machine_learning"
    assert "Group by the tag `cell`" in note


@pytest.mark.parametrize(("environment", "opens"), [
    ({"DISPLAY": ":0"}, True), ({"WAYLAND_DISPLAY": "wayland-0"}, True), ({}, False),
    ({"DISPLAY": ":0", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, False), ({"DISPLAY": ":0", "CI": "1"}, False),
])
def test_a_browser_is_opened_only_where_a_person_sits(environment: dict[str, str], opens: bool,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", environment)
    assert ui._has_desktop() is opens
