"""The page of `slackwater metrics`: what the names that a trial logs mean. The entries are pipeline/metrics.py's."""

from __future__ import annotations

import difflib

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline import metrics
from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.metrics import Metric
from pipeline.report.terminal_lines import pad, paragraph, row
from pipeline.text import print_json

SCHEMA_VERSION = 1


def metrics_page(text: str, as_json: bool) -> None:
    """Print the entries whose names contain the text, in full; all of them in short if it is empty.

    Raises ConfigError if no metric has such a name."""
    found = metrics.search(text) if text else metrics.entries()
    if not found:
        raise ConfigError(_unknown(text))
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "metrics": [_document(metric) for metric in found]})
        return
    console = Console(highlight=False)
    if text:
        for number, metric in enumerate(found):
            if number:
                console.print()
            _entry(console, metric)
        return
    for section in metrics.sections():
        paragraph(console, Text(_(section.title), style="bold"))
        paragraph(console, Text(_(section.about), style="dim"), 2)
        for metric in section.metrics:
            _head(console, metric, 2)
            paragraph(console, Text(_(metric.meaning)), 4)
        console.print()
    paragraph(console, Text(_("slackwater metrics NAME says where a figure comes from, and what to mind.")))


def _head(console: Console, metric: Metric, indent: int = 0) -> None:
    unit = _(metric.unit)
    room = console.width - indent - cell_len(unit) - 1
    row(console, Text.assemble(" " * indent, (pad(metric.name, room), "cyan"), " ", (unit, "dim")))


def _entry(console: Console, metric: Metric) -> None:
    _head(console, metric)
    paragraph(console, Text(_(metric.meaning)), 2)
    facts = [(_("phases"), ", ".join(metric.phases)), (_("source"), _(metric.source)), (_("mind"), _(metric.pitfall))]
    width = max(cell_len(name) for name, _said in facts) + 4
    for name, said in facts:
        if said:
            paragraph(console, Text(said), width, f"  {name}")


def _document(metric: Metric) -> dict[str, object]:
    return {"name": metric.name, "unit": metric.unit, "phases": list(metric.phases), "meaning": metric.meaning,
            "source": metric.source, "pitfall": metric.pitfall}


def _unknown(text: str) -> str:
    names = [name for metric in metrics.entries() for name in (metric.name, *metric.names())]
    close = difflib.get_close_matches(text, names, n=1)
    if close:
        return _("no metric has {name} in its name. Did you mean {close}?").format(name=text, close=close[0])
    return _("no metric has {name} in its name. `slackwater metrics` lists them all.").format(name=text)
