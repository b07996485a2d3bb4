"""Commands: one verb each. Parses words, calls the rooms, prints what report/ renders, maps errors to exit codes.

Nothing heavy is imported before a verb is known.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.errors import ConfigError, SlackwaterError

INTERRUPTED = 130

HELP = """\
slackwater: honest memory experiments for language models on your own machine

Three ways to use it
  slackwater run [OVERRIDES…]          measure: a cell, a sweep, an experiment
  slackwater show [SWEEP]              read again what was measured
  slackwater ui                        every trial side by side, in MLflow

Examples
  slackwater run experiment=mode_gap                     one-shot against interactive
  slackwater run mode=oneshot infer_os=off,on            a sweep over one question
  slackwater run infer_os.quantization=true,false        a sweep over one flag
  slackwater run model=gguf model.path=FILE.gguf         your own model
  slackwater run experiment=mode_gap --dry-run           what would run, and stop there

Commands
  run      [-m] [--dry-run] [--fresh] [--json] [-q] [-v] [OVERRIDES…]
  runs     what was measured, one line per sweep         [--json] [--store URI]
  show     the tables of a sweep (an id, a prefix, last) [--json] [--store URI]
  resume   go on with an unfinished sweep      [--accept-change] [--store URI]
  rerun    SWEEP|RUN|FILE: as it was logged        [--dry-run] [--json] [--store URI]
  compare  A B, each a SWEEP, SWEEP:CELL, run id or FILE: what differs, how much
           [--fail-if "stabilized/tree_rss_mib > +2%"] [--allow-different-work]
           [--json] [--store URI]
  export   SWEEP FILE: everything of it in one file      [--json] [--store URI]
  import   FILE: into a store, as it was measured        [--json] [--store URI]
  sync     send results that a store did not take
  doctor   this machine: meters, engines, what would spoil a measurement  [--json]
  watch    PID|NAME|URL: any process by the same meters  [--seconds S] [--json]
  ui       the MLflow UI on the local store              [--port N]

Settings are files under conf/, one folder per question: mode, infer_os, engine,
model, prompt, clear, settle, meter, design, tracking. Any of them can be given
as key=value; key=a,b sweeps. `slackwater run --cfg job` prints them all.
Experiments are files: ./experiments/NAME.yaml of yours, then the shipped ones.

Exit codes: 0 as asked; 1 something failed while measuring, or a --fail-if limit
tripped; 2 wrong input, nothing was measured; 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _command(words)
    except SlackwaterError as error:
        print(f"slackwater: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our pipe went away (| head); nothing is left to say, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _command(words: list[str]) -> int:
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"slackwater runs on Linux only for now; this is {sys.platform}.")
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"slackwater {version('slackwater')}")
        return 0
    verb, *rest = words
    if verb in VERBS:
        if any(word in ("-h", "--help") for word in rest) and verb != "run":
            print(HELP, end="")
            return 0
        return VERBS[verb](rest)
    if "=" in verb or verb.startswith(("+", "-")):
        return _run(words)
    import difflib

    close = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Commands: {', '.join(VERBS)}."
    raise ConfigError(f"{verb} is not a command. {hint}")


def _take(words: list[str], *flags: str) -> tuple[set[str], list[str]]:
    """The flags that stand among the words, and the other words."""
    return {word for word in words if word in flags}, [word for word in words if word not in flags]


def _run(words: list[str]) -> int:
    ours, arguments = _take(words, "--dry-run", "--fresh", "--accept-change", "--json", "-q", "-v", "-m", "--multirun")
    from pipeline.sweep.hydra_app import INSPECT, run_hydra
    from pipeline.sweep.messages import explain

    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    from pipeline.sweep.session import SESSION

    inspecting = any(argument.split("=")[0] in INSPECT for argument in arguments)
    terminate: Any = signal.signal(signal.SIGTERM, _interrupt)
    try:
        from pipeline import provenance
        from pipeline.sweep.experiments import register

        again, arguments = _valued(arguments, _AGAIN, "a sweep, a run or a file")
        provenance.started_as(["run", *words] if again is None else ["rerun", again])
        SESSION.arguments = list(arguments) if again is None else [_AGAIN, again, *arguments]
        SESSION.experiment = register(arguments)
        SESSION.dry_run, SESSION.fresh = "--dry-run" in ours, "--fresh" in ours
        if again is not None:
            _prepare_again(again, arguments)
        SESSION.verbose = "-v" in ours
        SESSION.accept_change = "--accept-change" in ours
        if inspecting:
            run_hydra(run_trial, arguments, Path.cwd())
            return 0
        return _sweep(arguments, ours)
    except SlackwaterError:
        raise
    except Exception as error:
        if _is_bug(error):
            raise
        raise explain(error) from error
    finally:
        signal.signal(signal.SIGTERM, terminate)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_bug(error: Exception) -> bool:
    """Everything but what Hydra and OmegaConf raise for a person's input."""
    rooms = {type(each).__module__.split(".")[0] for each in (error, error.__cause__)}
    return not rooms & {"hydra", "omegaconf"}


