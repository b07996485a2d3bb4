"""The commands there are: what each takes, and which room does it. Nothing heavy is imported before one is called."""

from __future__ import annotations

import math
from pathlib import Path

import click

from pipeline.cli.candidates import files, metric_names, offer, settings, sweep_names
from pipeline.cli.parsing import Flag, Verbs, Words
from pipeline.errors import ConfigError
from pipeline.language import N_, _


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) < math.inf:
        raise ValueError(text)
    return seconds


JSON = Flag("--json", "as_json", help=N_("one JSON document, the same in every language"))
STORE = Flag("--store", help=N_("another store than the local one"), metavar="URI",
             expected=N_("a URI, such as sqlite:////path/mlflow.db or http://127.0.0.1:5000"))
QUIET = Flag("-q", "quiet", help=N_("nothing while it runs"))
VERBOSE = Flag("-v", "verbose", help=N_("more before the first trial: store, seed, cell settings"))
DRY_RUN = Flag("--dry-run", help=N_("what would run, and stop there"))
ACCEPT = Flag("--accept-change", help=N_("go on although a version or the machine changed"))

SWEEP = Words("sweep", "[SWEEP]", default="last", shell_complete=offer(sweep_names))
WHICH = N_("SWEEP is an id, a prefix that only one sweep has, or last (also without it).")
FILE = Words("file", "FILE", type=Path, shell_complete=offer(files))


@click.group(cls=Verbs)
def slackwater() -> None:
    """Honest memory experiments for language models on your own machine."""


@slackwater.command(
    help=N_("measure: a cell, a sweep, an experiment"), passes_on=True,
    more=N_("OVERRIDES are key=value; key=a,b sweeps. What there is to choose from:"),
    params=[Words("overrides", "[OVERRIDES…]", nargs=-1, type=click.UNPROCESSED, shell_complete=offer(settings)),
            DRY_RUN, Flag("--fresh", help=N_("start anew, also if the last sweep like it is unfinished")), ACCEPT, JSON,
            QUIET, VERBOSE,
            Flag("-m", "--multirun", help=N_("has no effect: every run may sweep"), expose_value=False)])
@click.pass_obj
def run(lang: str | None, /, overrides: tuple[str, ...], **flags: bool) -> int:
    from pipeline.cli.run_commands import Flags, measure
    from pipeline.sweep.hydra_app import INSPECT, WITH_VALUE

    for word in overrides:
        if word.startswith("-") and word.partition("=")[0] not in (*INSPECT, *WITH_VALUE):
            raise slackwater.commands["run"].unknown_flag(word)
    return measure(Flags(lang, **flags), list(overrides))


@slackwater.command(help=N_("what was measured, one line per sweep"), params=[JSON, STORE])
def runs(as_json: bool, store: str | None) -> None:
    from pipeline.report import pages

    pages.runs(as_json, store)


@slackwater.command(help=N_("the tables of a sweep"), more=WHICH, params=[SWEEP, JSON, STORE])
def show(sweep: str, as_json: bool, store: str | None) -> None:
    from pipeline.report import pages

    pages.show(sweep, as_json, store)


@slackwater.command(
    help=N_("the full report of a sweep as one HTML file"), more=WHICH,
    params=[SWEEP, Flag("-o", "target", help=N_("where to write it; without it SWEEP.html in this folder"),
                        metavar="FILE", type=Path, expected=N_("a file"), shell_complete=offer(files)), JSON, STORE])
def report(sweep: str, target: Path | None, as_json: bool, store: str | None) -> int:
    from pipeline.report import pages

    return pages.report(sweep, target, store, as_json)


@slackwater.command(help=N_("go on with an unfinished sweep"), more=WHICH,
                    params=[SWEEP, ACCEPT, JSON, STORE, QUIET, VERBOSE])
@click.pass_obj
def resume(lang: str | None, /, sweep: str, store: str | None, **flags: bool) -> int:
    from pipeline.cli import run_commands

    return run_commands.resume(run_commands.Flags(lang, **flags), sweep, store)


@slackwater.command(
    help=N_("measure it again, as it was logged"),
    more=N_("A SWEEP (last without it), one cell of it (SWEEP:CELL), one trial (RUN, its\n"
            "MLflow id), or an exported FILE. OVERRIDES win over what was logged. What\n"
            "others recorded is shown first, and measured only if you say so."),
    params=[Words("what", "[SWEEP|RUN|FILE]", default="last", shell_complete=offer(files, sweep_names)),
            Words("overrides", "", nargs=-1, shell_complete=offer(settings)),
            DRY_RUN, Flag("--yes", help=N_("do not ask, although others recorded it")), JSON, STORE, QUIET, VERBOSE])
@click.pass_obj
def rerun(lang: str | None, /, what: str, overrides: tuple[str, ...], store: str | None, **flags: bool) -> int:
    from pipeline.cli import run_commands

    return run_commands.rerun(run_commands.Flags(lang, **flags), what, overrides, store)


@slackwater.command(
    help=N_("what differs between two, and how much"),
    more=N_("A and B are each a SWEEP, SWEEP:CELL, a run's MLflow id or an exported FILE.\n"
            "B is set against A."),
    params=[Words("a", "A", shell_complete=offer(sweep_names)), Words("b", "B", shell_complete=offer(sweep_names)),
            Flag("--fail-if", help=N_("exit with 1 if it holds, 3 if undecided; repeatable"), metavar="LIMIT",
                 multiple=True, expected=N_('a limit, such as "stabilized/tree_rss_mib > +2%"'),
                 shell_complete=offer(metric_names)),
            Flag("--undecided", help=N_("whether an undecided limit fails: exit with 3 or 0"), metavar="fail|pass",
                 type=click.Choice(("fail", "pass")), default="fail", expected=N_("fail or pass")),
            Flag("--allow-different-work", help=N_("also if they did different work")), JSON, STORE])
