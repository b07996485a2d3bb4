"""How long does `slackwater show` take on a large store? `python -m tests.bench.scale [--trials N] [--timeline N]`.

Fills an SQLite store of MLflow's with one sweep of made-up trials, by SQL, then reads and analyses it as `show` does.
The promise is 10,000 trials in at most 5 s. `--timeline` is the number of chart points per series, of which a
real trial has up to 300: they are never read, but filling a store with them takes long.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from pipeline.config import Tracking
from pipeline.report import wording
from pipeline.report.document import analyse, document
from pipeline.report.pages import sweep_of_record
from pipeline.report.sweep_page import print_sweep
from pipeline.track.source import PARAMS_DIGEST
from pipeline.track.store import open_store

PROMISE_S = 5.0
METRICS, TURNS, PARAMS = 200, 3, 125
"""Per trial, as real ones have them: half of the metrics are logged by turn."""
CELLS = [(mode, flags) for mode in ("oneshot", "interactive") for flags in ("off", "on")]
BEGAN_MS = 1_760_000_000_000


def rows(trials: int, timeline: int, experiment_id: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    """(table, row) of every run of the sweep."""
    rng = random.Random(1)
    named = sorted(wording.SHOWN)
    names = named + [f"phase_{i % 8}/meter_{i}_mib" for i in range(METRICS - len(named))]
    sweep = "scale-1"

    def run(run_id: str, name: str, start: int) -> tuple[str, tuple[object, ...]]:
        return "runs", (run_id, name, "FINISHED", start, start + 20_000, "active", experiment_id, f"file:///none/{run_id}")

    yield run(f"{0:032x}", "scale sweep", BEGAN_MS)
    for key, text in (("kind", "sweep"), ("sweep_id", sweep), ("planned_trials", str(trials)), ("question", "?")):
        yield "tags", (key, text, f"{0:032x}")
    for order in range(1, trials + 1):
        run_id, block = f"{order:032x}", (order - 1) // len(CELLS) + 1
        mode, flags = CELLS[(order + block) % len(CELLS)]
        start = BEGAN_MS + order * 20_000
        yield run(run_id, f"{mode}-{flags} r{block}", start)
        for key, text in {"kind": "trial", "sweep_id": sweep, "cell": f"{mode}-{flags}", "repetition": str(block),
                          "order": str(order), "block": str(block), "mode": mode, "infer_os": flags,
                          "verdict": "valid" if order % 50 else "suspect", "engine": "made_up", "model": "none",
                          PARAMS_DIGEST: f"{mode}-{flags}", "mlflow.note.content": "x" * 700,
                          "mlflow.runName": f"{mode}-{flags} r{block}",
                          **{f"further_{i}": str(i) for i in range(8)}}.items():
            yield "tags", (key, text, run_id)
        params = {"mode.name": mode, "infer_os.memory_optimization": str(flags == "on").lower(), "num_ctx": "2048"}
        for key, text in (params | {f"group.key_{i}": f"value {i}" for i in range(PARAMS - len(params))}).items():
            yield "params", (key, text, run_id)
        level = 200 - 20 * (flags == "on")
        for i, name in enumerate(names):
            turns = range(1, TURNS + 1) if mode == "interactive" and i % 2 == 0 else [1]
            for turn in turns:
                yield "metrics", (name, level + i + rng.gauss(0, 1), start, run_id, turn, 0)
        for i in range(8):
            for point in range(timeline):
                yield "metrics", (f"timeline/series_{i}_mib", level + point, start + point * 60, run_id, point * 60, 0)


COLUMNS = {
    "runs": "run_uuid, name, status, start_time, end_time, lifecycle_stage, experiment_id, artifact_uri",
    "tags": "key, value, run_uuid", "params": "key, value, run_uuid",
    "metrics": "key, value, timestamp, run_uuid, step, is_nan",
}


def fill(database: Path, trials: int, timeline: int, experiment_id: str) -> None:
    """All rows in one transaction, in portions."""
    waiting: dict[str, list[tuple[object, ...]]] = {table: [] for table in COLUMNS}
    with sqlite3.connect(database) as connection:
        def send(table: str) -> None:
            marks = ", ".join("?" * len(COLUMNS[table].split(",")))
            connection.executemany(f"INSERT INTO {table} ({COLUMNS[table]}) VALUES ({marks})", waiting[table])
            waiting[table].clear()

        for table, row in rows(trials, timeline, experiment_id):
            waiting[table].append(row)
            if len(waiting[table]) >= 50_000:
                send(table)
        for table in COLUMNS:
            send(table)


def measure(uri: str) -> dict[str, float]:
    """Seconds per step of what `show` does, and of what `show --json` does."""
    spent: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        spent[name], began = now - began, now

    store = open_store(Tracking(uri=uri), write=False)
    record = store.find_sweep("last")
    lap("find the sweep")
    trials = store.trials(record.sweep_id, wording.SHOWN)
    lap("read the trials")
    analysis = analyse(trials)
    lap("analyse them")
    print_sweep(Console(file=io.StringIO(), width=100), sweep_of_record(record, trials), analysis)
    lap("print the page")
    spent["SUMMARY"] = sum(spent.values())
    trials = store.trials(record.sweep_id)
    lap("read every metric")
    text = json.dumps(document(sweep_of_record(record, trials), trials, analyse(trials)))
    lap(f"as JSON, {len(text) >> 20} MiB")
    return spent


def main() -> int:
    """Fill, measure, print the best of three; 1 if the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--timeline", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="a folder for the store, used again if it is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slackwater-scale-") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        database = (folder / "mlflow.db").absolute()
        if not database.exists():
            store = open_store(Tracking(uri=f"sqlite:///{database}"))
            fill(database, given.trials, given.timeline, store.experiment_id)
        best = min((measure(f"sqlite:///{database}") for _ in range(3)), key=lambda lap: lap["SUMMARY"])
        size = database.stat().st_size >> 20
    for name, seconds in best.items():
        print(f"{name:18} {seconds:6.2f} s")
    print(f"{given.trials} trials in a store of {size} MiB; the promise is {PROMISE_S:g} s for the summary; "
          f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 1 if best["SUMMARY"] > PROMISE_S else 0


if __name__ == "__main__":
    sys.exit(main())
