"""What is written into an SQLite store as rows: a trial's values in one transaction, in a tenth of the time that
MLflow's objects take, and whole or not at all.

The rows are those that MLflow's SqlAlchemyStore would write, into the one schema they were held against; in any other
MLflow writes them itself (store.py), as it makes every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.track.check import connect_sqlite

SCHEMA = "dc11669786a5"
"""The Alembic revision of MLflow 3.17; test_track_store.py reads these rows back through MLflow's own client."""

Point = tuple[str, float, int, int]
"""Metric, value, Unix time in milliseconds, step."""


def writable(database: Path) -> bool:
    """Is this the schema that is known here? Raises sqlite3.Error."""
    with connect_sqlite(database) as connection:
        found: tuple[str] | None = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return found == (SCHEMA,)


def write(database: Path, run_id: str, *, params: Mapping[str, str] | None = None, points: Sequence[Point] = (),
          tags: Mapping[str, str] | None = None, ended: tuple[str, int] | None = None) -> None:
    """Params and tags, all points of all metrics, and how the run ended: status and Unix time in milliseconds.

    What is there stays, but for tags and the last value of a metric. Raises sqlite3.Error."""
    with connect_sqlite(database, write=True) as connection, connection:
        connection.executemany("INSERT OR IGNORE INTO params (run_uuid, key, value) VALUES (?, ?, ?)",
                               [(run_id, *row) for row in (params or {}).items()])
        for verb, table, rows in (("IGNORE", "metrics", points), ("REPLACE", "latest_metrics", latest(points))):
            connection.executemany(f"INSERT OR {verb} INTO {table} (run_uuid, is_nan, key, value, timestamp, step) "
                                   "VALUES (?, 0, ?, ?, ?, ?)", [(run_id, *row) for row in rows])
        connection.executemany("INSERT OR REPLACE INTO tags (run_uuid, key, value) VALUES (?, ?, ?)",
                               [(run_id, *row) for row in (tags or {}).items()])
        if ended is not None:
            connection.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", (*ended, run_id))


def latest(points: Sequence[Point]) -> Sequence[Point]:
    """The point of each metric that MLflow shows: the last by step, time and value."""
    found: dict[str, Point] = {}
    for point in points:
        name, value, t_ms, step = point
        known = found.get(name)
        if known is None or (step, t_ms, value) > (known[3], known[2], known[1]):
            found[name] = point
    return list(found.values())
