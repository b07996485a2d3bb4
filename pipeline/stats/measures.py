"""What a metric's name says about how to compare it: unit, smallest step, difference or ratio, margin.

Names are `<phase>/<meter>_<quantity>[_<stat>]_<unit>`. No computation and no values here.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE_MIB = 4096 / 2**20
"""The kernel counts memory in pages; no reading can differ by less (getconf PAGESIZE, x86-64 and most arm64)."""

HEADLINE = "stabilized/tree_rss_mib"


@dataclass(frozen=True)
class Measure:
    """How readings of one metric are compared."""

    unit: str
    """Unit of a difference, as users read it."""
    step: float
    """The smallest difference the meter can show, in the metric's unit: floor of every half-width."""
    ratio: bool
    """Compare logarithms: speeds and times differ by factors."""
    margin: float
    """A difference below this is of no practical interest: absolute if `margin_is_absolute`, else a fraction."""
    margin_is_absolute: bool = False

    def margin_at(self, reference: float, scale: str = "difference") -> float:
        """The margin on a scale: a fraction for ratios, else in the metric's unit; `reference` is the arm without."""
        if self.margin_is_absolute or scale == "ratio":
            return self.margin
        return max(self.margin * abs(reference), self.step)


def measure(metric: str) -> Measure:
    """The Measure behind a metric's name. Unknown units are compared as plain differences."""
    if metric.endswith("_mib"):
        return Measure("MiB", PAGE_MIB, ratio=False, margin=0.01)
    if metric.endswith("_pct"):
        # psutil rounds system percentages to 0.1 (psutil.virtual_memory().percent).
        return Measure("points", 0.1, ratio=False, margin=0.5, margin_is_absolute=True)
    if metric.endswith("_per_s"):
        return Measure("/s", 0.0, ratio=True, margin=0.05)
    if metric.endswith("_ms"):
        return Measure("ms", 1.0, ratio=True, margin=0.05)
    if metric.endswith("_s"):
        return Measure("s", 0.001, ratio=True, margin=0.05)
    return Measure("", 0.0, ratio=False, margin=0.01)


def phase_of(metric: str) -> str:
    """The part before the slash: the phase a metric belongs to."""
    return metric.partition("/")[0]
