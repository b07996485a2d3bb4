"""How numbers, names and verdicts are worded, the same in the terminal and in the report.

Words only: no layout, no colour, no statistics. Sentences that answer are in `answer`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.language import N_, _, worded
from pipeline.metrics import WORK
from pipeline.report.document import FACTORIAL_METRICS, NEIGHBOURS
from pipeline.stats.comparison import Comparison
from pipeline.stats.growth import Growth
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

PHASES = (
    (N_("empty"), "initialization", ""), (N_("before"), "pre_generation", ""),
    (N_("peak"), "during_generation", "_peak"), (N_("after"), "post_generation", ""),
    (N_("settled"), "stabilized", ""), (N_("released"), "released", ""),
)
"""(word for a column, phase, suffix of the quantity) in the order of a trial."""

ACCOUNT = (
    (N_("empty"), ("initialization/tree_rss_mib",)), (N_("weights"), ("engine/weights_mib",)),
    (N_("repacked"), ("engine/repacked_mib",)), (N_("KV"), ("engine/kv_mib",)),
    (N_("compute"), ("engine/compute_mib", "engine/output_mib")), (N_("prompts"), ("engine/prompt_cache_mib",)),
    (N_("unexplained"), ("engine/unexplained_mib",)),
)
"""Heads of the account and the metrics they sum; together they are the settled tree RSS."""

SHOWN = frozenset((
    *(f"{phase}/{quantity}{suffix}_{unit}" for _head, phase, suffix in PHASES
      for quantity, unit in (("tree_rss", "mib"), ("system_used", "pct"))),
    *AS_FOUND_METRICS, *UNIFIED_METRICS, *EFFECT_METRICS, *FACTORIAL_METRICS, *WORK,
    *(metric for _head, metrics in ACCOUNT for metric in metrics), PLANNED, NEIGHBOURS,
))
"""Every metric that a printed page may mention: reading only these is what makes large stores quick."""

METRICS = {
    HEADLINE: N_("settled"), "during_generation/tree_rss_peak_mib": N_("peak"),
    "post_generation/tree_rss_mib": N_("after"), "released/tree_rss_mib": N_("released"),
    "stabilized/system_used_pct": N_("system used"), "stabilized/tree_anon_mib": N_("settled, anonymous"),
    "stabilized/tree_pss_mib": N_("settled, PSS"), "released/half_life_s": N_("release half-life"),
    "decode/tokens_per_s": N_("tokens/s"), "during_generation/time_to_first_token_s": N_("first token"),
    "load/duration_s": N_("load time"),
}
"""English, to be looked up: `metric_name`."""

UNITS = {"points": N_("points"), "tokens/s": N_("tokens/s"), "MiB per turn": N_("MiB per turn"),
         "points per turn": N_("points per turn")}
"""The units that are words."""


def metric_name(metric: str) -> str:
    """A metric in a word or two; its own name if it has none."""
    return _(METRICS[metric]) if metric in METRICS else metric


def unit_name(unit: str) -> str:
    """A unit as users read it: MiB is MiB everywhere, points are not."""
    return _(UNITS[unit]) if unit in UNITS else unit


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
    return f"{sign}{text} {unit_name(unit)}".rstrip()


def as_found(difference: float, stats: Comparison) -> str:
    """"+162.1 ± 0.2 MiB": what was read at the old, different moments is not a verdict, but it has its interval too."""
    half = _half_width(difference, stats)
    if half is None:
        return signed(difference, stats.unit)
    return f"{signed(difference, stats.unit).split()[0]} ± {half:.1f} {unit_name(stats.unit)}"


def widest_as_found(rows: Sequence[GapRow]) -> list[str]:
    """"0.2 MiB", "0.4 points": the widest half of an interval among these, one per unit; empty without intervals, and
    where one of them says nothing."""
    widest: dict[str, float] = {}
    if any(row.stats.estimate is not None and not row.stats.informative for row in rows):
        return []
    for row in rows:
        half = None if row.difference is None else _half_width(row.difference, row.stats)
        if half is not None:
            widest[row.stats.unit] = max(half, widest.get(row.stats.unit, 0.0))
    return [f"{half:.1f} {unit_name(unit)}" for unit, half in widest.items()]


def _half_width(shown: float, stats: Comparison) -> float | None:
    """How far the interval reaches from the figure shown, rounded up to a tenth; None without one that says something.
    """
    if stats.scale != "difference" or stats.lo is None or stats.hi is None or not stats.informative:
        return None
    return math.ceil(10 * max(stats.hi - shown, shown - stats.lo)) / 10


def quantity(x: float, unit: str, decimals: int | None = None) -> str:
    """"20.9 MiB", without a sign."""
    return f"{magnitude(x, 1 if decimals is None and unit == 'points' else decimals)} {unit_name(unit)}".rstrip()


def bounds(lo: float, hi: float, decimals: int) -> str:
    """"−1.2 … +3.4" if zero is between them, else the two magnitudes, smaller first; zero only if it is zero."""
    if lo < 0 < hi:
        return f"−{-lo:.{decimals}f} … +{hi:.{decimals}f}"
    return " … ".join(f"{x:.{_digits(x, decimals)}f}" for x in sorted((abs(lo), abs(hi))))


def _digits(x: float, decimals: int) -> int:
    """So many decimals, or as many more as it takes to see that it is not zero."""
    return decimals if not x or float(f"{x:.{decimals}f}") else max(decimals, -math.floor(math.log10(abs(x))))


def _shown(stats: Comparison) -> tuple[float, float, float, str]:
    """Estimate, lo, hi and unit as users read them: ratios become percent."""
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
    verdict = worded(stats.verdict)
    if stats.estimate is None or stats.lo is None or stats.hi is None:
        return verdict if difference is None else _("{size}, {verdict}").format(
            size=signed(difference, stats.unit), verdict=verdict)
    estimate, lo, hi, unit = _shown(stats)
    decimals = _decimals((hi - lo) / 2, estimate, unit)
    if stats.kind in ("less", "more"):
        decimals = _digits(estimate, decimals)
        share = signed(100 * estimate / reference, "%") if reference and stats.scale == "difference" else ""
        said = _(_SIZES[stats.kind, bool(share)])
        return said.format(size=quantity(estimate, unit, decimals), interval=bounds(lo, hi, decimals), share=share,
                           n=stats.n_blocks)
    if stats.kind == "undecided":
        return _("{verdict} ({interval})").format(verdict=verdict, interval=interval(stats))
    if stats.kind == "no difference":
        return _("{verdict}, n = {n}").format(verdict=verdict, n=stats.n_blocks)
    return verdict


_SIZES = {
    ("less", False): N_("less by {size} ({interval}), n = {n}"),
    ("less", True): N_("less by {size} ({interval}), {share}, n = {n}"),
    ("more", False): N_("more by {size} ({interval}), n = {n}"),
    ("more", True): N_("more by {size} ({interval}), {share}, n = {n}"),
}


def _factor(x: float) -> str:
    """Two digits, and never an exponent."""
    return f"{x:.2g}" if 0.001 <= x < 99.5 else f"{x:.0f}" if x >= 1 else "0.001" if x > 0.0005 else "0"


def interval(stats: Comparison) -> str:
    """"−1.2 … +3.4 MiB"; a ratio that may be beyond three as factors, since percent says little there.

    An interval that says nothing is not printed."""
    if not stats.informative:
        return _("how much is unknown")
    estimate, lo, hi, unit = _shown(stats)
    if stats.scale == "ratio" and stats.lo is not None and stats.hi is not None and max(stats.hi, 1 / stats.lo) > 3:
        return f"×{_factor(stats.lo)} … ×{_factor(stats.hi)}"
    return f"{bounds(lo, hi, _decimals((hi - lo) / 2, estimate, unit))} {unit_name(unit)}".rstrip()


def mixed(methods: Sequence[int]) -> str:
    """That a sweep's trials were not all measured alike; "" where they were."""
    if len(methods) < 2:
        return ""
    return _("its trials were measured by methods {methods}, which may read the same cell differently").format(
        methods=_(" and ").join(map(str, methods)))


