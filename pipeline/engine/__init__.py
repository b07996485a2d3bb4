"""The engines: `NAME.py` or `NAME/` beside the contract in base.py, or `FOLDER/FILE.py` for FOLDER_FILE, with a class
`Engine` in it; or a module of another package (plugins.py). `load_engine` finds the one that a cell names."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.engine.base import EngineBase
from pipeline.plugins import ENGINES, Broken


def load_engine(config: Config) -> EngineBase:
    """The engine of a cell: class `Engine` of the module that `engine.name` names.

    Raises ConfigError: no such engine, or one that cannot be loaded."""
    engine: EngineBase = ENGINES.load(config.engine.name, "engine.name").Engine(config)
    return engine


@dataclass(frozen=True)
class Here:
    """An engine: can it run on this machine, and its version or what is missing."""

    name: str
    here: bool
    text: str


def engines() -> list[Here]:
    """Every engine, in the order of their names, one that cannot be loaded with the reason; starts nothing."""
    return [Here(name, False, found.reason) if isinstance(found, Broken) else Here(name, *found.Engine.here())
            for name, found in ENGINES.all().items()]
