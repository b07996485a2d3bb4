"""Which cells may be compared with which: arms that differ in the mode, or in the flags, and in nothing else.

Only groups trials; the comparing is done in `summary`, `factorial`, `drift` and `slope`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipeline.stats.trials import Trial, flags_on, valid, varied

WORK = {"during_generation/prompt_tokens": "prompt tokens", "during_generation/output_tokens": "generated tokens"}
"""What two arms must have done alike before their memory is compared."""


def natural(text: str) -> tuple[float, str]:
    """Sort key that puts 512 before 4096."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def differing_keys(trials: Sequence[Trial]) -> dict[str, dict[str, str]]:
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
    oneshot: Sequence[Trial]
    interactive: Sequence[Trial]


class FlagGroup(NamedTuple):
    """Cells of one mode that differ in their flags and nothing else: the reference and (flag, trials) of each arm."""

    mode: str
    where: Mapping[str, str]
    off: Sequence[Trial]
    arms: Sequence[tuple[str, Sequence[Trial]]]


def mode_pairs(trials: Sequence[Trial]) -> list[ModePair]:
    """Cells that differ in the mode and nothing else."""
    shared = varied(trials, ("infer_os.", "mode."))
    differing = differing_keys(trials)
    by_mode: dict[str, dict[str, list[Trial]]] = {"oneshot": defaultdict(list), "interactive": defaultdict(list)}
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


def other_work(a: Sequence[Trial], b: Sequence[Trial]) -> str:
    """How the work of two arms differs, in words; "" if it does not, or was not recorded.

    An effect between such arms would compare two things at once (DESIGN 5.4). Cells agree within themselves, so one
    valid trial speaks for an arm."""
    for metric, words in WORK.items():
        ours, theirs = (next((dict(t.turns.get(metric) or {0: t.metrics[metric]}) for t in valid(arm)
                              if metric in t.metrics), None) for arm in (a, b))
        if ours is not None and theirs is not None and ours != theirs:
            counts = [", ".join(f"{count:.0f}" for count in work.values()) for work in (ours, theirs)]
            return f"{counts[0]} {words} against {counts[1]}"
    return ""


def refused(trials: Sequence[Trial]) -> list[str]:
    """The comparisons that `flag_groups` leaves out because the arms did different work, a sentence each."""
    differing = differing_keys(trials)
    cells: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        cells[trial.cell].append(trial)
    found = []
    for off in cells.values():
        if off[0].infer_os != "off":
            continue
        for arm in cells.values():
            same = arm[0].mode == off[0].mode and differing[arm[0].cell] == differing[off[0].cell]
            if same and arm[0].infer_os != "off" and (how := other_work(arm, off)):
                found.append(f"{arm[0].cell} and {off[0].cell} did different work ({how}): no effect is computed")
    return found


def flag_groups(trials: Sequence[Trial]) -> list[FlagGroup]:
    """Every set of cells that differ in their flags and nothing else.

    The reference is the arm "off", or without one the arm with the fewest flags; arms that lack one of the
    reference's flags are left out, since they differ in two directions.
    """
    differing = differing_keys(trials)
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, list[Trial]]] = defaultdict(
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
            found.append(FlagGroup(mode, dict(where), arms[reference], against))
    return sorted(found, key=lambda g: (g.mode != "oneshot", g.mode, [natural(v) for v in g.where.values()]))
