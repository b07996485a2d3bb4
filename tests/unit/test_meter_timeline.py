"""The timeline survives being written, and a chart's points keep every peak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import MeterError
from pipeline.meter.sampler_program import SAMPLE_COLUMNS
from pipeline.meter.timeline import downsample, read_parquet, write_parquet
from pipeline.phases import MIB, Mark, ProcessRows, Timeline


def _timeline(n: int) -> Timeline:
    random = np.random.default_rng(1)
    due = np.arange(n, dtype=np.int64) * 10_000_000 + 5_000_000_000
    columns = {name: random.integers(1, 1000, n) * MIB for name in SAMPLE_COLUMNS}
    return Timeline(due, due + random.integers(1000, 200_000, n), columns)


def test_what_is_written_is_read_back_process_by_process(tmp_path: Path) -> None:
    timeline = _timeline(4)
    t_ns = np.repeat(timeline.t_ns, [0, 2, 1, 0])
    rows = ProcessRows(t_ns, *(np.arange(3, dtype=np.int64) + 10 * i for i in range(6)))
    marks = [Mark("start", 5_000_000_000), Mark("first_token", 5_010_000_000, 1)]
    path = tmp_path / "timeline.parquet"
    write_parquet(path, timeline, marks, rows)
    back, back_marks, back_rows = read_parquet(path)
    assert back_marks == marks
    np.testing.assert_array_equal(back.due_ns, timeline.due_ns)
    np.testing.assert_array_equal(back.t_ns, timeline.t_ns)
    assert set(back.columns) == set(timeline.columns)
    for name, values in timeline.columns.items():
        np.testing.assert_array_equal(back.columns[name], values)
    for name in ("t_ns", "pid", "anon", "file", "shmem", "swap", "hwm"):
        np.testing.assert_array_equal(getattr(back_rows, name), getattr(rows, name))
    assert [entry.name for entry in tmp_path.iterdir()] == ["timeline.parquet"]


def test_the_files_columns_carry_their_units(tmp_path: Path) -> None:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    nothing = np.empty(0, dtype=np.int64)
    write_parquet(tmp_path / "t.parquet", _timeline(3), [], ProcessRows(*[nothing] * 7))
    names = pq.read_schema(tmp_path / "t.parquet").names
    assert {"due_ns", "t_ns", "tree_anon_bytes", "system_available_bytes", "tree_processes", "processes"} <= set(names)


def test_a_file_that_is_no_timeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"nonsense")
    with pytest.raises(MeterError, match=r"t\.parquet cannot be read"):
        read_parquet(tmp_path / "t.parquet")


@pytest.mark.parametrize("points", [0, 1, 2, 7, 300])
def test_a_peak_of_one_sample_survives_downsampling(points: int) -> None:
    timeline = _timeline(10_000)
    timeline.columns["tree_anon"][6_543] = 5000 * MIB
    timeline.columns["system_available"][1_234] = MIB // 2
    series = downsample(timeline, int(timeline.t_ns[0]), points)
    for points_of_series in series.values():
        assert len(points_of_series) <= points
        assert [t for t, _ in points_of_series] == sorted(t for t, _ in points_of_series)
    if points:
        at = int((timeline.t_ns[6_543] - timeline.t_ns[0]) // 1_000_000)
        assert (at, 5000.0) in series["tree_anon_mib"]
    if points > 1:
        assert min(value for _, value in series["system_available_mib"]) == 0.5


def test_few_samples_are_all_kept() -> None:
    timeline = _timeline(50)
    series = downsample(timeline, int(timeline.t_ns[0]))
    np.testing.assert_allclose([value for _, value in series["tree_rss_mib"]], timeline.tree_rss / MIB)
