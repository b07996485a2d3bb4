"""What a person reads in the terminal after a sweep, and the list of sweeps. rich does the drawing.

Takes values that are computed already (`document.analyse`). Fits 80 columns, uses more, is readable at 60, and
prints plain text into a pipe. What moves while a sweep runs is in `live`.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pipeline.language import _
from pipeline.report import words
from pipeline.report.answer import answer
from pipeline.report.document import Analysis, Sweep
from pipeline.stats.comparison import Comparison
from pipeline.stats.factorial import Factorial
from pipeline.stats.measures import HEADLINE
from pipeline.stats.summary import CellSummary, EffectRow, GapRow

EFFECTS = (HEADLINE, "during_generation/tree_rss_peak_mib", "released/tree_rss_mib", "stabilized/system_used_pct",
           "decode/tokens_per_s", "during_generation/time_to_first_token_s", "load/duration_s")
"""The effects that are printed; the rest is in the JSON document and in the report."""

_STYLES = {"less": "cyan", "more": "yellow", "undecided": "dim", "not enough": "dim"}
_VERDICTS = {"failed": "red", "suspect": "yellow", "interrupted": "yellow"}
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
                skipped: Sequence[tuple[str, str]] = ()) -> None:
    """The page at the end of a sweep: question, subject, phases, gap, effects, answer, next commands.

    `commands` are (command, what it is for); `skipped` are (cell, why it was not run).
    """
    _line(console, Text(sweep.question or "What was measured", style="bold"))
    _line(console, Text(subject(sweep, analysis), style="dim"))
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
    if analysis.refused:
        console.print()
    for sentence in analysis.refused:
        _line(console, Text.assemble(("Not compared: ", "yellow"), sentence))
    _drift(console, analysis)
    console.print()
    _line(console, Text(answer(analysis), style="bold"))
    if commands:
        console.print()
        width = max(cell_len(command) for command, _ in commands)
        for command, purpose in commands:
            if width + 3 + cell_len(purpose) <= console.width:
                _line(console, Text.assemble((set_cell_size(command, width), "green"), "   ", purpose))
            else:
                _line(console, Text(command, style="green"))
                _line(console, Text(f"    {purpose}"))


def subject(sweep: Sweep, analysis: Analysis) -> str:
    """"smollm2-135m · llamacpp 2026.10 · num_ctx 2048 · 12 trials, all valid · 3 blocks"."""
    n = sum(cell.n for cell in analysis.cells)
    left_out = [one.verdict for cell in analysis.cells for one in cell.left_out]
    counts = "all valid" if not left_out else ", ".join(
        [f"{n - len(left_out)} valid"] + [f"{left_out.count(v)} {v}" for v in dict.fromkeys(left_out)])
    trials = f"{n} trial{'s' * (n != 1)}, {counts}" if n else "no trial"
    if sweep.trials_planned and sweep.trials_planned > n:
        trials += f", {sweep.trials_planned - n} not run"
    differs = {key for cell in analysis.cells for key in cell.where}
    return " · ".join(part for part in (
        "" if "model.name" in differs else sweep.model,
        f"{sweep.engine} {sweep.engine_version}".strip(),
        f"num_ctx {sweep.num_ctx}" if sweep.num_ctx and "num_ctx" not in differs else "",
        trials, f"{analysis.blocks} block{'s' * (analysis.blocks != 1)}") if part)


def print_runs(console: Console, sweeps: Sequence[Sweep]) -> None:
    """The list of sweeps, newest first as given."""
    if not sweeps:
        _line(console, Text("No sweep in this store yet."))
        return
    rows = [("sweep", "started", "trials", "question")] + [
        (sweep.sweep_id, _started(console, sweep), _counts(sweep), sweep.question or sweep.name or "–")
        for sweep in sweeps]
    widths = [max(cell_len(row[column]) for row in rows) + 2 for column in range(3)]
    for row, status in zip(rows, ["", *(sweep.status for sweep in sweeps)], strict=True):
        first, started, trials = (set_cell_size(text, width) for text, width in zip(row, widths, strict=False))
        _row(console, Text.assemble(first, started, (trials, _STATUS.get(status, "")), row[3],
                                    style="dim" if row is rows[0] else ""))


def _started(console: Console, sweep: Sweep) -> str:
    form = "%m-%d %H:%M" if console.width < _SIDE_BY_SIDE else "%Y-%m-%d %H:%M"
    return "–" if sweep.started_ms is None else time.strftime(form, time.localtime(sweep.started_ms / 1000))


_STATUS = {"failed": "red", "interrupted": "yellow", "running": "cyan"}


def _counts(sweep: Sweep) -> str:
    done = sweep.trials_finished
    text = "–" if done is None else f"{done}/{sweep.trials_planned}" if sweep.trials_planned else str(done)
    if done is not None and sweep.trials_valid is not None and sweep.trials_valid < done:
        text += f", {sweep.trials_valid} valid"
    return text if sweep.status == "finished" else f"{text} {sweep.status}"


def _line(console: Console, text: Text) -> None:
    """One paragraph, wrapped at words. Names and messages are never read as markup."""
    console.print(text, highlight=False)


def _phases(console: Console, cells: Sequence[CellSummary]) -> None:
    """Cells × phases, median over valid trials: tree RSS and system percent."""
    if not cells:
        return
    labels = words.cell_labels(cells)
    rss, pct = _readings(cells, "tree_rss", "mib"), _readings(cells, "system_used", "pct")
    heads = [head for head, _, _ in words.PHASES]
    names = [labels[cell.cell] for cell in cells]
    if console.width >= _SIDE_BY_SIDE:
        pairs = [[f"{mib:>8}{share:>6}" for mib, share in zip(*both, strict=True)]
                 for both in zip(rss, pct, strict=True)]
        units = [f"{'MiB':>8}{'%':>6}"] * len(heads)
        _grid(console, [("tree RSS, MiB", heads), ("system used, %", units)], names, pairs)
    else:
        _grid(console, [("tree RSS, MiB", heads)], names, rss)
        _grid(console, [("system used, %", heads)], names, pct)


def _account(console: Console, cells: Sequence[CellSummary]) -> None:
    """Where the settled memory is, by the engine's own account; nothing where the engine gave none."""
    told = [cell for cell in cells if "engine/unexplained_mib" in cell.median]
    columns = {head: [sum(cell.median.get(metric, 0.0) for metric in metrics) for cell in told]
               for head, metrics in words.ACCOUNT}
    columns = {head: values for head, values in columns.items() if any(abs(value) >= 0.05 for value in values)}
    if not told or not columns:
        return
    labels = words.cell_labels(cells)
    rows = [[words.number(values[index]) for values in columns.values()] for index in range(len(told))]
    _grid(console, [("where it is, MiB", list(columns))], [labels[cell.cell] for cell in told], rows)


