"""The pictures of a report: intervals on an axis, the phases of cells, where memory is, memory against a setting.

They draw values that are computed already, each for a desk and for a phone. Timelines are in timelines.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.html.svg import LINE_PX, TICK_PX, Canvas, Scale, tick_text, wrap

WIDE, NARROW = 540.0, 264.0
"""Pixels: where two stand side by side on a desk, and on a phone."""
SERIES = (("blue", "o"), ("vermillion", "s"), ("green", "^"), ("purple", "D"))
"""Colour and shape of the cells that share a picture."""
PARTS = ("moment", "blue", "sky", "green", "orange", "purple", "vermillion")
"""Colours of a stacked bar's parts."""
COLOURS = {"less": "blue", "more": "vermillion"}
BAND = 22.0
"""Height of a row's marks."""


@dataclass(frozen=True)
class Row:
    """A line of an interval plot: where the estimate and its ends lie, what it is, what is said about it."""

    label: str
    said: str
    point: float | None
    low: float | None = None
    high: float | None = None
    kind: str = ""
    """less, more, …; decides the colour, which the words repeat."""
    other: float | None = None
    """A second point on the same line, hollow: two readings that are compared."""
    heading: bool = False
    """No marks: the label stands above the lines that follow."""


@dataclass(frozen=True)
class Block:
    """Rows that share an axis. `axis` names it with its unit; `ends` are words for its left and right end."""

    axis: str
    rows: Sequence[Row]
    ends: tuple[str, str] = ("", "")
    like: Sequence[Row] = ()
    """The rows whose range the axis covers, where several pictures share one; else its own."""
    reach: float = math.inf
    """Intervals are drawn as far as this from zero, unless a point lies further; beyond it an arrow says so."""


def rows_plot(blocks: Sequence[Block], key: str, title: str, description: str) -> tuple[Markup, Markup]:
    """Rows of marks over one axis per block, each with its label and its words: for a desk, and for a phone."""
    return (_rows(blocks, f"{key}-w", title, description, WIDE),
            _rows(blocks, f"{key}-n", title, description, NARROW))


def _rows(blocks: Sequence[Block], key: str, title: str, description: str, width: float) -> Markup:
    narrow = width == NARROW
    left, right = (10.0, width - 12) if narrow else (152.0, 322.0)
    label_px, said_px = (width - 8, width - 12) if narrow else (left - 14, width - right - 16)
    placed = []
    for block in blocks:
        texts = [(wrap(row.label, label_px), wrap(row.said, said_px)) for row in block.rows]
        heights = [_height(row, label, said, narrow) for row, (label, said) in zip(block.rows, texts, strict=True)]
        placed.append((block, texts, heights))
    foot = 46.0
    canvas = Canvas(width, sum(sum(heights) + foot for _, _, heights in placed))
    top = 0.0
    for block, texts, heights in placed:
        scale = Scale(*_range(block.like or block.rows, block.reach), left, right)
        bottom = top + sum(heights)
        _axis(canvas, scale, bottom, block)
        bold = narrow and not any(row.heading for row in block.rows)
        y = top
        for row, (label, said), height in zip(block.rows, texts, heights, strict=True):
            middle = y + 4 + LINE_PX * len(label) + BAND / 2 if narrow else y + height / 2
            if not (narrow and row.heading):
                _grid(canvas, scale, *((middle - BAND / 2, middle + BAND / 2) if narrow else (y, y + height)))
            _row(canvas, scale, row, label, said, y, middle, narrow, bold)
            y += height
        top = bottom + foot
    return canvas.inline(key, title, description)


def _height(row: Row, label: Sequence[str], said: Sequence[str], narrow: bool) -> float:
    if row.heading:
        return LINE_PX * len(label) + 8
    if narrow:
        return LINE_PX * (len(label) + len([line for line in said if line])) + BAND + 10
    return max(LINE_PX * max(len(label), len(said)) + 8, BAND + 4)


