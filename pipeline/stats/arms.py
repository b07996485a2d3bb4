"""Which cells may be compared with which: arms that differ in the mode, or in the flags, and in nothing else.

Only groups trials; the comparing is done in `summary`, `factorial`, `drift` and `slope`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.language import N_, sentence
from pipeline.metrics import WORK
from pipeline.record.trial import TrialRecord
from pipeline.stats.trials import KNOBS, flags_on, swept_knobs, valid, varied

_OTHER_WORK = dict(zip(WORK, (N_("{counts} prompt tokens against {others}"),
                              N_("{counts} generated tokens against {others}")), strict=True))
"""What two arms must have done alike before their memory is compared."""


def natural(text: str) -> tuple[float, str]:
    """Sort key that puts 512 before 4096."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def differing_keys(trials: Sequence[TrialRecord]) -> dict[str, dict[str, str]]:
    """Cell → the keys besides mode and flags in which it differs from other cells of its mode or at all."""
    shared = varied(trials, ("infer_os.", "mode."))
    for mode in {trial.mode for trial in trials}:
        own = [trial for trial in trials if trial.mode == mode]
        for cell, keys in varied(own, ("infer_os.",)).items():
            # What varies inside a mode may stand for a key that all cells share; the union names both once.
            shared[cell] = {**{k: v for k, v in keys.items() if k.startswith("mode.")}, **shared[cell]}
    return shared


class ModePair(NamedTuple):
    """A oneshot and an interactive cell with the same flags and the same other keys."""

    infer_os: str
    where: Mapping[str, str]
    oneshot: Sequence[TrialRecord]
    interactive: Sequence[TrialRecord]


class ArmGroup(NamedTuple):
    """Cells of one mode that differ in their flags, or in one knob, and in nothing else: the reference and (flag, or
    the knob's value, trials) of each arm."""

    mode: str
    where: Mapping[str, str]
    off: Sequence[TrialRecord]
    arms: Sequence[tuple[str, Sequence[TrialRecord]]]
    knob: str = ""
    """The knob's name; "" where the arms differ in flags."""
    against: str = ""
    """The knob's value in the reference."""


def mode_pairs(trials: Sequence[TrialRecord]) -> list[ModePair]:
    """Cells that differ in the mode and nothing else."""
    shared = varied(trials, ("infer_os.", "mode."))
    differing = differing_keys(trials)
    by_mode: dict[str, dict[str, list[TrialRecord]]] = {"oneshot": defaultdict(list), "interactive": defaultdict(list)}
    for trial in trials:
        if trial.mode in by_mode:
            by_mode[trial.mode][trial.cell].append(trial)
    pairs = []
    for one_cell, one in by_mode["oneshot"].items():
        for many_cell, many in by_mode["interactive"].items():
            if one[0].infer_os == many[0].infer_os and shared[one_cell] == shared[many_cell]:
                pairs.append(ModePair(one[0].infer_os, {**differing[one_cell], **differing[many_cell]}, one, many))
    return sorted(pairs, key=lambda p: ([natural(v) for v in p.where.values()], p.infer_os != "off",
                                        p.infer_os != "on", p.infer_os))


def other_work(a: Sequence[TrialRecord], b: Sequence[TrialRecord]) -> str:
    """How the work of two arms differs, in words; "" if it does not, or was not recorded.

    An effect between such arms would compare two things at once (DESIGN 5.4). Cells agree within themselves, so one
    valid trial speaks for an arm."""
    for metric, words in _OTHER_WORK.items():
        ours, theirs = (next((dict(t.turns.get(metric) or {0: t.metrics[metric]}) for t in valid(arm)
                              if metric in t.metrics), None) for arm in (a, b))
        if ours is not None and theirs is not None and ours != theirs:
            counts = [", ".join(f"{count:.0f}" for count in work.values()) for work in (ours, theirs)]
            return sentence(words, counts=counts[0], others=counts[1])
    return ""


def effect_groups(trials: Sequence[TrialRecord]) -> list[ArmGroup]:
    """Every set of cells whose difference is an effect: of the flags, then of each knob."""
    return [*flag_groups(trials), *knob_groups(trials)]


