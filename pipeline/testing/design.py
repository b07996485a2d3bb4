"""What a design owes a sweep: an order that the seed alone decides, and every cell once in every block."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest

from pipeline.sweep.design import DesignRule, load_design
from pipeline.testing.configs import config_of


class DesignContract:
    """Inherit it, and say `name`."""

    name: ClassVar[str]
    """The design's, as in `design=NAME`."""
    cells: ClassVar[int] = 2
    """How many cells it is tried with; designs for two arms take no more."""
    repetitions: ClassVar[int] = 4

    @pytest.fixture
    def design(self) -> DesignRule:
        """The design, as a sweep finds it."""
        return load_design(self.name)

    def test_its_config_file_chooses_it(self) -> None:
        assert config_of(f"design={self.name}").design.name == self.name

    def test_every_block_runs_every_cell_once(self, design: DesignRule) -> None:
        blocks = design.blocks(self.cells, self.repetitions, 1)
        assert [sorted(block) for block in blocks] == [list(range(self.cells))] * self.repetitions

    def test_the_seed_alone_decides_the_order(self, design: DesignRule) -> None:
        before = random.getstate()
        blocks = design.blocks(self.cells, self.repetitions, 7)
        assert random.getstate() == before, "draw from a generator of your own: random.Random(seed)"
        assert design.blocks(self.cells, self.repetitions, 7) == blocks

    def test_what_it_makes_of_flags_are_cells_that_differ(self, design: DesignRule) -> None:
        cells = design.expand(["memory_optimization", "quantization"]) if design.expand else []
        assert len({tuple(cell) for cell in cells}) == len(cells) != 1
        for overrides in cells:
            config_of(*overrides)
