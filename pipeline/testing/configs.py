"""The config of a cell, for a test."""

from __future__ import annotations

import copy
import functools

from pipeline.config import Config
from pipeline.sweep.composed import typed
from pipeline.sweep.hydra_app import compose


def config_of(*overrides: str) -> Config:
    """What `slackwater run OVERRIDES` would run, as a value of your own. Raises what composing raises."""
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Config:
    return typed(compose(overrides))
