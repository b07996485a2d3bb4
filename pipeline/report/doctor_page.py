"""The page of `doctor`: what this machine offers, and what would spoil a measurement; meter/doctor.py looks."""

from __future__ import annotations

from dataclasses import asdict

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.engine import Here, engines
from pipeline.language import N_, _, worded
from pipeline.meter.base import Available
from pipeline.meter.doctor import Examination, examine
from pipeline.plugins import installed
from pipeline.report.terminal_lines import pad, paragraph, row, wrap
from pipeline.text import print_json

SCHEMA_VERSION = 1

FACTS = (
    N_("machine"), N_("memory"), N_("kernel"), N_("cgroup"), N_("swap"), N_("transparent huge pages"), N_("zswap"),
    N_("overcommit"), N_("page size"), N_("user"), N_("sampler"))
"""The names that meter/doctor.py gives its facts."""
_CALLED = {"load": N_("load average")}
"""Facts whose name alone could be another thing."""


def doctor(as_json: bool, sweep: str = "") -> int:
    """Print what this machine offers and what would spoil a measurement; 0 only if a trustworthy run is possible.

    `sweep`: the process whose sweep holds this machine, "" if none does."""
    examination, programs = examine(sweep=sweep), engines()
    if as_json:
        print_json(_document(examination, programs))
    else:
        _print(Console(highlight=False), examination, programs)
    return 0 if examination.trustworthy else 1


def _document(examination: Examination, programs: list[Here]) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION, "trustworthy": examination.trustworthy,
        "machine": {fact.name: fact.value for fact in examination.facts},
        "meters": [{"meter": found.name, "here": True, "note": found.note, "source": found.meter.source,
                    "checked": found.meter.checked} if isinstance(found, Available)
                   else {"meter": found.name, "here": False, "reason": found.reason} for found in examination.meters],
        "engines": [asdict(program) for program in programs],
        "plugins": [asdict(plugin) for plugin in installed()],
        "neighbours": [{"pid": one.pid, "command": one.command, "rss_mib": one.rss / 2**20}
                       for one in examination.neighbours],
        "concerns": [asdict(concern) for concern in examination.concerns],
    }


def _print(console: Console, examination: Examination, programs: list[Here]) -> None:
    good = examination.trustworthy
    paragraph(console, Text.assemble(_("This machine can be trusted for memory of a process tree:"), " ",
                                     (_("yes"), "bold green") if good else (_("no"), "bold red")))
    names = {fact.name: _(_CALLED.get(fact.name, fact.name)) for fact in examination.facts}
    width = 4 + max(map(cell_len, names.values()))
    for fact in examination.facts:
        paragraph(console, Text(worded(fact.value)), width, f"  {names[fact.name]}")
    row(console, Text(_("Meters"), style="bold"))
    for found in examination.meters:
        if isinstance(found, Available):
            said = f"{worded(found.note)}; " if found.note else ""
            _marked(console, ("✓", "green"), found.name, 11, f"{said}{found.meter.source}")
        else:
            _marked(console, ("–", "dim"), found.name, 11, _("absent: {why}").format(why=worded(found.reason)))
    row(console, Text(_("Engines"), style="bold"))
    for program in programs:
        _marked(console, ("✓", "green") if program.here else ("–", "dim"), program.name, 17, worded(program.text))
    if plugins := installed():
        row(console, Text(_("Plug-ins"), style="bold"))
    for plugin in plugins:
        _marked(console, ("–", "dim") if plugin.reason else ("✓", "green"), plugin.name, 17,
                plugin.reason or f"{plugin.kind}, {plugin.package}")
    if examination.concerns:
        row(console, Text(_("Good to know") if good else _("Spoils it"), style="bold"))
    for concern in examination.concerns:
        _marked(console, ("✗", "bold red") if concern.level == "blocks" else ("!", "yellow"), "", 0,
                worded(concern.what))
        paragraph(console, Text(f"→ {worded(concern.remedy)}", style="dim"), 6)


def _marked(console: Console, mark: tuple[str, str], name: str, width: int, said: str) -> None:
    """A mark in colour, a name in its column, and words beside it, wrapped."""
    indent = 4 + width
    for number, line in enumerate(wrap(Text(said), console.width - indent)):
        lead = Text.assemble("  ", mark, " ", pad(name, width)) if number == 0 else Text(" " * indent)
        row(console, lead.append_text(line))
