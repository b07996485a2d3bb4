"""The names by which a user sets a knob on any engine: llama.cpp's, and each engine's own words for the same.

An engine says in a value of `Words` what a common name sets on it; what the words are worth is knobs.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.engine.base import Scalar

SWITCH = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
"""How a user writes true and false."""

NO_KNOBS = {"n_ctx": "num_ctx", "ctx_size": "num_ctx", "ctx": "num_ctx", "c": "num_ctx", "num_ctx": "num_ctx",
            "context_length": "num_ctx", "num_predict": "max_tokens", "n_predict": "max_tokens", "n": "max_tokens",
            "max_tokens": "max_tokens", "seed": "seed", "model": "model", "m": "model"}
"""What engines call a setting that stands at the top of the config: it is asked of every engine alike."""


@dataclass(frozen=True)
class Common:
    """What one common name sets on an engine."""

    settings: Sequence[str]
    """The engine's own settings, all with the same value."""
    values: Mapping[str, Scalar] | None = None
    """Common word → the engine's own value, where these differ."""


@dataclass(frozen=True)
class Decided:
    """A setting that another one leaves no choice, set with it."""

    by: str
    """The setting that the user chose."""
    name: str
    value: Scalar
    why: str


def nothing_decided(settings: Mapping[str, Scalar], chosen: Collection[str]) -> Iterable[Decided]:
    """No setting of this engine decides another."""
    return ()


@dataclass(frozen=True)
class Words:
    """An engine's side of the vocabulary."""

    common: Mapping[str, Common] = field(default_factory=dict)
    """Common names that are not one setting of the same name."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """The engine's own words (settings, variables, flags) → the common name."""
    nothing: Mapping[str, str] = field(default_factory=dict)
    """Common name → why this engine has nothing behind it."""
    decide: Callable[[Mapping[str, Scalar], Collection[str]], Iterable[Decided]] = nothing_decided
    """What the chosen settings decide of the others. Raises ConfigError: two of them contradict each other."""

    def translated(self, name: str, value: Any) -> tuple[str, Any] | None:
        """A knob in the engine's own words, in common ones: "np", "OLLAMA_NUM_PARALLEL" → "n_parallel", and
        use_mmap=true → load_mode=mmap. None: no word of this engine's own."""
        own = plain(name)
        common = self.aliases.get(own)
        if common is None:
            return None
        values = self.common[common].values if common in self.common else None
        if values is not None and value is not None:
            said = SWITCH.get(str(value).lower(), value)
            value = next((word for word, behind in values.items() if behind == said), value)
        return common, value

    def names(self, settings: Iterable[str]) -> list[str]:
        """What a user may call the knobs of an engine with these settings, sorted."""
        return sorted({*self.common, *(name for name in settings if self.aliases.get(name, name) == name)})


def plain(name: str) -> str:
    """A name without what only its spelling has: "--cache-type-k" and "LLAMA_ARG_CACHE_TYPE_K" are cache_type_k."""
    return name.lower().lstrip("-").replace("-", "_").removeprefix("llama_arg_")


def suggestion(name: str, known: Sequence[str]) -> str:
    """" Did you mean n_batch?", if one of these is close to a name that is not known; else ""."""
    if name in NO_KNOBS:
        return f" {name} is a setting of its own: {NO_KNOBS[name]}=…"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
