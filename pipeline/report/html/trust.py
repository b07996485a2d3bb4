"""Why the numbers can be trusted, and what to distrust: flags proved, trials left out, drift, neighbours, method.

Also how to run it again. As tables and facts; nothing is judged here that `outcome` or `stats` have not judged.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.language import N_, _, worded
from pipeline.metrics import WORK
from pipeline.record.trial import TrialRecord
from pipeline.report import wording
from pipeline.report.document import Analysis, Sweep
from pipeline.report.html.contents import Material
from pipeline.report.html.elements import Fact, Table
from pipeline.text import engine_and_version

MOST_LEFT_OUT = 200
STATES = {"confirmed": N_("confirmed"), "contradicted": N_("contradicted"), "not observable": N_("not observable")}


def proofs(analysis: Analysis, material: Material) -> list[Table]:
    """Per setting: asked, arrived, effective; one row for all cells where they agree. Those that differ come first."""
    labels = wording.cell_labels(analysis.cells)
    rows: dict[tuple[str, ...], list[str]] = {}
    cells = [cell.cell for cell in analysis.cells if material.cells.get(cell.cell) and material.cells[cell.cell].proofs]
    for cell in cells:
        for proof in material.cells[cell].proofs:
            row = tuple(_value(proof.get(key)) for key in ("knob", "asked", "arrived", "effective", "state"))
            rows.setdefault((*row, str(proof.get("source", "")) if row[4] != "confirmed" else ""), []).append(cell)
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(row[0], set()).add(row[1])
    differing = {knob for knob, values in asked.items() if len(values) > 1}
    found = []
    for caption, chosen in ((_("Settings in which the cells differ"), True),
                            (_("Settings that all cells share"), False)):
        shown = [[row[0], row[1], row[2], row[3], _(STATES.get(row[4], row[4])), _("all") if len(members) == len(cells)
                  else "; ".join(labels[cell] for cell in members)]
                 for row, members in sorted(rows.items(), key=lambda item: list(asked).index(item[0][0]))
                 if (row[0] in differing) == chosen]
        if shown:
            found.append(Table(caption, [_("setting"), _("asked"), _("arrived"), _("effective"), _("state"),
                                         _("cells")], shown))
    return found


def proved(material: Material) -> Mapping[str, int]:
    """State → how many settings of the cells' trials ended so."""
    counts: dict[str, int] = {}
    for kept in material.cells.values():
        for proof in kept.proofs:
            known = str(proof.get("state", ""))
            state = _(STATES.get(known, known))
            counts[state] = counts.get(state, 0) + 1
    return counts


