"""The contract of a meter: what a source of memory figures must offer, on one screen.

A meter is one file beside this one that has a `find` and a class `Meter`, and a `SECTION` that says what its figures
mean (metrics.py). A machine that lacks it gets the reason, never a zero. What is read many times a second is the
sampler's, not a meter's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.plugins import METERS, Broken

Reading = Mapping[str, float]
"""Quantity → value; the name ends in its unit: _bytes, _pct, _us, _mhz, _count. What could not be read is left out."""


@dataclass(frozen=True)
class Target:
    """What is to be measured: the processes of the tree, and the file with the weights."""

    pids: Collection[int] = ()
    """Empty: none is running yet, look at the machine alone."""
    model_path: Path | None = None


NOTHING = Target()


class Meter(ABC):
    """A source of figures, found on this machine."""

    name: ClassVar[str]
    """The `<meter>` of metric names."""
    source: ClassVar[str]
    """Where the figures come from, as text for the user."""
    checked: ClassVar[Literal["on hardware", "on recorded data"]]
    """What it was held against when it was written."""

    @abstractmethod
    def read(self, pids: Collection[int] = ()) -> Reading:
        """The figures now; `pids` is the tree as it is now. Raises MeterError if the source is gone."""

    def reset(self) -> None:
        """Begin a phase: peaks count from here where the source can do that."""


@dataclass(frozen=True)
class Available:
    """It is here. `note` is what a reader of its figures should know."""

    meter: Meter
    note: str = ""

    @property
    def name(self) -> str:
        """The meter's name."""
        return self.meter.name


@dataclass(frozen=True)
class Absent:
    """It is not here, and why."""

    name: str
    reason: str


Found = Available | Absent


def find_all(root: Path = Path("/"), target: Target = NOTHING, names: Collection[str] | None = None) -> list[Found]:
    """Every meter, or those of `names`, in the order of their names: each one here or absent with its reason."""
    modules = METERS.all() if names is None else {name: METERS.find(name) for name in sorted(names)}
    return [Absent(name, module.reason) if isinstance(module, Broken) else module.find(root, target)
            for name, module in modules.items() if module is not None]
