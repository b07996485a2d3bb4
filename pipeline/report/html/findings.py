"""What a sweep found, as plots and tables: effects on one axis, the gap read twice, savings beside costs, slopes.

Every number comes from `document.analyse`, every verdict from `wording`; nothing is computed here but percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.language import _, worded
from pipeline.report import wording
from pipeline.report.document import Analysis
from pipeline.report.html.elements import Legend, Plot, Table
from pipeline.report.html.plots import SERIES, Block, Line, Row, levels_plot, rows_plot
from pipeline.stats.comparison import Comparison
from pipeline.stats.factorial import Factorial
from pipeline.stats.measures import HEADLINE
from pipeline.stats.summary import EffectRow, GapRow

FIRST = (HEADLINE, "during_generation/tree_rss_peak_mib", "stabilized/system_used_pct", "decode/tokens_per_s")
"""Beside the question: what a reader of the first screen wants to know of an optimisation. The rest is in `costs`."""
MOST_ROWS = 16
"""Of one plot; with more only the question's rows are drawn, and all are in the table."""
MOST_ARMS = 6
REACH = {"%": 150.0}
"""A speed that is undecided between a tenth and ten times would hide everything else on its axis."""


def effects(analysis: Analysis) -> Plot | None:
    """The forest plot: one row per effect, with an axis per unit. None if nothing was compared."""
    planned = {(one.mode, tuple(one.where.items())) for one in analysis.factorial}
    compared = [row for row in analysis.effects
                if row.difference is not None and (row.mode, tuple(row.where.items())) not in planned]
    rows = [row for metric in dict.fromkeys((*analysis.question, *FIRST)) for row in compared if row.metric == metric]
    drawn = rows if len(rows) <= MOST_ROWS else [row for row in rows if row.question][:MOST_ROWS * 2]
    if not drawn:
        return None
    labels = wording.effect_labels(drawn, against=True)
    by_unit: dict[str, list[Row]] = {}
    for row, label in zip(drawn, labels, strict=True):
        unit, marks = _marks(row.stats, row.difference)
        by_unit.setdefault(unit, []).append(Row(label, _said(row.stats, row.difference, row.off), *marks,
                                                kind=row.stats.kind))
    if any(row.knob for row in drawn):
        title = _("Effects: each arm − its reference")
        note = _("A line is the interval, the mark on it the estimate: filled where the difference is certain. Left of "
                 "zero: less than the reference.")
    else:
        title = _("Effects of the flags: on − off")
        note = _("A line is the interval, the mark on it the estimate: filled where the difference is certain. Left of "
                 "zero: less with the flags on.")
    if len(drawn) < len(rows):
        note += " " + _("{n} further comparisons are in the table.").format(n=len(rows) - len(drawn))
    wide, narrow = rows_plot(_blocks(by_unit), "effects", title, _describe(by_unit))
    return Plot("effects", title, _describe(by_unit), wide, narrow, [effects_table(compared)], note)


def _blocks(by_unit: Mapping[str, Sequence[Row]]) -> list[Block]:
    return [Block(_axis(unit), rows, ("← " + _("less"), _("more") + " →"), reach=REACH.get(unit, math.inf))
            for unit, rows in by_unit.items()]


def _axis(unit: str) -> str:
    return wording.unit_name(unit)


def _marks(stats: Comparison, difference: float | None) -> tuple[str, tuple[float | None, float | None, float | None]]:
    """Unit and (point, low, high) as users read them: ratios become percent."""
    if stats.estimate is None or stats.lo is None or stats.hi is None:
        return stats.unit, (difference, None, None)
    if not stats.informative:
        return ("%", (100 * (stats.estimate - 1), None, None)) if stats.scale == "ratio" else (
            stats.unit, (stats.estimate, None, None))
    if stats.scale == "ratio":
        return "%", (100 * (stats.estimate - 1), 100 * (stats.lo - 1), 100 * (stats.hi - 1))
    return stats.unit, (stats.estimate, stats.lo, stats.hi)


