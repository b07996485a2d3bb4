"""From flags and knobs to the settings of a server: flag → knob → value. Pure functions, shared by engines.

Which knobs an engine has, it says itself (a table of `Knob`); which knob a flag turns stands in conf/engine/; what a
user sets by name (`knob.NAME`, `engine.knobs.NAME`) wins over both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.config import Engine, InferOs, one_of
from pipeline.engine.base import Proof, Scalar
from pipeline.engine.knob_aliases import SWITCH, Common, Words, plain, suggestion
from pipeline.errors import ConfigError
from pipeline.language import N_, sentence
from pipeline.record.reason import Reason

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
    most: int = 2**31 - 1
    """kind=int: the largest; llama.cpp's and Go's own type ends here."""
    cores: bool = False
    """Also takes `half` and `all_but_one`, of the cores this process may use, at least 1."""

    @property
    def expected(self) -> str:
        """What it takes, as text for the user."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return one_of(self.words)
        to = f" to {self.most}" if self.most < 2**31 - 1 else ""
        return f"a whole number from {self.least}{to}" + (", half or all_but_one" if self.cores else "")

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
        return int(value) if self.least <= value <= self.most else None

    def read(self, value: Any, cores: int) -> Scalar | None:
        """The same of what the user typed: words in any case, a switch as on and off too."""
        if isinstance(value, str):
            value = value.lower()
        if self.kind is bool and str(value).lower() in SWITCH:
            return SWITCH[str(value).lower()]
        return self.resolve(value, cores)


@dataclass(frozen=True)
class Resolved:
    """Settings of one cell, and what the user should know about them."""

    settings: Mapping[str, Scalar]
    notes: Sequence[str]
    knobs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Each knob that was set by name → lines: what it sets, over which flag, what it decides besides (Plan.knobs)."""
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Setting → the key that set it by name, as the user would write it: "knob.cache_type"."""


def resolve(engine: Engine, infer_os: InferOs, knobs: Mapping[str, Knob], cores: int,
            asked: Mapping[str, Any] | None = None, words: Words | None = None) -> Resolved:
    """Settings for a cell: `engine.knobs`, then for each flag its `on` or `off` knobs, then what was set by name:
    `engine.knobs.NAME` of a knob that a flag owns, and `asked`, the config's `knob`. Every setting has a value.

    Raises ConfigError, naming flag or knob, for a flag that the engine refuses, an unknown knob, a value that it does
    not take, a knob that no place sets, a flag whose arms do not set the same knobs, two flags that set the same."""
    words = words or Words()
    _check_flags(engine, infer_os)
    owner: dict[str, str] = {}
    by_flag = {name: flag for flag, arms in engine.flags.items() if arms.refused is None for name in arms.on}
    unowned = {name: value for name, value in engine.knobs.items() if name in knobs and name not in by_flag}
    settings = _values(engine, "knobs", unowned, knobs, cores, owner)
    idle = {}
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
            idle[flag] = Reason("flag_idle", {"flag": flag, "cores": cores, "values": values})
    by_name = [("engine.knobs", name, value) for name, value in engine.knobs.items() if name not in unowned]
    by_name += [("knob", name, value) for name, value in (asked or {}).items()]
    lines, chosen = _set_by_name(engine.name, by_name, knobs, words, cores, settings, by_flag)
    missing = sorted(set(knobs) - set(settings))
    if missing:
        raise ConfigError(f"engine.knobs lacks {', '.join(missing)}: engine {engine.name} sets every knob explicitly, "
                          f"so that no server default can differ between cells. {NOTHING_STARTED}")
    notes = [note for flag, note in idle.items() if not chosen.keys() & engine.flags[flag].on.keys()]
    return Resolved({name: settings[name] for name in knobs}, notes, lines, chosen)


