"""Memory against a number in the config, such as the context length: KiB per token, with its interval.

One line per regime through level medians: a common line, or all trials at once, covered 0 to 47 % in simulation
where a setting that follows the context moves the slope or whole levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.language import N_
from pipeline.record.trial import TrialRecord
from pipeline.stats.intervals import line_through, t_quantile
from pipeline.stats.measures import HEADLINE, PAGE_MIB
from pipeline.stats.trials import valid, value, varied

PLANNED = "plan/kv_mib"
LEAST_LEVELS = 4
"""A line has two parameters; with four levels two degrees of freedom are left for its error."""


@dataclass(frozen=True)
class Slope:
    """A straight line through level medians. Slopes are KiB per unit of the key (per token for num_ctx)."""

    metric: str
    key: str
    mode: str
    infer_os: str
    where: Mapping[str, str]
    regime: str
    levels: tuple[float, ...]
    medians_mib: tuple[float, ...]
    n_trials: int
    kib_per_unit: float
    intercept_mib: float
    lo: float | None
    """None with fewer than four levels."""
    hi: float | None
    informative: bool
    """The interval says something and is printed: it leaves zero out, or memory over all levels is in doubt by less
    than there is."""
    level: float
    df: int
    planned_kib_per_unit: float | None = None
    """What the KV cache alone should cost, by the model file's header; None: not known."""
    method: str = N_("least squares through level medians, t")


def line(x: Sequence[float], medians_mib: Sequence[float], level: float = 0.95,
         step_mib: float = PAGE_MIB) -> tuple[float, float, float, int]:
    """(slope, intercept, half-width of the slope, df), MiB per unit of x; shapes (n_levels,).

    The half-width is at least what one step of the meter at one end would do; infinite without degrees of freedom.
    """
    slope, intercept, se, _ = line_through(x, medians_mib)
    df = len(x) - 2
    floor = step_mib / float(max(x) - min(x))
    half = max(t_quantile(level, df) * se, floor) if df > 0 else float("inf")
    return slope, intercept, half, df


def slopes(trials: Sequence[TrialRecord], key: str = "num_ctx", metric: str = HEADLINE, regime_key: str | None = None,
           level: float = 0.95) -> list[Slope]:
    """One line per mode, flags, further keys and regime, from two levels on. Metrics in MiB only.

    `regime_key` is a config key that changes with the level and changes the slope (the batch size): one line each.
    """
    ignored = ("infer_os.", "mode.", key) if regime_key is None else ("infer_os.", "mode.", key, regime_key)
    others = varied(trials, ignored)
    readings: dict[tuple[str, str, tuple[tuple[str, str], ...], str], dict[float, list[float]]] = defaultdict(
        lambda: defaultdict(list))
    planned: dict[tuple[str, str, tuple[tuple[str, str], ...], str], dict[float, float]] = defaultdict(dict)
    for trial in valid(trials):
        reading, text = value(trial, metric), str(trial.params.get(key, ""))
        if reading is None or not _is_number(text):
            continue
        regime = "" if regime_key is None else f"{regime_key}={trial.params.get(regime_key, '')}"
        line_of = (trial.mode, trial.infer_os, tuple(others[trial.cell].items()), regime)
        readings[line_of][float(text)].append(reading)
        if (kv := value(trial, PLANNED)) is not None:
            planned[line_of][float(text)] = kv
    found = []
    for (mode, infer_os, where, regime), by_level in readings.items():
        if len(by_level) < 2:
            continue
        levels = sorted(by_level)
        medians = [median(by_level[x]) for x in levels]
        slope, intercept, half, df = line(levels, medians, level)
        bounded = len(levels) >= LEAST_LEVELS
        narrow = bounded and (abs(slope) > half or half * (levels[-1] - levels[0]) <= max(medians))
        sizes = planned[mode, infer_os, where, regime]
        theory = line(levels, [sizes[x] for x in levels])[0] if sizes.keys() >= set(levels) else None
        found.append(Slope(metric, key, mode, infer_os, dict(where), regime, tuple(levels), tuple(medians),
                           sum(map(len, by_level.values())), 1024 * slope, intercept,
                           1024 * (slope - half) if bounded else None, 1024 * (slope + half) if bounded else None,
                           narrow, level, df, None if theory is None else 1024 * theory))
    return sorted(found, key=lambda s: (s.mode != "oneshot", s.infer_os != "off", s.infer_os, s.regime))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
