"""Settle rule `fixed`: exactly `stabilization_delay_s`, whatever memory does. For comparison with old figures."""

from pipeline.config import Config
from pipeline.settle.base import Settling


def settled(seen: Settling, config: Config) -> bool:
    """True once the delay has passed since waiting began."""
    return seen.now_ns - seen.since_ns >= config.stabilization_delay_s * 1e9
