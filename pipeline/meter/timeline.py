"""A trial's timeline as a file (Parquet) and as the few points a chart needs.

Phase metrics are computed in pipeline/phases.py; nothing here measures.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import MeterError
from pipeline.phases import MIB, Int64Array, Mark, ProcessRows, Timeline

SCHEMA_VERSION = 1

_NO_BYTES = ("tree_processes", "rate_hz")
_PROCESS_COLUMNS = ("anon", "file", "shmem", "swap", "hwm")


def write_parquet(path: Path, timeline: Timeline, marks: Sequence[Mark], processes: ProcessRows) -> None:
    """One row per sample: due_ns, t_ns, then tree_*_bytes, system_*_bytes, rate_hz (held until the next sample), and
    `processes`, a list of structs.

    The file's metadata holds schema_version and marks (JSON). Written beside and renamed, so that it is
    whole or not there. Raises MeterError if the disk does not take it."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    columns: dict[str, pa.Array] = {"due_ns": pa.array(timeline.due_ns), "t_ns": pa.array(timeline.t_ns)}
    for name, values in timeline.columns.items():
        columns[name if name in _NO_BYTES else f"{name}_bytes"] = pa.array(values)
    # A process row carries its sample's t_ns and both are in order: row i owns processes[offset[i]:offset[i + 1]].
    offsets = np.searchsorted(processes.t_ns, np.append(timeline.t_ns, np.iinfo(np.int64).max))
    structs = pa.StructArray.from_arrays(
        [pa.array(processes.pid)] + [pa.array(getattr(processes, name)) for name in _PROCESS_COLUMNS],
        names=["pid", *(f"{name}_bytes" for name in _PROCESS_COLUMNS)])
    columns["processes"] = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), structs)
    table = pa.table(columns).replace_schema_metadata({
        "schema_version": str(SCHEMA_VERSION),
        "marks": json.dumps([{"name": mark.name, "t_ns": mark.t_ns, "turn": mark.turn} for mark in marks])})
    beside = path.with_name(path.name + ".part")
    try:
        pq.write_table(table, beside, compression="zstd")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise MeterError(f"{path} could not be written: {error}. Expected room on the disk and a writable folder."
                         ) from error


def read_parquet(file: Path | BinaryIO) -> tuple[Timeline, list[Mark], ProcessRows]:
    """What `write_parquet` wrote, from a file or its content. Raises MeterError for one of another schema, or none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = file if isinstance(file, Path) else "timeline.parquet"
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise MeterError(f"{path} cannot be read: {error}. Expected a timeline.parquet of a trial.") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("schema_version") != str(SCHEMA_VERSION):
        raise MeterError(f"{path} has schema_version {metadata.get('schema_version')}. Expected {SCHEMA_VERSION}; "
                         "read it with the version of slackwater that wrote it.")
    marks = [Mark(**mark) for mark in json.loads(metadata["marks"])]
    names = [name for name in table.column_names if name not in ("due_ns", "t_ns", "processes")]
    timeline = Timeline(table["due_ns"].to_numpy(), table["t_ns"].to_numpy(),
                        {name.removesuffix("_bytes"): table[name].to_numpy() for name in names})
    lists = table["processes"].combine_chunks()
    structs = lists.flatten()
    counts = np.diff(lists.offsets.to_numpy())
    rows = ProcessRows(np.repeat(timeline.t_ns, counts), structs.field("pid").to_numpy(),
                       *(structs.field(f"{name}_bytes").to_numpy() for name in _PROCESS_COLUMNS))
    return timeline, marks, rows


def chart_series(timeline: Timeline) -> dict[str, Int64Array]:
    """The series a chart shows, in bytes: name (without unit) → array of shape (n,)."""
    columns = timeline.columns
    return {
        "tree_rss": timeline.tree_rss,
        **{name: columns[name] for name in ("tree_anon", "tree_file", "tree_shmem", "tree_swap")},
        "system_used": columns["system_total"] - columns["system_available"],
        "system_available": columns["system_available"],
        "system_cached": columns["system_cached"],
    }


def downsample(timeline: Timeline, t0_ns: int, points: int = 300) -> dict[str, list[tuple[int, float]]]:
    """At most `points` points per series: "tree_rss_mib" → (milliseconds since t0_ns, MiB), in order of time.

    Each bucket of samples gives its smallest and its largest, at their own times, so every peak survives."""
    milliseconds = (timeline.t_ns - t0_ns) // 1_000_000
    return {f"{name}_mib": [(int(milliseconds[i]), float(values[i]) / MIB) for i in _extremes(values, points)]
            for name, values in chart_series(timeline).items()}


def _extremes(values: Int64Array, points: int) -> npt.NDArray[np.intp]:
    """Indices to keep, ascending, at most `points` of them; all where they are few enough."""
    if len(values) <= points:
        return np.arange(len(values))
    if points < 2:
        return np.array([int(values.argmax())][:points], dtype=np.intp)
    edges = np.linspace(0, len(values), points // 2 + 1).astype(np.intp)
    kept: set[int] = set()
    for begin, end in itertools.pairwise(edges):
        bucket = values[begin:end]
        kept |= {int(begin + bucket.argmin()), int(begin + bucket.argmax())}
    return np.array(sorted(kept), dtype=np.intp)
