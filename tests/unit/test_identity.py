"""A sweep is the same sweep when a later version has more keys, and another one when something that is set differs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as schema
from pipeline import defaults
from pipeline.config import Config, Meter
from pipeline.errors import ConfigError
from pipeline.outcome import flatten
from pipeline.record.find import Sweeps
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.stats.differing import differences
from pipeline.sweep import identity
from pipeline.sweep.cells import Cell, check_cells
from pipeline.sweep.design import load_design
from pipeline.track import opened
from tests.unit import made_records
from tests.unit.test_rerun import composed

ORDER = [[0, 1], [1, 0]]


def cells(*words: str) -> list[Cell]:
    found, _ = check_cells([composed(*words, "infer_os=off"), composed(*words, "infer_os=quantization")],
                           [[*words, "infer_os=off"], [*words, "infer_os=quantization"]])
    return found


@dataclass
class LaterMeter(Meter):
    """The meter of a version to come."""

    quiet_hz: float = 20.0


@pytest.fixture
def forget() -> Iterator[None]:
    """What was read from conf/ before and in a test is not remembered across it."""
    for cached in (defaults._group, defaults._top, defaults._unset):
        cached.cache_clear()
    yield
    for cached in (defaults._group, defaults._top, defaults._unset):
        cached.cache_clear()


def later(cell: Cell, quiet_hz: float = 20.0) -> Cell:
    meter = LaterMeter(**dataclasses.asdict(cell.config.meter), quiet_hz=quiet_hz)
    return replace(cell, config=replace(cell.config, meter=meter))


@pytest.mark.usefixtures("forget")
def test_a_new_key_of_the_schema_at_its_default_does_not_change_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    now = cells()
    was = identity.plan_hash(now, ORDER)
    monkeypatch.setitem(schema.GROUPS, "meter", LaterMeter)
    defaults._group.cache_clear()
    defaults._unset.cache_clear()
    assert "meter.quiet_hz" in flatten(later(now[0]).config)
    assert identity.plan_hash([later(cell) for cell in now], ORDER) == was
    assert identity.plan_hash([later(cell, quiet_hz=5.0) for cell in now], ORDER) != was


@pytest.mark.usefixtures("forget")
def test_a_new_knob_in_an_engines_file_does_not_change_the_plan(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = cells()
    was = identity.plan_hash(now, ORDER)
    shutil.copytree(schema.CONF_DIR, tmp_path / "conf")
    for module in (schema, defaults):
        monkeypatch.setattr(module, "CONF_DIR", tmp_path / "conf")
    file = tmp_path / "conf" / "engine" / "llamacpp.yaml"
    file.write_text(file.read_text().replace("knobs:\n", "knobs:\n  tides: 2\n", 1))
    defaults._group.cache_clear()
    defaults._unset.cache_clear()

    def with_knob(value: int) -> list[Cell]:
        return [replace(cell, config=replace(cell.config, engine=replace(
            cell.config.engine, knobs={**cell.config.engine.knobs, "tides": value}))) for cell in now]

    assert identity.plan_hash(with_knob(2), ORDER) == was
    assert identity.plan_hash(with_knob(3), ORDER) != was


@pytest.mark.parametrize("words", ["mode=oneshot", "num_ctx=512", "clear=none", "engine.knobs.n_ubatch=256"])
def test_whatever_is_set_makes_another_plan(words: str) -> None:
    assert identity.plan_hash(cells(words), ORDER) != identity.plan_hash(cells(), ORDER)


def test_a_key_that_one_side_lacks_is_at_its_default_when_two_sweeps_are_compared() -> None:
    flat = flatten(cells()[0].config)
    before = {key: value for key, value in flat.items() if key not in ("knob", "settle.range_pct")}

    def found(**changes: Any) -> list[str]:
        one, other = (replace(made_records.trial("oneshot-off", 1, 1.0), params=params)
                      for params in (before, {**flat, **changes}))
        return [difference.key for difference in differences([one], [other], {}, {})]

    assert found() == []
    assert found(**{"settle.range_pct": 9.0}) == ["settle.range_pct"]


def test_a_value_set_to_its_default_is_the_same_plan() -> None:
    assert identity.plan_hash(cells("num_ctx=2048", "clear=unload"), ORDER) == identity.plan_hash(cells(), ORDER)
    assert identity.plan_hash(cells(), [[0, 1], [0, 1]]) != identity.plan_hash(cells(), ORDER)


# A sweep that 3c8a73e began

@pytest.fixture
def old(store_of_3c8a73e: Path) -> Sweeps:
    return opened.sweeps(f"sqlite:///{store_of_3c8a73e}/mlflow.db")


def begun(store: Sweeps) -> tuple[SweepRecord, list[TrialRecord], list[Cell], list[list[int]]]:
    """The interrupted sweep, and its plan as its words compose today."""
    record = store.sweep(next(sweep.sweep_id for sweep in store.all() if sweep.status == "interrupted"))
    words = [word for word in json.loads(record.tags["arguments"])
             if not word.startswith(("infer_os=", "tracking.", "mode="))]
    names = list(dict.fromkeys(trial.cell for trial in store.trials(record.sweep_id)))
    planned = [[*words, *cell["overrides"]] for cell in store.folder(record.sweep_id).plan()["cells"]]
    found, _ = check_cells([composed(*dict.fromkeys(overrides)) for overrides in planned], planned)
    first = found[0].config
    assert {cell.name for cell in found} >= set(names)
    return record, store.trials(record.sweep_id), found, load_design("blocked").blocks(
        len(found), first.repetitions, first.seed)


def test_an_interrupted_sweep_of_3c8a73e_goes_on_as_it_began(old: Sweeps) -> None:
    record, trials, planned, order = begun(old)
    kept, here = old.folder(record.sweep_id).plan(), json.loads(record.tags["environment"])
    assert identity.require_same(record, trials, kept, planned, order, here, accept=False) == []
    assert identity.require_same(record, trials, {}, planned, order, here, accept=False) == []
    again = identity.unfinished(old, planned, order)
    assert again is not None
    assert again.sweep_id == record.sweep_id


def test_what_really_differs_from_it_is_named_and_nothing_else(old: Sweeps) -> None:
    record, trials, planned, order = begun(old)
    kept, here = old.folder(record.sweep_id).plan(), json.loads(record.tags["environment"])

    def refusal(cells: list[Cell], order: list[list[int]], environment: dict[str, str] = here) -> str:
        with pytest.raises(ConfigError) as refused:
            identity.require_same(record, trials, kept, cells, order, environment, accept=False)
        return str(refused.value).split("--accept-change")[0]

    def changed(**values: Any) -> list[Cell]:
        return [replace(cell, config=replace(cell.config, **values)) for cell in planned]

    assert f"max_tokens: {planned[0].config.max_tokens} → 5" in refusal(changed(max_tokens=5), order)
    assert "order of the trials" in refusal(planned, [list(reversed(block)) for block in order])
    assert "is new" in refusal([*planned, replace(planned[0], name="another")], order)
    assert f"cell {planned[0].name} is gone" in refusal(planned[1:], [[0] for _ in order])
    kernel = refusal(planned, order, {**here, "kernel": "7"})
    assert "kernel: " in kernel
    assert "plan" not in kernel
    other = changed(seed=7)
    assert identity.unfinished(old, other, order) is None


def test_a_key_that_is_new_since_and_set_is_a_change(old: Sweeps) -> None:
    _, trials, planned, order = begun(old)
    without = [replace(trial, params={key: value for key, value in trial.params.items() if key != "num_ctx"})
               for trial in trials]
    number = planned[0].config.num_ctx
    lines = identity.changes(without, {}, planned, order)
    assert lines == ([] if number == Config().num_ctx else [f"num_ctx: not set → {number} ({cell.name})"
                                                            for cell in planned])
    other = [replace(cell, config=replace(cell.config, num_ctx=number + 256)) for cell in planned]
    assert all(f"num_ctx: not set → {number + 256}" in line for line in identity.changes(without, {}, other, order))


def test_text_that_the_store_cut_is_no_change(old: Sweeps) -> None:
    from pipeline.track.names import encode_param

    _, trials, planned, order = begun(old)
    long = [replace(cell, config=replace(cell.config, prompt=replace(cell.config.prompt, text="tide " * 2000)))
            for cell in planned]
    stored = [replace(trial, params={**trial.params, "prompt.text": encode_param("tide " * 2000)}) for trial in trials]
    assert identity.changes(stored, {}, long, order) == []
