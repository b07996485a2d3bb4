"""What differs between two sets of trials besides their readings: the model, the config, the server, the machine.

Values only, compared as text; whether a difference forbids a comparison is said here too, in `other_work`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from pipeline import defaults, machine
from pipeline.metrics import WORK
from pipeline.record.trial import TrialRecord
from pipeline.stats.trials import valid, value

Group = Literal["model", "config", "engine", "machine"]

NOT_THE_CELL = ("place.", "tracking.", "design.", "question", "repetitions")
"""Config of the sweep, not of what was measured."""
MACHINE = (*machine.FACTS, "revision")
"""Facts of a sweep's tags, beside package.*."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Difference:
    """One key with another value on each side; several values of one side are joined by commas."""

    group: Group
    key: str
    a: str
    b: str


def differences(a: Sequence[TrialRecord], b: Sequence[TrialRecord], machine_a: Mapping[str, str],
                machine_b: Mapping[str, str]) -> list[Difference]:
    """Only what differs, by group. `machine_a` and `machine_b` are facts about where each side ran."""
    files = _files(a, b)
    keys = {trial.cell: [key for key in trial.params if not key.startswith(NOT_THE_CELL)] for trial in (*a, *b)}
    config = sorted({key for names in keys.values() for key in names} - files)
    settings = sorted({key for trial in (*a, *b) for key in trial.settings} - {"model"} - files)
    facts = [key for key in dict.fromkeys((*MACHINE, *sorted({*machine_a, *machine_b})))
             if key in MACHINE or key.startswith("package.")]
    found: list[Difference] = []

    def compare(group: Group, key: str, one: str, other: str) -> None:
        if one != other:
            found.append(Difference(group, key, one, other))

    compare("model", "model_digest", _texts(t.tags.get("model_digest") for t in a),
            _texts(t.tags.get("model_digest") for t in b))
    def of(trial: TrialRecord, key: str) -> object:
        # a key that an earlier version did not have is at its default
        return trial.params[key] if key in trial.params else defaults.unset(trial.params).get(key, NOT_RECORDED)

    for key in config:
        group: Group = "model" if key.startswith("model.") else "engine" if key.startswith("engine.") else "config"
        compare(group, key, _texts(of(t, key) for t in a), _texts(of(t, key) for t in b))
    compare("engine", "engine_version", _texts(t.tags.get("engine_version") for t in a),
            _texts(t.tags.get("engine_version") for t in b))
    for key in settings:
        compare("engine", f"settings.{key}", _texts(t.settings.get(key, NOT_RECORDED) for t in a),
                _texts(t.settings.get(key, NOT_RECORDED) for t in b))
    for key in facts:
        compare("machine", key, machine_a.get(key) or NOT_RECORDED, machine_b.get(key) or NOT_RECORDED)
    order: tuple[Group, ...] = ("model", "config", "engine", "machine")
    return sorted(found, key=lambda difference: order.index(difference.group))


def _files(a: Sequence[TrialRecord], b: Sequence[TrialRecord]) -> set[str]:
    """Keys that name the model's file: of no interest where its digest says that it is the same."""
    digests = {trial.tags.get("model_digest") for trial in (*a, *b)}
    return {"model.path", "model.name"} if len(digests) == 1 and _known(next(iter(digests))) else set()


def _known(digest: str | None) -> bool:
    return bool(digest) and digest != "not known"


def _texts(values: Iterable[object]) -> str:
    shown = dict.fromkeys(_text(value) for value in values)
    return ", ".join(sorted(shown))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return NOT_RECORDED if value is None or value == "" else str(value)


def same_setup(a: Sequence[TrialRecord], b: Sequence[TrialRecord]) -> bool:
    """The same model, config, engine version and server settings? The machine and the day may differ."""
    return not differences(a, b, {}, {})


def other_work(a: Sequence[TrialRecord], b: Sequence[TrialRecord]) -> str:
    """Why the two sides did different work, in words; "" if they did the same, or the sweep asks for that difference.

    The model is told by its digest, or by its name where the digest is not known on both sides; the work by the
    tokens that the server counted at turn 1."""
    digests = [sorted({trial.tags.get("model_digest", "") for trial in side}) for side in (a, b)]
    names = [sorted({str(trial.tags.get("model") or trial.params.get("model.name", "")) for trial in side})
             for side in (a, b)]
    told = digests if all(_known(digest) for side in digests for digest in side) else names
    asked = _factors(a) & _factors(b)
    if told[0] != told[1] and "model" not in asked:
        return f"the models differ: {_model(names[0], digests[0])} against {_model(names[1], digests[1])}"
    if any(trial.params.get("mode.source") == "stdin" for side in (a, b) for trial in side):
        return "the prompts were typed by a user"
    changed = {difference.key for difference in differences(a, b, {}, {})}
    if any(key == factor or key.startswith(f"{factor}.") for key in changed for factor in asked):
        return ""
    for metric in WORK:
        counts = [[number for trial in valid(side) if (number := value(trial, metric, 1)) is not None]
                  for side in (a, b)]
        if all(counts) and median(counts[0]) != median(counts[1]):
            return (f"the work differs: {median(counts[0]):g} against {median(counts[1]):g} "
                    f"{metric.rpartition('/')[2].replace('_', ' ')} at turn 1")
    return ""


def _factors(trials: Sequence[TrialRecord]) -> set[str]:
    """design.factor of every trial: config keys whose change of the work is the question."""
    each = [trial.params.get("design.factor") for trial in trials]
    sets = [{"model" if str(key).startswith("model.") else str(key) for key in factor}
            if isinstance(factor, (list, tuple)) else set[str]() for factor in each]
    return set.intersection(*sets) if sets else set()


def _model(names: Sequence[str], digests: Sequence[str]) -> str:
    shown = ", ".join(name or "unnamed" for name in names)
    known = ", ".join(digest.removeprefix("sha256:")[:12] for digest in digests if _known(digest))
    return f"{shown} ({known})" if known else shown