def compare(a: str, b: str, fail_if: tuple[str, ...], undecided: str, allow_different_work: bool, as_json: bool,
            store: str | None) -> int:
    from pipeline.report import compare_page

    return compare_page.compare(a, b, uri=store, limits=fail_if, as_json=as_json,
                                allow_different_work=allow_different_work, undecided_fails=undecided == "fail")


@slackwater.command(
    help=N_("let a sweep or a trial count nowhere any more"),
    more=N_("SWEEP is an id, a prefix that only one sweep has, or last; SWEEP:ORDER is one\n"
            "trial of it, by its number. It is only marked, and stays on the disk."),
    params=[Words("what", "SWEEP[:ORDER]", shell_complete=offer(sweep_names)),
            Flag("--undo", help=N_("bring it back")), Flag("--yes", help=N_("do not ask")), JSON, STORE])
def delete(what: str, undo: bool, yes: bool, as_json: bool, store: str | None) -> int:
    from pipeline.report import delete as page

    return page.delete(what, undo, yes, as_json, store)


@slackwater.command(help=N_("everything of a sweep in one file"),
                    params=[Words("sweep", "SWEEP", shell_complete=offer(sweep_names)), FILE, JSON, STORE])
def export(sweep: str, file: Path, as_json: bool, store: str | None) -> int:
    from pipeline.report import export_import

    return export_import.export(sweep, file, store, as_json)


@slackwater.command("import", help=N_("what `export` wrote, into a store"), params=[FILE, JSON, STORE])
def import_(file: Path, as_json: bool, store: str | None) -> int:
    from pipeline.report import export_import

    return export_import.import_(file, store, as_json)


@slackwater.command(
    help=N_("send results that a store did not take"),
    params=[Flag("--store", help=N_("only to this store; needed where its address holds a password"), metavar="URI",
                 expected=N_("a URI, such as sqlite:////path/mlflow.db or http://127.0.0.1:5000"))])
def sync(store: str | None) -> int:
    from pipeline.report import pages

    return pages.sync(store)


@slackwater.command(
    help=N_("another store's sweeps, onto this machine"),
    more=N_("Without SWEEP all of them. `--store URI` behind another verb pulls what is\n"
            "named there."),
    params=[Words("sweep", "[SWEEP]", required=False, shell_complete=offer(sweep_names)), STORE])
def pull(sweep: str | None, store: str | None) -> None:
    from pipeline.report import pages

    pages.pull(sweep, store)


@slackwater.command(help=N_("this machine: what it can measure, what spoils it"), params=[JSON])
def doctor(as_json: bool) -> int:
    from pipeline.report import doctor_page
    from pipeline.sweep.lock import holder

    return doctor_page.doctor(as_json, holder())


@slackwater.command(
    help=N_("any process by the same meters"),
    params=[Words("process", "PID|NAME|URL"),
            Flag("--seconds", help=N_("for how long; without it until Ctrl-C"), metavar="S", type=_seconds,
                 expected=N_("a number of seconds above 0")), JSON])
def watch(process: str, seconds: float | None, as_json: bool) -> int:
    from pipeline.report.watch_page import watch_process

    return watch_process(process, seconds, as_json)


@slackwater.command(help=N_("what the logged names mean"),
                    more=N_("NAME is a metric, such as stabilized/tree_rss_mib, or a part of one."),
                    params=[Words("name", "[NAME]", default="", shell_complete=offer(metric_names)), JSON])
def metrics(name: str, as_json: bool) -> None:
    from pipeline.report.metrics_page import metrics_page

    metrics_page(name, as_json)


@slackwater.command(
    help=N_("the MLflow UI, at the view of a sweep"), more=WHICH,
    params=[Words("sweep", "[SWEEP]", required=False, shell_complete=offer(sweep_names)),
            Flag("--port", help=N_("another port than 5000"), metavar="N", type=click.IntRange(0, 65535), default=5000,
                 expected=N_("a port number up to 65535")),
            Flag("--no-browser", help=N_("open no browser")), STORE])
def ui(sweep: str | None, port: int, no_browser: bool, store: str | None) -> int:
    from pipeline.cli.ui import serve
    from pipeline.sweep.lock import holder

    if pid := holder():
        print(_("Careful: a sweep runs on this machine (process {pid}), and a web server\n"
                "beside it moves what it measures.").format(pid=pid), flush=True)
    return serve(sweep, store, port, browser=not no_browser)


@slackwater.command(
    help=N_("the script with which a shell completes all this"),
    more=N_("bash: source <(slackwater completion bash)   in ~/.bashrc\n"
            "zsh:  slackwater completion zsh > \"${fpath[1]}/_slackwater\"\n"
            "fish: slackwater completion fish > ~/.config/fish/completions/slackwater.fish"),
    params=[Words("shell", "bash|zsh|fish", nargs=-1, required=True, type=click.UNPROCESSED,
                  shell_complete=offer(lambda ctx, word: ((shell, "") for shell in ("bash", "zsh", "fish"))))])
def completion(shell: tuple[str, ...]) -> None:
    from pipeline.cli.completion import SCRIPTS, offered

    if shell[0] == "query":  # the scripts ask
        for word, purpose in offered(slackwater, "".join(shell[1:])):
            print(f"{word}\t{purpose}" if purpose else word)
    elif len(shell) > 1 or shell[0] not in SCRIPTS:
        raise ConfigError(_("{shell} is not a known shell. Shells: {known}.").format(
            shell=" ".join(shell), known=", ".join(SCRIPTS)))
    else:
        print(SCRIPTS[shell[0]], end="")
