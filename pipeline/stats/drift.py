"""Did the machine drift while a sweep ran? Block means, paired differences, the first trial of each block.

Drift in block means falls on all cells alike; drift in paired differences threatens the effect itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.language import N_, sentence
from pipeline.record.trial import TrialRecord
from pipeline.stats.arms import effect_groups, mode_pairs
from pipeline.stats.intervals import holm, line_through, of_differences
from pipeline.stats.measures import HEADLINE, measure
from pipeline.stats.trials import by_block, valid, value

LEAST_BLOCKS = 3
LEAST_MIB = 0.25
"""Between two equal trials a server's heap moves by about this much (measured on llama.cpp and Ollama)."""
SHARE = 0.1
"""Of an effect: less does not change what is said of it."""

Test = Literal["block means", "paired differences", "first of block"]
NAMES: dict[Test, str] = {
    "block means": N_("block means"), "paired differences": N_("paired differences"),
    "first of block": N_("first of block")}
_FOUND: dict[Test, str] = {
    "first of block": N_(
        "the first trial of a block differs from the others by {size}: it may have warmed something up"),
    "block means": N_(
        "drift or slow noise: all cells move by {size} per block; blocks take this out of the effects"),
    "paired differences": N_(
        "drift or slow noise in the difference itself ({what}): {size} per block; mistrust its interval"),
}


@dataclass(frozen=True)
class Drift:
    """One test. `size` is the trend per block, or the offset of a block's first trial, in the metric's unit."""

    test: Test
    what: str
    """The comparison, for paired differences: "on, oneshot" or "mode, off"; else ""."""
    metric: str
    unit: str
    n_blocks: int
    size: float
    p: float
    """Holm-adjusted over the comparisons, for paired differences."""
    found: bool
    """Not by chance (p ≤ 0.05), and of a size that matters: see `matters`."""

    @property
    def text(self) -> str:
        """The finding in words. Slow noise looks the same as drift, and is not told apart from it."""
        amount = f"{self.size:+.2g} {self.unit}".replace("-", "−").rstrip()
        about = {"test": NAMES[self.test], "what": self.what, "size": amount}
        if not self.found and self.p <= 0.05:
            return sentence(N_("{test} of {what} move by {size}: too little to matter") if self.what else
                            N_("{test} move by {size}: too little to matter"), **about)
        if not self.found:
            return sentence(N_("no drift seen in {test} of {what}") if self.what else
                            N_("no drift seen in {test}"), **about)
        return sentence(_FOUND[self.test], **about)


def trend(values: Sequence[float], step: float = 0.0) -> tuple[float, float]:
    """(slope per block, two-sided p) of values in block order; p = 1 for fewer than three or changes below a step."""
    y = np.asarray(values, dtype=np.float64)
    if y.size < LEAST_BLOCKS or float(np.ptp(y)) <= step:
        return 0.0, 1.0
    slope, _, _, p = line_through(np.arange(y.size, dtype=np.float64), y)
    return slope, p


def matters(change: float, metric: str, effect: float = 0.0) -> bool:
    """Is a change over the whole sweep worth a word? If it is above the meter's own play, and a tenth of the effect.

    `effect`: the difference that it could be mistaken for; 0 for drift that falls on all cells alike."""
    how = measure(metric)
    return abs(change) >= max(2 * how.step, LEAST_MIB if how.unit == "MiB" else 0.0, SHARE * abs(effect))


def drift(trials: Sequence[TrialRecord], metric: str = HEADLINE) -> list[Drift]:
    """All tests that the sweep has blocks for (three or more), whether they find something or not."""
    how = measure(metric)
    residuals = _residuals(trials, metric)
    found: list[Drift] = []
    if len(residuals) >= LEAST_BLOCKS:
        means = [float(np.mean([residual for _, residual in members])) for _, members in sorted(residuals.items())]
        size, p = trend(means, how.step)
        found.append(Drift("block means", "", metric, how.unit, len(means), size, p,
                           p <= 0.05 and matters(size * (len(means) - 1), metric)))
    firsts = [members[0][1] - float(np.mean([residual for _, residual in members[1:]]))
              for _, members in sorted(residuals.items()) if len(members) > 1]
    offset = of_differences(firsts, step=how.step) if len(firsts) >= LEAST_BLOCKS else None
    if offset is not None:
        found.append(Drift("first of block", "", metric, how.unit, offset.n, offset.centre, offset.p,
                           offset.p <= 0.05 and matters(offset.centre, metric)))
    pairs = [(what, differences) for what, differences in _pairs(trials, metric) if len(differences) >= LEAST_BLOCKS]
    trends = [trend(differences, how.step) for _, differences in pairs]
    adjusted = holm([p for _, p in trends])
    for (what, differences), (size, _), p in zip(pairs, trends, adjusted, strict=True):
        n = len(differences)
        material = matters(size * (n - 1), metric, float(np.mean(differences)))
        found.append(Drift("paired differences", what, metric, how.unit, n, size, p, p <= 0.05 and material))
    return found


def _residuals(trials: Sequence[TrialRecord], metric: str) -> Mapping[int, list[tuple[int, float]]]:
    """Block → (order, reading minus its cell's mean), in the order they ran."""
    by_cell: dict[str, list[tuple[TrialRecord, float]]] = defaultdict(list)
    for trial in valid(trials):
        reading = value(trial, metric)
        if reading is not None:
            by_cell[trial.cell].append((trial, reading))
    blocks: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for members in by_cell.values():
        mean = float(np.mean([reading for _, reading in members]))
        for trial, reading in members:
            blocks[trial.block or trial.repetition].append((trial.order, reading - mean))
    return {block: sorted(members) for block, members in blocks.items()}


def _pairs(trials: Sequence[TrialRecord], metric: str) -> list[tuple[str, list[float]]]:
    """(what, differences in block order) of every comparison the sweep makes."""
    pairs: list[tuple[str, Mapping[int, float], Mapping[int, float]]] = []
    for group in effect_groups(trials):
        off = by_block(group.off, metric)
        where = "".join(f", {key} {text}" for key, text in group.where.items())
        pairs += [(f"{group.knob}={flag}, {group.mode}{where}" if group.knob else f"{flag}, {group.mode}{where}",
                   by_block(arm, metric), off) for flag, arm in group.arms]
    for pair in mode_pairs(trials):
        where = "".join(f", {key} {text}" for key, text in pair.where.items())
        pairs.append((f"mode, {pair.infer_os}{where}", by_block(pair.oneshot, metric, 1),
                      by_block(pair.interactive, metric, 1)))
    return [(what, [a[block] - b[block] for block in sorted(a.keys() & b.keys())]) for what, a, b in pairs]
