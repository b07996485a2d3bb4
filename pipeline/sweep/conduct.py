"""Conducts a sweep: from overrides to blocks of trials, one launch per block, to the summary run.

Called by the sweeper plugin in the orchestrator; one trial is `job.py`, wherever the launcher runs it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline import language, provenance
from pipeline.config import Config, Stop
from pipeline.engine.all_knobs import in_common_words, with_common_names
from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.outcome import WARM_UP_BLOCK
from pipeline.progress import Notice, SweepFinished, SweepStarted, TrialFinished, Waiting
from pipeline.result import METHOD, TrialResult
from pipeline.stats.trials import methods
from pipeline.sweep.cells import (
    Cell,
    Skipped,
    check_cells,
    fetch_models,
    honoured_flags,
    named_as_before,
    refuse_other_work,
    swept_knobs,
)
from pipeline.sweep.composed import PLACE
from pipeline.sweep.conversation import bring_person, check_repetitions, is_typed
from pipeline.sweep.design import load_design
from pipeline.sweep.forecast import Forecast, clock, forecast, remaining_s
from pipeline.sweep.lengths import require_fit
from pipeline.sweep.lock import machine_lock
from pipeline.sweep.messages import is_setting, must_be_given, unknown_setting
from pipeline.sweep.model_words import told_apart
from pipeline.sweep.overrides import overrides_of
from pipeline.sweep.session import SESSION
from pipeline.text import to_json

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.plugins.launcher import Launcher

    from pipeline.track.location import Location
    from pipeline.track.store import Store
    from pipeline.track.summary import SweepStatus, SweepSummary


class StopSweep(BaseException):
    """Leaves a launcher at once, with a message for the user: no further trial can succeed, or none is wanted."""

    def __init__(self, message: str, wrong_input: bool) -> None:
        super().__init__(message)
        self.wrong_input = wrong_input


def typed(composed: DictConfig) -> Config:
    """The composed config as the schema's dataclasses. Raises ConfigError where a range check fails."""
    bare = composed.copy()
    with open_dict(bare):
        bare.pop("hydra", None)
    if missing := sorted(OmegaConf.missing_keys(bare)):
        raise ConfigError(must_be_given(missing))
    config = OmegaConf.to_object(bare)
    if not isinstance(config, Config):
        raise ConfigError("the composed config is not slackwater's: conf/config.yaml must begin with base_config.")
    return with_common_names(config)


