"""Cells: from Hydra's overrides to named, checked points of a sweep. Starts no server.

A cell is checked whole before the first trial: config, engine, model, machine. Running them is `conduct.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline import clear
from pipeline.config import GROUPS, Config
from pipeline.engine import load_engine
from pipeline.engine.all_knobs import common_name
from pipeline.engine.base import Plan
from pipeline.engine.knobs import as_text
from pipeline.errors import ConfigError
from pipeline.model.files import title
from pipeline.outcome import flatten, infer_os_label
from pipeline.plugins import METERS
from pipeline.progress import Fetching, Listener
from pipeline.prompts import file_text
from pipeline.record.reason import Reason, of_error
from pipeline.record.schema import as_label
from pipeline.settle.base import load_rule

ONE_PER_SWEEP = ("repetitions", "design", "stop", "tracking", "question", "question_metrics")
"""Keys that belong to the sweep and not to a cell."""


KNOBS = ("knob.", "engine.knobs.")
"""Where a knob is set by its name."""

WORK = ("model", "prompt", "max_tokens", "num_ctx", "seed", "mode.turns", "mode.history", "engine.raw")
"""Keys that say what a cell is asked to do, besides the mode, whose comparison this project is for."""


_MODEL = ("model", "model.path", "model.name")
"""Keys that choose a model."""


@dataclass(frozen=True)
class Cell:
    """One point of a sweep: a resolved config and what it asks of its engine."""

    name: str
    overrides: Sequence[str]
    config: Config
    plan: Plan


@dataclass(frozen=True)
class Skipped:
    """A cell that this engine or machine cannot honour."""

    name: str
    reason: Reason


def cell_names(configs: Sequence[Config], overrides: Sequence[Sequence[str]], by_path: bool = False) -> list[str]:
    """A short name each, unique within the sweep: mode, flags, then whatever else varies as key=value.

    `by_path`: as sweeps until 3c8a73e named cells of several files, by their paths."""
    pairs = [dict(override.lstrip("+").split("=", 1) for override in cell if "=" in override) for cell in overrides]
    if by_path:
        pairs = [{key: text for key, text in cell.items() if key != "model.name"} for cell in pairs]
    else:  # a model is called by its own name, however it was given
        several = len({tuple(cell.get(key) for key in _MODEL) for cell in pairs}) > 1
        pairs = [{**{key: text for key, text in cell.items() if key not in _MODEL},
                  **({"model": title(config.model)} if several else {})}
                 for cell, config in zip(pairs, configs, strict=True)]
    keys = {key for cell in pairs for key in cell}
    named = ("mode", "infer_os", "experiment")
    varied = sorted(key for key in keys if len({cell.get(key) for cell in pairs}) > 1
                    and key.split(".")[0] not in named)
    varied += sorted(key for key in keys if key.startswith("mode.")  # a mode that cannot take a key goes without
                     and len({(config.mode.name, cell.get(key)) for config, cell in zip(configs, pairs, strict=True)})
                     > len({config.mode.name for config in configs}))
    names = []
    for config, cell in zip(configs, pairs, strict=True):
        rest = [_part(config, key, cell[key]) for key in varied if key in cell]
        names.append(as_label("-".join([config.mode.name, infer_os_label(config.infer_os), *rest])))
    return names


def _part(config: Config, key: str, text: str) -> str:
    """What tells a cell apart, as its name has it: "num_ctx=4096"; a knob under its common name."""
    if key.startswith("knob."):
        name, _value = common_name(key.removeprefix("knob."), text)
        return f"{name}={as_text(config.knob.get(name, text))}"
    return f"{key if key in GROUPS else key.split('.')[-1]}={text}"


def named_as_before(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """The cells under the names that a sweep until 3c8a73e gave them, if `names` are those."""
    older = cell_names([cell.config for cell in cells], [cell.overrides for cell in cells], by_path=True)
    if set(older) != set(names):
        return list(cells)
    return [replace(cell, name=name) for cell, name in zip(cells, older, strict=True)]


def check_cells(configs: Sequence[Config], overrides: Sequence[Sequence[str]]) -> tuple[list[Cell], list[Skipped]]:
    """Plan every cell. Raises ConfigError for the first that cannot be; with `design.unsupported=skip` it is listed."""
    first = flatten(configs[0])
    for config in configs[1:]:
        for key, value in flatten(config).items():
            if key.split(".")[0] in ONE_PER_SWEEP and value != first.get(key):
                raise ConfigError(f"{key} cannot be swept ({first.get(key)}, {value}): it belongs to the sweep, "
                                  "not to a cell.")
    cells: list[Cell] = []
    skipped: list[Skipped] = []
    for config, name, cell_overrides in zip(configs, cell_names(configs, overrides), overrides, strict=True):
        try:
            load_rule(config)
            for source in config.meter.sources:
                METERS.load(source, "meter.sources")
            clear.check(config.clear)
            if config.prompt.file is not None:
                file_text(config.prompt.file)
            cell = Cell(name, cell_overrides, config, load_engine(config).plan())
            _refuse_unheard(cell)
            _refuse_twin(cell, cells)
        except ConfigError as error:
            if config.design.unsupported != "skip" or not config.infer_os.switched_on:
                raise
            skipped.append(Skipped(name, of_error(error)))
        else:
            cells.append(cell)
    if not cells:
        reasons = "\n".join(f"  {cell.name}: {cell.reason}" for cell in skipped)
        raise ConfigError(f"no cell of this sweep can run here:\n{reasons}")
    return cells, skipped


def refuse_other_work(configs: Sequence[Config]) -> None:
    """Raises ConfigError for cells that do different work, unless `design.factor` says that this is the question."""
    by_mode: dict[str, list[Config]] = {}
    for config in configs:
        by_mode.setdefault(config.mode.name, []).append(config)
    for alike in by_mode.values():
        first, factors = flatten(alike[0]), alike[0].design.factor
        for config in alike[1:]:
            for key, value in flatten(config).items():
                group = next((work for work in WORK if _covers(work, key)), None)
                if group and value != first.get(key) and not any(_covers(factor, key) for factor in factors):
                    name = key if f"{group}.name" not in first or first[f"{group}.name"] == flatten(config).get(
                        f"{group}.name") else group
                    one = (f" If it is one text, quote it: '{key}=\"{first.get(key)},{value}\"'."
                           if key == "prompt.text" else "")
                    raise ConfigError(
                        f"the cells do different work: {key} is {first.get(key)} and {value}. If that difference is "
                        f"the question, say so: \"design.factor=[{', '.join([*factors, name])}]\". Flags and modes are "
                        f"then compared where it is the same.{one}")


def _covers(factor: str, key: str) -> bool:
    if factor in _MODEL:  # a path is how a model was given
        factor = "model"
    return key == factor or key.startswith(f"{factor}.")


def fetch_models(cells: Sequence[Cell], listener: Listener) -> None:
    """Make sure that every model of the sweep is here and is what it should be, once each.

    Raises ConfigError: no network, no space, another checksum."""
    for cell in {f"{cell.config.engine.name} {cell.config.model}": cell for cell in cells}.values():

        def tell(what: str, done: int, total: int, name: str = title(cell.config.model)) -> None:
            listener.on_event(Fetching(name, what, done, total))

        load_engine(cell.config).fetch(tell)


def honoured_flags(config: Config) -> tuple[list[str], list[Skipped]]:
    """The infer_os flags that change this engine's settings on this machine, and the others with the reason."""

    def settings(**flags: Any) -> Mapping[str, Any]:
        return load_engine(replace(config, infer_os=replace(config.infer_os, **flags))).plan().settings

    names = [field.name for field in fields(config.infer_os) if field.type in ("bool", bool)]
    off = dict.fromkeys(names, False)
    nothing = settings(**off)
    honoured, left_out = [], []
    for flag in names:
        try:
            if settings(**off | {flag: True}) != nothing:
                honoured.append(flag)
            else:
                left_out.append(Skipped(flag, Reason("flag_adds_nothing")))
        except ConfigError as error:
            left_out.append(Skipped(flag, of_error(error)))
    return honoured, left_out


