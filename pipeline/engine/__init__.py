"""The engines: `NAME.py` or `NAME/` beside the contract in base.py, or `FOLDER/FILE.py` for FOLDER_FILE, with a class
`Engine` in it. `load_engine` finds the one that a cell names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.engine.base import EngineBase
from pipeline.errors import ConfigError


def load_engine(config: Config) -> EngineBase:
    """The engine of a cell, by engine.name.

    Raises ConfigError: no such engine, or one whose file cannot be loaded."""
    name, modules = config.engine.name, _modules()
    engine = _engine_of(modules[name]) if name in modules else None
    if isinstance(engine, NotLoaded):
        raise ConfigError(f"engine.name={name}: {engine.reason} Nothing was started.")
    if engine is None:
        found = ", ".join(other for other, module in modules.items() if isinstance(_engine_of(module), type))
        raise ConfigError(f"engine.name={name} is not a known engine: expected one of {found}. Nothing was started.")
    return engine(config)


@dataclass(frozen=True)
class Here:
    """An engine of this package: can it run on this machine, and its version or what is missing."""

    name: str
    here: bool
    text: str


def engines() -> list[Here]:
    """Every engine, in the order of their names, one that cannot be loaded with the reason; starts nothing."""
    found = [(name, engine) for name, module in _modules().items() if (engine := _engine_of(module)) is not None]
    return [Here(name, False, engine.reason) if isinstance(engine, NotLoaded) else Here(name, *engine.here())
            for name, engine in found]


@dataclass(frozen=True)
class NotLoaded:
    """A module that may be an engine, and why it cannot be loaded."""

    reason: str


def _modules() -> Mapping[str, str]:
    """Name that an engine would have → the module it would be in."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        found[module.name] = f"{__name__}.{module.name}"
        inside = pkgutil.iter_modules([f"{path}/{module.name}" for path in __path__]) if module.ispkg else ()
        found |= {f"{module.name}_{inner.name}": f"{__name__}.{module.name}.{inner.name}" for inner in inside}
    return dict(sorted(found.items()))


def _engine_of(module: str) -> type[EngineBase] | NotLoaded | None:
    try:
        found = getattr(importlib.import_module(module), "Engine", None)
    except (ImportError, SyntaxError) as error:
        return NotLoaded(f"{module} cannot be loaded: {error}. Install what it needs, or mend it.")
    # a module may well import another class of that name
    return found if isinstance(found, type) and issubclass(found, EngineBase) else None