def _value(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def left_out(analysis: Analysis, material: Material) -> Table | None:
    """Trials that do not count and cells that were not run, each with its reason."""
    labels = wording.cell_labels(analysis.cells)
    gone = sorted(((one, cell) for cell in analysis.cells for one in cell.left_out), key=lambda pair: pair[0].order)
    rows = [[str(one.order), labels[cell.cell], str(one.repetition), _(one.verdict),
             "; ".join(map(worded, one.reasons)) or _("no reason recorded")] for one, cell in gone[:MOST_LEFT_OUT]]
    if len(gone) > MOST_LEFT_OUT:
        rows.append(["…", _("and {n} more").format(n=len(gone) - MOST_LEFT_OUT), "", "", ""])
    rows += [[str(order), labels.get(cell, cell), "–", _("warm-up"), _("run first to warm caches, and not counted")]
             for order, cell in analysis.warm_ups]
    rows += [["–", name, "–", _("not run"), worded(reason)] for name, reason in material.skipped]
    if not rows:
        return None
    return Table(_("Trials left out and cells not run"),
                 [_("trial"), _("cell"), _("repetition"), _("verdict"), _("reason")], rows, (2,))


def notes(analysis: Analysis) -> list[tuple[str, str]]:
    """(note, trials it is of): what touches no number and should be known."""
    by_text: dict[str, list[int]] = {}
    for order, text in analysis.notes:
        by_text.setdefault(text, []).append(order)
    return [(worded(text), ", ".join(map(str, orders[:12])) + (", …" if len(orders) > 12 else ""))
            for text, orders in by_text.items()]


def sampling(analysis: Analysis) -> Table | None:
    """Neighbours and the sampler's own cost, per cell: medians of valid trials."""
    labels = wording.cell_labels(analysis.cells)
    columns = [(_("neighbours, cores"), "trial/neighbours_cores", 2), (_("samples"), "sampler/samples", 0),
               (_("lost"), "sampler/lost_slots", 0), (_("late, p99 ms"), "sampler/lateness_p99_ms", 2),
               (_("sampler, % of a core"), "sampler/cpu_pct", 2),
               (_("sampler, MiB"), "sampler/rss_mib", 1)]
    known = [column for column in columns if any(column[1] in cell.median for cell in analysis.cells)]
    if not known:
        return None
    return Table(_("Neighbours, and what measuring itself cost: medians of valid trials"),
                 [_("cell"), *(head for head, _metric, _decimals in known), "n"],
                 [[labels[cell.cell],
                   *(wording.number(cell.median.get(metric), decimals) for _head, metric, decimals in known),
                   str(cell.n_valid)] for cell in analysis.cells], tuple(range(1, len(known) + 2)))


def drift(analysis: Analysis) -> list[tuple[bool, str]]:
    """(is it a finding, the words) of every test that the sweep has blocks for."""
    return [(test.found, worded(test.text)) for test in analysis.drift]


def methods(analysis: Analysis) -> list[str]:
    """The statistical methods that the intervals of this page come from."""
    stats = [*(row.stats for row in analysis.effects), *(row.stats for row in analysis.gap.unified),
             *(one.stats for one in analysis.growths)]
    found = [one.method for one in stats if one.method]
    found += [*(one.method for one in analysis.factorial), *(slope.method for slope in analysis.slopes)]
    return [worded(method) for method in dict.fromkeys(found)]


def meters(material: Material) -> Table | None:
    """What read memory beside the sampler, and what was not there, with the reason."""
    seen: dict[str, str] = {}
    for kept in material.cells.values():
        for meter in kept.meters:
            here = meter.get("here")
            seen.setdefault(str(meter.get("meter", "")), str(here) if here else
                            _("not here: {reason}").format(reason=meter.get("absent", "")))
    if not seen:
        return None
    return Table(_("Meters"), [_("meter"), _("here")], [[name, _(text) if text == "yes" else text]
                                                        for name, text in seen.items()])


def machine(sweep: Sweep, material: Material) -> list[Fact]:
    """Model, engine, machine and versions, as they were recorded."""
    papers: dict[str, str] = {}
    for kept in material.cells.values():
        papers = {**kept.machine, **papers}
    names = {"host": _("host"), "cpu": _("processor"), "architecture": _("architecture"),
             "cores_usable": _("cores usable"), "memory_total": _("memory"), "swap_total": _("swap"),
             "transparent_hugepages": _("transparent huge pages"), "kernel": _("kernel"), "libc": _("C library"),
             "python": "Python", "revision": _("revision of slackwater")}
    papers = {**papers, **{key: text for key, text in material.tags.items()
                           if key in names or key.startswith("package.")}}
    facts = [Fact(_("model"), _model(sweep.model, papers)), Fact(_("model digest"), papers.get("model_digest", "")),
             Fact(_("model size"), _bytes(papers.get("model_bytes", ""))),
             Fact(_("engine"), engine_and_version(sweep.engine, sweep.engine_version)),
             *(Fact(names[key], _memory(papers.get(key, ""))) for key in names),
             Fact(_("packages"), ", ".join(
                 f"{key.removeprefix('package.')} {text}" for key, text in sorted(papers.items())
                 if key.startswith("package.") and text != "not installed"))]
    return [fact for fact in facts if fact.text]


def _model(name: str, papers: Mapping[str, str]) -> str:
    """A file's own name, and in brackets what its header calls it."""
    own = papers.get("model_general_name", "")
    return f"{name} ({own})" if own and own != name and ", " not in name else name


def _bytes(text: str) -> str:
    return f"{int(text) / 2**20:,.1f} MiB" if text.isdigit() else text


def _memory(text: str) -> str:
    number, _space, unit = text.partition(" ")
    return f"{int(number) / 2**20:,.1f} GiB" if unit == "kB" and number.isdigit() else text


def design(sweep: Sweep, analysis: Analysis, trials: Sequence[TrialRecord], material: Material) -> list[Fact]:
    """How the trials were arranged, and when they ran."""
    n = sum(cell.n for cell in analysis.cells)
    plan = material.plan
    when = [time.strftime("%Y-%m-%d %H:%M", time.localtime(moment / 1000))
            for moment in (sweep.started_ms, sweep.ended_ms) if moment]
    facts = [
        Fact(_("trials"), _("{n} in {blocks} blocks; each block runs every cell once, in an order drawn from the "
                            "seed").format(n=n, blocks=analysis.blocks) if n else ""),
        Fact(_("design"), str(plan.get("design", ""))), Fact(_("seed of the order"), str(plan.get("shuffle_seed", ""))),
        Fact(_("work"), _work(trials)), Fact(_("method of measuring"), ", ".join(map(str, analysis.methods))),
        Fact(_("measured"), " – ".join(when)), Fact(_("sweep"), sweep.sweep_id), Fact(_("store"), material.store)]
    return [fact for fact in facts if fact.text]


def _work(trials: Sequence[TrialRecord]) -> str:
    """"17 prompt tokens, 64 generated tokens at turn 1" where all trials did the same; a range where not."""
    parts = []
    for metric, name in zip(WORK, (_("prompt tokens"), _("generated tokens")), strict=True):
        counts = [float(trial.turns[metric].get(1, trial.metrics.get(metric, 0.0))) for trial in trials
                  if trial.verdict == "valid" and metric in trial.turns]
        if counts:
            span = f"{min(counts):.0f}" if min(counts) == max(counts) else f"{min(counts):.0f}–{max(counts):.0f}"
            parts.append(f"{span} {name}")
    return ", ".join(parts) + (" " + _("at turn 1") if parts else "")


def commands(sweep: Sweep, option: str) -> list[tuple[str, str]]:
    """(command, what it does): the way back to these numbers, and further. `option` names the store."""
    name = shlex.quote(sweep.sweep_id)
    found = [(sweep.command, _("the command of this sweep"))] if sweep.command else []
    if sweep.status in ("interrupted", "running"):
        found.append((f"slackwater resume {name}{option}", _("goes on where it stopped")))
    return [*found, (f"slackwater rerun {name}{option}", _("the same cells again, as they were logged")),
            (f"slackwater export {name} {shlex.quote(sweep.sweep_id + '.zip')}{option}",
             _("everything of it in one file, for another machine")),
            (f"slackwater compare {name} OTHER{option}", _("against another sweep"))]


def config(trials: Sequence[TrialRecord]) -> list[Table]:
    """The resolved config: what differs between the cells, and what they share."""
    first: dict[str, Mapping[str, object]] = {}
    for trial in trials:
        first.setdefault(trial.cell, trial.params)
    keys = sorted({key for params in first.values() for key in params
                   if not key.startswith(("tracking.", "place.")) and key not in ("question",)})
    shared, differing = [], []
    for key in keys:
        texts = [_value(params.get(key)) for params in first.values()]
        if len(set(texts)) == 1:
            shared.append([key, texts[0]])
        else:
            members: dict[str, list[str]] = {}
            for cell, text in zip(first, texts, strict=True):
                members.setdefault(text, []).append(cell)
            differing += [[key, text, ", ".join(names)] for text, names in members.items()]
    tables = []
    if differing:
        tables.append(Table(_("Config in which the cells differ"), [_("key"), _("value"), _("cells")], differing))
    if shared:
        tables.append(Table(_("Config that all cells share"), [_("key"), _("value")], shared))
    return tables
