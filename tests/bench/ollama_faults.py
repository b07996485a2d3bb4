"""Many trials, most of them with a fault at a random place: none hangs, none is lost, nothing is left running.

    python -m tests.bench.ollama_faults [TRIALS=200] [SEED=1]

One sweep through the whole program on the double, whose every start draws another behaviour. Prints what came of it;
exit code 1 if a trial took longer than its limits allow, is missing, or left a process behind.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.doubles.ollama.ggufs import write_phantom

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = ROOT / "tests/doubles/ollama/ollama"
TOKENS = 8
NO_PROGRESS_S, STOP_LIMIT_S, START_LIMIT_S = 1.0, 2.0, 10.0

WRAPPER = """#!/bin/sh
# Each `serve` takes the next behaviour.
behaviour="{folder}/none.json"
for word in "$@"; do last=$word; done
if [ "$last" = serve ]; then
    number=$(($(cat "{folder}/count") + 1))
    echo $number > "{folder}/count"
    behaviour="{folder}/$number.json"
fi
exec "{double}" --behaviour "$behaviour" "$@"
"""


def draw(rng: random.Random) -> dict[str, object]:
    """A behaviour: healthy one time in six."""
    token = rng.randint(1, TOKENS - 1)
    return rng.choice([
        {}, {"crash_at_token": token}, {"stall_at_token": token}, {"error_at_token": token}, {"end_at_token": token},
        {"unload_s": rng.uniform(0.0, 3.0)}, {"stall_at_load": True}, {"crash_at_load": "failed to allocate buffer"},
        {"replace_at_token": token}, {"busy": True}, {"stale_ps": True}, {"crash_at_start": "cannot start"},
        {"stop_at_token": token}, {"lie": {"-c": "1024"}}, {"load_s": rng.uniform(0.0, 1.0)},
        {"ready_s": rng.uniform(0.0, 1.0)}, {"one_line": True}, {},
    ])


def main(trials: int, seed: int) -> int:
    """Run the sweep and judge it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(1, trials + 1):
            (folder / f"{number}.json").write_text(json.dumps(draw(rng)))
        (folder / "count").write_text("0")
        binary = folder / "ollama"
        binary.write_text(WRAPPER.format(folder=folder, double=DOUBLE))
        binary.chmod(0o755)
        model = write_phantom(folder / "phantom.gguf", weights_mib=8, layers=2, width=256, heads=4, kv_heads=4)
        command = [
            sys.executable, "-m", "pipeline", "run", "engine=ollama", f"engine.binary={binary}", "model=gguf",
            f"model.path={model}", f"engine.no_progress_s={NO_PROGRESS_S}", f"engine.stop_limit_s={STOP_LIMIT_S}",
            f"engine.start_limit_s={START_LIMIT_S}", "mode=oneshot", f"repetitions={trials}", f"max_tokens={TOKENS}",
            "settle.window_s=0.2", "settle.limit_s=2", "meter.window_s=0.05", f"tracking.uri=sqlite:///{folder}/m.db",
        ]
        environment = {**os.environ, "SLACKWATER_HOME": str(folder), "SLACKWATER_CACHE": str(folder / "cache")}
        began = time.monotonic()
        run = subprocess.run([*command], cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, check=False)
        took = time.monotonic() - began
        shown = subprocess.run(
            [sys.executable, "-m", "pipeline", "show", "--json", "--store", f"sqlite:///{folder}/m.db"],
            cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
        found = json.loads(shown.stdout)["trials"]
        left = [each.info["cmdline"] for each in psutil.process_iter(["cmdline"])
                if any(str(folder) in part or str(DOUBLE.parent) in part for part in each.info["cmdline"] or [])]
    verdicts = Counter(trial["verdict"] for trial in found)
    unexplained = [trial["run_id"] for trial in found if trial["verdict"] != "valid" and not trial["reasons"]]
    print(f"{len(found)} of {trials} trials in {took:.0f} s ({took / trials:.2f} s each): {dict(verdicts)}; "
          f"exit code {run.returncode}; {len(left)} processes left; {len(unexplained)} without a reason")
    reasons = Counter(trial["reasons"][0].splitlines()[0][:100] for trial in found if trial["reasons"])
    for reason, count in reasons.most_common():
        print(f"{count:5d}  {reason}")
    return int(len(found) != trials or bool(left) or bool(unexplained))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    sys.exit(main(*given, *(200, 1)[len(given):]))
