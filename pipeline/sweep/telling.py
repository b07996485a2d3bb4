"""What a sweep says of itself before its first trial and between blocks: where results go, how long, what it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.language import _, worded
from pipeline.outcome import WARM_UP_BLOCK
from pipeline.progress import Notice
from pipeline.sweep.forecast import clock, remaining_s
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.run import SweepRun

if TYPE_CHECKING:
    from pipeline.track.location import Location


def where_results_go(location: Location) -> str:
    """"results: mlruns/mlflow.db (SLACKWATER_HOME)": the store, and what named it if anything did."""
    line = _("results: {store}").format(store=location.shown)
    return f"{line} ({location.chosen_by})" if location.chosen_by else line


def tell_plan(run: SweepRun, plan: SweepPlan, location: Location, concerns: Sequence[str]) -> None:
    """What will run, how long it will take, what it asks for; with -v each cell's settings and concerns."""
    assert run.forecast is not None, "made before it is told"
    said = _("cells: {cells}, trials: {trials}, blocks: {blocks}; order: {design}, seed {seed}").format(
        cells=len(plan.cells), trials=sum(map(len, plan.order)), blocks=len(plan.order),
        design=plan.first.design.name, seed=plan.seed)
    if (rule := plan.first.stop).name == "precision":
        said += "; " + _("fewer if an effect is known to {target} before").format(target=rule.target)
    if plan.warm_ups:
        said += "; " + _("first, not counted: {n} warm-up").format(n=len(plan.warm_ups))
    lines = [where_results_go(location), said, *run.forecast.lines()]
    if plan.warning:
        lines.append(_("warning: {what}").format(what=plan.warning))
    if run.asked.verbose:
        lines.append(f"order: design {plan.first.design.name}, seed {plan.seed}")
        for cell in plan.cells:
            lines.append(f"{cell.name}: " + "  ".join(f"{key}={value}" for key, value in cell.plan.settings.items()))
            lines += [f"{cell.name}: {worded(line)}" for says in cell.plan.knobs.values() for line in says]
        lines += concerns
    for line in lines:
        run.listener.on_event(Notice(line))


def tell_concerns(run: SweepRun, rate_hz: float) -> list[str]:
    """What on this machine would spoil the sweep, a line each for its record; what blocks a trustworthy run is said."""
    from pipeline.meter.doctor import examine

    examination = examine(rate_hz)
    for concern in examination.concerns:
        if concern.level == "blocks":
            run.listener.on_event(Notice(_("warning: {what}").format(
                what=f"{worded(concern.what)} {worded(concern.remedy)}")))
    return [f"{concern.level}: {concern.what}" for concern in examination.concerns]


def tell_what_is_left(run: SweepRun, plan: SweepPlan, block: int, begun: int) -> None:
    """The duration, where it was not known before: after the first block that ran, and not again."""
    if block == WARM_UP_BLOCK or run.forecast is None or run.forecast.seconds is not None:
        return
    taken = [(trial.cell, (trial.ended_ms - trial.started_ms) / 1000) for trial in run.trials.values()]
    ahead = [name for order, name in enumerate(plan.names, start=1) if order > begun and order not in run.done]
    left = remaining_s(ahead, taken)
    if ahead and left is not None:
        run.forecast = replace(run.forecast, seconds=left)
        run.listener.on_event(Notice(_("time left: about {time}").format(time=clock(left))))