def _said(stats: Comparison, difference: float | None, reference: float | None) -> str:
    text = wording.comparison(stats, difference, reference)
    return text if "n = " in text or stats.kind == "identical" else _("{verdict}, n = {n}").format(
        verdict=text, n=stats.n_blocks)


def _describe(by_unit: Mapping[str, Sequence[Row]]) -> str:
    return " ".join(f"{row.label}: {row.said}." for rows in by_unit.values() for row in rows if not row.heading)


def effects_table(rows: Sequence[EffectRow]) -> Table:
    """Every comparison of flags with both readings, the interval's method and the number of blocks."""
    labels = wording.effect_labels(rows, against=True)
    knobs = any(row.knob for row in rows)
    title = _("Arm − reference: medians of valid trials, and what the paired blocks say") if knobs else _(
        "Flags, on − off: medians of valid trials, and what the paired blocks say")
    off, on = (_("reference"), _("arm")) if knobs else ("off", "on")
    return Table(title,
                 [_("metric"), off, on, _("unit"), _("difference"), _("verdict"), _("n on / off"), _("method")],
                 [[label, wording.number(row.off, 2), wording.number(row.on, 2), _unit(row.metric),
                   wording.signed(row.difference or 0.0, ""), _said(row.stats, row.difference, row.off),
                   f"{row.n_on} / {row.n_off}", _method(row.stats)]
                  for row, label in zip(rows, labels, strict=True)], (1, 2, 4))


def _method(stats: Comparison) -> str:
    return "" if stats.method is None else f"{100 * (stats.level or 0.95):.3g} %, {worded(stats.method)}"


def _unit(metric: str) -> str:
    for ending, unit in (("_mib", "MiB"), ("_pct", "%"), ("_per_s", "/s"), ("_ms", "ms"), ("_s", "s")):
        if metric.endswith(ending):
            return unit
    return ""


def gap(analysis: Analysis) -> Plot | None:
    """The two pairs of dots: the modes as the old comparison reads them, and at the same phase. None without modes."""
    found = {(row.metric.partition("/")[2], row.infer_os, wording.where_text(row.where)): row
             for row in analysis.gap.as_found}
    unified = {(row.metric.partition("/")[2], row.infer_os, wording.where_text(row.where)): row
               for row in analysis.gap.unified if row.metric.startswith("stabilized/") and row.turn == 1}
    arms = list(dict.fromkeys((infer_os, where) for _q, infer_os, where in (*found, *unified)))
    blocks = []
    for quantity, axis in (("tree_rss_mib", _("tree RSS, MiB")), ("system_used_pct", _("system used, %"))):
        rows: list[Row] = []
        for infer_os, where in arms[:MOST_ARMS]:
            pairs = [(_("as found"), found.get((quantity, infer_os, where))),
                     (_("unified"), unified.get((quantity, infer_os, where)))]
            if any(row is not None and row.difference is not None for _name, row in pairs):
                if len(arms) > 1:
                    rows.append(Row(", ".join(part for part in (_("flags {flags}").format(flags=infer_os), where)
                                              if part), "", None, heading=True))
                rows += [Row(name, _gap_said(row, name == pairs[0][0]), row.oneshot, other=row.interactive)
                         for name, row in pairs if row is not None and row.difference is not None]
        if rows:
            blocks.append(Block(axis, rows))
    if not blocks:
        return None
    title = _("One-shot against interactive, read twice")
    described = " ".join(f"{block.axis}: " + " ".join(
        f"{row.label}." if row.heading else f"{row.label}: {_('one-shot')} {wording.number(row.point)}, "
        f"{_('interactive')} {wording.number(row.other)}, {row.said}." for row in block.rows) for block in blocks)
    wide, narrow = rows_plot(blocks, "gap", title, described)
    rows_ = [*analysis.gap.as_found, *analysis.gap.unified]
    note = _("As found: interactive read while idle, before its model is loaded, and one-shot straight after "
             "generating, as the comparison that started this project did. Unified: both settled after turn 1.")
    if len(arms) > MOST_ARMS:
        note += " " + _("{n} further arms are in the table.").format(n=len(arms) - MOST_ARMS)
    return Plot("gap", title, described, wide, narrow, [_gap_table(rows_)], note,
                [Legend("one", _("one-shot")), Legend("many", _("interactive"))])


