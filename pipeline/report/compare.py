"""`slackwater compare A B`: what differs between two named sets of trials, then by how much their readings do.

Gathers, refuses what makes no sense, renders; the numbers are stats/between.py's, limits for CI stats/gate.py's.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from pipeline.errors import ConfigError
from pipeline.report import words
from pipeline.report.console import EFFECTS
from pipeline.report.document import SCHEMA_VERSION, plain
from pipeline.stats import gate
from pipeline.stats.between import Change, Pair, by_cell, changes, match, pair_up
from pipeline.stats.differing import Difference, differences, other_work
from pipeline.stats.gate import Judged
from pipeline.stats.summary import EFFECT_METRICS, UNIFIED_METRICS
from pipeline.stats.trials import Trial, valid
from pipeline.track.subject import Subject, find

METRICS = tuple(dict.fromkeys((*EFFECT_METRICS, *UNIFIED_METRICS)))
JUDGED_BY = "A limit trips when the estimate is beyond it; the interval beside it says how sure that is."
_TITLES = {"model": "model", "config": "config", "engine": "engine settings", "machine": "machine"}
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

    @property
    def paired(self) -> bool:
        """Cells of one sweep, compared block by block."""
        return all(pair.paired for pair in self.pairs)

    @property
    def scope(self) -> str:
        """What the intervals cover, in words."""
        if self.paired:
            return "Cells of one sweep, compared block by block: drift of the machine is taken out."
        keys = [difference.key for difference in self.differences]
        known = ", ".join([*keys[:3], *([f"{len(keys) - 3} more keys"] if len(keys) > 3 else [])])
        text = (f"These sweeps differ by {known or 'nothing that was recorded'} and by when they ran; differences "
                "between days or machines are not covered by the intervals")
        references = sorted({change.reference for change in self.changes if change.reference})
        return f"{text}, except where both sweeps have the cell {', '.join(references)}, which takes them out." \
            if references else f"{text}."


def compare(name_a: str, name_b: str, *, uri: str | None, limits: Sequence[str], as_json: bool,
            allow_different_work: bool) -> int:
    """Print B against A; 1 if a limit tripped, else 0. Raises ConfigError and StoreError."""
    found = gather(find(name_a, uri), find(name_b, uri), limits, allow_different_work)
    if as_json:
        print(json.dumps(document(found), ensure_ascii=False, indent=2))
    else:
        render(Console(highlight=False), found)
    return int(any(judged.tripped for judged in found.gates))


def gather(a: Subject, b: Subject, limits: Sequence[str] = (), allow_different_work: bool = False) -> Comparison:
    """Compare what was found. Raises ConfigError: the same trials, no counterpart, other work, an odd limit."""
    one_sweep = a.sweep.sweep_id == b.sweep.sweep_id and a.sweep.started_ms == b.sweep.started_ms
    if one_sweep and {trial.order for trial in a.trials} & {trial.order for trial in b.trials}:
        raise ConfigError(f"{a.name} and {b.name} share trials: there is nothing to compare. Name two cells of "
                          f"{a.sweep.sweep_id}:\n{_cells(a)}")
    matched, only_a, only_b = match(a.trials, b.trials)
    if not matched:
        raise ConfigError(f"{a.name} and {b.name} have no cell in common. Name one of each, as in `slackwater compare "
                          f"SWEEP:CELL SWEEP:CELL`:\n{_cells(a)}\n{_cells(b)}")
    cells_a, cells_b = by_cell(a.trials), by_cell(b.trials)
    pairs = [pair_up((one, other), cells_a[one], cells_b[other], one_sweep, a.whole_sweep, b.whole_sweep)
             for one, other in matched]
    _require_valid(pairs)
    work = next((text for pair in pairs if (text := other_work(pair.a, pair.b))), "")
    if work and not allow_different_work:
        raise ConfigError(f"{work}. A difference in memory would say nothing about a cause. Compare trials of one "
                          "model and the same work, or ask for it: --allow-different-work.")
    both = [pair.a for pair in pairs], [pair.b for pair in pairs]
    compared_a, compared_b = ([trial for cell in cells for trial in cell] for cells in both)
    differing = differences(compared_a, compared_b, *({} if one_sweep else _machine(side) for side in (a, b)))
    measured = _metrics(compared_a) & _metrics(compared_b)
    gates = [gate.parse(text, measured) for text in limits]
    wanted = dict.fromkeys((*METRICS, *(each.metric for each in gates)))
    found = [change for metric in wanted if metric in measured for change in changes(pairs, metric)]
    judged = [gate.judge(each, change) for each in gates for change in found if change.metric == each.metric]
    return Comparison(a, b, pairs, only_a, only_b, differing, found, judged, work)


def _cells(side: Subject) -> str:
    return "\n".join(f"  {side.sweep.sweep_id}:{cell}" for cell in sorted(by_cell(side.whole_sweep)))


def _require_valid(pairs: Sequence[Pair]) -> None:
    """At least one pair can be compared. Raises ConfigError that says why the trials do not count."""
    if any(valid(pair.a) and valid(pair.b) for pair in pairs):
        return
    lost = [trial for pair in pairs for cell in (pair.a, pair.b) if not valid(cell) for trial in cell]
    reasons = "\n".join(f"  {trial.cell}, trial {trial.order}: {trial.verdict}: {'; '.join(trial.reasons)}"
                        for trial in lost[:8])
    raise ConfigError(f"no two cells with a valid trial: nothing can be compared. Left out:\n{reasons}")


def _machine(side: Subject) -> Mapping[str, str]:
    """Facts about where it ran: of the sweep, or of its trials where its summary is missing."""
    return {"host": side.trials[0].tags.get("host", ""), **side.sweep.tags}


def _metrics(trials: Sequence[Trial]) -> set[str]:
    return {name for trial in valid(trials) for name in trial.metrics}


def document(found: Comparison) -> dict[str, object]:
    """One JSON-ready value; a change is on one level with its statistics, `difference` is between medians, B − A."""
    return {
        "schema_version": SCHEMA_VERSION, "a": _side(found.a), "b": _side(found.b), "paired": found.paired,
        "scope": found.scope, "different_work": found.other_work,
        "differences": {group: [{"key": one.key, "a": one.a, "b": one.b} for one in found.differences
                                if one.group == group] for group in _TITLES},
        "unmatched": {"a": list(found.only_a), "b": list(found.only_b)},
        "effects": [plain({**{key: value for key, value in asdict(one).items() if key != "stats"}, **asdict(one.stats)})
                    for one in found.changes],
        "gates": [plain(asdict(one)) for one in found.gates], "gates_judged_by": JUDGED_BY,
    }


def _side(side: Subject) -> dict[str, object]:
    return {"name": side.name, "sweep_id": side.sweep.sweep_id, "cell": side.cell or None,
            "run_id": side.run_id or None, "source": side.source, "question": side.sweep.question,
            "started_ms": side.sweep.started_ms, "trials": len(side.trials), "trials_valid": len(valid(side.trials))}


def render(console: Console, found: Comparison) -> None:
    """The page: sides, what differs, effects, limits."""
    console.print(Text("B against A", style="bold"))
    for letter, side in (("A", found.a), ("B", found.b)):
        console.print(Text(f"  {letter}  {_described(side)}"))
    console.print()
    console.print(Text("What differs, A → B", style="bold"))
    for group, title in _TITLES.items():
        _group(console, title, [one for one in found.differences if one.group == group])
    for letter, cells in (("A", found.only_a), ("B", found.only_b)):
        if cells:
            console.print(Text(f"  only in {letter}: {', '.join(cells)}"))
    if found.other_work:
        console.print(Text(f"Careful: {found.other_work}.", style="yellow"))
    console.print()
    console.print(Text.assemble(("Effects, B − A", "bold"), ("   tree RSS unless said otherwise", "dim")))
    gated = {one.metric for one in found.gates}
    rows = [one for one in found.changes if one.metric in EFFECTS or one.metric in gated]
    _rows(console, 2, [(_label(one, len(found.pairs) > 1), words.comparison(one.stats, one.difference, one.a))
                       for one in rows])
    methods = dict.fromkeys(one.stats.method for one in rows if one.stats.method)
    levels = sorted({one.stats.level for one in rows if one.stats.level})
    if methods:
        level = " to ".join(dict.fromkeys(f"{100 * one:.3g}" for one in (levels[0], levels[-1])))
        console.print(Text(f"Intervals: {level} %, {', '.join(filter(None, methods))}.", style="dim"))
    console.print(Text(found.scope))
    _gates(console, found.gates, len(found.pairs) > 1)


def _described(side: Subject) -> str:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(side.sweep.started_ms / 1000))
    what = f"run {side.run_id[:8]} of cell {side.cell}" if side.run_id else f"cell {side.cell}" if side.cell else \
        f"{len(by_cell(side.trials))} cells"
    good = len(valid(side.trials))
    return f"{side.sweep.sweep_id}, {what}: {good} of {len(side.trials)} trials valid, {started}, {side.source}"


def _group(console: Console, title: str, listed: Sequence[Difference]) -> None:
    if not listed:
        console.print(Text(f"  {title}: nothing", style="dim"))
        return
    console.print(Text(f"  {title}"))
    _rows(console, 4, [(one.key, f"{one.a} → {one.b}") for one in listed[:_MOST_SHOWN]])
    if len(listed) > _MOST_SHOWN:
        console.print(Text(f"    … and {len(listed) - _MOST_SHOWN} more: --json", style="dim"))


def _rows(console: Console, indent: int, rows: Sequence[tuple[str, str]]) -> None:
    """Label and words beside it, wrapped in their column."""
    labels = max((len(label) for label, _ in rows), default=0)
    for label, said in rows:
        lines = textwrap.wrap(said, max(24, console.width - indent - labels - 2), break_on_hyphens=False) or [""]
        for i, line in enumerate(lines):
            console.print(Text(f"{' ' * indent}{label if i == 0 else '':{labels}}  {line}"))


def _label(change: Change, several: bool) -> str:
    cells = change.cell_b if change.cell_a == change.cell_b else f"{change.cell_a} → {change.cell_b}"
    return ", ".join(part for part in (words.METRICS.get(change.metric, change.metric), cells if several else "",
                                       f"turn {change.turn}" if change.turn else "") if part)


def _gates(console: Console, gates: Sequence[Judged], several: bool) -> None:
    if not gates:
        return
    console.print()
    for one in gates:
        unit = f" {one.unit}".rstrip()
        within = "" if one.lo is None or one.hi is None else f" ({one.lo:+.4g} … {one.hi:+.4g})"
        value = f"{one.value:+.4g}" if within else f"{one.value:.4g}"
        doubt = "" if one.certain else "; the interval holds both sides of the limit"
        cells = f" [{one.cell_b}]" if several else ""
        console.print(Text(f"{'FAILED' if one.tripped else 'passed'}: {one.gate}{cells}: {value}{unit}{within}{doubt}",
                           style="red" if one.tripped else "green"))
    console.print(Text(JUDGED_BY, style="dim"))
