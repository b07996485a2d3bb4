"""timeline.png: what a trial's process tree held over time, with its phases and the kernel's peaks marked.

Draws values, reads no memory. matplotlib is imported when something is drawn; pyplot (and its global state) never.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import MeterError
from pipeline.meter.timeline import read_parquet
from pipeline.phases import MIB, Mark, Span, Timeline, spans, within
from pipeline.record.trial import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 1000, 500, 100
"""Pixels; two of them stand side by side in MLflow's compare page."""

TITLE_CHARACTERS = 44
"""What fits beside the legend."""

MAX_POINTS = 2000
"""Columns drawn: twice the pixels, so that nothing is lost."""

# Okabe and Ito's palette, told apart by colour-blind readers: https://jfly.uni-koeln.de/color/
PARTS = (("anon", "anonymous", "#0072B2"), ("file", "file-mapped", "#56B4E9"), ("shmem", "shared", "#009E73"),
         ("swap", "swapped out", "#D55E00"))
WORK = {"load": "#F5E6C8", "prefill": "#F3D9E6", "decode": "#E3EFD9"}
"""What the server does, shaded over its length; the other phases are moments and get a grey band."""
MOMENT = "#8A8A8A"
INK = "#222222"

ROWS = 5
"""Lines of labels above the plot."""
MANY_TURNS = 4
ROW_PX, CHARACTER_PX, GAP_PX = 14, 6.4, 6


@dataclass(frozen=True)
class Label:
    """A phase's name above the plot: its row (0 is the nearest), the x of its text's middle and of its band, pixels."""

    text: str
    row: int
    x_px: float
    band_px: float


