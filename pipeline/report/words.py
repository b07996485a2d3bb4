"""How numbers, names and verdicts are worded, the same in the terminal and in the report.

Words only: no layout, no colour, no statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.language import _
from pipeline.report.document import FACTORIAL_METRICS, Analysis
from pipeline.stats.arms import WORK
from pipeline.stats.comparison import Comparison
from pipeline.stats.factorial import Factorial
from pipeline.stats.growth import Growth
from pipeline.stats.intervals import rounded_up
from pipeline.stats.measures import HEADLINE
from pipeline.stats.slope import PLANNED, Slope
from pipeline.stats.summary import (
    AS_FOUND_METRICS,
    EFFECT_METRICS,
    UNIFIED_METRICS,
    CellSummary,
    EffectRow,
    GapRow,
)

LEAST_GROWTH_MIB = 0.25
"""Per turn: growth below it is told as a bound; a hundred turns would hold 25 MiB."""

PHASES = (
    ("empty", "initialization", ""), ("before", "pre_generation", ""), ("peak", "during_generation", "_peak"),
    ("after", "post_generation", ""), ("settled", "stabilized", ""), ("released", "released", ""),
)
"""(word for a column, phase, suffix of the quantity) in the order of a trial."""

ACCOUNT = (
    ("empty", ("initialization/tree_rss_mib",)), ("weights", ("engine/weights_mib",)),
    ("repacked", ("engine/repacked_mib",)), ("KV", ("engine/kv_mib",)),
    ("compute", ("engine/compute_mib", "engine/output_mib")), ("prompts", ("engine/prompt_cache_mib",)),
    ("unexplained", ("engine/unexplained_mib",)),
)
"""Heads of the account and the metrics they sum; together they are the settled tree RSS."""

SHOWN = frozenset((
    *(f"{phase}/{quantity}{suffix}_{unit}" for _, phase, suffix in PHASES
      for quantity, unit in (("tree_rss", "mib"), ("system_used", "pct"))),
    *AS_FOUND_METRICS, *UNIFIED_METRICS, *EFFECT_METRICS, *FACTORIAL_METRICS, *WORK,
    *(metric for _, metrics in ACCOUNT for metric in metrics), PLANNED,
))
"""Every metric that a printed page may mention: reading only these is what makes large stores quick."""

METRICS = {
    HEADLINE: "settled", "during_generation/tree_rss_peak_mib": "peak", "post_generation/tree_rss_mib": "after",
    "released/tree_rss_mib": "released", "stabilized/system_used_pct": "system used",
    "stabilized/tree_anon_mib": "settled, anonymous", "stabilized/tree_pss_mib": "settled, PSS",
    "released/half_life_s": "release half-life", "decode/tokens_per_s": "tokens/s",
    "during_generation/time_to_first_token_s": "first token", "load/duration_s": "load time",
}


def number(x: float | None, decimals: int = 1) -> str:
    """A reading: one decimal, none from 10,000 on; "–" for not measured."""
    if x is None:
        return "–"
    return f"{x:.{0 if abs(x) >= 10_000 else decimals}f}".replace("-", "−")


def magnitude(x: float, decimals: int | None = None) -> str:
    """A difference without its sign: one decimal, more below 1 so that two digits stay."""
    x = abs(x)
    if decimals is None:
        decimals = 1 if x >= 1 or x == 0 else min(3, 1 - math.floor(math.log10(x)))
    return f"{x:.{decimals}f}"


def signed(x: float, unit: str) -> str:
    """"+162.1 MiB", "−0.8 points" (points have one decimal, as the meter has)."""
    text = magnitude(x, 1 if unit == "points" else None)
    sign = "" if float(text) == 0 else "+" if x > 0 else "−"
    return f"{sign}{text} {unit}".rstrip()


def bounds(lo: float, hi: float, decimals: int) -> str:
    """"−1.2 … +3.4" if zero is between them, else the two magnitudes, smaller first."""
    if lo < 0 < hi:
        return f"−{-lo:.{decimals}f} … +{hi:.{decimals}f}"
    small, large = sorted((abs(lo), abs(hi)))
    return f"{small:.{decimals}f} … {large:.{decimals}f}"


def _shown(stats: Comparison) -> tuple[float, float, float, str]:
    """Estimate, lo, hi and unit as people read them: ratios become percent."""
    if stats.estimate is None or stats.lo is None or stats.hi is None:
        raise ValueError("a comparison without an interval has no bounds to show")
    if stats.scale == "ratio":
        return 100 * (stats.estimate - 1), 100 * (stats.lo - 1), 100 * (stats.hi - 1), "%"
    return stats.estimate, stats.lo, stats.hi, stats.unit


def _decimals(half_width: float, estimate: float, unit: str) -> int:
    """So many that the interval shows two digits, but not more than the estimate deserves."""
    if unit == "points":
        return 1
    wanted = 1 if half_width <= 0 else 1 - math.floor(math.log10(half_width))
    if unit == "%":
        return max(0, min(wanted, 1))
    return max(1, min(wanted, 1 if abs(estimate) >= 10 else 2 if abs(estimate) >= 0.1 else 3))


def comparison(stats: Comparison, difference: float | None = None, reference: float | None = None) -> str:
    """A verdict with its uncertainty: "less by 20.9 MiB (20.8 … 21.0), −10.7 %, n = 3".

    `difference` is shown where there is no interval; `reference` turns a difference into percent of it.
    """
    if stats.estimate is None or stats.lo is None or stats.hi is None:
        return stats.verdict if difference is None else f"{signed(difference, stats.unit)}, {stats.verdict}"
    estimate, lo, hi, unit = _shown(stats)
    decimals = _decimals((hi - lo) / 2, estimate, unit)
    if stats.kind in ("less", "more"):
        by = f"{magnitude(estimate, decimals)} {unit}".rstrip()
        share = f", {signed(100 * estimate / reference, '%')}" if reference and stats.scale == "difference" else ""
        return f"{stats.kind} by {by} ({bounds(lo, hi, decimals)}){share}, n = {stats.n_blocks}"
    if stats.kind == "undecided" and stats.scale == "ratio" and max(stats.hi, 1 / stats.lo) > 3:
        return f"{stats.verdict} (×{stats.lo:.2g} … ×{stats.hi:.2g})"  # percent says little beyond a factor of three
    if stats.kind == "undecided":
        return f"{stats.verdict} ({f'{bounds(lo, hi, decimals)} {unit}'.rstrip()})"
    if stats.kind == "no difference":
        return f"{stats.verdict}, n = {stats.n_blocks}"
    return stats.verdict


def where_text(where: Mapping[str, str]) -> str:
    """"num_ctx 4096, model small": the keys by their last word that says something."""
    return ", ".join(f"{key.removesuffix('.name').rpartition('.')[2]} {text}" for key, text in where.items())


def cell_labels(cells: Sequence[CellSummary]) -> dict[str, str]:
    """Cell → what tells it from the others, shortest first: mode, flags, further keys; its own name if that fails."""
    parts = {c.cell: [c.mode if len({o.mode for o in cells}) > 1 else "",
                      c.infer_os if len({o.infer_os for o in cells}) > 1 else "", where_text(c.where)]
             for c in cells}
    labels = {cell: " · ".join(part for part in words if part) for cell, words in parts.items()}
    if len(set(labels.values())) < len(cells):
        return {c.cell: c.cell for c in cells}
    return {c.cell: labels[c.cell] or f"{c.mode} · {c.infer_os}" for c in cells}


def effect_labels(rows: Sequence[EffectRow]) -> list[str]:
    """One label per row: the metric, and of flag, mode and further keys those that differ between the rows."""
    flags, modes = len({row.flag for row in rows}) > 1, len({row.mode for row in rows}) > 1
    return [", ".join(part for part in (METRICS.get(row.metric, row.metric), row.flag if flags else "",
                                        row.mode if modes else "", where_text(row.where)) if part)
            for row in rows]


NOTHING = ("identical", "no difference")


def answer(analysis: Analysis) -> str:
    """The sentence that answers the sweep's question, with nothing in it that the trials do not show."""
    if not any(cell.n_valid for cell in analysis.cells):
        return "No valid trial: nothing can be said about memory."
    planned = [one for one in analysis.factorial if one.metric == HEADLINE]
    flags = _factorial_answers(planned) if planned else _effect_answers(analysis.effects)
    gap = _gap_answer(analysis)
    grows = "" if gap else _growth_answer(analysis)
    sentences = [text for text in (gap, grows, *flags, *map(slope_text, analysis.slopes[:1])) if text]
    return " ".join(sentences) or _level_answer(analysis.cells)


