"""The plan of a sweep: from overrides to checked cells and the order of their trials. Starts no server, knows no store.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline import language
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.language import Sentence, _, worded
from pipeline.outcome import WARM_UP_BLOCK
from pipeline.progress import Listener
from pipeline.sweep.cells import Cell, Skipped, check_cells, fetch_models, honoured_flags, refuse_other_work
from pipeline.sweep.composed import combinations, compose_cells, typed
from pipeline.sweep.conversation import check_repetitions, is_typed
from pipeline.sweep.design import load_design
from pipeline.sweep.model_words import told_apart
from pipeline.text import masked

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep measures, in which order."""

    cells: Sequence[Cell]
    skipped: Sequence[Skipped]
    order: Sequence[Sequence[int]]
    """Cell indices, block by block."""
    warm_ups: Sequence[int]
    """Cells that run before the first block, and do not count."""
    seed: int
    """Of the order."""
    warning: str
    """What the design warns of."""
    is_typed: bool
    """Does a user type the prompts?"""

    @property
    def first(self) -> Config:
        """The first cell's config: what belongs to the sweep is the same in all of them."""
        return self.cells[0].config

    @property
    def blocks(self) -> Sequence[tuple[int, Sequence[int]]]:
        """Every block's number and cells; the warm-ups are one, if there are any."""
        return [*([(WARM_UP_BLOCK, self.warm_ups)] if self.warm_ups else []), *enumerate(self.order, start=1)]

    @property
    def trials(self) -> Sequence[int]:
        """The cell of every trial, in the order they run: trial N is the N-th."""
        return [*self.warm_ups, *(index for block in self.order for index in block)]

    @property
    def names(self) -> list[str]:
        """The cell's name of every trial, in the order they run."""
        return [self.cells[index].name for index in self.trials]

    def ahead(self, done: Collection[int]) -> list[int]:
        """The cells of the trials that are not done: `done` are their orders."""
        return [index for order, index in enumerate(self.trials, start=1) if order not in done]

    def document(self, arguments: Sequence[str]) -> dict[str, Any]:
        """plan.json. `arguments` are Hydra's words."""
        first = self.first
        return {
            "cells": [{"cell": cell.name, "overrides": list(map(masked, cell.overrides)),
                       "settings": dict(cell.plan.settings),
                       "knobs": {name: list(says) for name, says in cell.plan.knobs.items()}}
                      for cell in self.cells],
            "skipped": [{"cell": cell.name, "reason": cell.reason, "reason_code": cell.reason.to_dict()}
                        for cell in self.skipped],
            "design": first.design.name, "shuffle_seed": self.seed, "repetitions": first.repetitions,
            "order": [self.cells[index].name for block in self.order for index in block],
            "warm_ups": [self.cells[index].name for index in self.warm_ups],
            "cwd": str(Path.cwd()), "arguments": [masked(word) for word in arguments],
        }


def plan_sweep(loader: ConfigLoader, master: DictConfig, params: Mapping[str, Any], arguments: Sequence[str],
               measured: Sequence[tuple[str, Sequence[str]]] | None, fetching: Listener | None) -> SweepPlan:
    """Compose and check every cell, and draw the order. Raises ConfigError.

    `measured`: cells that were measured before, (name, overrides), in place of those of the arguments. `fetching` is
    told of models on their way here; None: none is fetched, and nobody need be there to type."""
    gave_way: list[Sentence] = []
    if measured is None:
        overrides, gave_way = combinations(loader, params, arguments)
    else:
        overrides = [[*cell, *arguments] for _name, cell in measured]
    overrides, configs, does_not_apply = compose_cells(loader, master, overrides)
    if same_name := told_apart([config.model for config in configs]):
        overrides = [[*cell, f"model.name={json.dumps(same_name[str(config.model.path)], ensure_ascii=False)}"]
                     if config.model.path in same_name else cell
                     for cell, config in zip(overrides, configs, strict=True)]
        configs = [typed(loader.load_sweep_config(master, cell)) for cell in overrides]
    if len({config.lang for config in configs}) > 1:
        raise ConfigError(_("lang cannot be swept: it is the language of the output and changes nothing that is "
                            "measured."))
    language.speak(configs[0].lang or language.wished())
    if person := is_typed(configs):
        check_repetitions(arguments)
    design = load_design(configs[0].design.name)
    left_out: list[Skipped] = []
    if design.expand is not None and measured is None:
        for cell, config in zip(overrides, configs, strict=True):
            _refuse_switched(cell, config)
        flags, left_out = honoured_flags(configs[0])
        overrides = [[*cell, *more] for cell in overrides for more in design.expand(flags)]
        configs = [typed(loader.load_sweep_config(master, cell)) for cell in overrides]
    if measured is None:
        refuse_other_work(configs)
    cells, skipped = check_cells(configs, overrides)
    if fetching is not None:
        fetch_models(cells, fetching)
        cells, skipped = check_cells(configs, overrides)  # now that the file is here to be read
    if measured is not None:
        called = {tuple(cell): name for cell, (name, _) in zip(overrides, measured, strict=True)}
        cells = [replace(cell, name=called[tuple(cell.overrides)]) for cell in cells]
    first = cells[0].config
    seed = first.seed if first.design.shuffle_seed is None else first.design.shuffle_seed
    blocks = 1 if person else first.repetitions if first.stop.name == "repetitions" else first.stop.limit
    return SweepPlan(cells, [*skipped, *left_out], design.blocks(len(cells), blocks, seed),
                     warm_ups(cells, first.design.warmup), seed,
                     "; ".join(filter(None, [*map(worded, [*gave_way, *does_not_apply]), design.note,
                                             _one_repetition(cells)])), person)


def _refuse_switched(cell: Sequence[str], config: Config) -> None:
    """A design with cells of its own, one for each setting of the flags, would pass over a flag that was given."""
    given = [override for override in cell if override.lstrip("+").startswith("infer_os.")
             and override.lstrip("+").split("=")[0] != "infer_os.environment"]
    if config.infer_os.switched_on and not given:
        given = [override for override in cell if override.startswith("infer_os=")]
    if given:
        raise ConfigError(f"{', '.join(given)} cannot be combined with design={config.design.name}, which switches "
                          "each flag on and off itself. Leave it out, or choose design=blocked. Nothing was started.")


def _one_repetition(cells: Sequence[Cell]) -> str:
    """A warning, where arms are compared that will have no interval."""
    first = cells[0].config
    alone = first.repetitions == 1 and first.stop.name == "repetitions" and len(cells) > 1
    return _("one repetition: differences will have no interval") if alone and first.design.name != "factorial" else ""


def warm_ups(cells: Sequence[Cell], times: int) -> list[int]:
    """The first cell of every engine and model, `times` times: what it reads and starts is warm for the others."""
    first: dict[tuple[str, str], int] = {}
    for index, cell in enumerate(cells):
        first.setdefault((cell.config.engine.name, str(cell.plan.settings.get("model"))), index)
    return list(first.values()) * times
