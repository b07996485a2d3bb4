"""The verbs that measure: run, resume and rerun. Hydra gets their words, `sweep` does the work, `report` prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline import interrupt
from pipeline.errors import ConfigError, SlackwaterError, StoreError
from pipeline.language import _, harmless, worded

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.sweep.conversation import Conversation
    from pipeline.sweep.rerun import Again
    from pipeline.sweep.run import SweepRun

_AGAIN = "--rerun-of"
"""Stands in the stored arguments of a sweep that measured another one again, so that it can be resumed."""


class Flags(NamedTuple):
    """The flags of a command that measures, and `lang=`."""

    lang: str | None
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False
    fresh: bool = False
    accept_change: bool = False
    yes: bool = False


def resume(flags: Flags, sweep: str, uri: str | None) -> int:
    """`slackwater resume [SWEEP]`: the stored arguments again, in the folder they were given in."""
    from pipeline.record.trial import FINAL
    from pipeline.track import opened

    sweeps = opened.sweeps(uri)
    record = sweeps.sweep(sweep)
    record.refuse_running()
    this = f"{record.sweep_id}{sweeps.option}"
    if record.is_foreign:
        raise ConfigError(_("{sweep} was measured by others, and what they typed is not run here. `slackwater rerun "
                            "{named}` measures it again, with their values.").format(sweep=record.sweep_id, named=this))
    if "arguments" not in record.tags:
        raise ConfigError(_("{sweep} does not say how it was started: it was made by another version of slackwater, or "
                            "imported. Start a new one with slackwater run.").format(sweep=record.sweep_id))
    there = sum(record.trials.get(verdict, 0) for verdict in FINAL)
    if record.status == "finished" and there >= (record.planned_trials or 0):
        print(_("{sweep} is finished: all its trials are there. `slackwater rerun {named}` measures it again.").format(
            sweep=record.sweep_id, named=this))
        return 0
    recorded: list[str] | None = record.tag("arguments")
    if recorded is None:
        raise ConfigError(_("The command that started {sweep} was too long for its version of slackwater to keep. "
                            "Its trials are complete: `slackwater rerun {named}` measures it again.").format(
                                sweep=record.sweep_id, named=this))
    arguments = [word for word in recorded if not (word.startswith("tracking.uri=") and ":***@" in word)]
    if len(arguments) < len(recorded) and uri is None:
        raise ConfigError(_("{sweep} was logged to an address with a password, which is not kept: name it with "
                            "--store URI.").format(sweep=record.sweep_id))
    if uri is not None:  # the store may have moved since
        arguments = [word for word in arguments if not word.startswith("tracking.uri=")]
        arguments.append(f"tracking.uri={json.dumps(uri)}")
    folder = Path(record.tags.get("cwd", ""))
    if not folder.is_dir():
        raise ConfigError(_("{sweep} was started in {folder}, which no longer exists; its relative paths cannot "
                            "be followed. Start a new one with slackwater run.").format(
                                sweep=record.sweep_id, folder=folder))
    again = None
    if _AGAIN in arguments:
        at = arguments.index(_AGAIN)
        again = arguments[at + 1]
        del arguments[at:at + 2]
    with chdir(folder):
        return measure(flags, arguments, again, record.sweep_id)


def rerun(flags: Flags, name: str, overrides: Sequence[str], uri: str | None) -> int:
    """`slackwater rerun [SWEEP|RUN|FILE] [OVERRIDES…]`."""
    if "=" in name and not Path(name.partition(":")[0]).is_file():
        name, overrides = "last", [name, *overrides]
    for word in overrides:
        if "=" not in word or word.lstrip("+~").partition("=")[0] in ("experiment", "tracking.uri"):
            raise ConfigError(_("{word} is not allowed behind rerun: expected key=value, such as model.path=FILE.gguf; "
                                "another store is --store URI.").format(word=word))
    if Path(name.partition(":")[0]).is_file():
        name = str(Path(name).absolute())
    return measure(flags, [*overrides, *([] if uri is None else [f"tracking.uri={json.dumps(uri)}"])], name)


def measure(flags: Flags, arguments: list[str], again: str | None = None, resume: str = "") -> int:
    """Compose and run what Hydra's words say, or (`again`) what was measured before; `resume` goes on with that."""
    from pipeline import provenance
    from pipeline.cli.system_errors import refused
    from pipeline.sweep.experiments import load_experiment, register
    from pipeline.sweep.hydra_app import INSPECT, run_hydra
    from pipeline.sweep.messages import explain
    from pipeline.sweep.model_words import engine_of, with_files
    from pipeline.sweep.run import CURRENT, Asked, SweepRun

    sweep = SweepRun()
    current = CURRENT.set(sweep)
    try:
        provenance.started_as(["run", *arguments] if again is None else [
            "rerun", again, *(word for word in arguments if not word.startswith("tracking.uri="))])
        before = None if again is None else _measured(again, arguments)
        if before is not None and before.is_foreign and not resume and not _agreed(before, flags):
            print(_("Nothing was started."))
            return 0
        stored = [] if before is None or again is None else [_AGAIN, again if Path(again).is_absolute() else before.of]
        asked = Asked([*stored, *arguments], register(arguments), before, resume,
                      flags.fresh or (before is not None and not resume), flags.accept_change, flags.dry_run,
                      flags.verbose, lambda config: _conversation(config, flags))
        sweep.asked = asked if before is None else replace(asked, experiment=before.experiment)
        # the language is not part of the sweep: Hydra gets it, the record does not
        engine = engine_of(load_experiment(asked.experiment)) if asked.experiment else ""
        words = [*([f"lang={flags.lang}"] if flags.lang else []), *with_files(arguments, engine)]
        if any(word.partition("=")[0] in INSPECT for word in words):
            run_hydra(words, Path.cwd())
            return 0
        return _sweep(sweep, words, flags)
    except SlackwaterError:
        raise
    except (BrokenPipeError, SystemExit) as error:
        if sweep.trials and isinstance(error.__context__ or error, BrokenPipeError):
            raise KeyboardInterrupt from error  # nobody reads on (| head): the sweep was cut short
        raise
    except Exception as error:
        interrupt.check()  # what a library made of it
        told = refused(error)
        if told is not None:
            told.exit_code = 1 if sweep.trials else 2
            raise told from error
        if _is_bug(error):
            raise
        raise explain(error) from error
    finally:
        CURRENT.reset(current)


