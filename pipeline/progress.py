"""What a running sweep tells its watchers: small frozen events, and the listener that takes them.

The runner emits, `report.live` shows. No event changes a measurement; nothing here prints or reads memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.record.trial import TrialRecord

Stage = Literal["clear", "start", "load", "measure", "generate", "settle", "release"]


@dataclass(frozen=True)
class Fetching:
    """The model file on its way to this machine, before anything is planned. Bytes; `what` is "fetching" and so on."""

    model: str
    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """A sentence for the user, now, in their language: what is being waited for, what continues from where it
    stopped."""

    text: str


@dataclass(frozen=True)
class Waiting:
    """Whom the sweep waits for, of unknown length: said also by who is asked to say nothing."""

    text: str


@dataclass(frozen=True)
class SweepStarted:
    """The plan, before the first trial."""

    sweep_id: str
    question: str
    cells: Sequence[str]
    trials: int
    order: Sequence[str]
    """Cell of each trial, in the order they will run; shape (trials,)."""
    blocks: int = 1
    name: str = ""
    """The experiment's name, "" for a sweep typed by hand."""
    done: int = 0
    """Trials that an earlier, unfinished run of the same sweep has finished already."""
    expected_trial_s: float | None = None
    """Median duration of one trial, from earlier trials of the same store; None: not known."""


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins. `order` is its 1-based position in the sweep."""

    order: int
    cell: str
    repetition: int
    block: int


@dataclass(frozen=True)
class StageEntered:
    """The runner begins a stage. `turn` is 0 outside turns, else 1…turns."""

    stage: Stage
    turn: int = 0
    turns: int = 1


@dataclass(frozen=True)
class Reading:
    """Memory of the measured tree now, bytes. `peak` is the kernel's high-water mark of the current turn."""

    anon: int
    file: int
    shmem: int
    swap: int
    peak: int
    t_ns: int
    """`time.monotonic_ns()` of the reading."""


@dataclass(frozen=True)
class TokenCount:
    """`n` tokens generated so far, of at most `of`."""

    n: int
    of: int


@dataclass(frozen=True)
class Words:
    """A piece of the answer as it arrives, unchanged: it may hold anything. Only where a user reads along."""

    text: str


@dataclass(frozen=True)
class TurnMeasured:
    """A turn has settled: the tree's RSS at its moments, bytes. `peak` is the kernel's high-water mark."""

    turn: int
    before: int
    peak: int
    after: int
    settled: int
    settle_s: float
    stable: bool
    output_tokens: int
    decode_s: float
    """First to last token; 0 for fewer than two."""


@dataclass(frozen=True)
class TrialFinished:
    """A trial ended, well or not."""

    trial: TrialRecord


@dataclass(frozen=True)
class SweepFinished:
    """Nothing more will run. Counts are of this sweep's trials; those missing to `trials` never ran."""

    sweep_id: str
    valid: int
    suspect: int
    failed: int
    interrupted: bool = False
    """Ended by Ctrl-C or by on_failure=stop."""


Event = (
    Fetching | Notice | Waiting | SweepStarted | TrialStarted | StageEntered | Reading | TokenCount | Words
    | TurnMeasured | TrialFinished | SweepFinished
)


class Listener(Protocol):
    """Takes events where they happen, in the runner's thread. Must return at once and must not raise."""

    def on_event(self, event: Event) -> None:
        """Take one event."""
