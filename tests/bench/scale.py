"""How long does `slackwater show` take on a large sweep? `python -m tests.bench.scale [--trials N] [--sweeps N]`.

Writes records of made-up trials, as many as `--trials`, into one sweep, and 1,000 small sweeps beside it; then reads
and analyses the large one as `show` does, without the index and with it, lists all sweeps as `runs` does, and completes
a sweep's name. The promises: 5 s for a summary of 10,000 trials with the index, 30 s without it, 0.25 s for a name.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.record import index
from pipeline.record.find import Sweeps
from pipeline.record.folder import SWEEPS, TRIALS, SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import RESULT, TrialRecord
from pipeline.report import wording
from pipeline.report.document import analyse, document
from pipeline.report.pages import sweep_of_record
from pipeline.report.sweep_page import print_sweep

PROMISES = {"with the index": 5.0, "without it": 30.0, "a name": 0.25}
METRICS, TURNS, PARAMS = 200, 3, 125
"""Per trial, as real ones have them: half of the metrics are logged by turn."""
CELLS = [(mode, flags) for mode in ("oneshot", "interactive") for flags in ("off", "on")]
BEGAN_MS = 1_760_000_000_000


def trials(sweep_id: str, count: int) -> Iterator[TrialRecord]:
    """Made-up trials with as many values as real ones have."""
    rng = random.Random(1)
    named = sorted(wording.SHOWN)
    names = named + [f"phase_{i % 8}/meter_{i}_mib" for i in range(METRICS - len(named))]
    for order in range(1, count + 1):
        block = (order - 1) // len(CELLS) + 1
        mode, flags = CELLS[(order + block) % len(CELLS)]
        params: dict[str, Any] = {"mode.name": mode, "infer_os.memory_optimization": flags == "on", "num_ctx": 2048}
        level = 200 - 20 * (flags == "on")
        turns = {name: {turn: level + i + rng.gauss(0, 1) for turn in (
            range(1, TURNS + 1) if mode == "interactive" and i % 2 == 0 else [1])} for i, name in enumerate(names)}
        yield TrialRecord(
            sweep_id=sweep_id, cell=f"{mode}-{flags}", repetition=block, block=block, order=order, mode=mode,
            infer_os=flags, verdict="valid" if order % 50 else "suspect", started_ms=BEGAN_MS + order * 20_000,
            ended_ms=BEGAN_MS + order * 20_000 + 19_000, method=2, turns=turns,
            params=params | {f"group.key_{i}": f"value {i}" for i in range(PARAMS - len(params))},
            tags={"engine": "made_up", "model": "none", "host": "here", index.CELL_DIGEST: f"{mode}-{flags}",
                  **{f"further_{i}": str(i) for i in range(20)}})


def fill(folder: Path, sweep_id: str, count: int) -> None:
    """A sweep's folder; not by SweepFolder.put, which waits for the disk at every trial."""
    sweep = SweepRecord(sweep_id, "scale", "?", "slackwater run", count, BEGAN_MS, "finished",
                        BEGAN_MS + count * 20_000, tags={"host": "here"})
    SweepFolder(folder).begin(sweep, {"cells": []})
    for trial in trials(sweep_id, count):
        place = folder / TRIALS / trial.name
        place.mkdir()
        (place / RESULT).write_text(trial.to_json(), encoding="utf-8")
    for path in (folder / TRIALS, folder):
        os.utime(path, (BEGAN_MS / 1000, BEGAN_MS / 1000))  # long ago: the index takes nothing that is younger than 2 s


def summarise(home: Path, sweep_id: str) -> None:
    """What `show` does."""
    sweeps = Sweeps(home, "here")
    record = sweeps.sweep(sweep_id)
    found = sweeps.summary(sweep_id, wording.SHOWN)
    print_sweep(Console(file=io.StringIO(), width=100), sweep_of_record(record, found), analyse(found))


def in_full(home: Path, sweep_id: str) -> None:
    """What `show --json` does."""
    sweeps = Sweeps(home, "here")
    found = sweeps.trials(sweep_id)
    json.dumps(document(sweep_of_record(sweeps.sweep(sweep_id), found), found, analyse(found)))


def timed(do: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def main() -> int:
    """Fill, measure, print; 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--sweeps", type=int, default=1_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slackwater-scale-") as temporary:
        home = Path(temporary)
        fill(home / SWEEPS / "scale-1", "scale-1", given.trials)
        for number in range(given.sweeps):
            fill(home / SWEEPS / f"small-{number}", f"small-{number}", 1)
        size = sum(path.stat().st_size for path in (home / SWEEPS / "scale-1").rglob("*") if path.is_file()) >> 20
        spent = {"without it": timed(lambda: summarise(home, "scale-1"))}
        spent["with the index"] = min(timed(lambda: summarise(home, "scale-1")) for _ in range(3))
        spent["show --json"] = timed(lambda: in_full(home, "scale-1"))
        spent["runs, the first time"] = timed(lambda: Sweeps(home, "here").all())
        spent["runs"] = min(timed(lambda: Sweeps(home, "here").all()) for _ in range(3))
        spent["a name"] = min(timed(lambda: Sweeps(home, "here").ids()) for _ in range(3))
    for name, seconds in spent.items():
        print(f"{name:22} {seconds:6.2f} s" + (f"  (promised: {PROMISES[name]:g} s)" if name in PROMISES else ""))
    print(f"{given.trials} trials, {size} MiB, beside {given.sweeps} small sweeps; "
          f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 1 if any(spent[name] > promised for name, promised in PROMISES.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
