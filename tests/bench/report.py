"""How long does `slackwater report` take, and how large is it? `python -m tests.bench.report`.

Writes sweeps of made-up trials as bench `scale` does, gives each trial a timeline of 20 s at 100 Hz and the papers of
a real one, and runs the command. The promise: 100 trials in 5 s and 6 MB, 1,000 in 30 s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.meter.timeline import write_parquet
from pipeline.phases import MIB, Mark, ProcessRows, Timeline
from pipeline.record.folder import SWEEPS, TRIALS
from tests.bench.scale import fill

PROMISES = ((100, 5.0), (1000, 30.0))
MOST_BYTES = 6_000_000
SAMPLES = 2000
STAGES = ("initialization", "pre_generation", "load", "prefill", "decode", "post_generation", "stabilized", "released")


def papers(folder: Path) -> list[Path]:
    """The artifacts that every trial gets."""
    rng = np.random.default_rng(1)
    t_ns = np.arange(SAMPLES, dtype=np.int64) * 10_000_000
    level = np.where((t_ns > 10**9) & (t_ns < 18 * 10**9), 170 * MIB, 20 * MIB)
    anon = (level + rng.integers(0, 2 * MIB, SAMPLES)).astype(np.int64)
    zero = np.zeros(SAMPLES, dtype=np.int64)
    columns = dict.fromkeys(("system_total", "system_available", "system_free", "system_cached"), zero + 500 * MIB)
    columns |= {"tree_anon": anon, "tree_file": zero + 20 * MIB, "tree_shmem": zero, "tree_swap": zero,
                "tree_hwm": np.maximum.accumulate(anon), "tree_processes": zero + 1, "system_swap_used": zero}
    marks = [Mark(f"{stage}/{edge}", (2 * number + late) * 10**9, turn) for turn in (1, 2, 3)
             for number, stage in enumerate(STAGES) for late, edge in enumerate(("start", "end"))]
    write_parquet(folder / "timeline.parquet", Timeline(t_ns, t_ns, columns), marks,
                  ProcessRows(t_ns, zero + 7, anon, zero, zero, zero, anon))
    proofs = [{"knob": f"knob_{n}", "asked": n, "arrived": str(n), "effective": str(n), "state": "confirmed",
               "source": "log: a line of it"} for n in range(22)]
    (folder / "provenance.json").write_text(json.dumps({"machine": {"host": "harbour"}, "proofs": proofs,
                                                        "meters": [{"meter": "pressure", "here": "yes"}]}))
    (folder / "response.txt").write_text("The tide turns twice a day.\n" * 40)
    return sorted(folder.iterdir())


def measure(folder: Path, trials: int) -> tuple[float, int]:
    """Seconds of the whole command, the best of three, and bytes of the file."""
    uri = f"sqlite:///{folder}/mlflow.db"
    sweep = folder / SWEEPS / "scale-1"
    fill(sweep, "scale-1", trials)
    made = folder / "papers"
    made.mkdir()
    kept = papers(made)
    for target in (sweep / TRIALS).iterdir():
        for path in kept:
            (target / path.name).hardlink_to(path)
    report = folder / "report.html"
    spent = []
    for _attempt in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", "report", "--store", uri, "-o", str(report)], check=True,
                       stdout=subprocess.DEVNULL)
        spent.append(time.perf_counter() - began)
    return min(spent), report.stat().st_size


def main() -> int:
    """Measure both sizes; 1 if a promise is broken."""
    missed = 0
    for trials, promise_s in PROMISES:
        with tempfile.TemporaryDirectory(prefix="slackwater-report-") as folder:
            seconds, size = measure(Path(folder), trials)
        missed += seconds > promise_s or size > MOST_BYTES
        print(f"{trials:5} trials  {seconds:5.2f} s of {promise_s:g}  {size / 1e6:5.2f} MB of {MOST_BYTES / 1e6:g}; "
              f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
