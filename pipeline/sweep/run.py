"""One sweep of this process, from what a user asked for to what came of it.

Hydra builds the sweeper itself and drops what it returns: CURRENT is how the command line hands a run to it. In a
process that a launcher made for a trial it is empty, and the trial needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from pipeline.config import Config
from pipeline.progress import Event, Listener, TrialFinished
from pipeline.prompts import Prompts
from pipeline.record.folder import SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.sweep.conversation import Conversation
from pipeline.sweep.forecast import Forecast
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.rerun import Again
from pipeline.track.location import Location
from pipeline.track.push import Push


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


@dataclass
class SweepRun:
    """What was asked and planned are frozen values; the rest is what came of it, also after an interruption."""

    asked: Asked = Asked()
    listener: Listener = field(default_factory=Silent)
    prompts: Prompts | None = None
    """A person who types; None: the config's own texts."""
    plan: SweepPlan | None = None
    forecast: Forecast | None = None
    location: Location | None = None
    """The store that results are meant for."""
    push: Push | None = None
    """Where records are sent; None before the sweep has begun, and while that store is away from one that goes on."""
    sweep: SweepRecord | None = None
    """Once it has begun."""
    folder: SweepFolder | None = None
    done: Mapping[int, TrialRecord] = field(default_factory=dict)
    """Order → what an earlier run of this sweep has finished."""
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    """Order → the last attempt of what this run has measured."""
    notes: list[str] = field(default_factory=list)
    """What the design and the store have to say: some trials wait to be sent, or the store answers again."""
    stopped: str = ""
    """Why the sweep ended before its last trial, if design.on_failure ended it."""

    def take(self, trial: TrialRecord) -> None:
        """A trial, or a further attempt of one, is over and kept: it is sent, and told."""
        self.trials[trial.order] = trial
        if self.push is not None and self.folder is not None and (note := self.push.trial(self.folder, trial)):
            self.notes.append(note)
        self.listener.on_event(TrialFinished(trial))

    def keep(self, sweep: SweepRecord) -> None:
        """Write and send how the sweep stands. Raises StoreError if the disk does not take it."""
        assert self.folder is not None, "it has begun"
        self.sweep = sweep
        self.folder.write(sweep)
        if note := self.send(sweep):
            self.notes.append(note)

    def send(self, sweep: SweepRecord) -> str | None:
        """The sweep's summary run, brought up to date; a note for the user, if there is something to say."""
        return None if self.push is None or self.folder is None else self.push.sweep(self.folder, sweep)

    def lost(self) -> str | None:
        """Why the command is to fail although the trials did not: see Push.lost."""
        return None if self.push is None or self.folder is None else self.push.lost(self.folder)

    @property
    def failed(self) -> int:
        """Trials that failed."""
        return sum(trial.verdict == "failed" for trial in self.trials.values())

    @property
    def nothing_measured(self) -> bool:
        """Has no trial given anything yet?"""
        return not self.done and all(trial.verdict == "failed" for trial in self.trials.values())


CURRENT: ContextVar[SweepRun | None] = ContextVar("slackwater.sweep", default=None)
