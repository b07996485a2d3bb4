"""One trial as a Hydra job: run it, judge it, keep it. The same wherever the launcher puts it.

What it needs of its sweep it carries, so that it can be sent to another process. Where it runs in the process of the
sweep, it is watched there, and may end the sweep.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from pipeline.config import Config, Place
from pipeline.engine import load_engine
from pipeline.engine.base import Plan
from pipeline.errors import ConfigError, MeterError
from pipeline.interrupt import held_back
from pipeline.language import _
from pipeline.meter.sampler import STILL_HZ, Sampler, SamplerReport
from pipeline.metrics import WORK
from pipeline.outcome import DrawTimeline, Sampled, result_of
from pipeline.progress import Notice, TrialStarted
from pipeline.prompts import Prompts, Recorded
from pipeline.record.reason import Reason
from pipeline.result import TrialResult
from pipeline.stats.trials import Measured
from pipeline.stats.trials import Trial as Work
from pipeline.sweep.composed import typed
from pipeline.sweep.forecast import cell_digest, outer_limit
from pipeline.sweep.lengths import prompts_of
from pipeline.sweep.run import CURRENT, SweepRun
from pipeline.sweep.stop_rule import stop_after
from pipeline.track.source import CELL_DIGEST
from pipeline.track.store import Store, open_store
from pipeline.trial import Record, Trial


@dataclass(frozen=True)
class Job:
    """The task that Hydra's launcher calls with the config of a trial."""

    plans: Mapping[str, Plan]
    """Cell → what it was resolved to, once for all its trials."""
    expected_s: Mapping[str, float]
    """Cell → how long a trial of it takes, where that is known."""
    draw: DrawTimeline | None

    def __call__(self, composed: DictConfig) -> TrialResult:
        """Run the trial that the config describes, again after a failure if `design.on_failure` says so.

        A trial that fails is a result, not an exception. Raises KeyboardInterrupt after an interrupted trial was kept;
        in the process of the sweep also StopSweep."""
        config, here = typed(composed), CURRENT.get() or SweepRun()
        store = here.store or open_store(config.tracking)
        for attempt in range(config.design.attempts):
            result, run_id, interrupted = self._attempt(config, store, here)
            if interrupted:
                raise KeyboardInterrupt
            last = attempt + 1 == config.design.attempts
            if result.verdict != "failed" or result.extra.get("engine_unusable") or last:
                break
            here.listener.on_event(Notice(_("trial {order} failed and is run again: attempt {n} of {most}").format(
                order=result.order, n=attempt + 2, most=config.design.attempts)))
            if run_id is not None:
                store.supersede([run_id])
        if here.plan is not None:
            stop_after(here, result, config)
        return result

    def _attempt(self, config: Config, store: Store, here: SweepRun) -> tuple[TrialResult, str | None, bool]:
        """One run of the trial, kept and logged: its result, its run, and whether a person interrupted it."""
        place, plan = config.place, self.plans[config.place.cell]
        engine = load_engine(config)
        engine.outer = outer_limit(config, self.expected_s.get(place.cell))
        folder = store.spool.stage(place.sweep_id, place.order, place.cell, place.repetition)
        here.listener.on_event(TrialStarted(place.order, place.cell, place.repetition, place.block))
        started_ms = time.time_ns() // 1_000_000
        with Sampler(folder, config.meter.rate_hz, config.meter.tree_refresh_s, STILL_HZ) as sampler:
            record = Trial(config, engine, sampler, folder, here.listener, _prompts(config, here)).run()
            report = _stop(sampler, record)
            sampled = Sampled(sampler.timeline(), sampler.processes(), report)
        with held_back() as held:  # what was measured is kept, whatever a person presses now
            ended_ms = time.time_ns() // 1_000_000
            sampler.discard()
            result = same_work(
                result_of(record, sampled, config, engine, plan, folder, started_ms, ended_ms, self.draw),
                _earlier(store, place, here))
            result = replace(result, tags={**result.tags, CELL_DIGEST: cell_digest(config, plan.settings)})
            recorded = store.record(result)
            if recorded.run_id is not None:
                here.run_ids[result.order] = recorded.run_id
            if recorded.note is not None:
                here.notes.append(recorded.note)
            here.take(result)
        return result, recorded.run_id, record.interrupted or held.came


def _prompts(config: Config, here: SweepRun) -> Prompts:
    """Who asks: the config's texts, or the person whom the command line has brought along."""
    if config.mode.source == "recorded":
        return Recorded(config, prompts_of(config))
    if here.prompts is None:
        raise ConfigError(_("mode.source=stdin needs the terminal of slackwater itself, and this trial runs in another "
                            "process: leave hydra/launcher as it is."))
    return here.prompts


def _stop(sampler: Sampler, record: Record) -> SamplerReport | None:
    try:
        return sampler.stop()
    except MeterError as error:
        record.error = record.error or error
        return None


def _earlier(store: Store, place: Place, here: SweepRun) -> Sequence[Work]:
    """The cell's trials so far, by their order, whoever ran them and when.

    Those of this process are at hand; the store is asked where there are others: of a sweep that goes on, and in a
    process that a launcher made for this trial."""
    if here.store is not None and not here.done:
        return [Measured(trial, "") for order, trial in sorted(here.trials.items())
                if trial.cell == place.cell and order != place.order]
    trials = store.trials_and(place.sweep_id, list(here.trials.values()), here.run_ids, WORK, place.cell)
    return [trial for trial in trials if trial.cell == place.cell and trial.order != place.order]


def same_work(result: TrialResult, earlier: Sequence[Work]) -> TrialResult:
    """The result, suspect if it did other work than the cell's first valid trial (DESIGN 5.4)."""
    first = next((other for other in earlier if other.verdict == "valid"), None)
    if first is None or result.verdict in ("failed", "warm-up"):
        return result
    reasons = [Reason("other_work", {"what": name.rpartition("/")[2], "counts": _counts(result.metrics, name),
                                     "others": _counts(first.turns, name)})
               for name in WORK if dict(result.metrics.get(name, {})) != dict(first.turns.get(name, {}))]
    was, now = (getattr(trial, "tags", {}).get("model_digest") for trial in (first, result))
    if was and now and was != now:
        reasons.append(Reason("model_changed", {"now": now, "was": was}))
    if not reasons:
        return result
    return replace(result, verdict="suspect", reasons=[*result.reasons, *reasons])


def _counts(turns: Mapping[str, Mapping[int, float]], name: str) -> str:
    """"{1: 12, 2: 40}": the same words for what was just counted and for what a store gives back."""
    return "{" + ", ".join(f"{turn}: {count:g}" for turn, count in sorted(turns.get(name, {}).items())) + "}"