def _refuse_unheard(cell: Cell) -> None:
    """A knob that an engine did not take would be swept for nothing."""
    for name, value in cell.config.knob.items():
        if name not in cell.plan.knobs:
            raise ConfigError(f"knob.{name}={value}: engine {cell.config.engine.name} takes no knobs by their names. "
                              "Set what it has under engine.knobs.")


def swept_knobs(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Config keys of the knobs in which cells differ → their values in the order of the cells; the first one is what
    the others are compared with."""
    alike = [cell for cell in cells if cell.config.engine.name == cells[0].config.engine.name]
    each = [{key: value for key, value in flatten(cell.config).items() if key.startswith(KNOBS)} for cell in alike]
    values = {key: [one[key] for one in each if key in one] for key in (each[0] if each else ())}
    return {key: [value for at, value in enumerate(found) if value not in found[:at]]
            for key, found in values.items() if len({str(value) for value in found}) > 1}


def _work_and_server(cell: Cell) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    everything = flatten(cell.config)
    of_the_server = ("infer_os.", "engine.flags", *KNOBS)
    rest = {key: value for key, value in everything.items() if key != "knob" and not key.startswith(of_the_server)}
    return rest, dict(cell.plan.settings)


def _refuse_twin(cell: Cell, others: Sequence[Cell]) -> None:
    """Two arms that differ in flags or knobs but run the same server would compare nothing (DESIGN 5.3)."""
    for other in others:
        if _work_and_server(cell) != _work_and_server(other):
            continue
        ours, theirs = flatten(cell.config), flatten(other.config)
        differ = [key for key in {**theirs, **ours} if key.startswith(KNOBS) and ours.get(key) != theirs.get(key)]
        if not differ and cell.config.infer_os == other.config.infer_os:
            raise ConfigError(f"the sweep has the cell {cell.name} twice; use repetitions to measure a cell again.")
        if not cell.config.design.allow_identical:
            flags = sorted(set(cell.config.infer_os.switched_on) ^ set(other.config.infer_os.switched_on))
            words = [*flags, *(f"{key}={as_text(theirs.get(key))} against {as_text(ours.get(key))}" for key in differ)]
            raise ConfigError(
                f"{cell.name} and {other.name} run the same server: on this machine {' and '.join(words)} "
                "changes none of its settings, so there is nothing to compare. "
                "design.allow_identical=true runs it anyway (an A/A sweep).")
