"""From a timeline and its marks to the metrics of each phase. Pure functions over values; no I/O.

Times are `time.monotonic_ns()`; memory is bytes inside and MiB in the names of metrics (DESIGN 3 and 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

MIB = 1024 * 1024


@dataclass(frozen=True)
class Timeline:
    """All periodic readings of one trial, columnar: every array has shape (n_samples,), int64.

    `columns` are bytes unless the name says otherwise, summed over the measured tree:
    tree_anon, tree_file, tree_shmem, tree_swap, tree_hwm (sum of VmHWM), tree_processes (count);
    system_total, system_available, system_free, system_cached, system_swap_used.
    Tree columns are 0 while no server runs.
    """

    due_ns: Int64Array
    """When the sample should have been taken."""
    t_ns: Int64Array
    """When it was taken; lateness is the difference."""
    columns: Mapping[str, Int64Array]

    @property
    def tree_rss(self) -> Int64Array:
        """Resident bytes of the tree: anonymous + file-mapped + shared (VmRSS, proc(5))."""
        return self.columns["tree_anon"] + self.columns["tree_file"] + self.columns["tree_shmem"]


@dataclass(frozen=True)
class Mark:
    """A named instant of a trial. `turn` is 0 outside turns, else 1…N."""

    name: str
    t_ns: int
    turn: int = 0


@dataclass(frozen=True)
class ProcessReading:
    """One process of the tree at one instant, from /proc/PID/status and smaps_rollup; bytes. None: not readable."""

    pid: int
    command: str
    anon: int
    file: int
    shmem: int
    swap: int
    hwm: int
    pss: int | None
    uss: int | None

    @property
    def rss(self) -> int:
        """Resident bytes: anonymous + file + shared."""
        return self.anon + self.file + self.shmem


@dataclass(frozen=True)
class TreeReading:
    """The whole tree at one instant, process by process."""

    t_ns: int
    processes: Sequence[ProcessReading]
    duration_ns: int
    """What taking it cost."""

    @property
    def rss(self) -> int:
        """Resident bytes summed over processes (shared pages counted once per process)."""
        return sum(p.rss for p in self.processes)