def _sweep(arguments: list[str], ours: set[str]) -> int:
    import tempfile

    from pipeline.sweep.hydra_app import run_hydra
    from pipeline.sweep.session import SESSION

    as_json = "--json" in ours
    if not (as_json or "-q" in ours):
        from pipeline.report.live import Progress

        SESSION.listener = Progress()
    interrupted = False
    try:
        # Hydra insists on a folder of its own
        with tempfile.TemporaryDirectory(prefix="slackwater-") as folder:
            run_hydra(run_trial, arguments, Path(folder))
    except KeyboardInterrupt:
        interrupted = True
    if SESSION.dry_run:
        _print_plan(as_json)
        return 0
    if SESSION.results and SESSION.store is not None and SESSION.summary is not None:
        from pipeline.report import page

        notes = [*([SESSION.warning] if SESSION.warning else []), *SESSION.store_notes]
        page.finish(SESSION.store, SESSION.summary, SESSION.results, SESSION.run_ids, as_json, notes)
    if SESSION.stopped:
        print(f"slackwater: {SESSION.stopped}.", file=sys.stderr)
    if interrupted:
        kept = len(SESSION.results)
        print(f"slackwater: interrupted; {kept} trial{'s' if kept != 1 else ''} kept, no server of ours runs any more. "
              "`slackwater resume` goes on.", file=sys.stderr)
        return INTERRUPTED
    return 1 if SESSION.failed else 0


def _print_plan(as_json: bool) -> None:
    from pipeline.report import page
    from pipeline.sweep.session import SESSION

    page.plan([(cell.name, cell.plan.settings) for cell in SESSION.cells],
              [(cell.name, cell.reason) for cell in SESSION.skipped], SESSION.order,
              [*([SESSION.warning] if SESSION.warning else []),
               *(note for cell in SESSION.cells for note in cell.plan.notes)], as_json)


def run_trial(composed: Any) -> Any:
    """The task that Hydra's launcher calls, here or in a worker: one trial, with its picture."""
    from pipeline.report.timeline_plot import write_png
    from pipeline.sweep.job import run_job
    from pipeline.sweep.session import SESSION

    SESSION.draw = write_png
    return run_job(composed)


def _store_words(words: list[str], most: int) -> tuple[bool, str | None, list[str]]:
    ours, rest = _take(words, "--json")
    store, rest = _valued(rest, "--store", "a URI, such as sqlite:////path/mlflow.db or http://127.0.0.1:5000")
    _nothing_left([*rest[most:], *(word for word in rest[:most] if word.startswith("-"))])
    return bool(ours), store, rest


def _valued(words: list[str], flag: str, expected: str) -> tuple[str | None, list[str]]:
    """The word behind a flag, and the other words."""
    if flag not in words:
        return None, words
    at = words.index(flag)
    if at + 1 == len(words):
        raise ConfigError(f"{flag} needs {expected}.")
    return words[at + 1], words[:at] + words[at + 2:]


def _nothing_left(words: list[str]) -> None:
    if words:
        raise ConfigError(f"{' '.join(words)} is not understood here. `slackwater --help` lists the commands.")


def _runs(words: list[str]) -> int:
    from pipeline.report import page

    as_json, store, _ = _store_words(words, 0)
    page.runs(as_json, store)
    return 0


def _show(words: list[str]) -> int:
    from pipeline.report import page

    as_json, store, rest = _store_words(words, 1)
    page.show(rest[0] if rest else "last", as_json, store)
    return 0


def _resume(words: list[str]) -> int:
    import json
    from contextlib import chdir

    from pipeline.config import Tracking
    from pipeline.sweep.session import SESSION
    from pipeline.track.store import open_store

    ours, rest = _take(words, "--accept-change", "-q", "-v")
    as_json, uri, names = _store_words(rest, 1)
    record = open_store(Tracking(uri=uri), write=False).find_sweep(names[0] if names else "last")
    if "arguments" not in record.tags:
        raise ConfigError(f"{record.sweep_id} does not say how it was started: it was made by another version of "
                          "slackwater, or imported. Start it anew with slackwater run.")
    if record.status == "finished":
        print(f"{record.sweep_id} is finished: all its trials are there. `slackwater rerun` measures it again.")
        return 0
    recorded: list[str] = json.loads(record.tags["arguments"])
    arguments = [word for word in recorded if not (word.startswith("tracking.uri=") and ":***@" in word)]
    if len(arguments) < len(recorded) and uri is None:
        raise ConfigError(f"{record.sweep_id} was logged to an address with a password, which is not kept: "
                          "name it with --store URI.")
    if uri is not None and not any(argument.startswith("tracking.uri=") for argument in arguments):
        arguments.append(f"tracking.uri={json.dumps(uri)}")
    folder = Path(record.tags.get("cwd", ""))
    if not folder.is_dir():
        raise ConfigError(f"{record.sweep_id} was started in {folder}, which is not there any more; its relative paths "
                          "cannot be followed. Start it anew with slackwater run.")
    SESSION.resume = record.sweep_id
    with chdir(folder):
        return _run([*arguments, *ours, *(["--json"] if as_json else [])])