def combinations(loader: ConfigLoader, params: Mapping[str, Any], arguments: Sequence[str]) -> list[list[str]]:
    """Every cell of the sweep as a list of overrides; Hydra's sweep grammar, the command line wins over the file."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    arguments = [in_common_words(argument) for argument in arguments]
    typed_by_hand = {argument.lstrip("+~").split("=", 1)[0] for argument in arguments}
    listed = [in_common_words(override) for key, value in params.items()
              for override in overrides_of(str(key), value)]
    # `infer_os.quantization=true,false` replaces the file's sweep over `infer_os`, not only its own key
    kept = [override for override in listed
            if not any(f"{given}.".startswith(f"{override.lstrip('+').partition('=')[0]}.") for given in typed_by_hand)]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*kept, *arguments])
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if key.split(".")[0] == "place":
            raise ConfigError("place.* is filled in by the sweep itself and cannot be set.")
        # Hydra would add a key that nobody reads
        if not is_setting(key) and key.split(".")[0] not in ("hydra", "experiment"):
            raise ConfigError(unknown_setting(key))
    cells: list[list[str]] = BasicSweeper.split_arguments(overrides, None)[0]
    return cells


def new_sweep_id(experiment: str, taken: Collection[str]) -> str:
    """Name and time to the second: sorts by time, reads well, and a prefix is enough to name it."""
    base = f"{experiment or 'run'}-{time.strftime('%y%m%d-%H%M%S')}"
    candidates = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def conduct(loader: ConfigLoader, master: DictConfig, launcher: Launcher, params: Mapping[str, Any],
            arguments: Sequence[str]) -> list[TrialResult]:
    """Check every cell, then run them block by block. Results are in SESSION as well, also after an interruption."""
    again = SESSION.again
    overrides = combinations(loader, params, arguments) if again is None else [
        [*cell, *arguments] for _, cell in again.cells]
    configs = [typed(loader.load_sweep_config(master, cell)) for cell in overrides]
    if same_name := told_apart([config.model for config in configs]):
        overrides = [[*cell, f"model.name={json.dumps(same_name[str(config.model.path)], ensure_ascii=False)}"]
                     if config.model.path in same_name else cell
                     for cell, config in zip(overrides, configs, strict=True)]
        configs = [typed(loader.load_sweep_config(master, cell)) for cell in overrides]
    if len({config.lang for config in configs}) > 1:
        raise ConfigError(_("lang cannot be swept: it is the language of the output and changes nothing that is "
                            "measured."))
    language.speak(configs[0].lang or language.wished())
    if person := is_typed(configs):
        check_repetitions(arguments)
    design = load_design(configs[0].design.name)
    left_out: list[Skipped] = []
    if design.expand is not None and again is None:
        flags, left_out = honoured_flags(configs[0])
        overrides = [[*cell, *more] for cell in overrides for more in design.expand(flags)]
        configs = [typed(loader.load_sweep_config(master, cell)) for cell in overrides]
    if again is None:
        refuse_other_work(configs)
    SESSION.cells, SESSION.skipped = check_cells(configs, overrides)
    if not SESSION.dry_run:
        fetch_models(SESSION.cells, SESSION.listener)
        SESSION.cells, SESSION.skipped = check_cells(configs, overrides)  # now that the file is here to be read
    SESSION.skipped += left_out
    if again is not None:
        called = {tuple(cell): name for cell, (name, _) in zip(overrides, again.cells, strict=True)}
        SESSION.cells = [replace(cell, name=called[tuple(cell.overrides)]) for cell in SESSION.cells]
    first = SESSION.cells[0].config
    SESSION.warning = "; ".join(filter(None, [design.note, _one_repetition(first)]))
    seed = first.seed if first.design.shuffle_seed is None else first.design.shuffle_seed
    _check_stop(first.stop)
    blocks = 1 if person else first.repetitions if first.stop.name == "repetitions" else first.stop.limit
    SESSION.order = design.blocks(len(SESSION.cells), blocks, seed)
    SESSION.warm_ups = warm_ups(SESSION.cells, first.design.warmup)

    if person and not SESSION.dry_run:
        bring_person(first)

    from pipeline.track.store import open_store

    store = SESSION.store = open_store(first.tracking, write=not SESSION.dry_run)
    if SESSION.dry_run:
        SESSION.forecast = forecast(SESSION.cells, _all_trials(), store)
        return []
    with machine_lock(first.design.when_busy, lambda text: SESSION.listener.on_event(Waiting(text))):
        if not person:
            for cell in SESSION.cells:
                require_fit(cell.config)  # counts their tokens once, before anything is measured
        concerns = _examine(first.meter.rate_hz)
        summary = _begin(store, first, seed, concerns)
        expected = _state(store, seed)
        if SESSION.verbose:
            _tell_all(store, seed, concerns)
        names = [SESSION.cells[index].name for index in _all_trials()]
        SESSION.listener.on_event(SweepStarted(
            sweep_id=SESSION.sweep_id, question=first.question, cells=[cell.name for cell in SESSION.cells],
            trials=len(names), order=names, blocks=len(SESSION.order), name=SESSION.experiment,
            done=len(SESSION.done), expected_trial_s=expected.seconds and expected.seconds / max(1, expected.trials)))
        _run_and_close(store, summary, launcher, first.stop, len(names))
    return SESSION.results


def _one_repetition(first: Config) -> str:
    """A warning, where arms are compared that will have no interval."""
    alone = first.repetitions == 1 and first.stop.name == "repetitions" and len(SESSION.cells) > 1
    return _("one repetition: differences will have no interval") if alone and first.design.name != "factorial" else ""


def warm_ups(cells: Sequence[Cell], times: int) -> list[int]:
    """The first cell of every engine and model, `times` times: what it reads and starts is warm for the others."""
    first: dict[tuple[str, str], int] = {}
    for index, cell in enumerate(cells):
        first.setdefault((cell.config.engine.name, str(cell.plan.settings.get("model"))), index)
    return list(first.values()) * times


def _all_trials() -> list[int]:
    """The cell of every trial, in the order they run: trial N is the N-th."""
    return [*SESSION.warm_ups, *(index for block in SESSION.order for index in block)]


def _state(store: Store, seed: int) -> Forecast:
    """Say what will run, how long it will take and what it asks for."""
    ahead = [index for order, index in enumerate(_all_trials(), start=1) if order not in SESSION.done]
    expected = SESSION.forecast = forecast(SESSION.cells, ahead, store)
    plan = _("cells: {cells}, trials: {trials}, blocks: {blocks}; order: {design}, seed {seed}").format(
        cells=len(SESSION.cells), trials=sum(map(len, SESSION.order)), blocks=len(SESSION.order),
        design=SESSION.cells[0].config.design.name, seed=seed)
    if (rule := SESSION.cells[0].config.stop).name == "precision":
        plan += "; " + _("fewer if an effect is known to {target} before").format(target=rule.target)
    if SESSION.warm_ups:
        plan += "; " + _("first, not counted: {n} warm-up").format(n=len(SESSION.warm_ups))
    warned = [_("warning: {what}").format(what=SESSION.warning)] if SESSION.warning else []
    for line in [where_results_go(store.location), plan, *expected.lines(), *warned]:
        SESSION.listener.on_event(Notice(line))
    return expected


def where_results_go(location: Location) -> str:
    """"results: mlruns/mlflow.db (SLACKWATER_HOME)": the store, and what named it if anything did."""
    line = _("results: {store}").format(store=location.shown)
    return f"{line} ({location.chosen_by})" if location.chosen_by else line


def _tell_all(store: Store, seed: int, concerns: Sequence[str]) -> None:
    """What -v adds before the first trial: where results go, the order's seed, each cell's settings, concerns."""
    lines = [f"order: design {SESSION.cells[0].config.design.name}, seed {seed}"]
    for cell in SESSION.cells:
        lines.append(f"{cell.name}: " + "  ".join(f"{key}={value}" for key, value in cell.plan.settings.items()))
        lines += [f"{cell.name}: {line}" for says in cell.plan.knobs.values() for line in says]
    for line in [*lines, *concerns]:
        SESSION.listener.on_event(Notice(line))


def _examine(rate_hz: float) -> list[str]:
    """What on this machine would spoil the sweep, a line each for its record; what blocks a trustworthy run is said."""
    from pipeline.meter.doctor import examine

    examination = examine(rate_hz)
    for concern in examination.concerns:
        if concern.level == "blocks":
            SESSION.listener.on_event(Notice(f"warning: {concern.what} {concern.remedy}"))
    return [f"{concern.level}: {concern.what}" for concern in examination.concerns]


def _begin(store: Store, first: Config, seed: int, concerns: Sequence[str]) -> SweepSummary:
    """The sweep's summary run: a new one, or that of the unfinished sweep that goes on."""
    from pipeline.sweep import identity
    from pipeline.track.summary import SweepSummary

    plan, here = identity.plan_hash(SESSION.cells, SESSION.order), identity.environment(SESSION.cells)
    record = store.find_sweep(SESSION.resume) if SESSION.resume else None
    if record is None and not SESSION.fresh:
        record = identity.unfinished(store, plan, SESSION.cells, SESSION.order)
    if record is not None:
        kept = identity.kept_plan(store, record)
        SESSION.cells = named_as_before(SESSION.cells, [str(cell["cell"]) for cell in kept.get("cells", ())])
        plan = identity.plan_hash(SESSION.cells, SESSION.order)
    names = [SESSION.cells[index].name for block in SESSION.order for index in block]
    started_ms, accepted = time.time_ns() // 1_000_000, []
    if record is None:
        SESSION.sweep_id = new_sweep_id(SESSION.experiment, {known.sweep_id for known in store.sweeps()})
    else:
        # what was warm then is not any more: warm-ups have no final verdict, and are run again
        trials = store.trials(record.sweep_id)
        accepted = identity.require_same(record, trials, kept, SESSION.cells, SESSION.order, here,
                                         SESSION.accept_change)
        SESSION.sweep_id, started_ms = record.sweep_id, record.started_ms
        SESSION.done = {trial.order for trial in trials if trial.verdict in identity.FINAL}
        store.supersede([trial.run_id for trial in trials if trial.order not in SESSION.done])
        anew = "" if SESSION.resume else " (--fresh starts anew)"
        SESSION.listener.on_event(Notice(
            f"{record.sweep_id} goes on: {len(SESSION.done)} of {len(names)} trials are done{anew}"))
        if (was := methods(trials)) not in ([], [METHOD]):
            SESSION.listener.on_event(Notice(
                f"warning: measured by method {', '.join(map(str, was))} so far, by method {METHOD} from here on; "
                "the same cell may read differently"))
    arguments = [provenance.without_password(word) for word in SESSION.arguments]
    SESSION.summary = SweepSummary(
        sweep_id=SESSION.sweep_id, experiment=SESSION.experiment, question=first.question,
        command=provenance.command(), planned_trials=len(names), plan=_plan_record(first, seed, names),
        started_ms=started_ms, tags={
            **provenance.machine(), "plan_hash": plan, "environment": json.dumps(here), "cwd": str(Path.cwd()),
            "arguments": to_json(arguments),
            "question_metrics": json.dumps(list(first.question_metrics)),
            "accepted_changes": "\n".join(accepted), "concerns": "\n".join(concerns), **_origin()})
    store.record_sweep(SESSION.summary)
    return SESSION.summary


