"""The contract of a settle rule: when memory counts as stable. Pure functions of the tree's RSS over time.

A rule is one file beside this one with a function `settled`, plus one file in conf/settle/. Waiting and
reading happen in `trial.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.config import Config
from pipeline.phases import Int64Array
from pipeline.plugins import SETTLE


@dataclass(frozen=True)
class Settling:
    """What a rule may look at. Arrays have shape (n_samples,)."""

    t_ns: Int64Array
    rss: Int64Array
    """Resident bytes of the tree at `t_ns`."""
    since_ns: int
    """When waiting began: the last token, or the unload that fell inside the window."""
    now_ns: int


class Rule(Protocol):
    """True once memory is stable; called about twenty times a second with everything seen so far."""

    def __call__(self, seen: Settling, config: Config) -> bool: ...


def load_rule(config: Config) -> Rule:
    """The rule that `settle.name` names. Raises ConfigError for one that does not exist or cannot be loaded."""
    rule: Rule = SETTLE.load(config.settle.name, "settle.name").settled
    return rule