def _is_bug(error: Exception) -> bool:
    """Everything except what Hydra and OmegaConf raise for a user's input."""
    rooms = {type(each).__module__.split(".")[0] for each in (error, error.__cause__)}
    return not rooms & {"hydra", "omegaconf"}


def _sweep(sweep: SweepRun, arguments: list[str], flags: Flags) -> int:
    from pipeline.report.live import Progress, Waits
    from pipeline.scratch import scratch
    from pipeline.sweep.hydra_app import run_hydra

    sweep.listener = Waits() if flags.as_json or flags.quiet else Progress(verbose=flags.verbose)
    interrupted = False
    try:
        # Hydra insists on a folder of its own
        with scratch() as folder:
            run_hydra(arguments, folder)
    except KeyboardInterrupt:
        interrupted = True
    if sweep.asked.dry_run:
        if interrupted:
            return interrupt.exit_code()
        _print_plan(sweep, flags.as_json)
        return 0
    if sweep.trials and sweep.sweep is not None and sweep.location is not None:
        from pipeline.report import pages
        from pipeline.track.opened import sweeps_of

        pages.finish(sweeps_of(sweep.location), sweep.sweep, sweep.send, flags.as_json, sweep.notes)
        if not interrupted:
            _draw(sweep)
    if sweep.stopped:
        print(f"slackwater: {sweep.stopped.rstrip('.')}.", file=sys.stderr)
    if interrupted:
        option = sweep.location.option if sweep.location is not None else ""  # what a command needs to mean it
        print("slackwater: " + _("interrupted; trials kept: {n}, no server of ours runs any more. `slackwater "
                                 "resume{store}` goes on.").format(n=len(sweep.trials), store=option),
              file=sys.stderr)
        return interrupt.exit_code()
    if lost := sweep.lost():
        print(f"slackwater: {lost}", file=sys.stderr)
    return 1 if sweep.failed or sweep.stopped or lost else 0


