"""From values to the report: one HTML text that needs nothing else, with a policy that lets nothing else in.

Pure: reads no store and writes no file (write.py does). What it says about a sweep is made in the modules beside it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.language import _, spoken, worded
from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.answer import answer
from pipeline.report.document import Analysis, Sweep
from pipeline.report.html import findings, memory, trust
from pipeline.report.html.contents import Material
from pipeline.report.html.elements import Legend, clean
from pipeline.report.html.svg import swatch
from pipeline.report.html.timelines import PARTS
from pipeline.report.sweep_page import subject

MOST_RESPONSES = 12


def render(sweep: Sweep, trials: Sequence[TrialRecord], analysis: Analysis, material: Material | None = None) -> str:
    """The report of one sweep in the language that is spoken. Works for none, one, or only failed trials.

    Every text in it is escaped, and its control characters are made visible: names, reasons, answers are of others."""
    kept = material or Material()
    environment = Environment(loader=PackageLoader("pipeline.report.html"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, finalize=_harmless)
    environment.globals.update(_=_, swatch=swatch)
    style = Markup(environment.loader.get_source(environment, "report.css")[0])  # type: ignore[union-attr]
    return environment.get_template("report.html.jinja").render(
        lang=spoken(), style=style, policy=_policy(style), **_contents(sweep, trials, analysis, kept))


def _harmless(value: Any) -> Any:
    """What every expression of a template passes through; our own markup is made of such texts already."""
    return value if isinstance(value, Markup) else clean(value) if isinstance(value, str) else value


def _policy(style: str) -> str:
    """Nothing may be loaded or run; one style sheet, known by its hash, is let in."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def _contents(sweep: Sweep, trials: Sequence[TrialRecord], analysis: Analysis, kept: Material) -> dict[str, Any]:
    timelines, no_timeline = memory.timelines(analysis, kept)
    savings, saving_tables = findings.costs(analysis)
    labels = wording.cell_labels(analysis.cells)
    responses = [(labels[cell.cell], kept.cells[cell.cell]) for cell in analysis.cells
                 if cell.cell in kept.cells and kept.cells[cell.cell].response]
    return {
        "sweep": sweep, "subject": subject(sweep, analysis), "answer": answer(analysis),
        "status": _status(sweep, analysis),
        "effects": findings.effects(analysis), "gap": findings.gap(analysis),
        "mixed": wording.mixed(analysis.methods),
        "refused": [worded(sentence) for sentence in analysis.refused],
        "context_note": worded(analysis.context.note) if analysis.context is not None else "",
        "factorials": findings.factorials(analysis), "slopes": findings.slopes(analysis),
        "phases": memory.phases(trials, analysis),
        "phase_tables": memory.phase_tables(analysis) if analysis.cells else [],
        "growth": findings.growth(analysis), "account": memory.account(analysis),
        "timelines": timelines, "no_timeline": no_timeline, "timeline_legend": _timeline_legend(kept),
        "savings": savings, "saving_tables": saving_tables,
        "proofs": trust.proofs(analysis, kept), "proved": trust.proved(kept),
        "left_out": trust.left_out(analysis, kept),
        "warm_ups": [order for order, _cell in analysis.warm_ups], "notes": trust.notes(analysis),
        "sampling": trust.sampling(analysis), "drift": trust.drift(analysis), "unread": kept.notes,
        "valid": sum(cell.n_valid for cell in analysis.cells), "n": sum(cell.n for cell in analysis.cells),
        "methods": trust.methods(analysis), "meters": trust.meters(kept), "machine": trust.machine(sweep, kept),
        "design": trust.design(sweep, analysis, trials, kept), "commands": trust.commands(sweep, kept.option),
        "config": trust.config(trials), "responses": responses[:MOST_RESPONSES],
        "phase_words": _phase_words(),
    }


def _status(sweep: Sweep, analysis: Analysis) -> str:
    """What a reader must know first about an unfinished sweep; "" for a finished one."""
    said = {"running": _("This sweep was still running when the report was made: trials here {n}, planned {planned}."),
            "interrupted": _("This sweep was interrupted: trials here {n}, planned {planned}.")}
    return said.get(sweep.status, "").format(n=sum(cell.n for cell in analysis.cells),
                                             planned=sweep.trials_planned or _("not known"))


def _timeline_legend(kept: Material) -> list[Legend]:
    shown = [one.timelines[0] for one in kept.cells.values() if one.timelines]
    names = {"anon": _("anonymous"), "file": _("file-mapped"), "shmem": _("shared"), "swap": _("swapped out")}
    return [*(Legend(sign, names[part]) for part, sign in PARTS.items()
              if any(one.parts[part].any() for one in shown)), Legend("line", _("another trial, all parts together")),
            Legend("peak", _("the kernel's peak")), Legend("load", _("load")), Legend("prefill", _("prefill")),
            Legend("decode", _("decode")), Legend("moment", _("a moment at which memory is read"))]


def _phase_words() -> list[tuple[str, str, str]]:
    """(word of a table, name of the phase, what it is), in the order of a trial."""
    said = {"initialization": _("the server answers, no model is in it"),
            "pre_generation": _("just before the prompt is sent; in interactive mode the model is loaded by then"),
            "during_generation": _("the highest between the prompt and the last token: the kernel's own "
                                   "high-water mark, reset when the prompt is sent"),
            "post_generation": _("at the last token"),
            "stabilized": _("when the tree's memory has stopped moving"),
            "released": _("after the model was unloaded, the server still up")}
    return [(_(word), phase, said[phase]) for word, phase, _suffix in wording.PHASES]