def _readings(cells: Sequence[CellSummary], quantity: str, unit: str) -> list[list[str]]:
    return [[words.number(cell.median.get(f"{phase}/{quantity}{suffix}_{unit}")) for _, phase, suffix in words.PHASES]
            for cell in cells]


def _grid(console: Console, headings: Sequence[tuple[str, Sequence[str]]], labels: Sequence[str],
          rows: Sequence[Sequence[str]]) -> None:
    """Numbers under their headings (title, heads), in columns of one width.

    A name that does not fit is cut with …; where that leaves too little of it, it stands on a line of its own.
    """
    width = 1 + max(8, *(len(text) for row in (*rows, *(heads for _, heads in headings)) for text in row))
    room = max(0, console.width - width * len(headings[0][1]))
    longest = max(cell_len(text) for text in (*labels, *(title for title, _ in headings)))
    told_apart = len({_cut(label, room) for label in labels}) == len(labels)
    own_line = longest > room and (room < _LEAST_NAME or not told_apart)
    room = 2 if own_line else min(longest, room)
    console.print()
    for title, heads in headings:
        _numbers(console, title, heads, width, room, own_line, "dim")
    for label, row in zip(labels, rows, strict=True):
        _numbers(console, label, row, width, room, own_line, "")


def _numbers(console: Console, name: str, texts: Sequence[str], width: int, room: int, own_line: bool,
             style: str) -> None:
    line = "".join(f"{text:>{width}}" for text in texts)
    if own_line:
        _row(console, Text(name, style))
    _row(console, Text((" " * room if own_line else _cut(name, room)) + line, style))


def _row(console: Console, text: Text) -> None:
    console.print(text, highlight=False, no_wrap=True, overflow="ellipsis")


def _cut(text: str, room: int) -> str:
    """Exactly `room` columns wide: padded, or cut with …."""
    return set_cell_size(text, room) if cell_len(text) <= room else set_cell_size(text, max(0, room - 1)) + "…"