def _conversation(config: Config, flags: Flags) -> Conversation:
    """A user at this terminal, or piped lines; beside one JSON document they are answered on stderr."""
    from pipeline.report.chat import Chat

    return Chat(config, to_stderr=flags.as_json, quiet=flags.quiet)


def _print_plan(sweep: SweepRun, as_json: bool) -> None:
    from dataclasses import asdict

    from pipeline.report import pages
    from pipeline.sweep.cells import swept_knobs
    from pipeline.sweep.telling import where_results_go

    plan, expected, store = sweep.plan, sweep.forecast, sweep.location
    assert plan is not None and expected is not None and store is not None, "made before a dry run stops"
    pages.plan([(cell.name, cell.plan.settings) for cell in plan.cells],
               [(cell.name, cell.reason) for cell in plan.skipped], plan.order,
               [*sweep.notes, *(note for cell in plan.cells for note in cell.plan.notes)], as_json,
               warm_ups=plan.warm_ups, expected=[where_results_go(store), *expected.lines()],
               figures={**asdict(expected), "store": store.shown, "store_chosen_by": store.chosen_by},
               knobs={cell.name: cell.plan.knobs for cell in plan.cells}, swept=swept_knobs(plan.cells))


def _draw(sweep: SweepRun) -> None:
    """timeline.png of every trial, for MLflow's page: drawn now, since between trials it would cost each 0.2 s."""
    import tempfile

    from pipeline.report.timeline_plot import draw

    if sweep.push is None or sweep.folder is None:
        return
    with interrupt.ended_by_ctrl_c(), suppress(StoreError), tempfile.TemporaryDirectory(prefix="slackwater-") as folder:
        picture = Path(folder) / "timeline.png"
        for trial in {**sweep.done, **sweep.trials}.values():
            if draw(trial, picture):
                sweep.push.add(sweep.folder, trial, picture)


def _measured(name: str, arguments: Sequence[str]) -> Again:
    """The cells that were measured before; says what differs since."""
    from pipeline.sweep.model_words import with_files
    from pipeline.sweep.overrides import override_of
    from pipeline.sweep.rerun import prepare
    from pipeline.track import opened

    uri = next((text.partition("=")[2] for text in arguments if text.startswith("tracking.uri=")), None)
    given = [override_of(word) for word in with_files(list(arguments)) if not word.startswith("tracking.")]
    again = prepare(opened.subject(name, json.loads(uri) if uri else None), given)
    for note in again.notes:
        print(harmless(_("differs now: {note}").format(note=worded(note))), file=sys.stderr)
    return again


def _agreed(again: Again, flags: Flags) -> bool:
    """Does the user want what others recorded to be measured here? Says what that is. Raises ConfigError: nobody to
    ask."""
    print(harmless(_("{sweep} was recorded by others. Its values are measured, none of its words is run:").format(
        sweep=again.of)), file=sys.stderr)
    for line in again.shown:
        print(harmless(f"  {line}"), file=sys.stderr)
    if flags.yes or flags.dry_run:
        return True
    if flags.as_json or not sys.stdin.isatty() or not sys.stdout.isatty():
        raise ConfigError(_("rerun asks before it measures what others recorded, and nobody is at a terminal here: add "
                            "--yes. Nothing was started."))
    try:
        return input(_("Measure this here?") + " [y/N] ").strip().lower() in ("y", "yes", _("yes"))
    except EOFError:
        return False
