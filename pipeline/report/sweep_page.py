"""What the user reads in the terminal after a sweep, and the list of sweeps. rich does the drawing.

Takes values that are computed already (`document.analyse`). Fits 80 columns, uses more, is readable at 60, and
prints plain text into a pipe. What moves while a sweep runs is in `live`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.language import N_, _, spoken, worded
from pipeline.report import wording
from pipeline.report.answer import answer, together
from pipeline.report.document import Analysis, Sweep
from pipeline.report.terminal_lines import cut, pack, pad, pad_left, paragraph, row, whole, wrap
from pipeline.stats.comparison import Comparison, without_family
from pipeline.stats.factorial import Factorial
from pipeline.stats.measures import HEADLINE
from pipeline.stats.summary import CellSummary, EffectRow, GapRow
from pipeline.text import engine_and_version

EFFECTS = (HEADLINE, "during_generation/tree_rss_peak_mib", "released/tree_rss_mib", "released/half_life_s",
           "stabilized/system_used_pct", "decode/tokens_per_s", "during_generation/time_to_first_token_s",
           "load/duration_s")
"""The effects that are printed; the rest is in the JSON document and in the report."""

_STYLES = {"less": "cyan", "more": "yellow", "undecided": "dim", "not enough": "dim"}
_VERDICTS = {"failed": "red", "suspect": "yellow", "interrupted": "yellow"}
_DOT = " · "
_MOST_LEFT_OUT = 10
_MOST_NOTES = 3
_MANY_ARMS = 4
_MANY_EFFECTS = 28
"""Beyond these only settled tree RSS is printed."""
_LEAST_NAME = 20
"""Columns a cell's name needs beside its numbers before it may be cut; with less it goes above."""
_LEAST_WORDS = 40
"""Columns a verdict needs beside its label; with less it goes below."""
_SIDE_BY_SIDE = 110
"""Columns from which MiB and percent stand side by side in one table."""


def print_sweep(console: Console, sweep: Sweep, analysis: Analysis, commands: Sequence[tuple[str, str]] = (),
                skipped: Sequence[tuple[str, str]] = (), missing: Sequence[str] = ()) -> None:
    """The page at the end of a sweep: question, subject, phases, gap, effects, answer, next commands.

    `commands` are (command, what it is for, in English); `skipped` are (cell, why it was not run); `missing` says
    which trials the user took out, a sentence each.
    """
    paragraph(console, Text(sweep.question or _("What was measured"), style="bold"))
    for sentence in missing:
        paragraph(console, Text(sentence, style="yellow"))
    pack(console, subject(sweep, analysis).split(_DOT), _DOT, "dim")
    if mixed := wording.mixed(analysis.methods):
        paragraph(console, Text(_("Careful: {finding}.").format(finding=mixed), style="yellow"))
    _phases(console, analysis.cells)
    _account(console, analysis.cells)
    _left_out(console, analysis, skipped)
    if analysis.gap.as_found or analysis.gap.unified:
        _gap(console, analysis)
    elif analysis.growths:
        _growth(console, analysis)
    if analysis.factorial:
        _factorials(console, analysis.factorial)
    planned = {(one.mode, tuple(one.where.items())) for one in analysis.factorial}
    _effects(console, [row for row in analysis.effects if (row.mode, tuple(row.where.items())) not in planned])
    _savings(console, analysis)
    if analysis.refused:
        console.print()
    for sentence in analysis.refused:
        paragraph(console, Text.assemble((_("Not compared:"), "yellow"), " ", worded(sentence)))
    _drift(console, analysis)
    if analysis.context is not None and analysis.context.note:
        console.print()
        paragraph(console, Text(_("Note: {note}.").format(note=worded(analysis.context.note)), style="dim"))
    console.print()
    paragraph(console, Text(answer(analysis), style="bold"))
    if commands:
        console.print()
        width = max(cell_len(command) for command, _purpose in commands)
        for command, purpose in commands:
            if width + 3 + cell_len(_(purpose)) <= console.width:
                row(console, Text.assemble((pad(command, width), "green"), "   ", _(purpose)))
            else:
                whole(console, Text(command, style="green"))
                paragraph(console, Text(_(purpose)), 4)


