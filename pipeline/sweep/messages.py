"""Hydra's and OmegaConf's complaints, said so that a person can act on them. No config is composed elsewhere."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass

from pipeline.config import GROUPS, Config, options
from pipeline.errors import ConfigError, SlackwaterError
from pipeline.language import N_, _
from pipeline.sweep.hydra_app import compose

_TITLES = {"infer_os": "infer_os", "tracking": "Tracking", "clear": N_("Ways to clear"), "settle": N_("Settle rules"),
           "mode": N_("Modes"), "model": N_("Models"), "prompt": N_("Prompts"), "design": N_("Designs")}
"""What the options of a group are called."""


def settings(schema: type = Config, prefix: str = "") -> Iterator[str]:
    """Every key that exists: "mode", "mode.turns", "repetitions", …"""
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        if key == "place":
            continue
        yield key
        group = GROUPS.get(key)
        if group is not None and is_dataclass(group):
            yield from settings(group, f"{key}.")


def is_setting(key: str) -> bool:
    """Does the key exist, or stand below a setting that is open, such as engine.knobs?"""
    parents = [".".join(key.split(".")[:length]) for length in range(1, key.count(".") + 1)]
    return key in set(settings()) or any(parent in _open_settings() for parent in parents)


def is_open(key: str) -> bool:
    """Does the key stand below a setting that takes any key, such as engine.knobs?"""
    return key not in set(settings()) and is_setting(key)


def _open_settings() -> set[str]:
    typed = [("", Config), *((f"{group}.", schema) for group, schema in GROUPS.items())]
    return {f"{prefix}{field.name}" for prefix, schema in typed for field in fields(schema)
            if str(field.type).startswith("dict")}


def explain(error: Exception) -> SlackwaterError:
    """The same complaint in one clear sentence; an error of ours passes unchanged."""
    if isinstance(error, SlackwaterError):
        return error
    for each in _chain(error):
        if type(each).__name__ == "OverrideParseException":
            return ConfigError(_not_parsed(getattr(each, "override", "an override")))
    text = "\n".join(dict.fromkeys(str(each).strip() for each in _chain(error)))
    for pattern, say in _KNOWN:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            return ConfigError(say(**match.groupdict()))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ConfigError("the config cannot be composed: " + " ".join(lines[:3]))


def unknown_setting(key: str) -> str:
    """What to say of a key that does not exist."""
    from pipeline.engine.all_knobs import common_name, is_knob

    if is_knob(key):
        return f"{key} is not a setting. It is a knob of the server: knob.{common_name(key)[0]}=…"
    close = difflib.get_close_matches(key, list(settings()), n=1, cutoff=0.6)
    if not close:
        return _("{key} is not a setting. `slackwater run --cfg {kind}` prints all there are.").format(
            key=key, kind="hydra" if key.split(".")[0] == "hydra" else "job")
    if now := _default(close[0]):
        return _("{key} is not a setting. Did you mean {close}? (now {now})").format(key=key, close=close[0], now=now)
    return _("{key} is not a setting. Did you mean {close}?").format(key=key, close=close[0])


def _default(key: str) -> str:
    """The value a key has if nobody sets it; "" if that cannot be said in a word."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(compose([]), key)
    return str(value) if isinstance(value, str | int | float | bool) else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _unknown_option(group: str, option: str) -> str:
    if not options(group):
        return f"{group}={option} is not known here. If another package provides it, install that package first."
    return _("{key} is not known. {kinds}: {known}.").format(
        key=f"{group}={option}", kinds=_(_TITLES.get(group, f"{group.capitalize()}s")),
        known=", ".join(sorted(options(group))))


def _wrong_value(value: str, key: str, wanted: str) -> str:
    words = {"Integer": N_("a whole number"), "Float": N_("a number"), "bool": N_("true or false"),
             "Boolean": N_("true or false")}
    return _("{key} is not allowed: expected {expected}.").format(
        key=f"{key}={value}", expected=_(words.get(wanted, wanted)))


def must_be_given(keys: Sequence[str]) -> str:
    """What to say of settings that a config file marks with ???, or of a group without a choice."""
    hints = {"model.path": "model.path=FILE.gguf", "tracking.uri": "tracking.uri=http://HOST:PORT"}
    first = keys[0]
    known = f" Known: {', '.join(sorted(options(first)))}." if first in GROUPS else ""
    more = f" So must {', '.join(keys[1:])}." if keys[1:] else ""
    return _("{key} must be given: {hint}").format(
        key=first, hint=f"{hints.get(first, f'{first}=…')}.{known}{more}")


def _missing(key: str) -> str:
    return must_be_given([key])


def _not_parsed(override: str) -> str:
    return (f"{override} cannot be read as an override. Expected key=value; a value with commas, brackets, = or "
            "quotes in it needs quotes of its own within those of the shell: 'prompt.text=\"Why, then?\"'.")


_KEY = r"\s+full_key: (?P<key>[\w.]+)"

_KNOWN: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"Error merging override (?P<key>[\w.]+)=(?P<value>\S+).*is not a ListConfig, list or tuple",
     lambda key, value: f"{key}={value} is not allowed: expected a list, {key}=[{value}]."),
    (r"Could not find '(?P<group>[\w/]+)/(?P<option>[^'/]+)'", _unknown_option),
    (r"Could not override '(?P<key>[^']+)'", unknown_setting),
    (r"Could not append to config.*?'(?P<key>[\w.]+)' is already",
     lambda key: f"{key} exists already: leave out the +."),
    (r"Key '\w+' not in '\w+'" + _KEY, unknown_setting),
    (r"Key '(?P<key>[\w.]+)' is not in struct", unknown_setting),
    (r"Value '(?P<value>[^']*)' of type '\w+' could not be converted to (?P<wanted>\w+)" + _KEY, _wrong_value),
    (r"Value '(?P<value>[^']*)' is not a valid (?P<wanted>\w+).*?" + _KEY, _wrong_value),
    (r"Value '(?P<value>[^']*)' of type '\w+' is not compatible with type hint '(?P<wanted>[^']+)'" + _KEY,
     _wrong_value),
    (r"Missing mandatory value: (?P<key>[\w.]+)", _missing),
    (r"Structured config of type `\w+` has missing mandatory value: (?P<key>\w+)", _missing),
    (r"(?:Ambiguous value for argument|Sweep parameters) '(?P<word>[^']+)'",
     lambda word: f"{word} is a sweep, and this prints one cell: give the key one value."),
    (r"You must specify '(?P<key>[^']+)'", _missing),
    (r"Interpolation key '(?P<name>[^']+)' not found\s+full_key: (?P<key>[\w.]+)",
     lambda name, key: f"{key}: ${{{name}}} refers to a setting, and there is no {name}. Write \\${{ for the two "
                       "characters."),
    (r"Error merging override (?P<key>[\w.]+)=.*(?:no viable alternative|mismatched input|token recognition)",
     lambda key: f"{key}: ${{ begins a reference to a setting, ${{KEY}}, and this one has no end. Write \\${{ for the "
                 "two characters."),
    (r"(?:field '[\w.]+' is not Optional|Incompatible value 'None' for field of type '\w+')" + _KEY,
     lambda key: f"{key} has no value: give it one, or leave it out."),
    (r"Cannot (?:assign|convert) \S+ to Dict\[\S+ \S+" + _KEY,
     lambda key: f"{key} takes settings below it, such as {key}.NAME=VALUE, and no value of its own."),
    (r"Multiple values for (?P<group>\w+)",
     lambda group: f"{group} was given twice, or with a +: write {group}=NAME once."),
)
