"""timeline.png shows what was measured: every spike, every phase, labels that can be read."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.phases import MIB, Mark, Timeline
from pipeline.report import timeline_plot
from pipeline.report.timeline_plot import CHARACTER_PX, HEIGHT, WIDTH, place_labels, write_png

SECOND = 1_000_000_000


def timeline(samples: int, anon_mib: float = 100.0, rate_hz: int = 100) -> Timeline:
    t_ns = np.arange(samples, dtype=np.int64) * (SECOND // rate_hz) + 7 * SECOND
    zeros = np.zeros(samples, dtype=np.int64)
    anon = np.full(samples, int(anon_mib * MIB), dtype=np.int64)
    columns = {"tree_anon": anon, "tree_file": anon // 2, "tree_shmem": zeros, "tree_swap": zeros, "tree_hwm": anon * 2}
    return Timeline(t_ns, t_ns, columns)


def phase(name: str, begin_s: float, end_s: float, turn: int = 0) -> list[Mark]:
    return [Mark(f"{name}/{edge}", int((7 + at_s) * SECOND), turn)
            for edge, at_s in (("start", begin_s), ("end", end_s))]


MARKS = [*phase("baseline", 0, 0.2), *phase("initialization", 0.5, 0.7), *phase("pre_generation", 0.71, 0.91, 1),
         *phase("during_generation", 0.92, 2, 1), *phase("load", 0.92, 1.0, 1), *phase("prefill", 1.0, 1.01, 1),
         *phase("decode", 1.01, 2, 1), *phase("post_generation", 2.0, 2.2, 1), *phase("stabilized", 4, 4.2, 1),
         *phase("released", 4.5, 4.7)]


def size(path: Path) -> tuple[int, int]:
    """Width and height, from the PNG's header."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_a_trial_becomes_a_picture_of_a_known_size(tmp_path: Path) -> None:
    write_png(tmp_path / "timeline.png", timeline(500), MARKS, "oneshot-on r2")
    assert size(tmp_path / "timeline.png") == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("samples", "marks", "title"), [
    (0, [], "no sample"), (1, [], "one sample"), (300, MARKS[:3], "a trial that ended in the middle"),
    (300, [], "x" * 400), (60_000, MARKS, "ten minutes"), (300, MARKS, "$\\frac{ 指示 <b> %"),
])
@pytest.mark.filterwarnings("error")
def test_whatever_a_trial_left_behind_can_be_drawn(tmp_path: Path, samples: int, marks: list[Mark], title: str) -> None:
    write_png(tmp_path / "timeline.png", timeline(samples), marks, title)
    assert size(tmp_path / "timeline.png") == (WIDTH, HEIGHT)


def test_a_spike_of_one_sample_in_ten_minutes_is_drawn() -> None:
    total = np.full(60_000, 100, dtype=np.int64)
    total[31_234] = 900
    kept = timeline_plot.highest(total, 2000)
    assert len(kept) <= 2000
    assert 31_234 in kept
    assert np.all(np.diff(kept) > 0)


def test_labels_never_overlap_and_stay_inside() -> None:
    texts = ["pre_generation", "load", "prefill", "decode", "post_generation", "stabilized"] * 5
    middles = [x + 150.0 * turn for turn in range(5) for x in (10, 22, 30, 60, 90, 140)]
    placed = place_labels(texts, middles, 800)
    assert len(placed) >= 12
    halves = [len(label.text) * CHARACTER_PX / 2 for label in placed]
    boxes = [(label.row, label.x_px - half, label.x_px + half) for label, half in zip(placed, halves, strict=True)]
    assert all(left >= 0 and right <= 800 for _, left, right in boxes)
    for (row, left, right), (other, other_left, other_right) in itertools.combinations(boxes, 2):
        assert row != other or right <= other_left or other_right <= left


def test_the_phases_of_a_short_trial_all_get_their_label() -> None:
    names = ["baseline", "initialization", "pre_generation", "load", "prefill", "decode", "post_generation",
             "stabilized", "released"]
    middles = [20, 130, 155, 160, 165, 260, 400, 750, 830]
    assert sorted(label.text for label in place_labels(names, middles, 910)) == sorted(names)


def test_the_kernels_peak_is_the_one_of_the_generation_and_not_of_the_load_before() -> None:
    from matplotlib.figure import Figure

    trial = timeline(500)
    hwm = trial.columns["tree_hwm"].copy()
    hwm[:] = 10 * MIB
    hwm[30] = 999 * MIB
    hwm[150] = 321 * MIB
    drawn = Timeline(trial.due_ns, trial.t_ns, {**trial.columns, "tree_hwm": hwm})
    figure = Figure()
    timeline_plot._draw(figure, drawn, MARKS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "321 MiB" in texts
    assert not any("999" in text for text in texts)
    assert {"baseline", "decode", "released"} <= set(texts)