def subject(sweep: Sweep, analysis: Analysis) -> str:
    """"smollm2-135m · llamacpp 2026.10 · num_ctx 2048 · 12 trials, all valid · 3 blocks"."""
    n = sum(cell.n for cell in analysis.cells)
    left_out = [one.verdict for cell in analysis.cells for one in cell.left_out]
    counts = [_("all valid")] if not left_out else [wording.n_with(n - len(left_out), "valid")] + [
        wording.n_with(left_out.count(verdict), verdict) for verdict in dict.fromkeys(left_out)]
    trials = [wording.n_of(n, N_("{n} trial"), N_("{n} trials")), *counts] if n else [_("no trial")]
    if sweep.trials_planned and sweep.trials_planned > n:
        trials.append(_("{n} not run").format(n=sweep.trials_planned - n))
    differs = {key for cell in analysis.cells for key in cell.where}
    return _DOT.join(part for part in (
        "" if "model.name" in differs else sweep.model,
        engine_and_version(sweep.engine, sweep.engine_version),
        f"num_ctx {sweep.num_ctx}" if sweep.num_ctx and "num_ctx" not in differs else "",
        _(", ").join(trials), wording.n_of(analysis.blocks, N_("{n} block"), N_("{n} blocks"))) if part)


def _phases(console: Console, cells: Sequence[CellSummary]) -> None:
    """Cells × phases, median over valid trials: tree RSS and system percent."""
    if not cells:
        return
    labels = wording.cell_labels(cells)
    rss, pct = _readings(cells, "tree_rss", "mib"), _readings(cells, "system_used", "pct")
    heads = [_(head) for head, _phase, _suffix in wording.PHASES]
    names = [labels[cell.cell] for cell in cells]
    if spoken() == "ja":  # the heading known from the comparison this project began with
        console.print()
        row(console, Text("📊 " + _("Memory in detail:"), style="bold"))
    if console.width >= _SIDE_BY_SIDE:
        pairs = [[f"{mib:>8}{share:>6}" for mib, share in zip(*both, strict=True)]
                 for both in zip(rss, pct, strict=True)]
        units = [f"{'MiB':>8}{'%':>6}"] * len(heads)
        _grid(console, [(_("tree RSS, MiB"), heads), (_("system used, %"), units)], names, pairs)
    else:
        _grid(console, [(_("tree RSS, MiB"), heads)], names, rss)
        _grid(console, [(_("system used, %"), heads)], names, pct)


def _account(console: Console, cells: Sequence[CellSummary]) -> None:
    """Where the settled memory is, by the engine's own account; nothing where the engine gave none."""
    told = [cell for cell in cells if "engine/unexplained_mib" in cell.median]
    columns = {_(head): [sum(cell.median.get(metric, 0.0) for metric in metrics) for cell in told]
               for head, metrics in wording.ACCOUNT}
    columns = {head: values for head, values in columns.items() if any(abs(value) >= 0.05 for value in values)}
    if not told or not columns:
        return
    labels = wording.cell_labels(cells)
    rows = [[wording.number(values[index]) for values in columns.values()] for index in range(len(told))]
    _grid(console, [(_("where it is, MiB"), list(columns))], [labels[cell.cell] for cell in told], rows)


def _readings(cells: Sequence[CellSummary], quantity: str, unit: str) -> list[list[str]]:
    return [[wording.number(cell.median.get(f"{phase}/{quantity}{suffix}_{unit}"))
             for _head, phase, suffix in wording.PHASES] for cell in cells]


def _grid(console: Console, headings: Sequence[tuple[str, Sequence[str]]], labels: Sequence[str],
          rows: Sequence[Sequence[str]]) -> None:
    """Numbers under their headings (title, heads), each column as wide as it needs, the names before them.

    A name that does not fit is cut with …; where that leaves too little of it, it stands on a line of its own.
    """
    longest = max(cell_len(text) for text in (*labels, *(title for title, _heads in headings)))
    for least in (9, 8, 7):
        widths = [max(least, 1 + max(map(cell_len, column)))
                  for column in zip(*(heads for _title, heads in headings), *rows, strict=True)]
        room = max(0, console.width - sum(widths))
        if room >= longest:
            break
    told_apart = len({cut(label, room) for label in labels}) == len(labels)
    own_line = longest > room and (room < _LEAST_NAME or not told_apart)
    room = min(2, room) if own_line else min(longest, room)
    console.print()
    for title, heads in headings:
        _numbers(console, title, heads, widths, room, own_line, "dim")
    for label, line in zip(labels, rows, strict=True):
        _numbers(console, label, line, widths, room, own_line, "")


def _numbers(console: Console, name: str, texts: Sequence[str], widths: Sequence[int], room: int, own_line: bool,
             style: str) -> None:
    line = "".join(pad_left(text, width) for text, width in zip(texts, widths, strict=True))
    if own_line:
        paragraph(console, Text(name, style))
    row(console, Text((" " * room if own_line else cut(name, room)) + line, style))


