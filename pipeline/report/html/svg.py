"""A sheet of SVG to draw on, in CSS pixels with y pointing down, and scales for it.

Not matplotlib, which draws timeline.png: its SVG has fixed colours, a style sheet and metadata that a strict policy
refuses, and a report of 12 trials took 2 s of CPU in it, of the 5 s that one of 100 may take. Here colours are the
page's variables, text stays text in the reader's font, and nothing carries a style.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from rich.text import Text

from pipeline.report.html.elements import clean
from pipeline.report.terminal_lines import wrap as wrap_columns

TEXT_PX = 12.0
TICK_PX = 10.5
LINE_PX = 15.0
COLUMN_PX = 6.3
"""Width of a Latin character of TEXT_PX, about, with a reader's font: half that of a Japanese one."""

_SHAPES = {
    "s": "M-{r} -{r}H{r}V{r}H-{r}z", "D": "M0 -{q}L{q} 0L0 {q}L-{q} 0z", "^": "M0 -{q}L{q} {r}H-{q}z",
    "v": "M0 {q}L{q} -{r}H-{q}z", "<": "M-{q} 0L{r} -{q}V{q}z", ">": "M{q} 0L-{r} -{q}V{q}z",
}
"""Outlines around their middle; r is half the size, q a little more. "o" is a circle."""


class Canvas:
    """One picture. x and y are pixels from its upper left corner; a colour is the name of a variable of report.css."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._drawn: list[str] = []

    def text(self, x: float, y: float, text: str, *, align: str = "start", size: float = TEXT_PX, colour: str = "ink",
             bold: bool = False) -> None:
        """One line of text on the baseline y; `align` is start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        anchor = "" if align == "start" else f' text-anchor="{align}"'
        paint = "" if colour == "ink" else f' fill="var(--{colour})"'
        self._drawn.append(f'<text x="{_px(x)}" y="{_px(y)}" font-size="{size:g}"{anchor}{weight}{paint}>'
                           f"{escape(clean(text))}</text>")

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str = "ink", width: float = 1.0) -> None:
        """A polyline."""
        self._drawn.append(f'<path d="{_path(xs, ys)}" fill="none" stroke="var(--{colour})" stroke-width="{width:g}"/>')

    def steps(self, xs: Any, ys: Any, colour: str = "ink", width: float = 1.0) -> None:
        """A curve of steps; arrays of shape (n,)."""
        paint = f'fill="none" stroke="var(--{colour})" stroke-width="{width:g}"'
        self._drawn.append(f'<path d="{_steps(xs, ys)}" {paint}/>')

    def marks(self, points: Iterable[tuple[float, float]], shape: str = "o", size: float = 6.0, colour: str = "ink",
              filled: bool = True) -> None:
        """Points of one shape: o s D ^ v < >."""
        fill = colour if filled else "paper"
        paint = f'fill="var(--{fill})" stroke="var(--{colour})" stroke-width="1.2"'
        r, q = f"{size / 2:.1f}", f"{size * 0.66:.1f}"
        for x, y in points:
            self._drawn.append(
                f'<circle cx="{_px(x)}" cy="{_px(y)}" r="{r}" {paint}/>' if shape == "o" else
                f'<path transform="translate({_px(x)} {_px(y)})" d="{_SHAPES[shape].format(r=r, q=q)}" {paint}/>')

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        """A filled rectangle between two corners."""
        self._drawn.append(f'<rect x="{_px(min(x0, x1))}" y="{_px(min(y0, y1))}" width="{_px(abs(x1 - x0))}" '
                           f'height="{_px(abs(y1 - y0))}" fill="var(--{colour})"/>')

    def area(self, xs: Any, low: Any, high: Any, colour: str) -> None:
        """What lies between two curves of steps: each value holds until the next; arrays of shape (n,)."""
        self._drawn.append(f'<path d="{columns_of(xs, high, low)}" fill="var(--{colour})"/>')

    def inline(self, key: str, title: str, description: str) -> Markup:
        """The picture as part of a page: role img, named by its title and description; `key` makes their ids unique."""
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{k}-t {k}-d"><title id="{k}-t">{}</title>'
                      '<desc id="{k}-d">{}</desc>{}</svg>').format(
                          _px(self.width), _px(self.height), clean(title), clean(description),
                          Markup("".join(self._drawn)), k=key)


def _px(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    return "M" + "L".join(f"{_px(x)} {_px(y)}" for x, y in zip(xs, ys, strict=True))


def columns_of(xs: Any, high: Any, low: Any) -> str:
    """The outline between two curves of steps."""
    return f"{_steps(xs, high)}{_steps(xs, low, back=True)}z"


def _steps(xs: Any, ys: Any, back: bool = False) -> str:
    """Horizontals and verticals only, none where nothing changes: what makes a page of many timelines small."""
    across, down = np.round(np.asarray(xs, dtype=np.float64), 1), np.round(np.asarray(ys, dtype=np.float64), 1)
    changes = np.flatnonzero(np.diff(down)) + 1
    kept = np.concatenate(([0], changes))
    corners = [(_px(x), _px(y)) for x, y in zip(across[kept].tolist(), down[kept].tolist(), strict=True)]
    if back:
        return "".join(f"V{y}H{x}" for x, y in reversed(corners))
    return "M{} {}".format(*corners[0]) + "".join(f"H{x}V{y}" for x, y in corners[1:]) + f"H{_px(float(across[-1]))}"


@dataclass(frozen=True)
class Scale:
    """A linear map of values to pixels, with round ticks."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixels; values beyond the scale lie at its ends."""
        return float(self.all(value))

    def all(self, values: Any) -> Any:
        """The same for an array of any shape."""
        share = np.clip((np.asarray(values, dtype=np.float64) - self.low) / ((self.high - self.low) or 1.0), 0.0, 1.0)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, most: int) -> list[float]:
        """Multiples of 1, 2, 2.5 or 5 times a power of ten within the scale, at most `most` steps apart."""
        span = self.high - self.low
        if span <= 0 or not math.isfinite(span):
            return [self.low]
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if span / (factor * power) <= most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def tick_text(tick: float) -> str:
    """"−0.5", "1,000"."""
    return f"{tick:,.10g}".replace("-", "−")


def wrap(text: str, width_px: float, most: int = 3) -> list[str]:
    """Lines that fit into so many pixels; the last of `most` is cut with …."""
    room = max(10, int(width_px / COLUMN_PX))
    lines = [line.plain for line in wrap_columns(Text(" ".join(clean(text, 600).split())), room)]
    return lines if len(lines) <= most else [*lines[:most - 1], lines[most - 1][:-1] + "…"]


def swatch(sign: str) -> Markup:
    """A legend's sample of a colour or a shape."""
    return Markup('<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><use href="#sign-{}"/></svg>').format(
        sign)
