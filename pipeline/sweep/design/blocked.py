"""Design `blocked`: each repetition is a block that runs every cell once, in an order drawn from the seed.

Drift of the machine then falls on all cells alike.
"""

import random


def blocks(cells: int, repetitions: int, seed: int) -> list[list[int]]:
    """Every block a shuffle of all cells; the same seed gives the same order."""
    draw = random.Random(seed)
    return [draw.sample(range(cells), cells) for _ in range(repetitions)]
