"""`slackwater delete SWEEP[:ORDER]`: a sweep or a trial that is to count nowhere any more. It is only marked.

The records stay as they are; what is marked stands in notes.json beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.errors import ConfigError
from pipeline.language import N_, _
from pipeline.record.folder import EVERYTHING, SweepFolder, place_of
from pipeline.record.sweep import SweepRecord
from pipeline.report import wording
from pipeline.report.document import SCHEMA_VERSION
from pipeline.text import print_json
from pipeline.track import opened


def delete(name: str, undo: bool, yes: bool, as_json: bool, uri: str | None) -> int:
    """Mark it, or take the mark away, and say so; 0.

    Raises ConfigError: no such sweep or trial, nothing to undo, nobody to ask; and StoreError."""
    sweeps = opened.sweeps(uri)
    sweep_name, _colon, order = name.partition(":")
    sweep = sweeps.sweep(sweep_name)
    folder = sweeps.folder(sweep.sweep_id)
    names = _trials(folder, sweep, order) if order else [EVERYTHING]
    if not order:
        sweep.refuse_running()
    marked = folder.deleted()
    what = f"{sweep.sweep_id}:{order}" if order else sweep.sweep_id
    if undo and not marked & set(names):
        raise ConfigError(_("{what} is not deleted: there is nothing to undo.").format(what=what))
    if not undo and marked >= set(names):
        raise ConfigError(_("{what} is deleted already. `slackwater delete {what} --undo{store}` brings it back."
                            ).format(what=what, store=sweeps.option))
    if not undo and not yes and not _agreed(sweep, order, as_json):
        print(_("Nothing was deleted."))
        return 0
    folder.write_notes({**folder.notes(), "deleted": sorted(marked - set(names) if undo else marked | set(names))})
    if as_json:
        print_json({"schema_version": SCHEMA_VERSION, "sweep_id": sweep.sweep_id,
                    "order": int(order) if order else None, "deleted": not undo})
    elif undo:
        print(_("{what} counts again.").format(what=what))
    else:
        print(_("{what} counts nowhere any more; it stays on the disk, in {folder}.").format(what=what,
                                                                                            folder=folder.path))
        print(f"slackwater delete {what} --undo{sweeps.option}")
    return 0


def _trials(folder: SweepFolder, sweep: SweepRecord, order: str) -> Sequence[str]:
    """All attempts of a trial. Raises ConfigError."""
    orders = sorted({place_of(name)[0] for name in folder.names()})
    if not order.isdigit() or int(order) not in orders:
        raise ConfigError(_("{sweep} has no trial {order}: expected SWEEP or SWEEP:ORDER with the number of a trial, "
                            "here {known}.").format(sweep=sweep.sweep_id, order=order, known=_listed(orders)))
    return [name for name in folder.names() if place_of(name)[0] == int(order)]


def _listed(orders: Sequence[int]) -> str:
    if not orders:
        return _("none")
    whole = len(orders) > 2 and orders[-1] - orders[0] == len(orders) - 1
    return f"{orders[0]}–{orders[-1]}" if whole else ", ".join(map(str, orders))


def _agreed(sweep: SweepRecord, order: str, as_json: bool) -> bool:
    if as_json or not sys.stdin.isatty() or not sys.stdout.isatty():
        raise ConfigError(_("delete asks before it marks anything, and nobody is at a terminal here: add --yes."))
    trials = sum(sweep.trials.values())
    question = _("Delete trial {order} of {sweep}?").format(order=order, sweep=sweep.sweep_id) if order else _(
        "Delete {sweep} with {trials}?").format(sweep=sweep.sweep_id, trials=wording.n_of(
            trials, N_("{n} trial"), N_("{n} trials")))
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes", _("yes"))
    except EOFError:
        return False
