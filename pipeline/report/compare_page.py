"""`slackwater compare A B`: what differs between two named sets of trials, then by how much their readings do.

Gathers, refuses what makes no sense, renders; the numbers are stats/between.py's, limits for CI stats/gate.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.errors import ConfigError
from pipeline.language import N_, _, sentence, worded
from pipeline.machine import HARDWARE
from pipeline.record.find import Subject
from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.document import SCHEMA_VERSION, plain
from pipeline.report.sweep_page import EFFECTS
from pipeline.report.terminal_lines import paragraph
from pipeline.stats import gate
from pipeline.stats.between import Change, Pair, by_cell, changes, match, pair_up
from pipeline.stats.comparison import without_family
from pipeline.stats.differing import NOT_RECORDED, Difference, differences, other_work
from pipeline.stats.gate import Judged
from pipeline.stats.summary import EFFECT_METRICS, UNIFIED_METRICS
from pipeline.stats.trials import methods, valid
from pipeline.text import print_json
from pipeline.track import opened

METRICS = tuple(dict.fromkeys((*EFFECT_METRICS, *UNIFIED_METRICS)))
JUDGED_BY = N_("A limit on a change is judged by the whole interval beside it: failed if all of it is beyond the "
               "limit, passed if none is, else undecided. A limit on B is judged by its median.")
UNDECIDED = 3
"""Exit code."""
_TITLES = {"model": N_("model"), "config": N_("config"), "engine": N_("engine settings"), "machine": N_("machine")}
_LEAST_WORDS = 24
"""Columns that words need beside their label."""
_MOST_SHOWN = 12
"""Differences of one group on the page; the document has all."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the page and the document of a comparison show."""

    a: Subject
    b: Subject
    pairs: Sequence[Pair]
    only_a: Sequence[str]
    only_b: Sequence[str]
    differences: Sequence[Difference]
    changes: Sequence[Change]
    gates: Sequence[Judged]
    other_work: str
    """How the sides did different work, where that was allowed."""
    methods: tuple[Sequence[int], Sequence[int]]
    """How either side was measured (result.METHOD)."""

    @property
    def paired(self) -> bool:
        """Cells of one sweep, compared block by block."""
        return all(pair.paired for pair in self.pairs)

    @property
    def scope(self) -> str:
        """What the intervals cover, in English, for the document."""
        return self._scope(str)

    def shown_scope(self) -> str:
        """What the intervals cover, in the language in use."""
        return self._scope(_)

    def _scope(self, say: Callable[[str], str]) -> str:
        if self.paired:
            return say(PAIRED)
        keys = [difference.key for difference in self.differences]
        listed = ", ".join(keys[:3])
        known = say(_FEW if 0 < len(keys) <= 3 else _MANY if keys else _NONE).format(keys=listed, n=len(keys) - 3)
        references = sorted({change.reference for change in self.changes if change.reference})
        return say(_SHARED if references else _APART).format(known=known, cells=", ".join(references))


PAIRED = N_("Cells of one sweep, compared block by block: drift of the machine is taken out.")
_FEW, _MANY, _NONE = "{keys}", N_("{keys}, {n} more keys"), N_("nothing that was recorded")
_APART = N_("These sweeps differ by {known} and by when they ran; differences between days or machines are not covered "
            "by the intervals.")
_SHARED = N_("These sweeps differ by {known} and by when they ran; differences between days or machines are not "
             "covered by the intervals, except where both sweeps have the cell {cells}, which takes them out.")


def compare(name_a: str, name_b: str, *, uri: str | None, limits: Sequence[str], as_json: bool,
            allow_different_work: bool, undecided_fails: bool = True) -> int:
    """Print B against A; 1 if a limit was broken, 3 if one is undecided and that fails, else 0.

    Raises ConfigError and StoreError."""
    found = gather(opened.subject(name_a, uri), opened.subject(name_b, uri), limits, allow_different_work)
    if as_json:
        print_json(document(found))
    else:
        render(Console(highlight=False), found)
    outcome = gate.overall(found.gates)
    return 1 if outcome == "failed" else UNDECIDED if outcome == "undecided" and undecided_fails else 0