def _left_out(console: Console, analysis: Analysis, skipped: Sequence[tuple[str, str]]) -> None:
    """Trials that do not count, cells that were not run, notes; each with its reason."""
    labels = wording.cell_labels(analysis.cells)
    left_out = sorted(((one, cell) for cell in analysis.cells for one in cell.left_out), key=lambda pair: pair[0].order)
    if left_out or skipped or analysis.notes or analysis.warm_ups:
        console.print()
    if analysis.warm_ups:
        trials = ", ".join(str(order) for order, _cell in analysis.warm_ups)
        paragraph(console, Text(_("Warm-up, not counted: trial {trials}.").format(trials=trials), style="dim"))
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[int, str]]] = {}
    for one, cell in left_out:
        alike.setdefault((one.verdict, tuple(one.reasons)), []).append((one.order, labels[cell.cell]))
    for (verdict, reasons), several in list(alike.items())[:_MOST_LEFT_OUT]:
        said = _("Left out: trial {n} ({cell}), ") if len(several) == 1 else _("Left out: trials {n} ({cell}), ")
        why = "" if reasons == (verdict,) else f": {'; '.join(map(worded, reasons)) or _('no reason recorded')}"
        paragraph(console, Text.assemble(
            said.format(n=_listed([order for order, _cell in several]), cell=", ".join(dict.fromkeys(
                label for _order, label in several))),
            (wording.verdict_name(verdict), _VERDICTS.get(verdict, "")), why))
    if len(alike) > _MOST_LEFT_OUT:
        more = sum(map(len, list(alike.values())[_MOST_LEFT_OUT:]))
        row(console, Text("          " + _("… and {n} more").format(n=more)))
    for cell_name, why in skipped:
        paragraph(console, Text(_("Not run: {cell}: {why}").format(cell=cell_name, why=worded(why))))
    for text, orders in _grouped(analysis.notes)[:_MOST_NOTES]:
        said = _("Note: trial {trials}: {note}") if len(orders) == 1 else _("Note: trials {trials}: {note}")
        paragraph(console, Text(said.format(trials=_listed(orders), note=worded(text)), style="dim"))
    if len(_grouped(analysis.notes)) > _MOST_NOTES:
        more = len(_grouped(analysis.notes)) - _MOST_NOTES
        row(console, Text("      " + _("… and {n} more notes").format(n=more), style="dim"))
    jumped = max((cell.jumped_share.get(HEADLINE, 0.0) for cell in analysis.cells), default=0.0)
    if jumped > 0:
        paragraph(console, Text(_("In one cell {share} % of the trials lie far from the others: its intervals are too "
                                  "narrow.").format(share=f"{100 * jumped:.0f}")))


def _listed(orders: Sequence[int]) -> str:
    return ", ".join(map(str, orders[:6])) + ", …" * (len(orders) > 6)


def _grouped(notes: Sequence[tuple[int, str]]) -> list[tuple[str, list[int]]]:
    by_text: dict[str, list[int]] = {}
    for order, text in notes:
        by_text.setdefault(text, []).append(order)
    return list(by_text.items())


def _verdict(stats: Comparison, difference: float | None, reference: float | None) -> Text:
    return Text(wording.comparison(stats, difference, reference), style=_STYLES.get(stats.kind, ""))


def _gap(console: Console, analysis: Analysis) -> None:
    """oneshot − interactive: as found (each mode read at its own moment) beside unified."""
    found = {(row.metric.partition("/")[2], row.infer_os, wording.where_text(row.where)): row
             for row in analysis.gap.as_found}
    unified = [row for row in analysis.gap.unified if row.turn == 1 or row.difference is not None]
    arms = dict.fromkeys((row.infer_os, wording.where_text(row.where)) for row in (*found.values(), *unified))
    brief = len(arms) > _MANY_ARMS
    lines: list[tuple[str, str, Text]] = []
    for quantity, name in (("tree_rss_mib", _("tree RSS")), ("system_used_pct", _("system used"))):
        for arm in arms:
            label = ", ".join(part for part in (name, arm[0] if len({a[0] for a in arms}) > 1 else "", arm[1]) if part)
            raw = found.get((quantity, *arm))
            rows = {(row.metric, row.turn): row for row in unified
                    if (row.infer_os, wording.where_text(row.where)) == arm}
            settled = rows.get((f"stabilized/{quantity}", 1))
            if raw is not None or settled is not None:
                lines.append((label, _as_found(raw), _gap_verdict(settled)))
            for (metric, turn), compared in () if brief else rows.items():
                if metric == f"stabilized/{quantity}" and turn > 1:
                    lines.append(("  " + _("at turn {turn}").format(turn=turn), "", _gap_verdict(compared)))
                if metric == "during_generation/tree_rss_peak_mib" and quantity == "tree_rss_mib":
                    name_of = _("peak") if turn == 1 else _("peak, turn {turn}").format(turn=turn)
                    lines.append((f"  {name_of}", "", _gap_verdict(compared)))
    console.print()
    row(console, Text(_("Gap, one-shot − interactive"), style="bold"))
    _entries(console, lines, (_("as found"), _("unified (settled, turn 1)")))
    note = _("As found: each mode read at its own, different moment (interactive before its load, one-shot after "
             "its answer).")
    widest = wording.widest_as_found(list(found.values()))
    if widest:
        note = together([note, _("As found, each within ± {sizes} of its figure (95 %).").format(
            sizes=_(", ± ").join(widest))])
    paragraph(console, Text(note, style="dim"))


