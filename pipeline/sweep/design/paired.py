"""Design `paired`: two arms, one after the other in each pair, which of them first drawn from the seed."""

import random

from pipeline.errors import ConfigError


def blocks(cells: int, repetitions: int, seed: int) -> list[list[int]]:
    """Each block a pair. Raises ConfigError unless there are two cells and two pairs."""
    if cells != 2:
        raise ConfigError(f"design=paired compares two arms, and this sweep has {cells}. design=blocked takes any "
                          "number.")
    if repetitions < 2:
        raise ConfigError("design=paired is for an interval, and one pair has none: repetitions=2 or more "
                          "(design=blocked takes one).")
    draw = random.Random(seed)
    return [draw.sample((0, 1), 2) for _ in range(repetitions)]
