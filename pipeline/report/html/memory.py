"""Where the memory was: the phases of every cell, the engine's account of it, timelines. As plots and tables."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.language import _
from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.document import Analysis
from pipeline.report.html.contents import CellMaterial, Material
from pipeline.report.html.elements import Legend, Plot, Table
from pipeline.report.html.plots import PARTS, SERIES, Level, bars_plot, phases_plot
from pipeline.report.html.timelines import timeline_plot
from pipeline.stats.intervals import of_differences
from pipeline.stats.measures import measure
from pipeline.stats.summary import CellSummary
from pipeline.stats.trials import valid, value

MOST_PANELS = 6
"""Pictures of phases; further cells are in the tables."""
MOST_POINTS = 40
"""Trials drawn per cell and phase: more are a smear. All are in the medians."""
MOST_BARS = 16


def phases(trials: Sequence[TrialRecord], analysis: Analysis) -> list[Plot]:
    """Tree RSS at every phase: points for trials, the median, and the mean's interval; as many cells to a picture as
    can be told apart, all pictures on one scale."""
    labels = wording.cell_labels(analysis.cells)
    measured = [cell for cell in analysis.cells if any(_metric(phase) in cell.median for phase in wording.PHASES)]
    members: dict[str, list[TrialRecord]] = {}
    for trial in valid(trials):
        members.setdefault(trial.cell, []).append(trial)
    levels = {cell.cell: [_level(members.get(cell.cell, []), cell, _metric(phase)) for phase in wording.PHASES]
              for cell in measured}
    highest = max((x for each in levels.values() for level in each for x in (*level.trials, level.median or 0.0)),
                  default=0.0)
    heads = [_(head) for head, _phase, _suffix in wording.PHASES]
    plots = []
    drawn = measured[:MOST_PANELS * len(SERIES)]
    for begin in range(0, len(drawn), len(SERIES)):
        group = drawn[begin:begin + len(SERIES)]
        further = len(measured) - len(drawn) if begin + len(group) == len(drawn) else 0
        named = [f"{labels[cell.cell]}, n = {cell.n_valid}" for cell in group]
        title = _("Tree RSS at each phase")
        if len(measured) > len(SERIES):
            title += " " + _("(cells {first} to {last} of {n})").format(
                first=begin + 1, last=begin + len(group), n=len(measured))
        described = " ".join(f"{name}: {_readings(heads, levels[cell.cell])}."
                             for name, cell in zip(named, group, strict=True))
        wide, narrow = phases_plot([(name, levels[cell.cell]) for name, cell in zip(named, group, strict=True)], heads,
                                   highest, "MiB", f"phases-{begin}", title, described)
        note = _("{n} further cells are in the table.").format(n=further) if further else ""
        plots.append(Plot(f"phases-{begin}", title, described, wide, narrow, note=note))
    return plots


def _readings(heads: Sequence[str], levels: Sequence[Level]) -> str:
    return ", ".join(f"{head} {wording.number(level.median)} MiB" for head, level in zip(heads, levels, strict=True)
                     if level.median is not None)


def _metric(phase: tuple[str, str, str], quantity: str = "tree_rss", unit: str = "mib") -> str:
    return f"{phase[1]}/{quantity}{phase[2]}_{unit}"


def _level(members: Sequence[TrialRecord], cell: CellSummary, metric: str) -> Level:
    readings = [reading for trial in members if (reading := value(trial, metric)) is not None]
    interval = of_differences(readings, step=measure(metric).step)
    kept = readings if len(readings) <= MOST_POINTS else [readings[i * len(readings) // MOST_POINTS]
                                                          for i in range(MOST_POINTS)]
    middle = cell.median.get(metric)
    told = interval is not None and interval.narrow(middle)
    low, high = (interval.lo, interval.hi) if interval is not None and told else (None, None)
    return Level(kept, middle, low, high)


def phase_tables(analysis: Analysis) -> list[Table]:
    """Medians by cell and phase: of the tree in MiB, of the system in percent."""
    labels = wording.cell_labels(analysis.cells)
    heads = [_("cell"), *(_(head) for head, _phase, _suffix in wording.PHASES), "n"]
    return [Table(caption, heads, [[labels[cell.cell], *(wording.number(cell.median.get(_metric(phase, quantity, unit)))
                                                         for phase in wording.PHASES), str(cell.n_valid)]
                                   for cell in analysis.cells], tuple(range(1, len(heads))))
            for caption, quantity, unit in ((_("Tree RSS, MiB: median of valid trials"), "tree_rss", "mib"),
                                            (_("System memory used, %: median of valid trials"), "system_used", "pct"))]


def account(analysis: Analysis) -> Plot | None:
    """Where each MiB of the settled tree is by the engine's own account; None where it gave none."""
    labels = wording.cell_labels(analysis.cells)
    stated = [cell for cell in analysis.cells if "engine/unexplained_mib" in cell.median]
    if not stated:
        return None
    every = [(_(head), sign, [sum(cell.median.get(metric, 0.0) for metric in metrics) for cell in stated])
             for (head, metrics), sign in zip(wording.ACCOUNT, PARTS, strict=True)]
    kept = [part for part in every if any(abs(mib) >= 0.05 for mib in part[2])]
    heads, colours = [head for head, _sign, _sizes in kept], [sign for _head, sign, _sizes in kept]
    parts = [list(row) for row in zip(*(sizes for _head, _sign, sizes in kept), strict=True)]
    title = _("Where the settled memory is")
    described = " ".join(f"{labels[cell.cell]}: " + ", ".join(
        f"{head} {wording.number(part)} MiB" for head, part in zip(heads, row, strict=True) if abs(part) >= 0.05) + "."
        for cell, row in zip(stated, parts, strict=True))
    bars = [(labels[cell.cell], row) for cell, row in zip(stated, parts, strict=True)][:MOST_BARS]
    wide, narrow = bars_plot(bars, colours, _("tree RSS, MiB"), "account", title, described)
    table = Table(_("Where the settled memory is, MiB: medians of valid trials"),
                  [_("cell"), *heads, _("together"), "n"],
                  [[labels[cell.cell], *map(wording.number, row), wording.number(sum(row)), str(cell.n_valid)]
                   for cell, row in zip(stated, parts, strict=True)], tuple(range(1, len(heads) + 3)))
    further = len(stated) - len(bars)
    note = _("{n} further cells are in the table.").format(n=further) if further else ""
    return Plot("account", title, described, wide, narrow, [table], note, list(map(Legend, colours, heads)))


