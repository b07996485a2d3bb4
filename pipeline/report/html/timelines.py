"""The timelines of a cell in one picture: what one trial's tree was made of, and what it held in all the others.

Draws values. Where a trial's timeline is stored and how it is read is defined in gather.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline import metrics
from pipeline.language import _
from pipeline.phases import MIB, Mark, Timeline, spans, within
from pipeline.report.html.svg import TICK_PX, Canvas, Scale, tick_text
from pipeline.report.timeline_plot import highest
from pipeline.report.wording import number

PARTS = {"anon": "blue", "file": "sky", "shmem": "green", "swap": "vermillion"}
"""Part of the tree → colour, in the order they are stacked; the same as in timeline.png."""
POINTS = 320
"""Per curve: one for each pixel of the picture's width."""
WIDTH, HEIGHT = 320.0, 170.0

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """A trial's timeline as far as a picture needs it: seconds since its first mark, MiB; arrays of shape (n,)."""

    order: int
    seconds: FloatArray
    parts: Mapping[str, FloatArray]
    """anon, file, shmem, swap."""
    phases: Sequence[tuple[str, int, float, float]] = ()
    """(phase, turn, begin, end)."""
    peaks: Sequence[tuple[float, float]] = ()
    """(second, MiB) of the kernel's high-water mark of each generation."""
    end: float = 0.0

    @property
    def total(self) -> FloatArray:
        """All parts together."""
        return np.asarray(sum(self.parts.values()), dtype=np.float64)


def drawn(order: int, timeline: Timeline, marks: Sequence[Mark]) -> Drawn:
    """From a whole timeline. Raises ValueError for one without a sample."""
    if not len(timeline.t_ns):
        raise ValueError("a timeline without samples cannot be drawn")
    t0_ns = min([int(timeline.t_ns[0]), *(mark.t_ns for mark in marks)])
    found = spans(marks)
    kept = highest(timeline.tree_rss + timeline.columns["tree_swap"], POINTS)
    peaks = []
    for span in found:
        inside = np.flatnonzero(within(timeline, span))
        if span.name == "during_generation" and len(inside):
            at = inside[int(timeline.columns["tree_hwm"][inside].argmax())]
            peaks.append(((int(timeline.t_ns[at]) - t0_ns) / 1e9, int(timeline.columns["tree_hwm"][at]) / MIB))
    return Drawn(order, (timeline.t_ns[kept] - t0_ns) / 1e9,
                 {name: timeline.columns[f"tree_{name}"][kept] / MIB for name in PARTS},
                 [(span.name, span.turn, (span.start_ns - t0_ns) / 1e9, (span.end_ns - t0_ns) / 1e9) for span in found],
                 [peak for peak in peaks if peak[1] > 0], (int(timeline.t_ns[-1]) - t0_ns) / 1e9)


def timeline_plot(shown: Drawn, others: Sequence[Drawn], highest_mib: float, end_s: float, key: str, title: str,
                  description: str) -> Markup:
    """`shown` stacked by its parts with its phases and peaks, `others` as lines; one picture for every width."""
    left, right, top = 40.0, WIDTH - 4, 22.0
    bottom = top + HEIGHT
    canvas = Canvas(WIDTH, bottom + 34)
    across = Scale(0, end_s or 1.0, left, right)
    up = Scale(0, highest_mib * 1.16 or 1.0, bottom, top)
    for name, _turn, begin, end in shown.phases:
        if name in metrics.PARTS:  # what the server does, shaded over its length; a moment gets a band at the top
            canvas.box(across(begin), top, across(end), bottom, name)
    for tick in up.ticks(4):
        canvas.line([left, right], [up(tick)] * 2, "ink" if tick == 0 else "line", 0.8 if tick == 0 else 0.5)
        canvas.text(left - 5, up(tick) + 4, tick_text(tick), align="end", size=TICK_PX, colour="quiet")
    for tick in across.ticks(5):
        canvas.text(across(tick), bottom + 14, tick_text(tick), align="middle", size=TICK_PX, colour="quiet")
    canvas.text(0, 10, "MiB", size=TICK_PX, colour="quiet")
    canvas.text(right, bottom + 29, _("seconds"), align="end", size=TICK_PX, colour="quiet")
    xs = across.all(shown.seconds)
    floor: Any = np.zeros(len(xs))
    for name, colour in PARTS.items():
        values = shown.parts.get(name)
        if values is None or not values.any():
            continue
        canvas.area(xs, up.all(floor), up.all(floor + values), colour)
        floor = floor + values
    for other in others:
        canvas.steps(across.all(other.seconds), up.all(other.total), "ink", 0.6)
    for name, _turn, begin, end in shown.phases:
        if name not in metrics.INTERVALS:
            # at least two pixels: a moment is a tenth of a second, a conversation minutes
            canvas.box(across(begin), top, max(across(end), across(begin) + 2), top + 7, "moment")
    _turns(canvas, across, shown, top)
    if shown.peaks:
        canvas.marks([(across(x), up(y) - 4) for x, y in shown.peaks], "v", 5)
        second, peak = max(shown.peaks, key=lambda one: one[1])
        canvas.text(min(across(second) + 6, right - 36), up(peak) - 4, number(peak), size=TICK_PX)
    return canvas.inline(key, title, description)


def _turns(canvas: Canvas, across: Scale, shown: Drawn, top: float) -> None:
    """The numbers of the turns above the picture, as many as there is room for."""
    free = 30.0
    turns = [(turn, begin, end) for name, turn, begin, end in shown.phases if name == "during_generation"]
    for turn, begin, end in turns if len(turns) > 1 else []:
        x = across((begin + end) / 2)
        if x - 18 >= free:
            canvas.text(x, top - 8, _("turn {n}").format(n=turn), align="middle", size=9, colour="quiet")
            free = x + 20

