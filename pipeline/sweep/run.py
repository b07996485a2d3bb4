"""One sweep of this process, from what a user asked for to what came of it.

Hydra builds the sweeper itself and drops what it returns: CURRENT is how the command line hands a run to it. In a
process that a launcher made for a trial it is empty, and the trial needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from pipeline.config import Config
from pipeline.outcome import DrawTimeline
from pipeline.progress import Event, Listener, TrialFinished
from pipeline.prompts import Prompts
from pipeline.result import TrialResult
from pipeline.sweep.conversation import Conversation
from pipeline.sweep.forecast import Forecast
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.rerun import Again
from pipeline.track.store import Store
from pipeline.track.summary import SweepSummary


class Silent:
    """A listener that shows nothing."""

    def on_event(self, event: Event) -> None:
        """Take one event."""


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    arguments: Sequence[str] = ()
    """Hydra's words, which make this sweep again."""
    experiment: str = ""
    again: Again | None = None
    """The sweep or run that is measured again (`slackwater rerun`): its cells, instead of those of the arguments."""
    resume: str = ""
    """The sweep to go on with, by id; "" for a new one, or whichever is unfinished."""
    fresh: bool = False
    """Start anew, even if the last run of the same plan is unfinished."""
    accept_change: bool = False
    dry_run: bool = False
    verbose: bool = False
    """Say more before the first trial."""
    converse: Callable[[Config], Conversation] | None = None
    """Makes a listener that a person talks to (`mode.source=stdin`); the terminal is the command line's."""
    draw: DrawTimeline | None = None


@dataclass
class SweepRun:
    """What was asked and planned are frozen values; the rest is what came of it, also after an interruption."""

    asked: Asked = Asked()
    listener: Listener = field(default_factory=Silent)
    prompts: Prompts | None = None
    """A person who types; None: the config's own texts."""
    plan: SweepPlan | None = None
    forecast: Forecast | None = None
    store: Store | None = None
    summary: SweepSummary | None = None
    """The sweep, once it has begun."""
    done: frozenset[int] = frozenset()
    """Orders of the trials that an earlier run of this sweep has finished."""
    trials: dict[int, TrialResult] = field(default_factory=dict)
    """Order → the trial's last attempt."""
    run_ids: dict[int, str] = field(default_factory=dict)
    """Order → its run in the store."""
    notes: list[str] = field(default_factory=list)
    """What the design and the store have to say: some trials wait in the spool, or it answers again."""
    stopped: str = ""
    """Why the sweep ended before its last trial, if design.on_failure ended it."""

    def take(self, trial: TrialResult) -> None:
        """A trial, or a further attempt of one, is over and kept."""
        self.trials[trial.order] = trial
        self.listener.on_event(TrialFinished(trial))

    @property
    def failed(self) -> int:
        """Trials that failed."""
        return sum(trial.verdict == "failed" for trial in self.trials.values())

    @property
    def nothing_measured(self) -> bool:
        """Has no trial given anything yet?"""
        return not self.done and all(trial.verdict == "failed" for trial in self.trials.values())


CURRENT: ContextVar[SweepRun | None] = ContextVar("slackwater.sweep", default=None)