def gather(a: Subject, b: Subject, limits: Sequence[str] = (), allow_different_work: bool = False) -> Comparison:
    """Compare what was found. Raises ConfigError: the same trials, no counterpart, other work, an odd limit."""
    one_sweep = a.sweep.sweep_id == b.sweep.sweep_id and a.sweep.started_ms == b.sweep.started_ms
    if one_sweep and {trial.order for trial in a.trials} & {trial.order for trial in b.trials}:
        raise ConfigError(_("{a} and {b} share trials: there is nothing to compare. Name two cells of {sweep}:\n"
                            "{cells}").format(a=a.name, b=b.name, sweep=a.sweep.sweep_id, cells=_cells(a)))
    matched, only_a, only_b = match(a.trials, b.trials)
    if not matched:
        raise ConfigError(_("{a} and {b} have no cell in common. Name one of each, as in `slackwater compare "
                            "SWEEP:CELL SWEEP:CELL`:\n{cells}").format(
                                a=a.name, b=b.name, cells=f"{_cells(a)}\n{_cells(b)}"))
    cells_a, cells_b = by_cell(a.trials), by_cell(b.trials)
    pairs = [pair_up((one, other), cells_a[one], cells_b[other], one_sweep, a.whole_sweep, b.whole_sweep)
             for one, other in matched]
    _require_valid(pairs)
    work = next((text for pair in pairs if (text := other_work(pair.a, pair.b))), "")
    if work and not allow_different_work:
        raise ConfigError(_("{work}. A difference in memory would say nothing about a cause. Compare trials of one "
                            "model and the same work, or ask for it: --allow-different-work.").format(
                                work=worded(work)))
    both = [pair.a for pair in pairs], [pair.b for pair in pairs]
    compared_a, compared_b = ([trial for cell in cells for trial in cell] for cells in both)
    differing = differences(compared_a, compared_b, *({} if one_sweep else _machine(side) for side in (a, b)))
    measured = _metrics(compared_a) & _metrics(compared_b)
    gates = [gate.parse(text, measured) for text in limits]
    wanted = dict.fromkeys((*METRICS, *(each.metric for each in gates)))
    found = [change for metric in wanted if metric in measured for change in changes(pairs, metric)]
    apart = _apart(ways := (methods(compared_a), methods(compared_b)), differing)
    judged = [gate.judge(each, change, apart) for each in gates
              for pair, change in zip(pairs, (one for one in found if one.metric == each.metric), strict=True)
              if _concerns(pair, each.metric)]
    shown = [change for change in found if change.n_a or change.n_b]
    return Comparison(a, b, pairs, only_a, only_b, differing, shown, judged, work, ways)


def _concerns(pair: Pair, metric: str) -> bool:
    """Can a limit on the metric be judged on this pair? Not where its cells do not measure such a thing at all, such as
    a load of its own in one-shot cells; with no valid trial on some side that is not known, and it is undecided."""
    sides = [valid(pair.a), valid(pair.b)]
    return not all(sides) or any(metric in trial.metrics for side in sides for trial in side)


def _apart(ways: tuple[Sequence[int], Sequence[int]], differing: Sequence[Difference]) -> str:
    """Why no limit on a change can be decided between these sides, in English; "" if it can."""
    if len({*ways[0], *ways[1]}) > 1:
        return sentence(N_("A was measured by method {a}, B by method {b}"), a=_listed(ways[0]), b=_listed(ways[1]))
    for one in differing:
        if one.group == "machine" and one.key in HARDWARE and NOT_RECORDED not in (one.a, one.b):
            return sentence(N_("A and B ran on different machines ({key}: {a} → {b})"), key=one.key, a=one.a, b=one.b)
    return ""


def _listed(ways: Sequence[int]) -> str:
    return ", ".join(map(str, ways))


def _cells(side: Subject) -> str:
    return "\n".join(f"  {side.sweep.sweep_id}:{cell}" for cell in sorted(by_cell(side.whole_sweep)))