def _gap_answer(analysis: Analysis) -> str:
    rows = [row for row in analysis.gap.unified if row.metric == HEADLINE and row.turn == 1 and _measured(row)]
    if not rows:
        return ""
    # The arm in which the modes differ most speaks for all: if it shows nothing, none does.
    row = max(rows, key=lambda r: (r.stats.kind not in NOTHING, abs(r.difference or 0.0)))
    found = next((r for r in analysis.gap.as_found if r.metric == "as_found/tree_rss_mib" and _measured(r)
                  and r.infer_os == row.infer_os and r.where == row.where), None)
    difference, stats = row.difference or 0.0, row.stats
    arm = f" (flags {row.infer_os})" if len(rows) > 1 and stats.kind not in NOTHING else ""
    if stats.kind in NOTHING:
        said = "One-shot needs no more than interactive"
    elif stats.kind == "undecided":
        _, lo, hi, unit = _shown(stats)
        said = f"Whether one-shot needs more than interactive is undecided ({bounds(lo, hi, 1)} {unit}{arm})"
    elif stats.kind == "not enough":
        said = f"Read once, one-shot differs from interactive by {signed(difference, stats.unit)}{arm}"
    else:
        size = stats.estimate if stats.estimate is not None else difference
        said = f"One-shot needs {magnitude(size)} {stats.unit} {stats.kind} than interactive{arm}"
        if abs(size) < 0.01 * abs(row.interactive or 0.0):  # resolved, and of no consequence to anybody
            said = f"One-shot and interactive need the same, but for {magnitude(size)} {stats.unit}{arm}"
    if found is None or abs(found.difference or 0.0) < 3 * abs(difference) + 0.1:
        return said + "."
    joint = ": the" if stats.kind in NOTHING else "; the"
    return (f"{said}{joint} {signed(found.difference or 0.0, found.stats.unit)} as found appear only if one mode is "
            f"read before the model is loaded and the other after.")