def _gap_said(row: GapRow, as_found: bool) -> str:
    if as_found:
        return f"{wording.as_found(row.difference or 0.0, row.stats)}, n = {row.stats.n_blocks}"
    return _said(row.stats, row.difference, row.interactive)


def _gap_table(rows: Sequence[GapRow]) -> Table:
    return Table(_("Gap, one-shot − interactive: medians of valid trials, and what the paired blocks say"),
                 [_("metric"), _("flags"), _("turn"), _("interactive"), _("one-shot"), _("unit"), _("difference"),
                  _("verdict"), "n", _("method")],
                 [[row.metric, ", ".join(part for part in (row.infer_os, wording.where_text(row.where)) if part),
                   str(row.turn) if row.turn else _("as found"), wording.number(row.interactive, 2),
                   wording.number(row.oneshot, 2), _unit(row.metric),
                   "–" if row.difference is None else wording.signed(row.difference, ""),
                   _("not measured") if row.difference is None else _said(row.stats, row.difference, row.interactive),
                   str(row.stats.n_blocks), _method(row.stats)] for row in rows], (3, 4, 6, 8))


def factorials(analysis: Analysis) -> list[Plot]:
    """Main effects and two-way interactions of a factorial plan, ranked by size."""
    plots = []
    for index, one in enumerate(analysis.factorial):
        rows = []
        for term in one.terms:
            ratio = term.stats.scale == "ratio"
            unit, marks = _marks(term.stats, 100 * (term.estimate - 1) if ratio else term.estimate)
            alias = " (" + _("or {names}").format(names=", ".join(" × ".join(a) for a in term.aliased_with)) + ")"
            rows.append((unit, Row(term.name + (alias if term.aliased_with else ""),
                                   _said(term.stats, term.estimate, None), *marks, kind=term.stats.kind)))
        shown = rows[:MOST_ROWS]
        by_unit: dict[str, list[Row]] = {}
        for unit, row in shown:
            by_unit.setdefault(unit, []).append(row)
        title = _("Ranked effects on {what}").format(what=_factorial_name(one))
        wide, narrow = rows_plot(_blocks(by_unit), f"factorial-{index}", title, _describe(by_unit))
        table = Table(title, [_("flag"), _("verdict"), _("method")],
                      [[row.label, row.said, f"{100 * one.level:.3g} %, {worded(one.method)}"]
                       for _unit, row in rows])
        note = _("Each effect is over all settings of the other flags: {cells} cells, {blocks} blocks.").format(
            cells=one.cells, blocks=one.blocks)
        plots.append(Plot(f"factorial-{index}", title, _describe(by_unit), wide, narrow, [table], note))
    return plots


def _factorial_name(one: Factorial) -> str:
    return ", ".join(part for part in (wording.metric_name(one.metric), one.mode,
                                       wording.where_text(one.where)) if part)


