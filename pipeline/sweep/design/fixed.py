"""Design `fixed`: the written order in every block. Drift of the machine then falls on the same cells each time."""

NOTE = "design=fixed keeps the written order: drift of the machine cannot be told from a difference between cells"


def blocks(cells: int, repetitions: int, seed: int) -> list[list[int]]:
    """Every block all cells as they were written."""
    return [list(range(cells)) for _ in range(repetitions)]
