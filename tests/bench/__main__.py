"""`make bench`: every number the project promises, one program after the other; fails if one of them misses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

PROGRAMS = ("overhead", "http_marks", "meter_truth", "meter_cost", "busy_neighbours", "stats_calibration", "aa_sweep",
            "scale", "report")


def main(chosen: Sequence[str]) -> int:
    """Run the programs named, or all; 0 if every number held."""
    missed = []
    for name in chosen or PROGRAMS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False).returncode:
            missed.append(name)
    print(f"missed in: {', '.join(missed)}" if missed else "all numbers held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
