"""Two named sets of trials against each other: cells of one sweep by blocks, cells of two sweeps unpaired.

Which cell is compared with which, and how; what else differs is in `differing`, limits for CI are in `gate`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.record.trial import TrialRecord
from pipeline.stats.comparison import Comparison, judged, level_of, median_of
from pipeline.stats.differing import same_setup
from pipeline.stats.intervals import Interval, paired, welch, welch_against_reference
from pipeline.stats.measures import measure
from pipeline.stats.trials import by_block, counted, last_turn

Cell = Sequence[TrialRecord]


@dataclass(frozen=True)
class Pair:
    """Two cells to compare: B against A, the baseline."""

    name_a: str
    name_b: str
    a: Cell
    b: Cell
    paired: bool
    """Cells of one sweep: compared block by block."""
    reference: str = ""
    """A cell that both sweeps ran alike; differences to it are compared, which takes days and machines out."""
    reference_a: Cell = ()
    reference_b: Cell = ()

    @property
    def turn(self) -> int | None:
        """The turn to compare: 1 if one side has fewer turns than the other, else None, the last."""
        return None if last_turn(self.a) == last_turn(self.b) else 1


@dataclass(frozen=True, kw_only=True)
class Change:
    """B − A of one metric. `a`, `b`: medians over valid trials, by block where a block has several."""

    cell_a: str
    cell_b: str
    metric: str
    turn: int | None
    a: float | None
    b: float | None
    difference: float | None
    relative_pct: float | None
    """The estimate in percent of A; of medians where there is no interval."""
    n_a: int
    n_b: int
    left_out_a: int
    """Trials of the cell that do not count for this metric."""
    left_out_b: int
    paired: bool
    reference: str
    stats: Comparison


def by_cell(trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Cell → its trials, in the order given."""
    cells: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        cells[trial.cell].append(trial)
    return dict(cells)


def match(a: Sequence[TrialRecord], b: Sequence[TrialRecord]) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """(cell of A, cell of B) that belong together, and the cells of either side that have no counterpart.

    One cell on either side: these two. Else those of one name, then those that alone have their mode and flags."""
    cells_a, cells_b = by_cell(a), by_cell(b)
    if len(cells_a) == 1 and len(cells_b) == 1:
        return [(next(iter(cells_a)), next(iter(cells_b)))], [], []
    pairs = [(cell, cell) for cell in cells_a if cell in cells_b]
    left_a = [cell for cell in cells_a if cell not in cells_b]
    left_b = [cell for cell in cells_b if cell not in cells_a]

    def kind(cell: Cell) -> tuple[str, str]:
        return cell[0].mode, cell[0].infer_os

    for cell in list(left_a):
        alike = [other for other in left_b if kind(cells_b[other]) == kind(cells_a[cell])]
        if len(alike) == 1 and sum(kind(cells_a[other]) == kind(cells_a[cell]) for other in left_a) == 1:
            pairs.append((cell, alike[0]))
            left_a.remove(cell)
            left_b.remove(alike[0])
    return pairs, left_a, left_b


def pair_up(names: tuple[str, str], a: Cell, b: Cell, same_sweep: bool, sweep_a: Sequence[TrialRecord] = (),
            sweep_b: Sequence[TrialRecord] = ()) -> Pair:
    """The Pair of two cells; between sweeps with a reference cell, if the sweeps have one.

    A reference is a cell that both sweeps ran with the same model, config, engine and settings, while the cells that
    are compared differ in these: then only the day and the machine are in the difference of the references. Where the
    cells themselves are alike, the day or the machine is what is being asked for, and nothing is taken out."""
    paired = same_sweep and bool({t.block for t in a} & {t.block for t in b})
    plain = Pair(*names, a, b, paired)
    if same_sweep or same_setup(a, b):
        return plain
    cells_a, cells_b = by_cell(sweep_a), by_cell(sweep_b)
    shared = [cell for cell in cells_a if cell in cells_b and cell not in names
              and same_setup(cells_a[cell], cells_b[cell])]
    if not shared:
        return plain
    best = min(shared, key=lambda cell: (cells_a[cell][0].mode != a[0].mode, cells_a[cell][0].infer_os != "off", cell))
    return Pair(*names, a, b, False, best, cells_a[best], cells_b[best])


def changes(pairs: Sequence[Pair], metric: str, level: float = 0.95) -> list[Change]:
    """B − A of every pair, also of one that has the metric on no side; one family, each at 1 − (1 − level)/k."""
    how = measure(metric)
    read = [(pair, by_block(pair.a, metric, pair.turn), by_block(pair.b, metric, pair.turn)) for pair in pairs]
    k = max(1, sum(min(len(a), len(b)) > 1 for _, a, b in read))
    found = []
    for pair, a, b in read:
        base, new = median_of(a), median_of(b)
        if pair.paired:
            blocks = sorted(a.keys() & b.keys())
            interval, reference = paired([b[i] for i in blocks], [a[i] for i in blocks], step=how.step,
                                         level=level_of(k, level), ratio=how.ratio), ""
            n = len(blocks)
        else:
            interval, reference = _unpaired(pair, metric, a, b, level_of(k, level))
            n = min(len(a), len(b))
        stats = judged(interval, unit=how.unit, n_blocks=n, family=k, size=max(abs(base or 0.0), abs(new or 0.0)),
                       margin=how.margin_at(base or 0.0, interval.scale if interval else "difference"))
        difference = None if base is None or new is None else new - base
        found.append(Change(
            cell_a=pair.name_a, cell_b=pair.name_b, metric=metric, turn=pair.turn, a=base, b=new, difference=difference,
            relative_pct=_relative(stats, difference, base), n_a=len(a), n_b=len(b),
            left_out_a=len(counted(pair.a)) - len(a), left_out_b=len(counted(pair.b)) - len(b), paired=pair.paired,
            reference=reference, stats=stats))
    return found


def _unpaired(pair: Pair, metric: str, a: dict[int, float], b: dict[int, float],
              level: float) -> tuple[Interval | None, str]:
    """B − A of two sweeps, and the reference cell that was used."""
    how = measure(metric)
    if pair.reference:
        ra, rb = by_block(pair.reference_a, metric, pair.turn), by_block(pair.reference_b, metric, pair.turn)
        in_a, in_b = sorted(a.keys() & ra.keys()), sorted(b.keys() & rb.keys())
        found = welch_against_reference([b[i] for i in in_b], [rb[i] for i in in_b], [a[i] for i in in_a],
                                        [ra[i] for i in in_a], step=how.step, level=level, ratio=how.ratio)
        if found is not None:
            return found, pair.reference
    return welch(list(b.values()), list(a.values()), step=how.step, level=level, ratio=how.ratio), ""


def _relative(stats: Comparison, difference: float | None, base: float | None) -> float | None:
    if stats.estimate is not None and stats.scale == "ratio":
        return 100 * (stats.estimate - 1)
    change = stats.estimate if stats.estimate is not None else difference
    return 100 * change / base if change is not None and base else None
