"""A real A/A sweep on the embedded engine: two arms that run the same server. Whatever differs between them is a false
alarm, and there may be no more of them than the intervals promise.

`python -m tests.bench.aa_sweep [PAIRS]` (20; 6 is a quick look). The pairs are judged once together and, since one
sweep has one chance only, cut into sweeps of three pairs each: alarms are counted and held against what 6 % allows.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binom

from pipeline.stats.comparison import compare
from pipeline.stats.measures import HEADLINE
from tests.bench.overhead import slackwater

PAIRS = 20
PER_SWEEP = 3
MOST_FALSE_ALARMS = 0.06
BY_CHANCE = 0.01
"""A bench that fails once in a hundred runs by chance alone is heard when it fails."""
METRICS = (HEADLINE, "during_generation/tree_rss_peak_mib", "released/tree_rss_mib", "decode/tokens_per_s")
MOST_MIB = 0.25
"""A difference between equal arms, over all pairs, that would not be chance but a fault of the order or the reading."""

SWEEP = ("design=paired", "mode=oneshot", "infer_os=off,quantization", "design.allow_identical=true",
         "engine.flags.quantization.on={cache_type_k:f16,cache_type_v:f16}", "max_tokens=8", "settle.window_s=0.5",
         "meter.rate_hz=50", "question=Does a flag that turns nothing change anything?")

Arms = Mapping[str, Mapping[int, float]]


def measured(pairs: int, folder: Path) -> list[dict[str, Any]]:
    """The trials of one sweep, as `show --json` has them."""
    done = slackwater("run", *SWEEP, f"repetitions={pairs}", f"tracking.uri=sqlite:///{folder}/mlflow.db", "--json",
                      cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["trials"]
    return found


def arms(trials: Sequence[Mapping[str, Any]], metric: str) -> Arms:
    """Arm → block → reading, of the valid trials."""
    by_arm: dict[str, dict[int, float]] = {"off": {}, "quantization": {}}
    for trial in trials:
        if trial["verdict"] == "valid" and trial["metrics"].get(metric) is not None:
            by_arm[trial["infer_os"]][trial["block"]] = trial["metrics"][metric]
    return by_arm


def most_alarms(sweeps: int) -> int:
    """So many false alarms may come by chance at 6 %; one more comes in less than 1 of 100 benches."""
    return int(binom.ppf(1 - BY_CHANCE, sweeps, MOST_FALSE_ALARMS))


def judge(trials: Sequence[Mapping[str, Any]]) -> bool:
    """Print every metric's verdict and its false alarms; did all hold?"""
    held = True
    for metric in METRICS:
        by_arm = arms(trials, metric)
        shared = sorted(by_arm["off"].keys() & by_arm["quantization"].keys())
        whole = compare([by_arm["quantization"]], by_arm["off"], metric)[0]
        alarms = sweeps = 0
        for begin in range(0, len(shared) - PER_SWEEP + 1, PER_SWEEP):
            blocks = shared[begin:begin + PER_SWEEP]
            one = compare([{block: by_arm["quantization"][block] for block in blocks}],
                          {block: by_arm["off"][block] for block in blocks}, metric)[0]
            sweeps += 1
            alarms += one.kind in ("less", "more")
        allowed = most_alarms(sweeps)
        too_large = (whole.unit == "MiB" and whole.kind in ("less", "more")
                     and abs(whole.estimate or 0.0) > MOST_MIB)
        fine = alarms <= allowed and not too_large and sweeps > 0
        held &= fine
        bounds = "no interval" if whole.lo is None or whole.hi is None else (
            f"×{whole.lo:.3f} … ×{whole.hi:.3f}" if whole.scale == "ratio"
            else f"{whole.lo:+.3f} … {whole.hi:+.3f} {whole.unit}")
        print(f"  {metric:<38} n = {whole.n_blocks:<3} {bounds:<26} {whole.verdict}\n"
              f"  {'':<38} false alarms in sweeps of {PER_SWEEP} pairs: {alarms} of {sweeps}, at most {allowed}"
              f"{'' if fine else '  MISSED'}", flush=True)
    return held


def main(pairs: int) -> int:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="slackwater-aa-") as folder:
        trials = measured(pairs, Path(folder))
    valid = sum(trial["verdict"] == "valid" for trial in trials)
    print(f"A/A on the embedded engine: {pairs} pairs, {valid} of {len(trials)} trials valid, "
          f"{time.perf_counter() - began:.0f} s")
    return 0 if judge(trials) else 1


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS))