def n_of(n: int, one: str, many: str) -> str:
    """"1 trial", "3 trials": both texts marked with N_."""
    return _(one if n == 1 else many).format(n=n)


_VERDICT_NAMES = {"valid": N_("valid"), "suspect": N_("suspect"), "failed": N_("failed"),
                  "interrupted": N_("interrupted"), "warm-up": N_("warm-up"), "running": N_("running"),
                  "unknown": N_("unknown"), "finished": N_("finished")}


def verdict_name(verdict: str) -> str:
    """A verdict, or a sweep's status, in a word."""
    return _(_VERDICT_NAMES[verdict]) if verdict in _VERDICT_NAMES else verdict


def n_with(n: int, verdict: str) -> str:
    """"3 valid"."""
    return _("{n} {verdict}").format(n=n, verdict=verdict_name(verdict))


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


def effect_name(row: EffectRow) -> str:
    """Whose effect it is: "quantization", "cache_type=q8_0 (against f16)"."""
    return _("{value} (against {reference})").format(value=row.flag, reference=row.against) if row.knob else row.flag


def effect_labels(rows: Sequence[EffectRow], against: bool = False) -> list[str]:
    """One label per row: the metric, and of flag, mode and further keys those that differ between the rows.

    `against`: what a knob's value is compared with is in it too."""
    flags, modes = len({row.flag for row in rows}) > 1, len({row.mode for row in rows}) > 1
    return [", ".join(part for part in (metric_name(row.metric),
                                        (effect_name(row) if against else row.flag) if flags or (row.knob and against)
                                        else "",
                                        row.mode if modes else "", where_text(row.where)) if part)
            for row in rows]