def costs(analysis: Analysis) -> tuple[list[Plot], list[Table]]:
    """What each optimisation saves and what it costs, in percent of the arm without it; and with both readings."""
    plots, tables = [], []
    groups: dict[tuple[str, str, str], list[EffectRow]] = {}
    for row in analysis.effects:
        if row.difference is not None:
            groups.setdefault((wording.effect_name(row), row.mode, wording.where_text(row.where)), []).append(row)
    drawn = [[_share(row) for row in members if _unit(row.metric) != "%"] for members in groups.values()]
    every = [row for rows in drawn[:MOST_ARMS] for row in rows]
    for index, ((flag, mode, where), members) in enumerate(groups.items()):
        name = ", ".join(part for part in (_("flags on") if flag == "on" else flag, mode, where) if part)
        shown = drawn[index]
        if index < MOST_ARMS and any(row.point is not None for row in shown):
            title = _("Saved and paid: {name}").format(name=name)
            axis = _("% of {reference}").format(reference=members[0].against or "off")
            blocks = [Block(axis, shown, ("← " + _("less"), _("more") + " →"), every, REACH["%"])]
            described = _describe({"%": shown})
            wide, narrow = rows_plot(blocks, f"costs-{index}", title, described)
            plots.append(Plot(f"costs-{index}", title, described, wide, narrow))
        off, on = (members[0].against, members[0].flag.partition("=")[2]) if members[0].knob else ("off", "on")
        tables.append(Table(name, [_("metric"), off, on, _("unit"), _("verdict"), _("n on / off")],
                            [[wording.metric_name(row.metric), wording.number(row.off, 2),
                              wording.number(row.on, 2), _unit(row.metric), _said(row.stats, row.difference, row.off),
                              f"{row.n_on} / {row.n_off}"] for row in members], (1, 2)))
    return plots, tables


def _share(row: EffectRow) -> Row:
    """An effect in percent of the arm without."""
    _axis_unit, (point, low, high) = _marks(row.stats, row.difference)
    if row.stats.scale != "ratio":
        point, low, high = (None if x is None or not row.off else 100 * x / row.off for x in (point, low, high))
    return Row(wording.metric_name(row.metric), _said(row.stats, row.difference, row.off), point, low, high,
               row.stats.kind)


def growth(analysis: Analysis) -> Plot | None:
    """Settled tree RSS from turn to turn, a row per cell; None for sweeps without turns enough."""
    if not analysis.growths:
        return None
    labels = wording.cell_labels(analysis.cells)
    rows = [Row(labels.get(one.cell, one.cell), f"{wording.growth_text(one)}, n = {one.stats.n_blocks}",
                *_marks(one.stats, one.per_turn)[1], one.stats.kind) for one in analysis.growths]
    title, unit = _("Growth of the settled tree RSS from turn to turn"), analysis.growths[0].stats.unit
    shown, described = rows[:MOST_ROWS], _describe({unit: rows[:MOST_ROWS]})
    wide, narrow = rows_plot(_blocks({unit: shown}), "growth", title, described)
    table = Table(title, [_("cell"), _("turns"), _("growth"), _("verdict"), "n", _("method")],
                  [[row.label, str(one.turns), wording.growth_text(one), worded(one.stats.verdict),
                    str(one.stats.n_blocks), _method(one.stats)]
                   for row, one in zip(rows, analysis.growths, strict=True)], (1, 4))
    return Plot("growth", title, described, wide, narrow, [table])


def slopes(analysis: Analysis) -> list[Plot]:
    """Memory against the setting that was varied, a line per arm; at most as many in a picture as can be told apart."""
    plots = []
    for begin in range(0, len(analysis.slopes), len(SERIES)):
        group = analysis.slopes[begin:begin + len(SERIES)]
        key = group[0].key
        title = _("Settled tree RSS against {key}").format(key=key)
        described = " ".join(wording.slope_text(slope) for slope in group)
        lines = [Line(", ".join(part for part in (slope.mode, _("flags {flags}").format(flags=slope.infer_os),
                                                  wording.where_text(slope.where), slope.regime) if part),
                      list(zip(slope.levels, slope.medians_mib, strict=True)), slope.kib_per_unit, slope.intercept_mib)
                 for slope in group]
        wide, narrow = levels_plot(lines, key, f"slope-{begin}", title, described)
        table = Table(title, [_("line"), key, _("median, MiB"), _("n of trials")],
                      [[line.name, f"{x:g}", wording.number(y, 2), str(slope.n_trials)]
                       for line, slope in zip(lines, group, strict=True) for x, y in line.points], (1, 2, 3))
        note = " ".join([described, _("Method: {method}, {level} %.").format(
            method=worded(group[0].method), level=f"{100 * group[0].level:.3g}")])
        plots.append(Plot(f"slope-{begin}", title, described, wide, narrow, [table], note))
    return plots