def _require_valid(pairs: Sequence[Pair]) -> None:
    """At least one pair can be compared. Raises ConfigError that says why the trials do not count."""
    if any(valid(pair.a) and valid(pair.b) for pair in pairs):
        return
    lost = [trial for pair in pairs for cell in (pair.a, pair.b) if not valid(cell) for trial in cell]
    reasons = "\n".join("  " + _("{cell}, trial {n}: {verdict}: {reasons}").format(
        cell=trial.cell, n=trial.order, verdict=wording.verdict_name(trial.verdict),
        reasons="; ".join(map(worded, trial.reasons))) for trial in lost[:8])
    raise ConfigError(_("no two cells with a valid trial: nothing can be compared. Left out:\n{reasons}").format(
        reasons=reasons))


def _machine(side: Subject) -> Mapping[str, str]:
    """Facts about where it ran: of the sweep, or of its trials where its summary is missing."""
    return {"host": side.trials[0].tags.get("host", ""), **side.sweep.tags}


def _metrics(trials: Sequence[TrialRecord]) -> set[str]:
    return {name for trial in valid(trials) for name in trial.metrics}


def document(found: Comparison) -> dict[str, object]:
    """One JSON-ready value; a change is on one level with its statistics, `difference` is between medians, B − A."""
    return {
        "schema_version": SCHEMA_VERSION, "methods": dict(zip("ab", map(list, found.methods), strict=True)),
        "a": _side(found.a), "b": _side(found.b), "paired": found.paired,
        "scope": found.scope, "different_work": found.other_work,
        "differences": {group: [{"key": one.key, "a": one.a, "b": one.b} for one in found.differences
                                if one.group == group] for group in _TITLES},
        "unmatched": {"a": list(found.only_a), "b": list(found.only_b)},
        "effects": [plain({**{key: value for key, value in asdict(one).items() if key != "stats"}, **asdict(one.stats)})
                    for one in found.changes],
        "outcome": gate.overall(found.gates),
        "gates": [plain(asdict(one)) for one in found.gates], "gates_judged_by": JUDGED_BY,
    }


def _side(side: Subject) -> dict[str, object]:
    return {"name": side.name, "sweep_id": side.sweep.sweep_id, "cell": side.cell or None,
            "run_id": side.run_id or None, "source": side.source, "question": side.sweep.question,
            "started_ms": side.sweep.started_ms, "trials": len(side.trials), "trials_valid": len(valid(side.trials))}


def render(console: Console, found: Comparison) -> None:
    """The page: two methods if there are two, sides, what differs, effects, limits."""
    if len({*found.methods[0], *found.methods[1]}) > 1:
        paragraph(console, Text(_("Careful: {finding}.").format(finding=_(
            "A was measured by method {a}, B by method {b}: the same cell may read differently for that alone").format(
                a=_listed(found.methods[0]), b=_listed(found.methods[1]))), style="yellow"))
    paragraph(console, Text(_("B against A"), style="bold"))
    for letter, side in (("A", found.a), ("B", found.b)):
        paragraph(console, Text(_described(side)), 5, f"  {letter}")
    console.print()
    paragraph(console, Text(_("What differs, A → B"), style="bold"))
    for group, title in _TITLES.items():
        _group(console, _(title), [one for one in found.differences if one.group == group])
    for letter, cells in (("A", found.only_a), ("B", found.only_b)):
        if cells:
            paragraph(console, Text(_("only in {side}: {cells}").format(side=letter, cells=", ".join(cells))), 2)
    if found.other_work:
        paragraph(console, Text(_("Careful: {finding}.").format(finding=worded(found.other_work)), style="yellow"))
    console.print()
    paragraph(console, Text.assemble((_("Effects, B − A"), "bold"), (
        "   " + _("tree RSS unless said otherwise"), "dim")))
    gated = {one.metric for one in found.gates}
    rows = [one for one in found.changes if one.metric in EFFECTS or one.metric in gated]
    _rows(console, 2, [(_label(one, len(found.pairs) > 1), wording.comparison(one.stats, one.difference, one.a))
                       for one in rows])
    methods = dict.fromkeys(worded(without_family(one.stats.method)) for one in rows if one.stats.method)
    levels = sorted({one.stats.level for one in rows if one.stats.level})
    if methods:
        level = _(" to ").join(dict.fromkeys(f"{100 * one:.3g}" for one in (levels[0], levels[-1])))
        paragraph(console, Text(_("Intervals: {level} %, {methods}.").format(level=level, methods="; ".join(methods)),
                                style="dim"))
    paragraph(console, Text(found.shown_scope()))
    _gates(console, found.gates, len(found.pairs) > 1)


