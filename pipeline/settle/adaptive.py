"""Settle rule `adaptive`: the tree's RSS has stayed within a tolerance, without a trend, for a whole window.

RSS and nothing else: PSS moves when neighbours map the same libraries, system memory is never still.
"""

import numpy as np

from pipeline.config import Config
from pipeline.phases import MIB
from pipeline.settle.base import Settling


def settled(seen: Settling, config: Config) -> bool:
    """Over the last `window_s`: range <= max(range_mib, range_pct of RSS), and |slope| x window <= half of that."""
    window_ns = config.settle.window_s * 1e9
    start_ns = seen.now_ns - window_ns
    if start_ns < seen.since_ns:
        return False
    inside = seen.t_ns >= start_ns
    times, rss = seen.t_ns[inside], seen.rss[inside]
    # a window that the sampler did not fill says nothing about stability
    if len(times) < 10 or times[-1] - times[0] < 0.8 * window_ns:
        return False
    tolerance = max(config.settle.range_mib * MIB, config.settle.range_pct / 100.0 * float(np.median(rss)))
    slope = np.polyfit((times - times[0]) / window_ns, rss.astype(np.float64), 1)[0]
    return bool(np.ptp(rss) <= tolerance and abs(slope) <= tolerance / 2)