def _measured(row: GapRow) -> bool:
    return row.difference is not None


def _growth_answer(analysis: Analysis) -> str:
    """Which cells grow from turn to turn, by how much, and how little the others do."""
    labels = cell_labels(analysis.cells)
    ranked = sorted((one for one in analysis.growths if one.stats.estimate is not None), key=lambda one: -one.per_turn)
    if not ranked:
        return ""
    most = ranked[0].per_turn
    grow = [one for one in ranked if one.stats.kind == "more" and one.per_turn > max(most / 5, LEAST_GROWTH_MIB)]
    rest = [one for one in ranked if one not in grow]
    texts = [_("{cell} grows by {size}.").format(cell=labels[one.cell], size=growth_text(one)) for one in grow]
    if rest:
        size = rounded_up(max(max(abs(one.stats.lo or 0.0), abs(one.stats.hi or 0.0)) for one in rest))
        said = _("The others grow by no more than {size} MiB per turn.") if grow else _(
            "Nothing grows by more than {size} MiB per turn.")
        texts.append(said.format(size=size))
    return " ".join(texts)


def growth_text(growth: Growth) -> str:
    """"3.52 MiB per turn (3.41 … 3.63)"; without an interval the reading and what is missing."""
    stats = growth.stats
    if stats.lo is None or stats.hi is None:
        return f"{signed(growth.per_turn, stats.unit)}, {stats.verdict}"
    decimals = min(3, max(1, 1 - math.floor(math.log10(max(stats.hi - stats.lo, 1e-9) / 2))))
    size = f"{growth.per_turn:.{decimals}f}".replace("-", "−")
    return f"{size} {stats.unit} ({bounds(stats.lo, stats.hi, decimals)})"


def _cost_answers(rows: Sequence[EffectRow]) -> list[str]:
    """What else the sweep asks about (speed, other memory): one sentence per comparison, in the verdict's words."""
    several = len({row.mode for row in rows}) > 1
    texts = []
    for row in rows:
        what = METRICS.get(row.metric, row.metric)
        subject = _("the flags") if row.flag == "on" else row.flag
        where = "".join([f", {row.mode}" if several else "", f", {where_text(row.where)}" if row.where else ""])
        texts.append(_("With {flags}{where}, {what}: {verdict}.").format(
            flags=subject, where=where, what=what, verdict=comparison(row.stats, row.difference, row.off)))
    return texts


