"""Trials beside two busy neighbours against quiet ones: does memory read the same, and how many trials are lost?

`python -m tests.bench.busy_neighbours [--each N]` measures N quiet trials and N with two processes that compute without
pause, in turns. Wants a machine that is quiet otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.overhead import slackwater

NEIGHBOURS = 2
BUSY = "import os\nours = os.getppid()\nwhile os.getppid() == ours: pass"
"""Computes until its parent is gone, however that ended."""
MOST_MIB = 0.2
METRICS = ("initialization/tree_rss_mib", "pre_generation/tree_rss_mib", "during_generation/tree_rss_peak_mib",
           "post_generation/tree_rss_mib", "stabilized/tree_rss_mib", "stabilized/tree_anon_mib",
           "released/tree_rss_mib")

Trial = Mapping[str, Any]


def trial(folder: Path, neighbours: int) -> Trial:
    """One oneshot trial of the default cell, as `run --json` has it."""
    busy = [subprocess.Popen([sys.executable, "-I", "-S", "-c", BUSY]) for _ in range(neighbours)]
    try:
        done = slackwater("run", "mode=oneshot", "infer_os=off", "repetitions=1", "--fresh", "--json",
                          f"tracking.uri=sqlite:///{folder}/mlflow.db", cwd=folder)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done.stdout, done.stderr
    found: Trial = json.loads(done.stdout)["trials"][0]
    return found


def values(trials: Sequence[Trial], metric: str) -> list[float]:
    """The readings that count: of valid trials, and of no suspect phase."""
    return [one["metrics"][metric] for one in trials if one["verdict"] == "valid"
            and metric.partition("/")[0] not in one["suspect_phases"] and one["metrics"].get(metric) is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=6, help="trials of either kind")
    each = parser.parse_args().each
    with tempfile.TemporaryDirectory(prefix="slackwater-") as name:
        folder = Path(name)
        kinds: dict[str, list[Trial]] = {"quiet": [], "busy": []}
        for _ in range(each):
            for kind, trials in kinds.items():
                trials.append(trial(folder, NEIGHBOURS if kind == "busy" else 0))
    print(f"{each} trials each, {os.cpu_count()} cores, {NEIGHBOURS} busy neighbours in one kind")
    for kind, trials in kinds.items():
        lost = [one for one in trials if one["verdict"] != "valid"]
        phases = sum(bool(one["suspect_phases"]) for one in trials)
        cpu, late, gone = (median(one["metrics"][f"sampler/{what}"] for one in trials)
                           for what in ("cpu_pct", "lateness_p99_ms", "lost_slots"))
        print(f"{kind:<6} {len(lost)} of {each} trials lost, {phases} with a suspect phase; sampler {cpu:.2f} % of a "
              f"core, {gone:.0f} slots lost, late by {late:.1f} ms (p99)")
        for one in lost:
            print(f"       {one['verdict']}: {'; '.join(one['reasons'])}")
    everything_held = True
    for metric in METRICS:
        quiet, busy = (values(trials, metric) for trials in kinds.values())
        if not quiet or not busy:
            print(f"{metric:<38} not measured in one of the kinds")
            everything_held = False
            continue
        apart = median(busy) - median(quiet)
        held = abs(apart) <= MOST_MIB
        everything_held &= held
        print(f"{metric:<38} quiet {median(quiet):8.2f}  busy {median(busy):8.2f}  apart {apart:+.3f} MiB (at most "
              f"{MOST_MIB})  {'ok' if held else 'MISSED'}")
    return 0 if everything_held else 1


if __name__ == "__main__":
    sys.exit(main())