def _set_by_name(engine: str, given: Sequence[tuple[str, str, Any]], knobs: Mapping[str, Knob], words: Words,
                 cores: int, settings: dict[str, Scalar], by_flag: Mapping[str, str],
                 ) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Put what was set by name over `settings`: (place, name, value) each, the later wins, a half over the whole.

    Returns what Resolved has as `knobs` and `chosen`."""
    lines, chosen = dict[str, list[str]](), dict[str, str]()
    found = []
    for place, written, raw in given:
        name, value = words.translated(written, raw) or (plain(written), raw)
        behind = _behind(engine, f"{place}.{written}", name, value, knobs, words)
        own = _own_value(f"{place}.{written}", value, behind, knobs, cores)
        found.append((place, name, value, behind.settings, own))
    for place, name, value, names, own in sorted(found, key=lambda one: -len(one[3])):
        flags = dict.fromkeys(by_flag[setting] for setting in names if setting in by_flag)
        before = {setting: settings[setting] for setting in names if setting in by_flag}
        says = f"{name}={as_text(value)}" + (f" ({', '.join(names)})" if tuple(names) != (name,) else "")
        if flags:
            was = N_("the same") if set(before.values()) == {own} else ", ".join(
                dict.fromkeys(as_text(setting) for setting in before.values()))
            says = sentence(N_("{knob} overrides {flags}, which would set {value}"), knob=says,
                            flags=", ".join(f"infer_os.{flag}" for flag in flags), value=was)
        lines[name] = [says] if flags or tuple(names) != (name,) else []
        for setting in names:
            settings[setting] = own
            chosen[setting] = f"{place}.{name}"
    if chosen and all(name in settings for name in knobs):
        for decided in words.decide(dict(settings), chosen):
            name = next(one for place, one, _value, names, _own in reversed(found) if decided.by in names)
            lines[name].append(sentence(N_("{knob} sets {setting} too: {why}"), knob=name,
                                        setting=f"{decided.name}={as_text(decided.value)}", why=decided.why))
            settings[decided.name] = decided.value
    return lines, chosen


def _behind(engine: str, key: str, name: str, value: Any, knobs: Mapping[str, Knob], words: Words) -> Common:
    """The settings behind a common name. Raises ConfigError: the engine has none."""
    if name in words.nothing:
        raise ConfigError(f"{key}={value}: engine {engine} has nothing behind {name}: {words.nothing[name]}. "
                          f"{NOTHING_STARTED}")
    if name in words.common:
        return words.common[name]
    if name in knobs:
        return Common((name,))
    known = words.names(knobs)
    raise ConfigError(f"{key}={value}: engine {engine} has no knob {name}. Knobs: {', '.join(known)}."
                      f"{suggestion(name, known)} {NOTHING_STARTED}")


def _own_value(key: str, value: Any, behind: Common, knobs: Mapping[str, Knob], cores: int) -> Scalar:
    """The engine's own value. Raises ConfigError that lists what is allowed."""
    knob = knobs[behind.settings[0]]
    if behind.values is not None:
        own, expected = behind.values.get(str(value).lower()), one_of(behind.values)
    else:
        own, expected = knob.read(value, cores), knob.expected
    if own is None:
        listed = isinstance(value, list | tuple) or (isinstance(value, str) and "," in value)
        raise ConfigError(Reason("list_not_allowed" if listed else "value_not_allowed", {
            "key": f"{key}={value!r}", "expected": expected}))
    return own


def refuse(what: str, engine: str, reason: str) -> ConfigError:
    """The error for a flag or knob that this engine or machine cannot honour."""
    why = reason if isinstance(reason, Reason) else reason.rstrip(". ")
    return ConfigError(Reason("not_honoured", {"what": what, "engine": engine, "why": why}))


def prove(knob: str, asked: Scalar, arrived: str | None, effective: str | None, source: str = "") -> Proof:
    """A Proof from its three steps: any step that says something else contradicts, an equal `effective` confirms."""
    wanted = as_text(asked)
    seen = [step for step in (arrived, effective) if step is not None]
    if any(step != wanted for step in seen):
        return Proof(knob, asked, arrived, effective, "contradicted", source)
    return Proof(knob, asked, arrived, effective, "not observable" if effective is None else "confirmed", source)


def as_text(value: object) -> str:
    """A setting as it stands on a command line: true, 2048, q8_0; "not set" for none."""
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_flags(engine: Engine, infer_os: InferOs) -> None:
    if infer_os.environment is not None:
        raise ConfigError("infer_os.environment is for a server that reads variables of its own: use engine=ollama, "
                          f"not engine={engine.name}. {NOTHING_STARTED}")
    if infer_os.as_started:
        raise ConfigError("infer_os=as_started takes a server as it was started: it is for engine=ollama_attached, not "
                          f"engine={engine.name}, which starts one. {NOTHING_STARTED}")
    unknown = sorted(set(engine.flags) - set(FLAGS))
    if unknown:
        raise ConfigError(f"engine.flags.{unknown[0]} is not a flag of infer_os. Flags: {', '.join(FLAGS)}. "
                          f"{NOTHING_STARTED}")
    for flag in infer_os.switched_on:
        if flag not in engine.flags:
            raise refuse(f"infer_os.{flag}=true", engine.name,
                         f"conf/engine/{engine.name}.yaml has no knobs for it")
        reason = engine.flags[flag].refused
        if reason is not None:
            raise refuse(f"infer_os.{flag}=true", engine.name, reason)


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
            raise ConfigError(f"{key} is also set by {owner[name]}: one knob, one flag, or a flag would undo another. "
                              f"Remove one of them. {NOTHING_STARTED}")
        owner[name] = key
        resolved = knobs[name].resolve(value, cores)
        if resolved is None:
            raise ConfigError(Reason("value_not_allowed", {
                "key": f"{key}={value!r}", "expected": knobs[name].expected}))
        values[name] = resolved
    return values
