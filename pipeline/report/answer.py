"""The sentences that answer a sweep's question, with nothing in them that the trials do not show.

Whole sentences with named places, since other languages order their words otherwise; numbers are worded in `wording`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.language import N_, _
from pipeline.report import wording
from pipeline.report.document import Analysis
from pipeline.stats.factorial import Factorial
from pipeline.stats.intervals import rounded_up
from pipeline.stats.measures import HEADLINE
from pipeline.stats.summary import CellSummary, EffectRow, GapRow

LEAST_GROWTH_MIB = 0.25
"""Per turn: growth below it is told as a bound; a hundred turns would hold 25 MiB."""

NOTHING = ("identical", "no difference")
TINY = 0.005
"""Of the arm without: an effect below it is named, and not called a saving."""

_FLAGS = {
    "less": N_("The flags save {size}{modes}."),
    "more": N_("The flags cost {size} more{modes}."),
    "none": N_("The flags change nothing that this sweep can see{modes}."),
    "tiny": N_("The flags change next to nothing{modes}: {size}."),
    "undecided": N_("What the flags change is undecided{modes}."),
    "not enough": N_("Read once, the flags make a difference of {size}{modes}."),
}
"""All flags at once, by kind of verdict."""
_ONE_FLAG = {
    "less": N_("{flag} saves {size}{modes}."),
    "more": N_("{flag} costs {size} more{modes}."),
    "none": N_("{flag} changes nothing that this sweep can see{modes}."),
    "tiny": N_("{flag} changes next to nothing{modes}: {size}."),
    "undecided": N_("What {flag} changes is undecided{modes}."),
    "not enough": N_("Read once, {flag} makes a difference of {size}{modes}."),
}


def answer(analysis: Analysis) -> str:
    """The answer, a sentence or a few."""
    if not any(cell.n_valid for cell in analysis.cells):
        return _("No valid trial: nothing can be said about memory.")
    planned = [one for one in analysis.factorial if one.metric == HEADLINE]
    flags = _of_factorial(planned) if planned else _of_effects(analysis.effects)
    gap = _of_gap(analysis)
    grows = "" if gap else _of_growth(analysis)
    sentences = [text for text in (gap, grows, *flags, *map(wording.slope_text, analysis.slopes[:1])) if text]
    return together(sentences) or _of_levels(analysis.cells)


def together(sentences: Sequence[str]) -> str:
    """Sentences in a row; Japanese ones stand without a space between them."""
    text = ""
    for sentence in sentences:
        text += ("" if not text or text.endswith("。") else " ") + sentence
    return text


def _of_gap(analysis: Analysis) -> str:
    rows = [row for row in analysis.gap.unified if row.metric == HEADLINE and row.turn == 1 and _measured(row)]
    if not rows:
        return ""
    # The arm in which the modes differ most speaks for all; if none shows anything, the one without flags does.
    row = max(rows, key=lambda r: (True, abs(r.difference or 0.0)) if r.stats.kind not in NOTHING else (
        False, float(r.infer_os == "off")))
    found = next((r for r in analysis.gap.as_found if r.metric == "as_found/tree_rss_mib" and _measured(r)
                  and r.infer_os == row.infer_os and r.where == row.where), None)
    as_found = "" if found is None or abs(found.difference or 0.0) < 3 * abs(row.difference or 0.0) + 0.1 else \
        wording.signed(found.difference or 0.0, found.stats.unit)
    if row.stats.kind in NOTHING:
        return _("One-shot needs no more than interactive: the old comparison's {found} appear only if one mode is "
                 "read before the model is loaded and the other after.").format(found=as_found) if as_found else \
            _("One-shot needs no more than interactive.")
    said = _gap_size(row, len(rows) > 1)
    if not as_found:
        return said
    return together([said, _("The old comparison's {found} appear only if one mode is read before the model is loaded "
                             "and the other after.").format(found=as_found)])


def _gap_size(row: GapRow, several: bool) -> str:
    arm = _(" (flags {flags})").format(flags=row.infer_os) if several else ""
    difference, stats = row.difference or 0.0, row.stats
    if stats.kind == "undecided":
        return _("Whether one-shot needs more than interactive is undecided ({interval}){arm}.").format(
            interval=wording.interval(stats), arm=arm)
    if stats.kind == "not enough":
        return _("Read once, one-shot differs from interactive by {size}{arm}.").format(
            size=wording.signed(difference, stats.unit), arm=arm)
    estimate = stats.estimate if stats.estimate is not None else difference
    size = wording.quantity(estimate, stats.unit)
    if abs(estimate) < 0.01 * abs(row.interactive or 0.0):  # certain, but too small to matter
        return _("One-shot and interactive need the same, but for {size}{arm}.").format(size=size, arm=arm)
    said = _("One-shot needs {size} less than interactive{arm}.") if stats.kind == "less" else _(
        "One-shot needs {size} more than interactive{arm}.")
    return said.format(size=size, arm=arm)


def _measured(row: GapRow) -> bool:
    return row.difference is not None


def _of_growth(analysis: Analysis) -> str:
    """Which cells grow from turn to turn, by how much, and how little the others do."""
    labels = wording.cell_labels(analysis.cells)
    ranked = sorted((one for one in analysis.growths if one.stats.estimate is not None), key=lambda one: -one.per_turn)
    if not ranked:
        return ""
    most = ranked[0].per_turn
    grow = [one for one in ranked if one.stats.kind == "more" and one.per_turn > max(most / 5, LEAST_GROWTH_MIB)]
    rest = [one for one in ranked if one not in grow]
    texts = [_("{cell} grows by {size}.").format(cell=labels[one.cell], size=wording.growth_text(one)) for one in grow]
    if rest and all(one.stats.informative for one in rest):
        size = rounded_up(max(max(abs(one.stats.lo or 0.0), abs(one.stats.hi or 0.0)) for one in rest))
        said = _("The others grow by no more than {size} MiB per turn.") if grow else _(
            "Nothing grows by more than {size} MiB per turn.")
        texts.append(said.format(size=size))
    return together(texts)


def _of_effects(rows: Sequence[EffectRow]) -> list[str]:
    others = [row for row in rows if row.question and row.difference is not None and row.metric != HEADLINE]
    asked = [row for row in rows if row.question and row.difference is not None and row.metric == HEADLINE]
    texts = []
    for flag in dict.fromkeys(row.flag for row in asked):
        own = [row for row in asked if row.flag == flag]
        name = wording.effect_name(own[0])
        for kind in dict.fromkeys(map(_kind, own)):
            group = [row for row in own if _kind(row) == kind]
            named = _(" and ").join(dict.fromkeys(r.mode for r in group))
            modes = "" if len(group) == len(own) else _(" in {modes}").format(modes=named)
            if kind in ("not enough", "tiny"):
                size = wording.span([r.difference or 0.0 for r in group], group[0].stats.unit, sign=True)
            else:
                size = wording.span([abs(r.stats.estimate if r.stats.estimate is not None else r.difference or 0.0)
                                   for r in group], group[0].stats.unit)
            texts.append(_((_FLAGS if flag == "on" else _ONE_FLAG)[kind]).format(flag=name, size=size, modes=modes))
    return [*texts, *_of_costs(others)]


def _kind(row: EffectRow) -> str:
    """The verdict's kind; "tiny" for what is resolved and of no consequence, "none" for what shows nothing."""
    stats = row.stats
    size = abs(stats.estimate if stats.estimate is not None else row.difference or 0.0)
    if stats.kind in ("less", "more") and size < TINY * abs(row.off or 0.0):
        return "tiny"
    return "none" if stats.kind in NOTHING else stats.kind