def _described(side: Subject) -> str:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(side.sweep.started_ms / 1000))
    what = _("run {run} of cell {cell}").format(run=side.run_id[:8], cell=side.cell) if side.run_id else \
        _("cell {cell}").format(cell=side.cell) if side.cell else \
        wording.n_of(len(by_cell(side.trials)), N_("{n} cell"), N_("{n} cells"))
    return _("{sweep}, {what}: {valid} of {n} trials valid, {started}, {source}").format(
        sweep=side.sweep.sweep_id, what=what, valid=len(valid(side.trials)), n=len(side.trials), started=started,
        source=side.source)


def _group(console: Console, title: str, listed: Sequence[Difference]) -> None:
    if not listed:
        paragraph(console, Text(_("{group}: nothing").format(group=title), style="dim"), 2)
        return
    paragraph(console, Text(title), 2)
    _rows(console, 4, [(one.key, f"{one.a} → {one.b}") for one in listed[:_MOST_SHOWN]])
    if len(listed) > _MOST_SHOWN:
        paragraph(console, Text(_("… and {n} more: --json").format(n=len(listed) - _MOST_SHOWN), style="dim"), 4)


def _rows(console: Console, indent: int, rows: Sequence[tuple[str, str]]) -> None:
    """Label and words beside it, wrapped in their column; below it where the terminal is narrow."""
    labels = indent + max((cell_len(label) for label, _said in rows), default=0) + 2
    for label, said in rows:
        if console.width - labels >= _LEAST_WORDS:
            paragraph(console, Text(said), labels, " " * indent + label)
        else:
            paragraph(console, Text(f"{label}: {said}"), indent)


def _label(change: Change, several: bool) -> str:
    cells = change.cell_b if change.cell_a == change.cell_b else f"{change.cell_a} → {change.cell_b}"
    turn = _("turn {turn}").format(turn=change.turn) if change.turn else ""
    return ", ".join(filter(None, (wording.metric_name(change.metric), cells if several else "", turn)))


def _gates(console: Console, gates: Sequence[Judged], several: bool) -> None:
    if not gates:
        return
    console.print()
    for one in gates:
        unit = f" {wording.unit_name(one.unit)}".rstrip()
        within = "" if one.lo is None or one.hi is None else f" ({one.lo:+.4g} … {one.hi:+.4g})"
        value = _("not measured") if one.value is None else f"{one.value:{'+' * bool(within)}.4g}{unit}{within}"
        if one.why == gate.SAYS_NOTHING:
            value = _("how much is unknown")
        cells = f" [{one.cell_b}]" if several else ""
        text = _(_OUTCOMES[one.outcome]).format(limit=f"{one.gate}{cells}", value=value)
        if one.why:
            text += _("; ") + worded(one.why)
        if one.more_blocks is not None and one.why in (gate.BOTH_SIDES, gate.SAYS_NOTHING):
            text += _("; ") + wording.n_of(one.more_blocks, N_("about {n} more block would decide"),
                                         N_("about {n} more blocks would decide"))
        paragraph(console, Text(text, style=_COLOURS[one.outcome]))
    paragraph(console, Text(_(JUDGED_BY), style="dim"))


_OUTCOMES = {"passed": N_("passed: {limit}: {value}"), "failed": N_("FAILED: {limit}: {value}"),
             "undecided": N_("undecided: {limit}: {value}")}
_COLOURS = {"passed": "green", "failed": "red", "undecided": "yellow"}
