"""One file per engine beside the contract in base.py. `load_engine` finds the one that a cell names."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.engine.base import EngineBase
from pipeline.errors import ConfigError


def load_engine(config: Config) -> EngineBase:
    """The engine of a cell: class `Engine` of pipeline/engine/<engine.name>.py.

    Raises ConfigError: no such engine, or one whose file cannot be loaded."""
    name = config.engine.name
    engine = _engine_of(name) if name in _modules() else None
    if isinstance(engine, NotLoaded):
        raise ConfigError(f"engine.name={name}: {engine.reason} Nothing was started.")
    if engine is None:
        found = ", ".join(module for module in _modules() if isinstance(_engine_of(module), type))
        raise ConfigError(f"engine.name={name} is no engine: expected one of {found}. Nothing was started.")
    return engine(config)


@dataclass(frozen=True)
class Here:
    """An engine of this package: can it run on this machine, and its version or what is missing."""

    name: str
    here: bool
    text: str


def engines() -> list[Here]:
    """Every engine, in the order of their names, one that cannot be loaded with the reason; starts nothing."""
    found = [(name, engine) for name in _modules() if (engine := _engine_of(name)) is not None]
    return [Here(name, False, engine.reason) if isinstance(engine, NotLoaded) else Here(name, *engine.here())
            for name, engine in found]


@dataclass(frozen=True)
class NotLoaded:
    """A file that may be an engine, and why it cannot be loaded."""

    reason: str


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def _engine_of(module: str) -> type[EngineBase] | NotLoaded | None:
    try:
        found = getattr(importlib.import_module(f"{__name__}.{module}"), "Engine", None)
    except (ImportError, SyntaxError) as error:
        return NotLoaded(f"pipeline/engine/{module}.py cannot be loaded: {error}. Install what it needs, or mend it.")
    # a module may well import another class of that name
    return found if isinstance(found, type) and issubclass(found, EngineBase) else None
