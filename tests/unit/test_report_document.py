"""The JSON document: the names that programs rely on, and numbers that are numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from pipeline.record.trial import TrialRecord
from pipeline.report.document import Sweep, analyse, document, runs_document
from tests.unit.made_records import said
from tests.unit.test_stats_summary import HEADLINE, made, two_by_two

SWEEP = Sweep("mode_gap-1", question="Why?", extra={"host": "a", "bad": math.inf})


def test_the_names_are_those_of_the_contract() -> None:
    trials = two_by_two()
    found = document(SWEEP, trials, analyse(trials))
    assert {"schema_version", "sweep", "trials", "cells", "gap", "effects"} <= found.keys()
    assert {"run_id", "cell", "repetition", "order", "mode", "verdict", "reasons", "params",
            "metrics"} <= found["trials"][0].keys()
    gap_names = {"infer_os", "metric", "phase", "turn", "interactive", "oneshot", "difference"}
    assert gap_names <= found["gap"]["as_found"][0].keys()
    assert gap_names <= found["gap"]["unified"][0].keys()
    assert {"metric", "mode", "flag", "on", "off", "difference", "relative_pct", "n_on",
            "n_off"} <= found["effects"][0].keys()
    assert {"lo", "hi", "n_blocks", "method", "verdict"} <= found["effects"][0].keys()
    assert found["sweep"]["host"] == "a"
    assert found["sweep"]["bad"] is None


def test_a_document_adds_up() -> None:
    trials = two_by_two()
    found = json.loads(json.dumps(document(SWEEP, trials, analyse(trials)), allow_nan=False))
    for row in (*found["gap"]["as_found"], *found["gap"]["unified"]):
        assert row["difference"] == pytest.approx(row["oneshot"] - row["interactive"])
    for row in found["effects"]:
        assert row["difference"] == pytest.approx(row["on"] - row["off"])
    assert len(found["trials"]) == 12
    assert len(found["cells"]) == 4


def test_not_measured_is_null_and_never_nan() -> None:
    trials: list[TrialRecord] = [made("oneshot", "off", 1, {HEADLINE: {1: math.nan}, "x/y_s": {1: math.inf}})]
    text = json.dumps(document(SWEEP, trials, analyse(trials)), allow_nan=False)
    assert json.loads(text)["trials"][0]["metrics"] == {HEADLINE: None, "x/y_s": None}


def test_trials_keep_their_reasons_and_the_order_they_ran_in() -> None:
    first, second = made("oneshot", "off", 1, {}), made("oneshot", "off", 2, {})
    trials = [replace(second, order=2, verdict="failed", reasons=(said("died"),)), replace(first, order=1)]
    found = document(SWEEP, trials, analyse(trials))
    assert [(t["order"], t["verdict"], t["reasons"]) for t in found["trials"]] == [(1, "valid", []),
                                                                                  (2, "failed", ["died"])]


@pytest.mark.parametrize("trials", [[], [made("oneshot", "off", 1, {})]])
def test_an_empty_sweep_is_a_document_too(trials: list[TrialRecord]) -> None:
    json.dumps(document(SWEEP, trials, analyse(trials)), allow_nan=False)


def test_the_list_has_every_sweep_and_the_newest_one_in_full() -> None:
    trials = two_by_two()
    found = runs_document([SWEEP, Sweep("older")], document(SWEEP, trials, analyse(trials)))
    assert [s["sweep_id"] for s in found["sweeps"]] == ["mode_gap-1", "older"]
    assert found["sweep"]["sweep_id"] == "mode_gap-1"
    assert len(found["trials"]) == 12
    assert runs_document([])["sweeps"] == []
    assert runs_document([])["gap"] == {"as_found": [], "unified": []}