def _range(rows: Sequence[Row], most: float) -> tuple[float, float]:
    """Zero, every point, and the intervals as far as they do not hide the points (three times the usual reach)."""
    points = [x for row in rows for x in (row.point, row.other) if x is not None] or [0.0]
    ends = [x for row in rows for x in (row.low, row.high) if x is not None]
    low, high = min(0.0, *points), max(0.0, *points)
    reach = 3 * max(high - low, sorted(map(abs, ends))[len(ends) // 2] if ends else 0.0) or 1.0
    reach = max(high - low, min(reach, most))
    low = min([low, *(max(x, -reach) for x in ends)])
    high = max([high, *(min(x, reach) for x in ends)])
    room = 0.04 * ((high - low) or 1.0)
    return (low - room if low < 0 else 0.0), (high + room if high > 0 else 0.0) or room


def _grid(canvas: Canvas, scale: Scale, top: float, bottom: float) -> None:
    """The ticks' lines, at a row; zero stands out."""
    for tick in scale.ticks(5):
        canvas.line([scale(tick)] * 2, [top, bottom], "ink" if tick == 0 else "line", 1.2 if tick == 0 else 0.6)


def _axis(canvas: Canvas, scale: Scale, bottom: float, block: Block) -> None:
    for tick in scale.ticks(5):
        canvas.line([scale(tick)] * 2, [bottom, bottom + 4], "quiet", 0.8)
        canvas.text(scale(tick), bottom + 16, tick_text(tick), align="middle", size=TICK_PX, colour="quiet")
    less, more = block.ends
    if scale.low < 0:
        canvas.text(scale.begin, bottom + 31, less, size=TICK_PX, colour="quiet")
    canvas.text((scale.begin + scale.end) / 2, bottom + 31, block.axis, align="middle", size=TICK_PX, colour="quiet")
    if scale.high > 0.1 * abs(scale.low):
        canvas.text(scale.end, bottom + 31, more, align="end", size=TICK_PX, colour="quiet")


def _row(canvas: Canvas, scale: Scale, row: Row, label: Sequence[str], said: Sequence[str], y: float, middle: float,
         narrow: bool, bold: bool) -> None:
    if row.heading:
        for index, line in enumerate(label):
            canvas.text(4 if narrow else 0, y + LINE_PX * (index + 1), line, bold=True)
        return
    label_top, said_top, said_x = middle - LINE_PX * len(label) / 2, middle - LINE_PX * len(said) / 2, scale.end + 16
    if narrow:
        label_top, said_top, said_x = y + 2, middle + BAND / 2 - 2, 4
    for index, line in enumerate(label):
        canvas.text(4 if narrow else 8, label_top + LINE_PX * (index + 1) - 3, line, bold=bold)
    for index, line in enumerate(said):
        canvas.text(said_x, said_top + LINE_PX * (index + 1) - 3, line, colour="ink")
    colour = COLOURS.get(row.kind, "quiet")
    if row.point is None:
        return
    if row.other is not None:
        canvas.line([scale(row.other), scale(row.point)], [middle, middle], "quiet", 1.5)
        canvas.marks([(scale(row.other), middle)], "s", 7, "vermillion", filled=False)
        canvas.marks([(scale(row.point), middle)], "o", 7, "blue")
        return
    if row.low is not None and row.high is not None:
        canvas.line([scale(row.low), scale(row.high)], [middle, middle], colour, 2.4)
        for end, beyond, arrow in ((row.low, row.low < scale.low, "<"), (row.high, row.high > scale.high, ">")):
            if beyond:
                canvas.marks([(scale(end), middle)], arrow, 6, colour)
            else:
                canvas.line([scale(end)] * 2, [middle - 4, middle + 4], colour, 1.4)
    canvas.marks([(scale(row.point), middle)], "D" if row.kind in COLOURS else "o", 6.5, colour,
                 filled=row.kind in COLOURS)


@dataclass(frozen=True)
class Level:
    """One cell at one phase: every trial, the median, and the interval where there is one."""

    trials: Sequence[float]
    median: float | None
    low: float | None = None
    high: float | None = None


def phases_plot(series: Sequence[tuple[str, Sequence[Level]]], heads: Sequence[str], highest: float, unit: str,
                key: str, title: str, description: str) -> tuple[Markup, Markup]:
    """Cells (at most as many as SERIES) over the phases `heads`, from zero to `highest`."""
    return (_phases(series, heads, highest, unit, f"{key}-w", title, description, WIDE),
            _phases(series, heads, highest, unit, f"{key}-n", title, description, NARROW))


def _phases(series: Sequence[tuple[str, Sequence[Level]]], heads: Sequence[str], highest: float, unit: str, key: str,
            title: str, description: str, width: float) -> Markup:
    names = [wrap(name, width - 60, 2) for name, _ in series]
    top = 12 + sum(LINE_PX * len(lines) + 2 for lines in names) + 16
    height = 230.0
    narrow = width == NARROW
    canvas = Canvas(width, top + height + (38 if narrow else 26))
    y = 10.0
    for lines, (colour, shape) in zip(names, SERIES, strict=False):
        canvas.marks([(54, y - 1)], shape, 6, colour)
        for line in lines:
            canvas.text(64, y + 3, line)
            y += LINE_PX
        y += 2
    left, right = 44.0, width - 6
    scale = Scale(0, highest * 1.06 or 1.0, top + height, top)
    canvas.text(0, top - 8, unit, size=TICK_PX, colour="quiet")
    for tick in scale.ticks(5):
        canvas.line([left, right], [scale(tick)] * 2, "ink" if tick == 0 else "line", 0.8 if tick == 0 else 0.6)
        canvas.text(left - 6, scale(tick) + 4, tick_text(tick), align="end", size=TICK_PX, colour="quiet")
    step = (right - left) / len(heads)
    for index, head in enumerate(heads):
        lower = 13 if narrow and index % 2 else 0  # side by side they would touch
        canvas.text(left + step * (index + 0.5), top + height + 16 + lower, head, align="middle", size=TICK_PX)
    for at, ((_name, levels), (colour, shape)) in enumerate(zip(series, SERIES, strict=False)):
        shift = (at + 0.5) / len(series) - 0.5
        middles = [left + step * (index + 0.5 + 0.62 * shift) for index in range(len(heads))]
        measured = [(x, level) for x, level in zip(middles, levels, strict=True) if level.median is not None]
        for x, level in measured:
            last = len(level.trials) - 1
            spread = [x + (index / last - 0.5) * 0.1 * step if last else x for index in range(last + 1)]
            canvas.marks(zip(spread, map(scale, level.trials), strict=True), "o", 2.2, colour, filled=False)
            if level.low is not None and level.high is not None:
                canvas.line([x, x], [scale(level.low), scale(level.high)], colour, 2.0)
            canvas.marks([(x, scale(level.median or 0.0))], shape, 5.5, colour)
    return canvas.inline(key, title, description)


def bars_plot(bars: Sequence[tuple[str, Sequence[float]]], colours: Sequence[str], unit: str, key: str, title: str,
              description: str) -> tuple[Markup, Markup]:
    """One stacked bar per label, from zero; what is negative lies left of it."""
    return (_bars(bars, colours, unit, f"{key}-w", title, description, WIDE),
            _bars(bars, colours, unit, f"{key}-n", title, description, NARROW))


def _bars(bars: Sequence[tuple[str, Sequence[float]]], colours: Sequence[str], unit: str, key: str, title: str,
          description: str, width: float) -> Markup:
    narrow = width == NARROW
    left, right = (10.0, width - 12) if narrow else (152.0, width - 16)
    texts = [wrap(label, width - 12 if narrow else left - 14, 2) for label, _ in bars]
    heights = [LINE_PX * len(lines) + 22 if narrow else max(LINE_PX * len(lines) + 6, 26) for lines in texts]
    low = min(0.0, *(sum(part for part in parts if part < 0) for _, parts in bars))
    high = max(sum(part for part in parts if part > 0) for _, parts in bars) or 1.0
    scale = Scale(low, high * 1.02, left, right)
    bottom = sum(heights)
    canvas = Canvas(width, bottom + 40)
    _axis(canvas, scale, bottom, Block(unit, ()))
    y = 0.0
    for (_label, parts), lines, height in zip(bars, texts, heights, strict=True):
        middle = y + (height - 11 if narrow else height / 2)
        _grid(canvas, scale, *((middle - 11, middle + 11) if narrow else (y, y + height)))
        for index, line in enumerate(lines):
            first = y + 1 if narrow else middle - LINE_PX * len(lines) / 2
            canvas.text(4 if narrow else 8, first + LINE_PX * (index + 1) - 3, line)
        ends = [0.0, 0.0]
        for part, colour in zip(parts, colours, strict=True):
            side = int(part < 0)
            begin, ends[side] = ends[side], ends[side] + part
            if part:
                canvas.box(scale(begin), middle - 7, scale(ends[side]), middle + 7, colour)
                canvas.line([scale(ends[side])] * 2, [middle - 7, middle + 7], "paper", 1)
        y += height
    return canvas.inline(key, title, description)


@dataclass(frozen=True)
class Line:
    """Memory against a setting: (setting, MiB) of the medians, and the slope's words."""

    name: str
    points: Sequence[tuple[float, float]]
    kib_per_unit: float
    intercept_mib: float


def levels_plot(lines: Sequence[Line], axis: str, key: str, title: str, description: str) -> tuple[Markup, Markup]:
    """Medians and the straight line through them, both axes named."""
    return (_levels(lines, axis, f"{key}-w", title, description, WIDE),
            _levels(lines, axis, f"{key}-n", title, description, NARROW))


def _levels(lines: Sequence[Line], axis: str, key: str, title: str, description: str, width: float) -> Markup:
    names = [wrap(line.name, width - 60, 2) for line in lines]
    top = 26 + sum(LINE_PX * len(name) + 2 for name in names)
    height = 210.0
    canvas = Canvas(width, top + height + 40)
    left, right = 44.0, width - 14
    xs = [x for line in lines for x, _y in line.points]
    across = Scale(0, max(xs) * 1.03, left, right)
    up = Scale(0, max(y for line in lines for _x, y in line.points) * 1.06 or 1.0, top + height, top)
    canvas.text(0, top - 10, "MiB", size=TICK_PX, colour="quiet")
    for tick in up.ticks(5):
        canvas.line([left, right], [up(tick)] * 2, "ink" if tick == 0 else "line", 0.8 if tick == 0 else 0.6)
        canvas.text(left - 6, up(tick) + 4, tick_text(tick), align="end", size=TICK_PX, colour="quiet")
    for tick in across.ticks(4 if width == NARROW else 7):
        canvas.text(across(tick), top + height + 15, tick_text(tick), align="middle", size=TICK_PX, colour="quiet")
    canvas.text((left + right) / 2, top + height + 31, axis, align="middle", size=TICK_PX, colour="quiet")
    baseline = 10.0
    for line, name, (colour, shape) in zip(lines, names, SERIES, strict=False):
        canvas.marks([(54, baseline - 1)], shape, 6, colour)
        for text in name:
            canvas.text(64, baseline + 3, text)
            baseline += LINE_PX
        baseline += 2
        ends = [min(x for x, _y in line.points), max(x for x, _y in line.points)]
        canvas.line([across(x) for x in ends],
                    [up(line.intercept_mib + line.kib_per_unit / 1024 * x) for x in ends], colour, 1.4)
        canvas.marks([(across(x), up(y)) for x, y in line.points], shape, 6, colour)
    return canvas.inline(key, title, description)