def _effect_answers(rows: Sequence[EffectRow]) -> list[str]:
    others = [row for row in rows if row.question and row.difference is not None and row.metric != HEADLINE]
    asked = [row for row in rows if row.question and row.difference is not None and row.metric == HEADLINE]
    texts = []
    for flag in dict.fromkeys(row.flag for row in asked):
        own = [row for row in asked if row.flag == flag]
        subject = "The flags" if flag == "on" else flag
        plural = flag == "on"
        for kind in dict.fromkeys(row.stats.kind if row.stats.kind not in NOTHING else "none" for row in own):
            group = [r for r in own if r.stats.kind == kind or (kind == "none" and r.stats.kind in NOTHING)]
            modes = "" if len(group) == len(own) else " in " + " and ".join(dict.fromkeys(r.mode for r in group))
            sizes = [abs(r.stats.estimate if r.stats.estimate is not None else r.difference or 0.0) for r in group]
            size = _span(sizes, group[0].stats.unit)
            if kind == "less":
                texts.append(f"{subject} save{'' if plural else 's'} {size}{modes}.")
            elif kind == "more":
                texts.append(f"{subject} cost{'' if plural else 's'} {size} more{modes}.")
            elif kind == "none":
                texts.append(f"{subject} change{'' if plural else 's'} nothing that this sweep can see{modes}.")
            elif kind == "undecided":
                texts.append(f"What {subject[0].lower() + subject[1:] if plural else subject} "
                             f"change{'' if plural else 's'} is undecided{modes}.")
            else:
                read = _span([r.difference or 0.0 for r in group], group[0].stats.unit, sign=True)
                texts.append(f"Read once, {subject[0].lower() + subject[1:] if plural else subject} "
                             f"make{'' if plural else 's'} a difference of {read}{modes}.")
    return [*texts, *_cost_answers(others)]


def _factorial_answers(planned: Sequence[Factorial]) -> list[str]:
    texts = []
    for one in planned:
        saved = [f"{term.name} ({magnitude(term.estimate)} {one.unit})" for term in one.terms
                 if term.stats.kind == "less" and len(term.flags) == 1]
        cost = [f"{term.name} ({magnitude(term.estimate)} {one.unit})" for term in one.terms
                if term.stats.kind == "more" and len(term.flags) == 1]
        joint = [term.name for term in one.terms if term.stats.kind in ("less", "more") and len(term.flags) > 1]
        where = f" in {one.mode}" if len({other.mode for other in planned}) > 1 else ""
        texts.append(f"Saving memory{where}: {', '.join(saved) or 'no flag'}; costing memory: "
                     f"{', '.join(cost) or 'no flag'}." + (
                         f" Not independent of each other: {', '.join(joint)}." if joint else ""))
    return texts


def slope_text(slope: Slope) -> str:
    """"Memory grows by 12.0 KiB per token of num_ctx (11.9 … 12.1), from 512 to 8192"."""
    name = slope.key.rpartition(".")[2]
    unit = "KiB per token" if name == "num_ctx" else f"KiB per {name}"
    half = 0.0 if slope.lo is None or slope.hi is None else (slope.hi - slope.lo) / 2
    decimals = 2 if not 0 < half < math.inf else min(4, max(1, 1 - math.floor(math.log10(half))))
    size = f"{slope.kib_per_unit:.{decimals}f}".replace("-", "−")
    inside = _("no interval, fewer than four levels") if slope.lo is None or slope.hi is None else (
        bounds(slope.lo, slope.hi, decimals))
    theory = "" if slope.planned_kib_per_unit is None else _(
        "; by the model file's header its KV cache takes {size}").format(
            size=f"{slope.planned_kib_per_unit:.{decimals}f}")
    return (f"Memory grows by {size} {unit} ({inside}) from {name} {slope.levels[0]:g} to {slope.levels[-1]:g}"
            f"{f', {slope.mode}, flags {slope.infer_os}' if slope.infer_os else ''}{theory}.")


def _span(sizes: Sequence[float], unit: str, sign: bool = False) -> str:
    """"20.9 MiB", or "20.5 to 20.9 MiB" if they are not the same at one decimal."""
    low, high = min(sizes), max(sizes)
    show = (lambda x: signed(x, "")) if sign else magnitude
    return f"{show(low)} {unit}" if show(low) == show(high) else f"{show(low)} to {show(high)} {unit}"


def _level_answer(cells: Sequence[CellSummary]) -> str:
    labels = cell_labels(cells)
    levels = sorted(((c.median[HEADLINE], c) for c in cells if HEADLINE in c.median), key=lambda pair: pair[0])
    if not levels:
        return "The settled phase was not measured."
    (low, lowest), (high, highest) = levels[0], levels[-1]
    if len(levels) == 1:
        return f"{labels[lowest.cell]} settles at {number(low)} MiB of tree RSS, n = {lowest.n_valid}."
    return (f"Tree RSS settles between {number(low)} MiB ({labels[lowest.cell]}) and {number(high)} MiB "
            f"({labels[highest.cell]}).")
