"""What the pipeline itself costs: per trial, at start-up, for a wrong word; and how much a cell's repetitions spread.

Run by `make bench`; prints figures and the numbers they are held against. On a shared machine take medians.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.config import Tracking
from pipeline.track import opened
from pipeline.track.push import Push

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = ("start", "load", "generate", "settle", "think", "window", "release")
"""What a trial is for; the rest of its time is the pipeline's: clear, reads, proofs, stop, keeping, logging, Hydra."""


def slackwater(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=cwd, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)


def seconds(*arguments: str, cwd: Path, times: int = 7) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        slackwater(*arguments, cwd=cwd)
        taken.append(time.perf_counter() - began)
    return median(taken)


def say(what: str, found: float, unit: str, limit: float) -> bool:
    held = found <= limit
    print(f"{what:<58} {found:8.2f} {unit:<4} limit {limit:g} {unit}  {'ok' if held else 'MISSED'}", flush=True)
    return held


def trials(cwd: Path, *arguments: str) -> list[dict[str, Any]]:
    store = f"sqlite:///{cwd}/mlflow.db"
    done = slackwater("run", "-m", *arguments, f"tracking.uri={store}", "-q", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = slackwater("show", "--json", "--store", store, cwd=cwd)
    found: list[dict[str, Any]] = json.loads(shown.stdout)["trials"]
    return found


def overheads(found: list[dict[str, Any]]) -> list[float]:
    """Seconds per trial from one trial's start to the next one's, less the workload; the first trial is left out."""
    costs = []
    for trial, following in pairwise(found[1:]):
        wall = (following["started_ms"] - trial["started_ms"]) / 1e3
        costs.append(wall - sum(trial["metrics"].get(f"trial/{name}_s", 0.0) for name in WORKLOAD))
    return costs


def pushes(cwd: Path) -> list[float]:
    """Seconds that sending a trial to MLflow takes, into a local store of its own; the first one is left out."""
    sweeps = opened.sweeps(f"sqlite:///{cwd}/mlflow.db")
    folder = sweeps.folder(sweeps.sweep().sweep_id)
    (cwd / "other").mkdir()
    push, costs = Push.open(Tracking(uri=f"sqlite:///{cwd}/other/mlflow.db")), []
    for trial in folder.trials():
        began = time.perf_counter()
        push.trial(folder, trial)
        costs.append(time.perf_counter() - began)
    return costs[1:]


def imported_by_help(cwd: Path) -> list[str]:
    code = ("import sys; sys.argv=['slackwater','--help']; from pipeline.cli import main; main(); "
            "print([m for m in ('mlflow','scipy','hydra','numpy','xllamacpp') if m in sys.modules], file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr.replace("'", '"'))
    return found


def page_answers(cwd: Path) -> tuple[float, float]:
    """Seconds until `slackwater ui` has printed its address, and until it has listed the runs; the median of 3."""
    import requests

    printed, listed = [], []
    for _ in range(3):
        began = time.perf_counter()
        with subprocess.Popen([sys.executable, "-m", "pipeline", "ui", "--no-browser", "--port", "0", "--store",
                               f"sqlite:///{cwd}/mlflow.db"], cwd=cwd, text=True, stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}) as ui:
            assert ui.stdout is not None
            root = next(line for line in ui.stdout if "http://" in line).strip().partition("/#")[0]
            printed.append(time.perf_counter() - began)
            while True:
                with contextlib.suppress(requests.RequestException):
                    if requests.post(f"{root}/ajax-api/2.0/mlflow/runs/search", json={"experiment_ids": ["1"]},
                                     timeout=30).status_code == 200:
                        break
                time.sleep(0.02)
            listed.append(time.perf_counter() - began)
            ui.terminate()
    return median(printed), median(listed)


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        held = [say("slackwater --help", seconds("--help", cwd=cwd), "s", 0.6)]
        held.append(say("a config error", seconds("run", "mode=twoshot", cwd=cwd), "s", 1.5))
        print(f"imported by --help: {imported_by_help(cwd) or 'none of mlflow, scipy, hydra, numpy, xllamacpp'}")
        found = trials(cwd, "mode=oneshot,interactive", "infer_os=off,on", "repetitions=3", "max_tokens=32")
        costs, sent = overheads(found), pushes(cwd)
        print(f"overhead per trial, {len(costs)} trials: {min(costs):.2f} … {max(costs):.2f} s, the push in it "
              f"{min(sent):.2f} … {max(sent):.2f} s")
        held.append(say("overhead per trial without the push, median", median(costs) - median(sent), "s", 0.5))
        held.append(say("the push of a trial, median", median(sent), "s", 0.4))
        idle = [trial["metrics"]["stabilized/time_to_stable_s"] for trial in found]
        held.append(say("adaptive settling on an idle server, slowest", max(idle), "s", 3.0))
        for cell in sorted({trial["cell"] for trial in found}):
            rss = [trial["metrics"]["stabilized/tree_rss_mib"] for trial in found if trial["cell"] == cell]
            spread = 100 * (max(rss) - min(rss)) / median(rss)
            held.append(say(f"spread of stabilized/tree_rss_mib, {cell} (n = {len(rss)})", spread, "%", 0.5))
        printed, listed = page_answers(cwd)
        held.append(say("slackwater ui: the address is printed", printed, "s", 1.0))
        held.append(say("slackwater ui: the page lists the runs", listed, "s", 10.0))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
