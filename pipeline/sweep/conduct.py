"""Conducts a sweep: from overrides to blocks of trials to its end, whatever ends it.

Called by the sweeper plugin in the process of the command line; one trial is `job.py`, wherever the launcher runs it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline import provenance
from pipeline.language import _
from pipeline.progress import Notice, SweepStarted, Waiting
from pipeline.result import METHOD, TrialResult
from pipeline.stats.trials import methods
from pipeline.sweep import identity
from pipeline.sweep.cells import named_as_before
from pipeline.sweep.conversation import bring_person
from pipeline.sweep.forecast import forecast
from pipeline.sweep.job import Job
from pipeline.sweep.lengths import require_fit
from pipeline.sweep.lock import machine_lock
from pipeline.sweep.loop import Launch, run_and_close
from pipeline.sweep.plan import SweepPlan, plan_sweep
from pipeline.sweep.run import CURRENT, SweepRun
from pipeline.sweep.stop_rule import check_stop
from pipeline.sweep.telling import tell_concerns, tell_plan
from pipeline.text import to_json
from pipeline.track.store import Store, open_store
from pipeline.track.summary import SweepSummary

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


def conduct(loader: ConfigLoader, master: DictConfig, launcher: Callable[[Job], Launch], params: Mapping[str, Any],
            arguments: Sequence[str]) -> list[TrialResult]:
    """Check every cell, then run them block by block; what comes of it is in the CURRENT run, also after an
    interruption. `launcher` makes Hydra's launcher call that job."""
    run = CURRENT.get() or SweepRun()
    asked = run.asked
    before = None if asked.again is None else asked.again.cells
    plan = run.plan = plan_sweep(loader, master, params, arguments, before, None if asked.dry_run else run.listener)
    check_stop(plan)
    if plan.warning:
        run.notes.append(plan.warning)
    if plan.is_typed and not asked.dry_run:
        run.listener = run.prompts = bring_person(plan.first, asked.converse)
    store = run.store = open_store(plan.first.tracking, write=not asked.dry_run)
    if asked.dry_run:
        run.forecast = forecast(plan.cells, plan.trials, store)
        return []
    with machine_lock(plan.first.design.when_busy, lambda text: run.listener.on_event(Waiting(text))):
        if not plan.is_typed:
            for cell in plan.cells:
                require_fit(cell.config)  # counts their tokens once, before anything is measured
        concerns = tell_concerns(run, plan.first.meter.rate_hz)
        plan = run.plan = _begin(run, plan, store, concerns)
        expected = run.forecast = forecast(plan.cells, plan.ahead(run.done), store)
        tell_plan(run, plan, store.location, concerns)
        assert run.summary is not None, "it has just begun"
        run.listener.on_event(SweepStarted(
            sweep_id=run.summary.sweep_id, question=plan.first.question, cells=[cell.name for cell in plan.cells],
            trials=len(plan.trials), order=plan.names, blocks=len(plan.order), name=asked.experiment,
            done=len(run.done),
            expected_trial_s=expected.seconds and expected.seconds / max(1, expected.trials)))
        job = Job({cell.name: cell.plan for cell in plan.cells}, expected.trial_s, asked.draw)
        run_and_close(run, plan, launcher(job))
    return list(run.trials.values())


def new_sweep_id(experiment: str, taken: Collection[str]) -> str:
    """Name and time to the second: sorts by time, reads well, and a prefix is enough to name it."""
    base = f"{experiment or 'run'}-{time.strftime('%y%m%d-%H%M%S')}"
    candidates = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def _begin(run: SweepRun, plan: SweepPlan, store: Store, concerns: Sequence[str]) -> SweepPlan:
    """A new sweep, or the unfinished one that goes on: recorded as running. Returns the plan as it names its cells."""
    asked, here = run.asked, identity.environment(plan.cells)
    record = store.find_sweep(asked.resume) if asked.resume else None
    if record is None and not asked.fresh and not plan.is_typed:  # another cannot know what was said in a conversation
        record = identity.unfinished(store, identity.plan_hash(plan.cells, plan.order), plan.cells, plan.order)
    started_ms, accepted = time.time_ns() // 1_000_000, []
    if record is None:
        sweep_id = new_sweep_id(asked.experiment, {known.sweep_id for known in store.sweeps()})
    else:
        kept = identity.kept_plan(store, record)
        plan = replace(plan, cells=named_as_before(plan.cells, [str(cell["cell"]) for cell in kept.get("cells", ())]))
        # what was warm then is not any more: warm-ups have no final verdict, and are run again
        trials = store.trials(record.sweep_id)
        accepted = identity.require_same(record, trials, kept, plan.cells, plan.order, here, asked.accept_change)
        sweep_id, started_ms = record.sweep_id, record.started_ms
        run.done = frozenset(trial.order for trial in trials if trial.verdict in identity.FINAL)
        store.supersede([trial.run_id for trial in trials if trial.order not in run.done])
        _tell_that_it_goes_on(run, sweep_id, len(plan.trials) - len(plan.warm_ups), methods(trials))
    first = plan.first
    run.summary = SweepSummary(
        sweep_id=sweep_id, experiment=asked.experiment, question=first.question, command=provenance.command(),
        planned_trials=len(plan.trials) - len(plan.warm_ups), plan=plan.document(), started_ms=started_ms, tags={
            **provenance.facts(), "plan_hash": identity.plan_hash(plan.cells, plan.order),
            "environment": json.dumps(here), "cwd": str(Path.cwd()),
            "arguments": to_json([provenance.without_password(word) for word in asked.arguments]),
            "question_metrics": json.dumps(list(first.question_metrics)),
            "accepted_changes": "\n".join(accepted), "concerns": "\n".join(concerns),
            **({} if asked.again is None else {
                "rerun_of": asked.again.of, "changed_since": "\n".join(asked.again.notes)})})
    store.record_sweep(run.summary)
    return plan


def _tell_that_it_goes_on(run: SweepRun, sweep_id: str, trials: int, was: Sequence[int]) -> None:
    said = _("{sweep} goes on: {done} of {n} trials are done") if run.asked.resume else _(
        "{sweep} goes on: {done} of {n} trials are done (--fresh starts anew)")
    run.listener.on_event(Notice(said.format(sweep=sweep_id, done=len(run.done), n=trials)))
    if was not in ([], [METHOD]):
        run.listener.on_event(Notice(_(
            "warning: measured by method {was} so far, by method {now} from here on; the same cell may read differently"
        ).format(was=", ".join(map(str, was)), now=METHOD)))
