"""Knobs under their common names, whichever engine's names were used. Imports every engine's table, starts nothing.

What the words are stands in each engine's table (`Words`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import Config, one_of
from pipeline.engine import llamacpp_settings
from pipeline.engine.knob_aliases import Common, Words, plain
from pipeline.engine.knobs import Knob
from pipeline.engine.ollama import settings as ollama_settings

TABLES: Mapping[str, tuple[Mapping[str, Knob], Words]] = {
    "llamacpp": (llamacpp_settings.KNOBS, llamacpp_settings.WORDS),
    "ollama": (ollama_settings.KNOBS, ollama_settings.WORDS),
    "ollama_attached": (ollama_settings.KNOBS, ollama_settings.WORDS),
}
"""The engines that ship: their settings and their words."""


def common_name(name: str, value: Any = None) -> tuple[str, Any]:
    """A knob as the user wrote it, in common words; an unknown name stays, without its dashes."""
    for _knobs, words in TABLES.values():
        if (found := words.translated(name, value)) is not None:
            return found
    return plain(name), value


def is_knob(name: str) -> bool:
    """Is this, in whichever engine's words, a knob of one of them?"""
    common = common_name(name)[0]
    return "." not in name and any(common in words.names(knobs) for knobs, words in TABLES.values())


def of_engine(engine: str) -> Mapping[str, tuple[str, Sequence[str], Sequence[str]]]:
    """Common name → (what it takes, as text for the user; its words; the engine's own settings behind it), sorted."""
    knobs, words = TABLES.get(engine, ({}, Words()))
    found = {}
    for name in words.names(knobs):
        behind = words.common.get(name, Common((name,)))
        knob = knobs[behind.settings[0]]
        choices = list(behind.values or knob.words)
        if knob.kind is bool and behind.values is None:
            choices = ["true", "false"]
        expected = one_of(behind.values) if behind.values else knob.expected
        found[name] = (expected, choices + ["half", "all_but_one"] * knob.cores, behind.settings)
    return found


def with_common_names(config: Config) -> Config:
    """The config with its knobs in common words; of two words for one knob the later one holds. `engine.knobs` keeps
    the names that are an engine's own settings."""
    config.knob = dict(common_name(str(name), value) for name, value in config.knob.items())
    config.engine.knobs = dict((name, value) if _is_setting(name) else common_name(str(name), value)
                               for name, value in config.engine.knobs.items())
    return config


def _is_setting(name: str) -> bool:
    return any(name in knobs for knobs, _words in TABLES.values())


def in_common_words(override: str) -> str:
    """Hydra's override `knob.NAME=…` with the common name, where only the name is another; all else as it is."""
    key, equals, value = override.partition("=")
    sign = key[:len(key) - len(key.lstrip("+~"))]
    place, _dot, written = key[len(sign):].rpartition(".")
    if place not in ("knob", "engine.knobs") or (place == "engine.knobs" and _is_setting(written)):
        return override
    name, unchanged = common_name(written, _PROBE)
    return f"{sign}{place}.{name}{equals}{value}" if unchanged == _PROBE else override


_PROBE = "true"
"""A value that a word with other values than its common name would translate."""