def _left_out(console: Console, analysis: Analysis, skipped: Sequence[tuple[str, str]]) -> None:
    """Trials that do not count, cells that were not run, notes; each with its reason."""
    labels = words.cell_labels(analysis.cells)
    left_out = sorted(((one, cell) for cell in analysis.cells for one in cell.left_out), key=lambda pair: pair[0].order)
    if left_out or skipped or analysis.notes or analysis.warm_ups:
        console.print()
    if analysis.warm_ups:
        trials = ", ".join(str(order) for order, _cell in analysis.warm_ups)
        _line(console, Text(_("Warm-up, not counted: trial {trials}.").format(trials=trials), style="dim"))
    for one, cell in left_out[:_MOST_LEFT_OUT]:
        _line(console, Text.assemble(f"Left out: trial {one.order} ({labels[cell.cell]}), ",
                                     (one.verdict, _VERDICTS.get(one.verdict, "")),
                                     f": {'; '.join(one.reasons) or 'no reason recorded'}"))
    if len(left_out) > _MOST_LEFT_OUT:
        _line(console, Text(f"          … and {len(left_out) - _MOST_LEFT_OUT} more"))
    for cell_name, why in skipped:
        _line(console, Text(f"Not run: {cell_name}: {why}"))
    for text, orders in _grouped(analysis.notes)[:_MOST_NOTES]:
        trials = f"trial{'s' * (len(orders) > 1)} {', '.join(map(str, orders[:6]))}{', …' * (len(orders) > 6)}"
        _line(console, Text(f"Note: {trials}: {text}", style="dim"))
    if len(_grouped(analysis.notes)) > _MOST_NOTES:
        _line(console, Text(f"      … and {len(_grouped(analysis.notes)) - _MOST_NOTES} more notes", style="dim"))
    jumped = max((cell.jumped_share.get(HEADLINE, 0.0) for cell in analysis.cells), default=0.0)
    if jumped > 0:
        _line(console, Text(f"In one cell {100 * jumped:.0f} % of the trials lie far from the others: its intervals "
                            "are too narrow."))


def _grouped(notes: Sequence[tuple[int, str]]) -> list[tuple[str, list[int]]]:
    by_text: dict[str, list[int]] = {}
    for order, text in notes:
        by_text.setdefault(text, []).append(order)
    return list(by_text.items())


def _verdict(stats: Comparison, difference: float | None, reference: float | None) -> Text:
    return Text(words.comparison(stats, difference, reference), style=_STYLES.get(stats.kind, ""))


_TOGETHER = re.compile(r"(?<=[0-9]) (?=MiB|points|%|/s|s\b|ms\b|…)|(?<=…) |(?<=\bn) (?==)|(?<==) ")
"""Spaces at which a line must not break: before a unit, inside an interval, inside "n = 3"."""


def _wrap(text: Text, width: int) -> list[Text]:
    lines = textwrap.wrap(_TOGETHER.sub("\u00a0", text.plain), max(20, width)) or [""]
    return [Text(line.replace("\u00a0", " "), style=text.style) for line in lines]


def _gap(console: Console, analysis: Analysis) -> None:
    """oneshot − interactive, as found beside unified."""
    found = {(row.metric.partition("/")[2], row.infer_os, words.where_text(row.where)): row
             for row in analysis.gap.as_found}
    unified = [row for row in analysis.gap.unified if row.turn == 1 or row.difference is not None]
    arms = dict.fromkeys((row.infer_os, words.where_text(row.where)) for row in (*found.values(), *unified))
    brief = len(arms) > _MANY_ARMS
    lines: list[tuple[str, str, Text]] = []
    for quantity, name in (("tree_rss_mib", "tree RSS"), ("system_used_pct", "system used")):
        for arm in arms:
            label = ", ".join(part for part in (name, arm[0] if len({a[0] for a in arms}) > 1 else "", arm[1]) if part)
            raw = found.get((quantity, *arm))
            rows = {(row.metric, row.turn): row for row in unified
                    if (row.infer_os, words.where_text(row.where)) == arm}
            settled = rows.get((f"stabilized/{quantity}", 1))
            if raw is not None or settled is not None:
                lines.append((label, _as_found(raw), _gap_verdict(settled)))
            for (metric, turn), row in () if brief else rows.items():
                if metric == f"stabilized/{quantity}" and turn > 1:
                    lines.append((f"  at turn {turn}", "", _gap_verdict(row)))
                if metric == "during_generation/tree_rss_peak_mib" and quantity == "tree_rss_mib":
                    lines.append(("  peak" if turn == 1 else f"  peak, turn {turn}", "", _gap_verdict(row)))
    console.print()
    _row(console, Text("Gap, one-shot − interactive", style="bold"))
    _entries(console, lines, ("as found", "unified (settled, turn 1)"))


def _as_found(row: GapRow | None) -> str:
    return "" if row is None else "–" if row.difference is None else words.signed(row.difference, row.stats.unit)


def _gap_verdict(row: GapRow | None) -> Text:
    if row is None or row.difference is None:
        return Text("not measured")
    return _verdict(row.stats, row.difference, row.interactive)


def _growth(console: Console, analysis: Analysis) -> None:
    """Settled tree RSS from turn to turn, a line per cell."""
    labels = words.cell_labels(analysis.cells)
    console.print()
    _row(console, Text.assemble((_("Growth per turn"), "bold"), ("   " + _("settled tree RSS"), "dim")))
    _entries(console, [(labels[one.cell], "", Text(words.growth_text(one) + f", n = {one.stats.n_blocks}",
                                                   _STYLES.get(one.stats.kind, ""))) for one in analysis.growths])
    method = next((one.stats.method for one in analysis.growths if one.stats.method), None)
    if method:
        _line(console, Text(_("Intervals: 95 %, {method}.").format(method=method), style="dim"))


