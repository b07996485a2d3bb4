"""The loop of a sweep: its blocks one after the other, one launch each, until it has enough or is ended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, StoreError
from pipeline.language import _, worded
from pipeline.outcome import WARM_UP_BLOCK
from pipeline.progress import Notice, SweepFinished
from pipeline.sweep.cells import Cell, swept_knobs
from pipeline.sweep.composed import PLACE
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.run import SweepRun
from pipeline.sweep.stop_rule import StopSweep, is_precise, stop_after
from pipeline.sweep.telling import tell_what_is_left

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

    from pipeline.record.sweep import SweepStatus

Launch = Callable[[Sequence[Sequence[str]], int], Sequence["JobReturn"]]
"""Hydra's launcher: the overrides of jobs, and the number of the first."""


def run_and_close(run: SweepRun, plan: SweepPlan, launch: Launch) -> None:
    """Every trial that is not done; however that ends, the sweep's end is recorded.

    Raises ConfigError if the input was wrong, and what interrupted it."""
    assert run.sweep is not None, "a sweep begins before its trials"
    status: SweepStatus = "failed"
    begun = len(plan.trials)
    try:
        begun = _run_blocks(run, plan, launch)
        if not run.failed:
            status = "finished"
    except StopSweep as stop:
        if stop.wrong_input:
            raise ConfigError(*stop.args) from None
        run.stopped = worded(stop.args[0])
    except StoreError as error:  # the disk takes no more records: what was measured before is kept, and shown
        if not run.trials:
            raise
        run.stopped = str(error)
    except (KeyboardInterrupt, BrokenPipeError, SystemExit):  # by a user, or nobody reads what is printed any more
        status = "interrupted"
        raise
    finally:
        try:
            run.keep(replace(run.sweep, status=status, owner={}, ended_ms=time.time_ns() // 1_000_000,
                             planned_trials=begun - len(plan.warm_ups)))
        except StoreError as error:
            run.stopped = run.stopped or str(error)
        verdicts = [trial.verdict for trial in run.trials.values()]
        run.listener.on_event(SweepFinished(
            run.sweep.sweep_id, verdicts.count("valid"), verdicts.count("suspect"), verdicts.count("failed"),
            interrupted=status == "interrupted"))


def _run_blocks(run: SweepRun, plan: SweepPlan, launch: Launch) -> int:
    """The number of trials until the sweep had enough of them."""
    begun, rule = 0, plan.first.stop
    for number, block in plan.blocks:
        if rule.name == "precision" and number != WARM_UP_BLOCK and is_precise(run, rule):
            run.listener.on_event(Notice(_("precise enough: {n} trials are not needed").format(
                n=len(plan.trials) - begun)))
            return begun
        ahead = {begun + position: index for position, index in enumerate(block, start=1)}
        ahead = {order: index for order, index in ahead.items() if order not in run.done}
        begun += len(block)
        if not ahead:
            continue
        jobs = [_overrides(run, plan, plan.cells[index], number, order) for order, index in ahead.items()]
        for (order, index), returned in zip(ahead.items(), launch(jobs, begun - len(block)), strict=True):
            trial = returned.return_value  # raises what the job raised: a bug, not a failed trial
            if order not in run.trials:  # it ran in another process: heard of when the block is done
                run.take(trial)
                stop_after(run, trial, plan.cells[index].config)
        tell_what_is_left(run, plan, number, begun)
    if rule.name == "precision" and not is_precise(run, rule):
        run.notes.append(_("ended at stop.limit={limit} blocks, before {target} was reached").format(
            limit=rule.limit, target=rule.target))
    return begun


def _overrides(run: SweepRun, plan: SweepPlan, cell: Cell, block: int, order: int) -> list[str]:
    """The cell's, and where the trial stands in the sweep."""
    assert run.sweep is not None
    place: dict[str, Any] = {"sweep_id": run.sweep.sweep_id, "cell": cell.name, "repetition": block,
                             "block": block, "order": order, "trials": len(plan.trials)}
    if swept := swept_knobs(plan.cells):
        place["swept_knobs"] = json.dumps(swept)
    return [*cell.overrides, *(f"{PLACE}{key}={json.dumps(value, ensure_ascii=False)}" for key, value in place.items())]