def _as_found(gap: GapRow | None) -> str:
    return "" if gap is None else "–" if gap.difference is None else wording.signed(gap.difference, gap.stats.unit)


def _gap_verdict(gap: GapRow | None) -> Text:
    if gap is None or gap.difference is None:
        return Text(_("not measured"))
    return _verdict(gap.stats, gap.difference, gap.interactive)


def _growth(console: Console, analysis: Analysis) -> None:
    """Settled tree RSS from turn to turn, a line per cell."""
    labels = wording.cell_labels(analysis.cells)
    console.print()
    row(console, Text.assemble((_("Growth per turn"), "bold"), ("   " + _("settled tree RSS"), "dim")))
    _entries(console, [(labels[one.cell], "", Text(_("{verdict}, n = {n}").format(
        verdict=wording.growth_text(one), n=one.stats.n_blocks), _STYLES.get(one.stats.kind, "")))
        for one in analysis.growths])
    method = next((one.stats.method for one in analysis.growths if one.stats.method), None)
    if method:
        paragraph(console, Text(_("Intervals: 95 %, {method}.").format(method=worded(method)), style="dim"))


def _exploration(rows: Sequence[EffectRow]) -> str:
    """Which rows are the sweep's question, in a sentence."""
    asked = dict.fromkeys(wording.metric_name(row.metric) for row in rows if row.question)
    if not asked:
        return _("All of this is exploration.")
    return _("The question is: {metrics}; all else is exploration.").format(metrics=", ".join(asked))


def _effects(console: Console, effects: Sequence[EffectRow]) -> None:
    """on − off, one line per metric, flag and mode, the sweep's question first; then the same for each knob."""
    for knob in dict.fromkeys(one.knob for one in sorted(effects, key=lambda one: one.knob != "")):
        _effects_of(console, [one for one in effects if one.knob == knob])


def _effects_of(console: Console, effects: Sequence[EffectRow]) -> None:
    measured = [row for metric in dict.fromkeys((*(row.metric for row in effects if row.question), *EFFECTS))
                for row in effects if row.metric == metric and row.difference is not None]
    rows = measured if len(measured) <= _MANY_EFFECTS else [row for row in measured if row.question]
    if not rows:
        return
    flags = dict.fromkeys(row.flag for row in rows)
    knob, against = rows[0].knob, rows[0].against
    if knob:
        title = _("{knob}, against {value}").format(knob=knob if len(flags) > 1 else rows[0].flag, value=against)
    else:
        title = _("Flags, on − off") if len(flags) > 1 or "on" in flags else _("{flag}, on − off").format(
            flag=next(iter(flags)))
    console.print()
    row(console, Text.assemble((title, "bold"), ("   " + _("tree RSS unless said otherwise"), "dim")))
    _entries(console, [(label, "", _verdict(one.stats, one.difference, one.off))
                       for label, one in zip(wording.effect_labels(rows), rows, strict=True)])
    methods = dict.fromkeys(worded(without_family(one.stats.method)) for one in rows if one.stats.method)
    levels = sorted({one.stats.level for one in rows if one.stats.level})
    families = sorted({one.stats.family for one in rows if one.stats.family > 1})
    if methods:
        level = _(" to ").join(dict.fromkeys(f"{100 * level:.3g}" for level in (levels[0], levels[-1])))
        over = _("Bonferroni over {n} values") if knob else _("Bonferroni over {n} flags")
        methods |= {over.format(n=n): None for n in families[-1:]}
        paragraph(console, Text(together([_("Intervals: {level} %, {methods}.").format(
            level=level, methods="; ".join(methods)), _exploration(rows)]), style="dim"))
    if len(rows) < len(measured):
        paragraph(console, Text(_("{n} further comparisons: show --json").format(n=len(measured) - len(rows)),
                                style="dim"))