def _exploration(rows: Sequence[EffectRow]) -> str:
    """Which rows are the sweep's question, in a sentence."""
    asked = dict.fromkeys(words.METRICS.get(row.metric, row.metric) for row in rows if row.question)
    if not asked:
        return _("All of this is exploration.")
    return _("The question is: {metrics}; all else is exploration.").format(metrics=", ".join(asked))


def _effects(console: Console, effects: Sequence[EffectRow]) -> None:
    """on − off, one line per metric, flag and mode; the sweep's question first."""
    measured = [row for metric in dict.fromkeys((*(row.metric for row in effects if row.question), *EFFECTS))
                for row in effects if row.metric == metric and row.difference is not None]
    rows = measured if len(measured) <= _MANY_EFFECTS else [row for row in measured if row.question]
    if not rows:
        return
    flags = dict.fromkeys(row.flag for row in rows)
    title = "Flags, on − off" if len(flags) > 1 or "on" in flags else f"{next(iter(flags))}, on − off"
    console.print()
    _row(console, Text.assemble((title, "bold"), ("   tree RSS unless said otherwise", "dim")))
    _entries(console, [(label, "", _verdict(row.stats, row.difference, row.off))
                       for label, row in zip(words.effect_labels(rows), rows, strict=True)])
    methods = dict.fromkeys(row.stats.method.partition(";")[0] for row in rows if row.stats.method)
    levels = sorted({row.stats.level for row in rows if row.stats.level})
    families = sorted({row.stats.family for row in rows if row.stats.family > 1})
    if methods:
        level = " to ".join(dict.fromkeys(f"{100 * level:.3g}" for level in (levels[0], levels[-1])))
        holm = "".join(f"; Holm over {k} flags" for k in families[-1:])
        _line(console, Text(f"Intervals: {level} %, {', '.join(methods)}{holm}. "
                            + _exploration(rows), style="dim"))
    if len(rows) < len(measured):
        _line(console, Text(f"{len(measured) - len(rows)} further comparisons: show --json", style="dim"))


def _factorials(console: Console, found: Sequence[Factorial]) -> None:
    """Main effects and two-way interactions, ranked; of what is not the question the main effects only."""
    for one in found:
        name = ", ".join(part for part in (words.METRICS.get(one.metric, one.metric), one.mode,
                                           words.where_text(one.where)) if part)
        console.print()
        _row(console, Text.assemble(("Flags, factorial", "bold"), (f"   {name}; each over all settings of the others",
                                                                   "dim")))
        _entries(console, [(term.name + (f" (or {', '.join(' × '.join(alias) for alias in term.aliased_with)})"
                                         if term.aliased_with else ""),
                            "", _verdict(term.stats, term.estimate, None))
                           for term in one.terms if one.metric == HEADLINE or len(term.flags) == 1])
        _line(console, Text(f"Intervals: 95 %, {one.method}.", style="dim"))


def _drift(console: Console, analysis: Analysis) -> None:
    found = [test for test in analysis.drift if test.found]
    if found or len(analysis.slopes) > 1:
        console.print()
    for slope in analysis.slopes[1:]:
        _line(console, Text(words.slope_text(slope)))
    for test in found:
        _line(console, Text(f"Careful: {test.text}.", style="yellow"))


def _entries(console: Console, entries: Sequence[tuple[str, str, Text]], heads: tuple[str, str] = ("", "")) -> None:
    """Label, figure, words under their heads. The words wrap in their column; without room for it, all is prose."""
    labels = 2 + max((cell_len(label) for label, _, _ in entries), default=0)
    figures = max((cell_len(figure) for figure in (heads[0], *(figure for _, figure, _ in entries))), default=0)
    left = labels + (figures + 2 if figures else 0) + 2
    beside = console.width - left >= _LEAST_WORDS
    if beside and heads[1]:
        _row(console, Text(f"{heads[0]:>{left - 2}}  {heads[1]}", style="dim"))
    for label, figure, said in entries:
        if beside:
            head = set_cell_size(f"  {label}", labels) + "  " + (f"{figure:>{figures}}  " if figures else "")
            indent, prose = left, said
        else:
            indent = 6 if label.startswith(" ") else 4
            head = " " * (indent - 2)
            prose = Text(f"{label.strip()}: " + (f"{figure} {heads[0]}; " if figure else "") + said.plain, said.style)
        for i, line in enumerate(_wrap(prose, console.width - indent)):
            console.print(Text.assemble(head if i == 0 else " " * indent, line), highlight=False)