def write_png(path: Path, timeline: Timeline, marks: Sequence[Mark], title: str) -> None:
    """Draw `timeline` to `path`, WIDTH × HEIGHT pixels; seconds count from the first mark, memory is in MiB.

    A timeline without samples gives a picture that says so. Raises OSError if the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    shown = title if len(title) <= TITLE_CHARACTERS else title[: TITLE_CHARACTERS - 1] + "…"
    figure.text(0.012, 0.975, shown, ha="left", va="top", fontsize=11, color=INK, weight="bold", parse_math=False)
    if len(timeline.t_ns):
        _draw(figure, timeline, marks)
    else:
        figure.text(0.5, 0.5, "no sample was taken", ha="center", fontsize=12, color=INK)
    with warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes; a terminal need not say so
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.print_png(str(path))  # type: ignore[no-untyped-call]


def draw(trial: TrialRecord, path: Path) -> bool:
    """The picture of a trial, if its timeline was kept. Raises OSError if the file cannot be written."""
    kept = trial.artifact("timeline.parquet")
    try:
        timeline, marks, _processes = read_parquet(io.BytesIO(kept or b""))
    except MeterError:
        return False
    write_png(path, timeline, marks, f"{trial.cell} r{trial.repetition}")
    return True


def _draw(figure: Figure, timeline: Timeline, marks: Sequence[Mark]) -> None:
    axes = figure.add_axes((0.075, 0.115, 0.91, 0.645))
    t0_ns = min([mark.t_ns for mark in marks] + [int(timeline.t_ns[0])])
    end_s = (max([mark.t_ns for mark in marks] + [int(timeline.t_ns[-1])]) - t0_ns) / 1e9
    _draw_memory(axes, timeline, t0_ns)
    axes.set_xlim(0, max(end_s, 1e-3))
    phases = spans(marks)
    _draw_phases(axes, phases, t0_ns)
    _draw_peaks(axes, timeline, phases, t0_ns)
    axes.set_xlabel("seconds", color=INK)
    axes.set_ylabel("MiB in the server's process tree", color=INK)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper right", bbox_to_anchor=(0.99, 0.985), bbox_transform=figure.transFigure, ncols=5,
                frameon=False, fontsize=9, handlelength=1.2, columnspacing=1.2, borderaxespad=0)


def _draw_memory(axes: Axes, timeline: Timeline, t0_ns: int) -> None:
    total = timeline.tree_rss + timeline.columns["tree_swap"]
    kept = highest(total, MAX_POINTS)
    seconds = (timeline.t_ns[kept] - t0_ns) / 1e9
    floor = np.zeros(len(kept))
    for name, label, colour in PARTS:
        values = timeline.columns[f"tree_{name}"][kept] / MIB
        if name in ("shmem", "swap") and not values.any():
            continue
        axes.fill_between(seconds, floor, floor + values, step="post", color=colour, linewidth=0, label=label)
        floor = floor + values
    top = max(float(total.max()), float(timeline.columns["tree_hwm"].max())) / MIB
    axes.set_ylim(0, max(top * 1.18, 1.0))


def highest(total: np.ndarray, points: int) -> np.ndarray:
    """Indices, ascending, at most `points`: of each run of neighbours the one that holds most, so no spike is lost."""
    if len(total) <= points:
        return np.arange(len(total))
    edges = np.linspace(0, len(total), points + 1).astype(int)
    return np.array([begin + int(total[begin:end].argmax()) for begin, end in itertools.pairwise(edges)])


def _draw_phases(axes: Axes, phases: Sequence[Span], t0_ns: int) -> None:
    box = axes.get_window_extent()
    px_per_s = box.width / axes.get_xlim()[1]
    shown = [span for span in phases if span.name != "during_generation"]
    for span in shown:
        begin, end = (span.start_ns - t0_ns) / 1e9, (span.end_ns - t0_ns) / 1e9
        if span.name in WORK:
            axes.axvspan(begin, end, color=WORK[span.name], linewidth=0, zorder=0)
        else:
            axes.axvspan(begin, end, color=MOMENT, alpha=0.35, linewidth=0, zorder=3)
    named = _named(phases)
    middles = [((span.start_ns + span.end_ns) / 2e9 - t0_ns / 1e9) * px_per_s for _, span in named]
    from matplotlib.collections import LineCollection

    # text and lines in pixels from the axes' lower left corner: labels keep their size whatever the data's scale
    from matplotlib.transforms import Affine2D

    pixels = Affine2D().translate(box.x0, box.y0)
    lines = []
    for label in place_labels([text for text, _ in named], middles, box.width):
        y = box.height + 8 + label.row * ROW_PX
        axes.text(label.x_px, y, label.text, transform=pixels, ha="center", va="bottom", fontsize=8, color=INK,
                  parse_math=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        lines.append([(label.band_px, box.height), (label.x_px, y + 1)])
    axes.add_collection(LineCollection(lines, transform=pixels, colors="#AAAAAA", linewidths=0.6, clip_on=False),
                        autolim=False)


def _named(phases: Sequence[Span]) -> list[tuple[str, Span]]:
    """Labels and where they point: every phase by its name, or, in a long conversation, those of its first and last
    turn, the turns between by their number."""
    turns = sorted({span.turn for span in phases if span.turn})
    between = turns[1:-1] if len(turns) > MANY_TURNS else []
    return ([(span.name, span) for span in phases if span.name != "during_generation" and span.turn not in between]
            + [(f"turn {span.turn}", span) for span in phases
               if span.name == "during_generation" and span.turn in between])


def place_labels(texts: Sequence[str], middles_px: Sequence[float], width_px: float) -> list[Label]:
    """Rows for labels so that no two overlap; each stands over its band, or a little beside it at the edges.

    A label that finds no room in ROWS rows is left out: its band is drawn all the same, and phases repeat by turn."""
    free_from = [0.0] * ROWS
    placed = []
    for text, middle in sorted(zip(texts, middles_px, strict=True), key=lambda item: item[1]):
        half = len(text) * CHARACTER_PX / 2
        x = min(max(middle, half), max(width_px - half, half))
        row = next((row for row in range(ROWS) if free_from[row] <= x - half), None)
        if row is not None:
            free_from[row] = x + half + GAP_PX
            placed.append(Label(text, row, x, middle))
    return placed


def _draw_peaks(axes: Axes, timeline: Timeline, phases: Sequence[Span], t0_ns: int) -> None:
    """The highest kernel high-water mark (VmHWM, summed over the tree) of each generation, where it was reached."""
    found = []
    for span in phases:
        inside = np.flatnonzero(within(timeline, span))
        if span.name == "during_generation" and len(inside):
            at = inside[int(timeline.columns["tree_hwm"][inside].argmax())]
            found.append(((int(timeline.t_ns[at]) - t0_ns) / 1e9, float(timeline.columns["tree_hwm"][at]) / MIB))
    found = [(seconds, peak) for seconds, peak in found if peak > 0]
    if not found:
        return
    axes.plot(*zip(*found, strict=True), linestyle="none", marker="v", markersize=7, color="#000000",
              label="kernel's peak", zorder=5, clip_on=False)
    end_s = axes.get_xlim()[1]
    for seconds, peak in found if len(found) <= 4 else [max(found, key=lambda point: point[1])]:
        late = seconds > 0.85 * end_s
        axes.annotate(f"{peak:,.0f} MiB", (seconds, peak), (-7 if late else 7, 5), textcoords="offset points",
                      fontsize=9, color=INK, ha="right" if late else "left", zorder=6,
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1})
