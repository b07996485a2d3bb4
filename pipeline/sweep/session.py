"""What one run of the program shares between the command line, the sweeper and the trials it runs in-process.

Hydra builds the sweeper itself and drops what it returns, so this is where both meet. A launcher that runs
trials in other processes leaves this empty there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pipeline.progress import Event, Listener
from pipeline.prompts import Prompts
from pipeline.result import TrialResult

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.outcome import DrawTimeline
    from pipeline.sweep.cells import Cell, Skipped
    from pipeline.sweep.forecast import Forecast
    from pipeline.sweep.rerun import Again
    from pipeline.track.store import Store
    from pipeline.track.summary import SweepSummary


class Conversation(Listener, Prompts, Protocol):
    """Both sides of a person: what is shown to them, and what they type."""


class Silent:
    """A listener that shows nothing."""

    def on_event(self, event: Event) -> None:
        """Take one event."""


@dataclass
class Session:
    """One sweep of this process, from its options to its outcome."""

    listener: Listener = field(default_factory=Silent)
    converse: Callable[[Config], Conversation] | None = None
    """Makes a listener that a person talks to (`mode.source=stdin`); set by the command line, since it owns the
    terminal."""
    prompts: Prompts | None = None
    """The person; None: the config's own texts."""
    dry_run: bool = False
    verbose: bool = False
    """Say more before the first trial."""
    fresh: bool = False
    """Start anew, even if the last run of the same plan is unfinished."""
    resume: str = ""
    """The sweep to go on with, by id; "" for a new one, or whichever is unfinished."""
    accept_change: bool = False
    again: Again | None = None
    """The sweep or run that is measured again (`slackwater rerun`): its cells, instead of those of the arguments."""
    experiment: str = ""
    arguments: list[str] = field(default_factory=list)
    """Hydra's words, which make this sweep again."""
    draw: DrawTimeline | None = None
    sweep_id: str = ""
    cells: list[Cell] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    order: list[list[int]] = field(default_factory=list)
    """Cell indices, block by block."""
    warm_ups: list[int] = field(default_factory=list)
    """Cells that run before the first block, and do not count."""
    forecast: Forecast | None = None
    warning: str = ""
    """What the design warns of."""
    stopped: str = ""
    """Why the sweep ended before its last trial, if design.on_failure ended it."""
    done: set[int] = field(default_factory=set)
    """Orders of the trials that an earlier run of this sweep has finished."""
    results: list[TrialResult] = field(default_factory=list)
    run_ids: dict[int, str] = field(default_factory=dict)
    """Order of a trial → its run in the store."""
    store: Store | None = None
    summary: SweepSummary | None = None
    store_notes: list[str] = field(default_factory=list)
    """What the store said while results were logged: some wait in the spool, or it answers again."""

    @property
    def failed(self) -> int:
        """Trials that failed."""
        return sum(result.verdict == "failed" for result in self.results)


SESSION = Session()