def _rerun(words: list[str]) -> int:
    import json

    ours, rest = _take(words, "--dry-run", "-q", "-v")
    as_json, uri, names = _store_words(rest, 1)
    name = names[0] if names else "last"
    if Path(name.partition(":")[0]).is_file():
        name = str(Path(name).absolute())
    place = [] if uri is None else [f"tracking.uri={json.dumps(uri)}"]
    return _run([_AGAIN, name, *place, *ours, *(["--json"] if as_json else [])])


_AGAIN = "--rerun-of"
"""Between `rerun`, `resume` of a rerun, and `_run`; not for people."""


def _prepare_again(name: str, arguments: Sequence[str]) -> None:
    """Fill the session with the cells that were measured before, and say what differs since."""
    import json

    from pipeline.sweep.rerun import prepare
    from pipeline.sweep.session import SESSION
    from pipeline.track.subject import find

    uri = next((text.partition("=")[2] for text in arguments if text.startswith("tracking.uri=")), None)
    SESSION.again = prepare(find(name, json.loads(uri) if uri else None))
    SESSION.arguments = [_AGAIN, name if Path(name).is_absolute() else SESSION.again.of, *arguments]
    SESSION.experiment = SESSION.again.experiment
    SESSION.fresh = not SESSION.resume
    for note in SESSION.again.notes:
        print(f"differs now: {note}", file=sys.stderr)


def _compare(words: list[str]) -> int:
    from pipeline.report import compare

    ours, rest = _take(words, "--allow-different-work")
    limits = []
    while "--fail-if" in rest:
        limit, rest = _valued(rest, "--fail-if", 'a limit, such as "stabilized/tree_rss_mib > +2%"')
        limits.append(str(limit))
    as_json, uri, names = _store_words(rest, 2)
    if len(names) != 2:
        raise ConfigError("compare needs two: slackwater compare A B, each a SWEEP, SWEEP:CELL, a run id or a FILE.")
    return compare.compare(*names, uri=uri, limits=limits, as_json=as_json, allow_different_work=bool(ours))


def _export(words: list[str]) -> int:
    from pipeline.report import transfer

    as_json, uri, names = _store_words(words, 2)
    if len(names) != 2:
        raise ConfigError("export needs a sweep and a file: slackwater export SWEEP FILE.")
    return transfer.export(names[0], Path(names[1]), uri, as_json)


def _import(words: list[str]) -> int:
    from pipeline.report import transfer

    as_json, uri, names = _store_words(words, 1)
    if not names:
        raise ConfigError("import needs a file that `slackwater export` wrote: slackwater import FILE.")
    return transfer.import_(Path(names[0]), uri, as_json)


def _sync(words: list[str]) -> int:
    from pipeline.report import page

    _store_words(words, 0)
    return page.sync()


def _ui(words: list[str]) -> int:
    from pipeline.track.ui import serve

    port, rest = _valued(words, "--port", "a port number")
    _nothing_left(rest)
    if port is not None and not (port.isdigit() and int(port) < 65536):
        raise ConfigError(f"--port {port} is not allowed: expected a port number up to 65535.")
    return serve(int(port or 5000))


def _doctor(words: list[str]) -> int:
    from pipeline.report import machine

    as_json, rest = _take(words, "--json")
    _nothing_left(rest)
    return machine.doctor(bool(as_json))


def _watch(words: list[str]) -> int:
    from pipeline.report import machine

    as_json, rest = _take(words, "--json")
    seconds, rest = _valued(rest, "--seconds", "a number of seconds above 0")
    if not rest:
        raise ConfigError("watch needs a process: slackwater watch PID, NAME or URL.")
    _nothing_left(rest[1:])
    limit = None
    if seconds is not None:
        try:
            limit = float(seconds)
        except ValueError:
            limit = 0.0
        if not 0 < limit < float("inf"):
            raise ConfigError(f"--seconds {seconds} is not allowed: expected a number of seconds above 0.")
    return machine.watch_process(rest[0], limit, bool(as_json))


VERBS: dict[str, Callable[[list[str]], int]] = {
    "run": _run, "runs": _runs, "show": _show, "resume": _resume, "rerun": _rerun,
    "compare": _compare, "export": _export, "import": _import, "sync": _sync, "doctor": _doctor,
    "watch": _watch, "ui": _ui,
}