def _origin() -> dict[str, str]:
    """Tags of a sweep that was measured before."""
    again = SESSION.again
    return {} if again is None else {"rerun_of": again.of, "changed_since": "\n".join(again.notes)}


def _run_and_close(store: Store, summary: SweepSummary, launcher: Launcher, stop_rule: Stop, trials: int) -> None:
    status: SweepStatus = "failed"
    try:
        begun = _run_blocks(store, launcher, stop_rule, trials)
        summary = replace(summary, planned_trials=begun - len(SESSION.warm_ups))
        if not SESSION.failed:
            status = "finished"
    except StopSweep as stop:
        if stop.wrong_input:
            raise ConfigError(str(stop)) from None
        SESSION.stopped = str(stop)
    except (KeyboardInterrupt, BrokenPipeError, SystemExit):  # by a person, or nobody reads what is printed any more
        status = "interrupted"
        raise
    finally:
        SESSION.summary = replace(summary, status=status, ended_ms=time.time_ns() // 1_000_000)
        store.record_sweep(SESSION.summary)
        counts = {verdict: sum(result.verdict == verdict for result in SESSION.results)
                  for verdict in ("valid", "suspect", "failed")}
        SESSION.listener.on_event(SweepFinished(SESSION.sweep_id, **counts, interrupted=status == "interrupted"))


def _run_blocks(store: Store, launcher: Launcher, stop_rule: Stop, trials: int) -> int:
    """The number of trials until the sweep had enough of them."""
    begun = 0
    blocks = [*([(WARM_UP_BLOCK, SESSION.warm_ups)] if SESSION.warm_ups else []), *enumerate(SESSION.order, start=1)]
    for number, block in blocks:
        if stop_rule.name == "precision" and number != WARM_UP_BLOCK and _precise(store, stop_rule):
            SESSION.listener.on_event(Notice(_("precise enough: {n} trials are not needed").format(n=trials - begun)))
            return begun
        orders = {begun + position: index for position, index in enumerate(block, start=1)}
        jobs = [_job_overrides(SESSION.cells[index], number, order, trials) for order, index in orders.items()
                if order not in SESSION.done]
        begun += len(block)
        if not jobs:
            continue
        returns = launcher.launch(jobs, initial_job_idx=begun - len(block))
        seen = {result.order for result in SESSION.results}
        for returned in returns:
            result = returned.return_value  # raises what the job raised: a bug, not a failed trial
            if result.order not in seen:
                # a launcher with processes of its own: hear of it when the block is done
                SESSION.results.append(result)
                SESSION.listener.on_event(TrialFinished(result))
        _tell_what_is_left(number, begun)
    if stop_rule.name == "precision" and not _precise(store, stop_rule):
        SESSION.warning = _("ended at stop.limit={limit} blocks, before {target} was reached").format(
            limit=stop_rule.limit, target=stop_rule.target)
    return begun


def _tell_what_is_left(number: int, begun: int) -> None:
    """The duration, where it was not known before: after the first block that ran, and not again."""
    if number == WARM_UP_BLOCK or SESSION.forecast is None or SESSION.forecast.seconds is not None:
        return
    taken = [(result.cell, (result.ended_ms - result.started_ms) / 1000) for result in SESSION.results]
    ahead = [SESSION.cells[index].name for order, index in enumerate(_all_trials(), start=1)
             if order > begun and order not in SESSION.done]
    left = remaining_s(ahead, taken)
    if ahead and left is not None:
        SESSION.forecast = replace(SESSION.forecast, seconds=left)
        SESSION.listener.on_event(Notice(_("time left: about {time}").format(time=clock(left))))


def _check_stop(stop_rule: Stop) -> None:
    """Raises ConfigError for a precision that this sweep can never reach."""
    if stop_rule.name != "precision" or stop_rule.wanted is None:
        return
    from pipeline.stats.measures import measure

    arms = {tuple(cell.config.infer_os.switched_on) for cell in SESSION.cells}
    modes = {cell.config.mode.name for cell in SESSION.cells}
    no_effect = len(arms) < 2 and not swept_knobs(SESSION.cells)
    if (stop_rule.of == "effects" and no_effect) or (stop_rule.of == "gap" and len(modes) < 2):
        wants = ("two arms that differ in a flag or a knob (infer_os=off,on; knob.cache_type=f16,q8_0)"
                 if stop_rule.of == "effects" else "both modes")
        raise ConfigError(f"stop=precision of {stop_rule.of} needs {wants}, and this sweep has one.")
    unit = measure(stop_rule.metric).unit
    if stop_rule.wanted[1] not in ("%", unit):
        raise ConfigError(f"stop.target={stop_rule.target} is not allowed: {stop_rule.metric} is in "
                          f'{unit or "no unit"}; expected a number and {unit or "%"}, or "%".')


def _precise(store: Store, stop_rule: Stop) -> bool:
    """Is every effect in question known as precisely as asked? Only the width of the interval decides."""
    from pipeline.stats.stopping import effect_precision, gap_precision

    assert stop_rule.wanted is not None, "checked with the config"
    wanted, unit = stop_rule.wanted
    target, target_pct = (None, wanted) if unit == "%" else (wanted, None)
    trials = store.trials_and(SESSION.sweep_id, SESSION.results, SESSION.run_ids)
    measure = effect_precision if stop_rule.of == "effects" else gap_precision
    found = measure(trials, stop_rule.metric, target=target, target_pct=target_pct)
    widths = [f"±{one.half_width:.3g} {one.unit} ({100 * one.level:.3g} %)" for one in found
              if one.half_width is not None and one.level is not None]
    if widths:
        SESSION.listener.on_event(Notice(f"precision after {found[0].n_blocks} blocks: {', '.join(widths)}, "
                                         f"wanted ±{stop_rule.target}"))
    return bool(found) and all(one.reached for one in found)


def _job_overrides(cell: Cell, block: int, order: int, trials: int) -> list[str]:
    place: dict[str, str | int] = {"sweep_id": SESSION.sweep_id, "cell": cell.name, "repetition": block,
                                   "block": block, "order": order, "trials": trials}
    if swept := swept_knobs(SESSION.cells):
        place["swept_knobs"] = json.dumps(swept)
    return [*cell.overrides, *(f"{PLACE}{key}={json.dumps(value, ensure_ascii=False)}" for key, value in place.items())]


def _plan_record(first: Config, seed: int, names: Sequence[str]) -> dict[str, Any]:
    return {
        "cells": [{"cell": cell.name, "overrides": list(map(provenance.without_password, cell.overrides)),
                   "settings": dict(cell.plan.settings),
                   "knobs": {name: list(says) for name, says in cell.plan.knobs.items()}}
                  for cell in SESSION.cells],
        "skipped": [{"cell": cell.name, "reason": cell.reason, "reason_code": cell.reason.to_dict()}
                    for cell in SESSION.skipped],
        "design": first.design.name, "shuffle_seed": seed, "repetitions": first.repetitions, "order": list(names),
        "warm_ups": [SESSION.cells[index].name for index in SESSION.warm_ups],
        "cwd": str(Path.cwd()),
    }
