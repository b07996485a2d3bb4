"""One trial as a Hydra job: run it, judge it, keep it. The same wherever the launcher puts it.

What it needs of its sweep it carries, so that it can be sent to another process. Where it runs in the process of the
sweep, it is watched there, and may end the sweep.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from pipeline.config import Config
from pipeline.engine import load_engine
from pipeline.engine.base import Plan
from pipeline.engine.knobs import as_text
from pipeline.errors import ConfigError
from pipeline.interrupt import held_back
from pipeline.language import _
from pipeline.meter.sampler import STILL_HZ, Sampler
from pipeline.metrics import WORK
from pipeline.outcome import Sampled, result_of
from pipeline.progress import Notice, TrialStarted
from pipeline.prompts import Prompts, Recorded
from pipeline.record.folder import SweepFolder
from pipeline.record.index import CELL_DIGEST
from pipeline.record.reason import Reason
from pipeline.record.trial import TrialRecord, safe
from pipeline.sweep.composed import typed
from pipeline.sweep.forecast import cell_digest, outer_limit
from pipeline.sweep.lengths import prompts_of
from pipeline.sweep.run import CURRENT, SweepRun
from pipeline.sweep.stop_rule import is_hopeless, stop_after
from pipeline.trial import Record, Trial, kept


@dataclass(frozen=True)
class Job:
    """The task that Hydra's launcher calls with the config of a trial."""

    folder: Path
    """Of the sweep."""
    plans: Mapping[str, Plan]
    """Cell → what it was resolved to, once for all its trials."""
    expected_s: Mapping[str, float]
    """Cell → how long a trial of it takes, where that is known."""

    def __call__(self, composed: DictConfig) -> TrialRecord:
        """Run the trial that the config describes, again after a failure if `design.on_failure` says so.

        A trial that fails is a record, not an exception. Raises KeyboardInterrupt after an interrupted trial was kept,
        StoreError if the disk does not take it, and in the process of the sweep StopSweep."""
        config, here = typed(composed), CURRENT.get() or SweepRun()
        for attempt in range(1, config.design.attempts + 1):
            trial, interrupted = self._attempt(config, here)
            here.take(trial)
            if interrupted:
                raise KeyboardInterrupt
            if trial.verdict != "failed" or is_hopeless(trial) or attempt == config.design.attempts:
                break
            here.listener.on_event(Notice(_("trial {order} failed and is run again: attempt {n} of {most}").format(
                order=trial.order, n=attempt + 1, most=config.design.attempts)))
        if here.plan is not None:
            stop_after(here, trial, config)
        return trial

    def _attempt(self, config: Config, here: SweepRun) -> tuple[TrialRecord, bool]:
        """One run of the trial, kept, and whether a user interrupted it."""
        place, plan, sweep = config.place, self.plans[config.place.cell], SweepFolder(self.folder)
        folder = sweep.stage(place.order, place.cell, place.repetition)
        here.listener.on_event(TrialStarted(place.order, place.cell, place.repetition, place.block))
        started_ms = time.time_ns() // 1_000_000
        sampler = Sampler(folder, config.meter.rate_hz, config.meter.tree_refresh_s, STILL_HZ)
        engine, report, record = None, None, Record()
        try:
            with kept(record, folder):
                engine = load_engine(config)
                engine.outer, engine.planned = outer_limit(config, self.expected_s.get(place.cell)), plan.settings
                sampler.start()
                record = Trial(config, engine, sampler, folder, here.listener, _prompts(config, here)).run()
            with kept(record, folder):
                report = sampler.stop()
        finally:
            sampler.close()
        sampled = Sampled(sampler.timeline(), sampler.processes(), report)
        with held_back() as held:  # what was measured is kept, whatever a user presses now
            ended_ms = time.time_ns() // 1_000_000
            sampler.discard()
            trial = result_of(record, sampled, config, engine, plan, folder, started_ms, ended_ms)
            trial = replace(trial, tags={**trial.tags, CELL_DIGEST: cell_digest(config, plan.settings)})
            trial = sweep.put(same_work(trial, _first_valid(sweep, trial)), folder)
        return trial, record.interrupted or held.came


def _prompts(config: Config, here: SweepRun) -> Prompts:
    """Who asks: the config's texts, or the person whom the command line has brought along."""
    if config.mode.source == "recorded":
        return Recorded(config, prompts_of(config))
    if here.prompts is None:
        raise ConfigError(_("mode.source=stdin needs the terminal of slackwater itself, and this trial runs in another "
                            "process: leave hydra/launcher as it is."))
    return here.prompts


def _first_valid(sweep: SweepFolder, trial: TrialRecord) -> TrialRecord | None:
    """The cell's first valid trial, by its order, whoever ran it and when. Raises StoreError."""
    deleted = sweep.deleted()
    of_cell = (sweep.attempt(name) for name in sweep.names()
               if f"-{safe(trial.cell)}-r" in name and name not in deleted)
    return next((other for other in of_cell if other.cell == trial.cell and other.verdict == "valid"
                 and other.order != trial.order), None)


def same_work(trial: TrialRecord, first: TrialRecord | None) -> TrialRecord:
    """The trial, suspect if it did other work than the cell's first valid one (DESIGN 5.4)."""
    if first is None or trial.verdict not in ("valid", "suspect"):
        return trial
    reasons = [Reason("other_work", {"what": name.rpartition("/")[2], "counts": _counts(trial.turns, name),
                                     "others": _counts(first.turns, name)})
               for name in WORK if trial.turns.get(name, {}) != first.turns.get(name, {})]
    if changed := [f"{name}={as_text(value)}, {as_text(first.settings[name])}" for name, value in trial.settings.items()
                   if name in first.settings and first.settings[name] != value]:
        reasons.append(Reason("settings_changed", {"what": "; ".join(changed)}))
    was, now = (each.tags.get("model_digest") for each in (first, trial))
    if was and now and was != now:
        reasons.append(Reason("model_changed", {"now": now, "was": was}))
    return replace(trial, verdict="suspect", reasons=(*trial.reasons, *reasons)) if reasons else trial


def _counts(turns: Mapping[str, Mapping[int, float]], name: str) -> str:
    """"{1: 12, 2: 40}"."""
    return "{" + ", ".join(f"{turn}: {count:g}" for turn, count in sorted(turns.get(name, {}).items())) + "}"