def _of_costs(rows: Sequence[EffectRow]) -> list[str]:
    """What else the sweep asks about (speed, other memory): one sentence per comparison, in the verdict's words."""
    several = len({row.mode for row in rows}) > 1
    texts = []
    for row in rows:
        subject = _("the flags") if row.flag == "on" else wording.effect_name(row)
        where = "".join([f", {row.mode}" if several else "", f", {wording.where_text(row.where)}" if row.where else ""])
        texts.append(_("With {flags}{where}, {what}: {verdict}.").format(
            flags=subject, where=where, what=wording.metric_name(row.metric),
            verdict=wording.comparison(row.stats, row.difference, row.off)))
    return texts


def _of_factorial(planned: Sequence[Factorial]) -> list[str]:
    texts = []
    for one in planned:
        named = {kind: _listed([f"{term.name} ({wording.quantity(term.estimate, one.unit)})" for term in one.terms
                                if term.stats.kind == kind and len(term.flags) == 1]) for kind in ("less", "more")}
        several = len({other.mode for other in planned}) > 1
        said = _("Saving memory in {mode}: {less}; costing memory: {more}.") if several else _(
            "Saving memory: {less}; costing memory: {more}.")
        texts.append(said.format(mode=one.mode, **named))
        joint = [term.name for term in one.terms if term.stats.kind in ("less", "more") and len(term.flags) > 1]
        if joint:
            texts.append(_("Not independent of each other: {terms}.").format(terms=", ".join(joint)))
    return texts


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or _("no flag")


def _of_levels(cells: Sequence[CellSummary]) -> str:
    labels = wording.cell_labels(cells)
    levels = sorted(((c.median[HEADLINE], c) for c in cells if HEADLINE in c.median), key=lambda pair: pair[0])
    if not levels:
        return _("The settled phase was not measured.")
    (low, lowest), (high, highest) = levels[0], levels[-1]
    if len(levels) == 1:
        return _("{cell} settles at {size} MiB of tree RSS, n = {n}.").format(
            cell=labels[lowest.cell], size=wording.number(low), n=lowest.n_valid)
    return _("Tree RSS settles between {low} MiB ({lowest}) and {high} MiB ({highest}).").format(
        low=wording.number(low), lowest=labels[lowest.cell], high=wording.number(high), highest=labels[highest.cell])
