"""Conducts a sweep: from overrides to blocks of trials to its end, whatever ends it.

Called by the sweeper plugin in the process of the command line; one trial is `job.py`, wherever the launcher runs it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from pipeline import provenance
from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.language import _
from pipeline.progress import Notice, SweepStarted, Waiting
from pipeline.record import schema
from pipeline.record.find import Sweeps
from pipeline.record.owner import owner_tags
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import FINAL, METHOD, TrialRecord
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
from pipeline.text import masked, to_json
from pipeline.track.location import Location, locate
from pipeline.track.opened import sweeps_of
from pipeline.track.pull import Fetched
from pipeline.track.push import Push

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


def conduct(loader: ConfigLoader, master: DictConfig, launcher: Callable[[Job], Launch], params: Mapping[str, Any],
            arguments: Sequence[str]) -> list[TrialRecord]:
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
    location = run.location = _opened(run, plan.first.tracking)
    # also what an earlier version has measured there; but to go on, and of a server, our own records are enough
    sweeps = sweeps_of(location) if asked.resume or location.database is None else Fetched(location)
    if asked.dry_run:
        run.forecast = forecast(plan.cells, plan.trials, sweeps)
        return []
    with machine_lock(plan.first.design.when_busy, lambda text: run.listener.on_event(Waiting(text))):
        if not plan.is_typed:
            for cell in plan.cells:
                require_fit(cell.config)  # counts their tokens once, before anything is measured
        concerns = tell_concerns(run, plan.first.meter.rate_hz)
        plan = run.plan = _begin(run, plan, sweeps, concerns)
        expected = run.forecast = forecast(plan.cells, plan.ahead(run.done), sweeps)
        tell_plan(run, plan, location, concerns)
        assert run.sweep is not None and run.folder is not None, "it has just begun"
        run.listener.on_event(SweepStarted(
            sweep_id=run.sweep.sweep_id, question=plan.first.question, cells=[cell.name for cell in plan.cells],
            trials=len(plan.trials), order=plan.names, blocks=len(plan.order), name=asked.experiment,
            done=len(run.done),
            expected_trial_s=expected.seconds and expected.seconds / max(1, expected.trials)))
        job = Job(run.folder.path, {cell.name: cell.plan for cell in plan.cells}, expected.trial_s)
        run_and_close(run, plan, launcher(job))
    return list(run.trials.values())


def _opened(run: SweepRun, tracking: Tracking) -> Location:
    """The store that results are sent to, which has to answer before a sweep begins; one that goes on has its records,
    and can wait for it. Raises StoreError."""
    if run.asked.dry_run:
        return locate(tracking)
    try:
        run.push = Push.open(tracking)
    except StoreError as error:
        if not run.asked.resume:
            raise
        run.notes.append(str(error))
        run.listener.on_event(Notice(_("warning: {what}").format(what=error)))
        return locate(tracking)
    return run.push.location


def _new_id(experiment: str, sweeps: Sweeps) -> str:
    """Name and time to the second: sorts by time, reads well, and a prefix is enough to name it."""
    base, taken = f"{schema.as_name(experiment or 'run')}-{time.strftime('%y%m%d-%H%M%S')}", sweeps.ids()
    candidates = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def _begin(run: SweepRun, plan: SweepPlan, sweeps: Sweeps, concerns: Sequence[str]) -> SweepPlan:
    """A new sweep, or the unfinished one that goes on: recorded as running. Returns the plan as it names its cells.

    Raises ConfigError: the sweep to go on with runs already, or something has changed since."""
    asked, here = run.asked, identity.environment(plan.cells)
    before = sweeps.sweep(asked.resume) if asked.resume else None
    if before is None and not asked.fresh and not plan.is_typed:  # another cannot know what was said in a conversation
        before = identity.unfinished(sweeps, plan.cells, plan.order)
    accepted: Sequence[str] = ()
    if before is not None:
        before.refuse_running()
        kept = sweeps.folder(before.sweep_id).plan()
        plan = replace(plan, cells=named_as_before(plan.cells, [str(cell["cell"]) for cell in kept.get("cells", ())]))
        trials = sweeps.trials(before.sweep_id)
        accepted = identity.require_same(before, trials, kept, plan.cells, plan.order, here, asked.accept_change)
        # what was warm then is not any more: warm-ups have no final verdict, and are run again
        run.done = {trial.order: trial for trial in trials if trial.verdict in FINAL}
        _tell_that_it_goes_on(run, before.sweep_id, len(plan.trials) - len(plan.warm_ups), methods(trials))
    first, tracking = plan.first, plan.first.tracking
    sweep = SweepRecord(
        sweep_id=before.sweep_id if before is not None else _new_id(asked.experiment, sweeps),
        experiment=asked.experiment, question=first.question, command=provenance.command(),
        planned_trials=len(plan.trials) - len(plan.warm_ups), owner=owner_tags(),
        started_ms=before.started_ms if before is not None else time.time_ns() // 1_000_000, tags={
            **provenance.facts(), "plan_hash": identity.plan_hash(plan.cells, plan.order),
            "environment": json.dumps(here), "cwd": str(Path.cwd()),
            "arguments": to_json([masked(word) for word in asked.arguments]),
            "question_metrics": json.dumps(list(first.question_metrics)),
            "tracking_uri": sweeps.shown, "tracking_experiment": tracking.experiment,
            "accepted_changes": "\n".join(accepted), "concerns": "\n".join(concerns),
            **({} if asked.again is None else {
                "rerun_of": asked.again.of, "changed_since": "\n".join(asked.again.notes)})})
    run.folder = sweeps.folder(sweep.sweep_id)
    if before is None:
        run.folder.begin(sweep, plan.document(asked.arguments))
    else:
        run.folder.sweep_up()
    run.keep(sweep)
    return plan


def _tell_that_it_goes_on(run: SweepRun, sweep_id: str, trials: int, was: Sequence[int]) -> None:
    said = _("{sweep} goes on: {done} of {n} trials are done") if run.asked.resume else _(
        "{sweep} goes on: {done} of {n} trials are done (--fresh starts anew)")
    run.listener.on_event(Notice(said.format(sweep=sweep_id, done=len(run.done), n=trials)))
    if was not in ([], [METHOD]):
        run.listener.on_event(Notice(_(
            "warning: measured by method {was} so far, by method {now} from here on; the same cell may read differently"
        ).format(was=", ".join(map(str, was)), now=METHOD)))
