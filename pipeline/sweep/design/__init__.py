"""Designs: in which order the trials of a sweep run. One file each, with a function `blocks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.plugins import DESIGNS


class Blocks(Protocol):
    """Cell indices 0…cells-1, block by block: shape (repetitions, trials of that block). Pure, given the seed."""

    def __call__(self, cells: int, repetitions: int, seed: int) -> list[list[int]]: ...


class Expand(Protocol):
    """Overrides of the cells that a design makes out of flags; a design that makes none has no `expand`."""

    def __call__(self, flags: Sequence[str]) -> list[list[str]]: ...


@dataclass(frozen=True)
class DesignRule:
    """What a design's file says."""

    blocks: Blocks
    expand: Expand | None
    note: str
    """A warning that goes with every sweep of this design; "" if there is none."""


def load_design(name: str) -> DesignRule:
    """The design that `design.name` names. Raises ConfigError for one that does not exist or cannot be loaded."""
    module = DESIGNS.load(name, "design.name")
    return DesignRule(module.blocks, getattr(module, "expand", None), getattr(module, "NOTE", ""))