def _savings(console: Console, analysis: Analysis) -> None:
    """Peak and settled figures of both arms, in the layout known from the original (Japanese only).

    The medians of both arms, and what may be said of their difference: the verdict of the same effect."""
    effects = {(one.metric, one.mode, tuple(one.where.items())): one for one in analysis.effects if one.flag == "on"}
    found = list(dict.fromkeys((mode, where) for _metric, mode, where in effects))
    if spoken() != "ja" or not found:
        return
    lines = []
    for mode, where in found:
        arm = ", ".join(filter(None, (mode if len(found) > 1 else "", wording.where_text(dict(where)))))
        for name, metric, unit in ((_("peak use"), "during_generation/system_used_peak_pct", "%"),
                                   (_("settled use"), "stabilized/system_used_pct", "%"),
                                   (_("peak tree RSS"), "during_generation/tree_rss_peak_mib", "MiB"),
                                   (_("settled tree RSS"), HEADLINE, "MiB")):
            one = effects.get((metric, mode, where))
            if one is not None and one.off is not None and one.on is not None:
                said = _SAVED.get(one.stats.kind, N_("{off} → {on} {unit} (undecided)"))
                lines.append((", ".join(filter(None, (name, arm))), "", Text(_(said).format(
                    off=wording.number(one.off), on=wording.number(one.on), unit=unit,
                    size=wording.quantity(one.off - one.on, one.stats.unit)), _STYLES.get(one.stats.kind, ""))))
    console.print()
    row(console, Text(_("What infer-OS saves:"), style="bold"))
    _entries(console, lines)


_SAVED = {"less": N_("{off} → {on} {unit} ({size} less)"), "more": N_("{off} → {on} {unit} ({size} more)"),
          "identical": N_("{off} → {on} {unit} (no difference)"),
          "no difference": N_("{off} → {on} {unit} (no difference)")}


def _factorials(console: Console, found: Sequence[Factorial]) -> None:
    """Main effects and two-way interactions, ranked; of what is not the question the main effects only."""
    for one in found:
        name = ", ".join(filter(None, (wording.metric_name(one.metric), one.mode, wording.where_text(one.where))))
        console.print()
        row(console, Text.assemble((_("Flags, factorial"), "bold"), (
            "   " + _("{name}; each over all settings of the others").format(name=name), "dim")))
        _entries(console, [(term.name if not term.aliased_with else _("{term} (or {others})").format(
            term=term.name, others=", ".join(" × ".join(alias) for alias in term.aliased_with)),
            "", _verdict(term.stats, term.estimate, None))
            for term in one.terms if one.metric == HEADLINE or len(term.flags) == 1])
        paragraph(console, Text(_("Intervals: {level} %, {methods}.").format(
            level=f"{100 * one.level:.3g}", methods=worded(one.method)), style="dim"))


def _drift(console: Console, analysis: Analysis) -> None:
    found = [test for test in analysis.drift if test.found]
    if found or len(analysis.slopes) > 1:
        console.print()
    for slope in analysis.slopes[1:]:
        paragraph(console, Text(wording.slope_text(slope)))
    for test in found:
        paragraph(console, Text(_("Careful: {finding}.").format(finding=worded(test.text)), style="yellow"))


def _entries(console: Console, entries: Sequence[tuple[str, str, Text]], heads: tuple[str, str] = ("", "")) -> None:
    """Label, figure, words under their heads. The words wrap in their column; without room for it, all is prose."""
    labels = 2 + max((cell_len(label) for label, _figure, _said in entries), default=0)
    figures = max((cell_len(figure) for figure in (heads[0], *(figure for _label, figure, _said in entries))),
                  default=0)
    left = labels + (figures + 2 if figures else 0) + 2
    beside = console.width - left >= _LEAST_WORDS
    if beside and heads[1]:
        row(console, Text(f"{pad_left(heads[0], left - 2)}  {heads[1]}", style="dim"))
    for label, figure, said in entries:
        if beside:
            head = pad(f"  {label}", labels) + "  " + (f"{pad_left(figure, figures)}  " if figures else "")
            paragraph(console, said, left, head)
        else:
            lead = Text(f"{label.strip()}: " + (f"{figure} {heads[0]}; " if figure else ""), said.style)
            indent = 6 if label.startswith(" ") else 4
            for number, line in enumerate(wrap(lead.append_text(said), console.width - indent)):
                row(console, Text.assemble(" " * (indent if number else indent - 2), line))
