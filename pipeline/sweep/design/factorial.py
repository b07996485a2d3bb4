"""Design `factorial`: every combination of the flags that can be honoured here, blocks as in `blocked`.

Main effects and two-way interactions come out of it (stats/factorial.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pipeline.sweep.design.blocked import blocks

__all__ = ["blocks", "expand"]


def expand(flags: Sequence[str]) -> list[list[str]]:
    """Overrides of the full plan, 2 ** len(flags) cells, all off first."""
    return [[f"infer_os.{flag}={str(on).lower()}" for flag, on in zip(flags, switches, strict=True)]
            for switches in itertools.product((False, True), repeat=len(flags))]