def growth_text(growth: Growth) -> str:
    """"3.52 MiB per turn (3.41 … 3.63)"; without an interval the reading and what is missing."""
    stats = growth.stats
    if stats.estimate is not None and not stats.informative:
        return _("{verdict} ({interval})").format(verdict=worded(stats.verdict), interval=interval(stats))
    if stats.lo is None or stats.hi is None:
        return _("{size}, {verdict}").format(size=signed(growth.per_turn, stats.unit), verdict=worded(stats.verdict))
    decimals = min(3, max(1, 1 - math.floor(math.log10(max(stats.hi - stats.lo, 1e-9) / 2))))
    size = f"{growth.per_turn:.{decimals}f}".replace("-", "−")
    return f"{size} {unit_name(stats.unit)} ({bounds(stats.lo, stats.hi, decimals)})"


def slope_text(slope: Slope) -> str:
    """"Memory grows by 12.0 KiB per token of num_ctx (11.9 … 12.1), from 512 to 8192"; that it grows, or shrinks, only
    where its interval leaves zero out."""
    name = slope.key.rpartition(".")[2]
    lo, hi = (slope.lo, slope.hi) if slope.informative else (None, None)
    half = 0.0 if lo is None or hi is None else (hi - lo) / 2
    decimals = 2 if not 0 < half < math.inf else min(3, max(1, -math.floor(math.log10(half))))
    planned = slope.planned_kib_per_unit
    inside = _("no interval, fewer than four levels") if slope.lo is None else _("how much is unknown") \
        if lo is None or hi is None else bounds(lo, hi, decimals)
    # a token is the unit of a context; another key is its own
    said = _("Memory grows by {size} KiB per token ({interval}) from {key} {first} to {last}{arm}{theory}.") \
        if name == "num_ctx" else _(
            "Memory grows by {size} KiB per {key} ({interval}) from {key} {first} to {last}{arm}{theory}.")
    size = slope.kib_per_unit
    if slope.lo is not None and (lo is None or hi is None or lo <= 0 <= hi):
        said = _("Whether memory follows {key} is undecided: {size} KiB per {per} ({interval}) from {first} to "
                 "{last}{arm}{theory}.")
    elif size < 0:
        said, size = _("Memory shrinks by {size} KiB per {per} ({interval}) from {key} {first} to {last}{arm}{theory}."
                       ), -size
    return said.format(
        size=f"{size:.{decimals}f}".replace("-", "−"), interval=inside, key=name,
        per=_("token") if name == "num_ctx" else name,
        first=f"{slope.levels[0]:g}", last=f"{slope.levels[-1]:g}",
        arm=_(" ({mode}, flags {flags})").format(mode=slope.mode, flags=slope.infer_os) if slope.infer_os else "",
        theory="" if planned is None else _("; by the model file's header its KV cache takes {size}").format(
            size=f"{planned:.{decimals}f}"))


def span(sizes: Sequence[float], unit: str, sign: bool = False) -> str:
    """"20.9 MiB", or "20.5 to 20.9 MiB" if they are not the same at one decimal."""
    low, high = min(sizes), max(sizes)
    show = (lambda x: signed(x, "")) if sign else magnitude
    return f"{show(low)} {unit_name(unit)}" if show(low) == show(high) else _("{low} to {high} {unit}").format(
        low=show(low), high=show(high), unit=unit_name(unit))