def knob_groups(trials: Sequence[TrialRecord]) -> list[ArmGroup]:
    """For every knob that was varied, mode and arm of the flags: its first value against each other, while the other
    knobs stand at their own first values. What they do together stands in the cells."""
    differing, values = differing_keys(trials), swept_knobs(trials)
    knobs = [key for key in dict.fromkeys(key for keys in differing.values() for key in keys) if key.startswith(KNOBS)]
    for key in knobs:  # a sweep of before the tag: how its values were written is not known
        values.setdefault(key, sorted({keys[key] for keys in differing.values() if key in keys}, key=natural))
    first = {key: values[key][0] for key in knobs}
    flags = {trial.infer_os for trial in trials}
    found = []
    for key in knobs:
        groups: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, list[TrialRecord]]] = defaultdict(
            lambda: defaultdict(list))
        for trial in trials:
            here = differing[trial.cell]
            if any(here.get(other) != first[other] for other in knobs if other != key):
                continue
            where = {**({"infer_os": trial.infer_os} if len(flags) > 1 else {}),
                     **{other: text for other, text in here.items() if other not in knobs}}
            groups[trial.mode, tuple(where.items())][here[key]].append(trial)
        for (mode, rest), arms in groups.items():
            if first[key] in arms:
                against = [(text_of(value), arms[value]) for value in values[key][1:]
                           if value in arms and not other_work(arms[value], arms[first[key]])]
                if against:
                    found.append(ArmGroup(mode, dict(rest), arms[first[key]], against, key.rpartition(".")[2],
                                          text_of(first[key])))
    return sorted(found, key=lambda g: (knobs.index(next(key for key in knobs if key.endswith(f".{g.knob}"))),
                                        g.mode != "oneshot", g.mode, [natural(v) for v in g.where.values()]))


def text_of(value: str) -> str:
    """A knob's value as the user writes it: true and false in small letters."""
    return value.lower() if value in ("True", "False") else value


def refused(trials: Sequence[TrialRecord]) -> list[str]:
    """The comparisons that `effect_groups` leaves out because the arms did different work, a sentence each."""
    differing, swept = differing_keys(trials), swept_knobs(trials)
    cells: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        cells[trial.cell].append(trial)

    def is_reference(cell: str) -> bool:
        return all(differing[cell].get(key, values[0]) == values[0] for key, values in swept.items())

    found = list[str]()
    for off in cells.values():
        for arm in cells.values():
            ours, theirs = differing[arm[0].cell], differing[off[0].cell]
            by_flags = off[0].infer_os == "off" != arm[0].infer_os and ours == theirs
            knobs = [key for key in ours if ours[key] != theirs.get(key)]
            by_knob = (off[0].infer_os == arm[0].infer_os and len(knobs) == 1 and knobs[0].startswith(KNOBS)
                       and is_reference(off[0].cell))
            if arm[0].mode == off[0].mode and (by_flags or by_knob) and (how := other_work(arm, off)):
                found.append(sentence(N_("{one} and {other} did different work ({how}): no effect is computed"),
                                      one=arm[0].cell, other=off[0].cell, how=how))
    return found


def flag_groups(trials: Sequence[TrialRecord]) -> list[ArmGroup]:
    """Every set of cells that differ in their flags and nothing else.

    The reference is the arm "off", or without one the arm with the fewest flags; arms that lack one of the
    reference's flags are left out, since they differ in two directions.
    """
    differing = differing_keys(trials)
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, list[TrialRecord]]] = defaultdict(
        lambda: defaultdict(list))
    for trial in trials:
        groups[trial.mode, tuple(differing[trial.cell].items())][trial.infer_os].append(trial)
    found = []
    for (mode, where), arms in groups.items():
        reference = min(arms, key=lambda label: (label != "off", len(flags_on(arms[label][0])), label))
        base = flags_on(arms[reference][0])
        against = []
        for label, members in arms.items():
            on = flags_on(members[0])
            if label != reference and base <= on and not other_work(members, arms[reference]):
                against.append((label if not base else "+".join(sorted(on - base)) or label, members))
        if against:
            against.sort(key=lambda arm: (arm[0] != "on", arm[0]))
            found.append(ArmGroup(mode, dict(where), arms[reference], against))
    return sorted(found, key=lambda g: (g.mode != "oneshot", g.mode, [natural(v) for v in g.where.values()]))
