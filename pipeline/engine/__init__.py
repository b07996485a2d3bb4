"""One file per engine beside the contract in base.py. `load_engine` finds the one that a cell names."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.engine.base import EngineBase
from pipeline.errors import ConfigError


def load_engine(config: Config) -> EngineBase:
    """The engine of a cell: class `Engine` of pipeline/engine/<engine.name>.py. Raises ConfigError: no such engine."""
    name = config.engine.name
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    engine = _engine_of(name) if name in modules else None
    if engine is None:
        found = ", ".join(module for module in modules if _engine_of(module))
        raise ConfigError(f"engine.name={name} is no engine: expected one of {found}. Nothing was started.")
    return engine(config)


@dataclass(frozen=True)
class Here:
    """An engine of this package: can it run on this machine, and its version or what is missing."""

    name: str
    here: bool
    text: str


def engines() -> list[Here]:
    """Every engine, in the order of their names; starts nothing."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [(name, engine) for name in modules if (engine := _engine_of(name)) is not None]
    return [Here(name, *engine.here()) for name, engine in found]


def _engine_of(module: str) -> type[EngineBase] | None:
    found = getattr(importlib.import_module(f"{__name__}.{module}"), "Engine", None)
    # a module may well import another class of that name
    return found if isinstance(found, type) and issubclass(found, EngineBase) else None
