"""Flags and words of a command: what a verb takes, and what the user gave. Knows no verb and does nothing with them."""

# NamedTuple, not dataclass: every command imports this, and `dataclasses` alone takes as long as Python's start.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.errors import ConfigError
from pipeline.language import _


class Flag(NamedTuple):
    """One flag. Texts are English, marked with N_."""

    name: str
    purpose: str
    value: str = ""
    """Its value as the help writes it: "URI"; "" for a flag without a value."""
    expected: str = ""
    """What is expected there, said where it is missing."""

    @property
    def usage(self) -> str:
        """"--store URI"."""
        return f"{self.name} {self.value}".rstrip()


class Verb(NamedTuple):
    """One command. Texts are English, marked with N_."""

    name: str
    words: str
    """What it takes besides flags, as the help writes it: "[SWEEP]"."""
    purpose: str
    """One line for the list of commands."""
    act: str
    """"module:function" below pipeline.cli; takes a Given, returns the exit code."""
    flags: Sequence[Flag] = ()
    least: int = 0
    most: int = 0
    """Words it takes, at least and at most."""
    more: str = ""
    """Further lines for its own help."""
    completes: str = ""
    """What its words are, for completion: "sweep", "file", "settings"; or the words themselves, as in "bash zsh"."""
    passes_on: bool = False
    """Words it does not know are Hydra's."""


class Given(NamedTuple):
    """The words of one command as they were given, flags and `lang=` taken out."""

    verb: Verb
    words: Sequence[str]
    flags: Mapping[str, Sequence[str]]
    """Flag → its values in order; [""] for a flag without a value."""
    lang: str | None = None
    """What `lang=` asked for, if it was given."""

    def has(self, flag: str) -> bool:
        """Was the flag given?"""
        return flag in self.flags

    def value(self, flag: str) -> str | None:
        """The last value of the flag."""
        return self.flags[flag][-1] if flag in self.flags else None

    def values(self, flag: str) -> Sequence[str]:
        """All its values, in order."""
        return self.flags.get(flag, ())

    def first(self, otherwise: str) -> str:
        """The first word, or what holds without one."""
        return self.words[0] if self.words else otherwise


def parse(verb: Verb, words: Sequence[str], lang: str | None = None) -> Given:
    """Flags apart from words. Raises ConfigError: an unknown flag, a missing value, too few words or too many."""
    known = {flag.name: flag for flag in verb.flags}
    flags: dict[str, list[str]] = {}
    rest: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        flag = known.get(name)
        if flag is not None and bool(equals) <= bool(flag.value):
            if flag.value and not equals:
                if not waiting:
                    raise ConfigError(_("{flag} needs {expected}.").format(flag=name, expected=_(flag.expected)))
                value = waiting.pop(0)
            flags.setdefault(name, []).append(value)
        elif word.startswith("-") and word != "-" and not verb.passes_on:
            raise ConfigError(unknown_flag(verb, word))
        else:
            rest.append(word)
    if not verb.passes_on and not verb.least <= len(rest) <= verb.most:
        raise ConfigError(_wrong_count(verb, rest))
    return Given(verb, rest, flags, lang)


def unknown_flag(verb: Verb, word: str) -> str:
    """What to say of a flag that the verb does not have."""
    import difflib

    close = difflib.get_close_matches(word.partition("=")[0], [flag.name for flag in verb.flags], n=1)
    if close:
        return _("{flag} is not a flag of {verb}. Did you mean {close}?").format(
            flag=word, verb=verb.name, close=close[0])
    if not verb.flags:
        return _("{flag} is not understood: {verb} has no flags.").format(flag=word, verb=verb.name)
    return _("{flag} is not a flag of {verb}. Flags: {known}.").format(
        flag=word, verb=verb.name, known=", ".join(flag.usage for flag in verb.flags))


def _wrong_count(verb: Verb, rest: Sequence[str]) -> str:
    usage = f"slackwater {verb.name} {verb.words}".rstrip()
    if len(rest) < verb.least:
        return _("{verb} needs more than that: {usage}").format(verb=verb.name, usage=usage)
    return _("{extra} is too much for {verb}: {usage}").format(
        extra=" ".join(rest[verb.most:]), verb=verb.name, usage=usage)
