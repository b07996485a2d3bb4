"""From the flags of infer_os to the settings of a server: flag → knob → value. Pure functions, shared by engines.

Which knobs an engine has, it says itself (a table of `Knob`); which knob a flag turns stands in conf/engine/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.config import Engine, InferOs
from pipeline.engine.base import Proof, Scalar
from pipeline.errors import ConfigError

FLAGS = tuple(f.name for f in fields(InferOs) if f.type == "bool")

NOTHING_STARTED = "Nothing was started."


@dataclass(frozen=True)
class Knob:
    """One server setting that a user may choose in conf/engine/: its type and its range."""

    kind: type[bool | int | str]
    words: Sequence[str] = ()
    """kind=str: the values it takes."""
    least: int = 0
    """kind=int: the smallest value it takes."""
    cores: bool = False
    """Also takes `half` and `all_but_one`, of the cores this process may use, at least 1."""

    @property
    def expected(self) -> str:
        """What it takes, for a person."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return "one of " + ", ".join(self.words)
        return f"a whole number from {self.least}" + (", half or all_but_one" if self.cores else "")

    def resolve(self, value: Any, cores: int) -> Scalar | None:
        """The value as the server gets it; None: not a value of this knob."""
        if self.cores and value == "half":
            return max(1, cores // 2)
        if self.cores and value == "all_but_one":
            return max(1, cores - 1)
        if type(value) is not self.kind:
            return None
        if isinstance(value, str):
            return value if value in self.words else None
        if isinstance(value, bool):
            return value
        return int(value) if value >= self.least else None


@dataclass(frozen=True)
class Resolved:
    """Settings of one cell, and what a person should know about them."""

    settings: Mapping[str, Scalar]
    notes: Sequence[str]


def resolve(engine: Engine, infer_os: InferOs, knobs: Mapping[str, Knob], cores: int) -> Resolved:
    """Settings for a cell: `engine.knobs`, then for each flag its `on` or `off` knobs. Every knob is set exactly once.

    Raises ConfigError, naming flag or knob, for a flag that the engine refuses, an unknown knob, a value of the
    wrong type, a knob set in two places or in none, a flag whose arms do not set the same knobs."""
    _check_flags(engine, infer_os)
    owner: dict[str, str] = {}
    settings = _values(engine, "knobs", engine.knobs, knobs, cores, owner)
    notes = []
    for flag, arms in engine.flags.items():
        if arms.refused is not None:
            continue
        if set(arms.on) != set(arms.off):
            lacking = ", ".join(sorted(set(arms.on) ^ set(arms.off)))
            raise ConfigError(f"engine.flags.{flag}: {lacking} is set in one arm only. Unset is not off: give it in "
                              f"both, on and off. {NOTHING_STARTED}")
        on = _values(engine, f"flags.{flag}.on", arms.on, knobs, cores, owner)
        off = _values(engine, f"flags.{flag}.off", arms.off, knobs, cores, {})
        is_on = getattr(infer_os, flag)
        settings |= on if is_on else off
        if is_on and on == off:
            values = ", ".join(f"{name}={value}" for name, value in on.items())
            notes.append(f"infer_os.{flag} changes nothing here: on {cores} usable cores on and off are both {values}")
    missing = sorted(set(knobs) - set(settings))
    if missing:
        raise ConfigError(f"engine.knobs lacks {', '.join(missing)}: engine {engine.name} sets every knob explicitly, "
                          f"so that no server default can differ between cells. {NOTHING_STARTED}")
    return Resolved({name: settings[name] for name in knobs}, notes)


def refuse(flag: str, engine: str, reason: str) -> ConfigError:
    """The error for a flag that this engine or machine cannot honour."""
    return ConfigError(f"infer_os.{flag}=true cannot be honoured by engine {engine}: {reason.rstrip('. ')}. "
                       f"Leave it off, or choose another engine. {NOTHING_STARTED}")


def prove(knob: str, asked: Scalar, arrived: str | None, effective: str | None, source: str = "") -> Proof:
    """A Proof from its three steps: any step that says something else contradicts, an equal `effective` confirms."""
    wanted = as_text(asked)
    seen = [step for step in (arrived, effective) if step is not None]
    if any(step != wanted for step in seen):
        return Proof(knob, asked, arrived, effective, "contradicted", source)
    return Proof(knob, asked, arrived, effective, "not observable" if effective is None else "confirmed", source)


def as_text(value: Scalar) -> str:
    """A setting as it stands on a command line: true, 2048, q8_0."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_flags(engine: Engine, infer_os: InferOs) -> None:
    if infer_os.environment is not None:
        raise ConfigError("infer_os.environment is for a server that reads variables of its own: use engine=ollama, "
                          f"not engine={engine.name}. {NOTHING_STARTED}")
    unknown = sorted(set(engine.flags) - set(FLAGS))
    if unknown:
        raise ConfigError(f"engine.flags.{unknown[0]} is no flag of infer_os. Flags: {', '.join(FLAGS)}. "
                          f"{NOTHING_STARTED}")
    for flag in infer_os.switched_on:
        if flag not in engine.flags:
            raise refuse(flag, engine.name, f"conf/engine/{engine.name}.yaml has no knobs for it")
        reason = engine.flags[flag].refused
        if reason is not None:
            raise refuse(flag, engine.name, reason)


def _values(
    engine: Engine, place: str, given: Mapping[str, Any], knobs: Mapping[str, Knob], cores: int, owner: dict[str, str],
) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    for name, value in given.items():
        key = f"engine.{place}.{name}"
        if name not in knobs:
            raise ConfigError(f"{key}={value}: engine {engine.name} has no knob {name}. Knobs: "
                              f"{', '.join(sorted(knobs))}. {NOTHING_STARTED}")
        if name in owner:
            raise ConfigError(f"{key} is also set by {owner[name]}: one knob, one place, or a flag would undo another. "
                              f"Remove one of them. {NOTHING_STARTED}")
        owner[name] = key
        resolved = knobs[name].resolve(value, cores)
        if resolved is None:
            raise ConfigError(f"{key}={value!r} is not allowed: expected {knobs[name].expected}. {NOTHING_STARTED}")
        values[name] = resolved
    return values