def timelines(analysis: Analysis, material: Material) -> tuple[list[Plot], list[tuple[str, str]]]:
    """One picture per cell, all on one scale; beside them (cell, why there is none)."""
    labels = wording.cell_labels(analysis.cells)
    there = [(cell, material.cells.get(cell.cell, CellMaterial())) for cell in analysis.cells]
    every = [one for _cell, kept in there for one in kept.timelines]
    highest = max((max(float(one.total.max(initial=0.0)), *(y for _x, y in one.peaks), 0.0) for one in every),
                  default=0.0)
    end_s = max((one.end for one in every), default=0.0)
    plots, missing = [], []
    for index, (cell, kept) in enumerate(there):
        label = labels[cell.cell]
        if not kept.timelines:
            missing.append((label, kept.missing or _("no timeline is known")))
            continue
        first, *others = kept.timelines
        described = _("Trial {order}: it ends after {seconds} s and holds {highest} MiB at most.").format(
            order=first.order, seconds=wording.number(first.end), highest=wording.number(float(first.total.max())))
        if first.peaks:
            described += " " + _("Kernel's peak by turn: {peaks} MiB.").format(
                peaks=", ".join(wording.number(y) for _x, y in first.peaks))
        picture = timeline_plot(first, others, highest, end_s, f"timeline-{index}", label, described)
        note = _("trial {order} in colour").format(order=first.order)
        if others:
            note += "; " + _("{n} others as lines, of {all} valid").format(n=len(others), all=kept.trials_with_timeline)
        plots.append(Plot(f"timeline-{index}", label, described, picture, None,
                          [_timeline_table(label, kept)] if first.phases else [], note))
    return plots, missing


def _timeline_table(label: str, kept: CellMaterial) -> Table:
    first = kept.timelines[0]
    rows = []
    for name, turn, begin, end in first.phases:
        inside = (first.seconds >= begin) & (first.seconds <= end)
        shown = [wording.number(float(first.parts[part][inside].max())) if inside.any() else "–"
                 for part in ("anon", "file", "shmem", "swap")]
        rows.append([name, str(turn) if turn else "–", wording.number(begin, 2), wording.number(end, 2), *shown])
    return Table(_("{cell}, trial {order}: the most that was seen of each part in each phase").format(
        cell=label, order=first.order),
        [_("phase"), _("turn"), _("from, s"), _("to, s"), _("anonymous, MiB"), _("file-mapped, MiB"),
         _("shared, MiB"), _("swapped out, MiB")], rows, (1, 2, 3, 4, 5, 6, 7))
