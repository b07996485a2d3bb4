"""When a sweep ends before its last trial: a failure that no further trial can mend, or effects known well enough."""

from __future__ import annotations

import re
from itertools import takewhile

from pipeline.config import Config, Stop
from pipeline.errors import ConfigError, EngineUnusableError, PromptTooLongError
from pipeline.language import _, worded
from pipeline.outcome import ERROR_KIND
from pipeline.progress import Notice
from pipeline.record.reason import ERROR, SAID, Reason
from pipeline.record.trial import TrialRecord
from pipeline.sweep.cells import swept_knobs
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.run import SweepRun

_MARKS = re.compile(r"(?<=:)\d{2,5}\b|\b(pid|process) \d+", re.IGNORECASE)

ALIKE = 3
"""So many trials in a row, or a whole block if that is longer, that failed for one reason end a sweep."""


class StopSweep(BaseException):
    """Leaves a launcher at once, with a message for the user: no further trial can succeed, or none is wanted."""

    def __init__(self, message: str, wrong_input: bool) -> None:
        super().__init__(message)
        self.wrong_input = wrong_input


def is_hopeless(trial: TrialRecord) -> bool:
    """Would every further trial of this engine fail alike?"""
    return trial.tags.get(ERROR_KIND) == EngineUnusableError.__name__


def stop_after(run: SweepRun, trial: TrialRecord, config: Config) -> None:
    """Raises StopSweep if this was the last trial: no further one can succeed (with several engines in the sweep, one
    that cannot run stops none of the others'), or it failed and `design.on_failure` is stop, or it is the last of
    several in a row that failed for one reason, and the user did not ask for design.on_failure=continue."""
    assert run.plan is not None, "trials have a plan"
    if trial.tags.get(ERROR_KIND) == PromptTooLongError.__name__ and run.nothing_measured:
        raise StopSweep(trial.reasons[0], wrong_input=True)
    if is_hopeless(trial) and len({cell.config.engine.name for cell in run.plan.cells}) < 2:
        raise StopSweep(trial.reasons[0], wrong_input=run.nothing_measured)
    if trial.verdict == "failed" and config.design.on_failure == "stop":
        raise StopSweep(_("stopped after the failed trial {n}, as design.on_failure=stop asks").format(n=trial.order),
                        wrong_input=False)
    failed = _failed_alike(run, trial)
    told = "design.on_failure=continue" in run.asked.arguments
    if failed >= max(ALIKE, len(run.plan.cells)) and not told and trial.order < len(run.plan.trials):
        raise StopSweep(_("stopped after {n} trials in a row that failed for one reason: {reason} "
                          "(design.on_failure=continue goes on)").format(
            n=failed, reason=worded(trial.reasons[0]).rstrip(".")), wrong_input=False)


def _failed_alike(run: SweepRun, trial: TrialRecord) -> int:
    """How many trials in a row, up to this one, failed for the reasons of this one."""
    until = [run.trials[order] for order in sorted(run.trials, reverse=True) if order <= trial.order]
    return sum(1 for _one in takewhile(
        lambda one: one.verdict == "failed" and bool(one.reasons) and _same(one.reasons[0], trial.reasons[0]), until))


def _same(one: Reason, other: Reason) -> bool:
    """By code and values; the numbers of ports and processes in another's words differ from trial to trial."""
    if one.code in (ERROR, SAID):
        return one.code == other.code and _MARKS.sub("", one) == _MARKS.sub("", other)
    return one.code == other.code and one.values == other.values


def check_stop(plan: SweepPlan) -> None:
    """Raises ConfigError for a precision that this sweep can never reach."""
    rule = plan.first.stop
    if rule.name != "precision" or rule.wanted is None:
        return
    from pipeline.stats.measures import measure

    arms = {tuple(cell.config.infer_os.switched_on) for cell in plan.cells}
    modes = {cell.config.mode.name for cell in plan.cells}
    no_effect = len(arms) < 2 and not swept_knobs(plan.cells)
    if (rule.of == "effects" and no_effect) or (rule.of == "gap" and len(modes) < 2):
        wants = ("two arms that differ in a flag or a knob (infer_os=off,on; knob.cache_type=f16,q8_0)"
                 if rule.of == "effects" else "both modes")
        raise ConfigError(f"stop=precision of {rule.of} needs {wants}, and this sweep has one.")
    unit = measure(rule.metric).unit
    if rule.wanted[1] not in ("%", unit):
        raise ConfigError(f"stop.target={rule.target} is not allowed: {rule.metric} is in "
                          f'{unit or "no unit"}; expected a number and {unit or "%"}, or "%".')


def is_precise(run: SweepRun, rule: Stop) -> bool:
    """Is every effect in question known as precisely as asked? Only the width of the interval decides."""
    from pipeline.stats.stopping import effect_precision, gap_precision

    assert rule.wanted is not None, "checked with the config"
    wanted, unit = rule.wanted
    target, target_pct = (None, wanted) if unit == "%" else (wanted, None)
    trials = list({**run.done, **run.trials}.values())
    measure = effect_precision if rule.of == "effects" else gap_precision
    found = measure(trials, rule.metric, target=target, target_pct=target_pct)
    widths = [f"±{one.half_width:.3g} {one.unit} ({100 * one.level:.3g} %)" for one in found
              if one.half_width is not None and one.level is not None]
    if widths:
        run.listener.on_event(Notice(_("precision after {n} blocks: {widths}, wanted {target}").format(
            n=found[0].n_blocks, widths=", ".join(widths), target=f"±{rule.target}")))
    return bool(found) and all(one.reached for one in found)
