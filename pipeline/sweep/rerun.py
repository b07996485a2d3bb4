"""The same config and seed again, from what was logged: overrides that compose to it today, and what differs since.

What others have recorded is no words but values: they are set in a config that our own files make, as the schema has
them, and whatever names a program, an address or a path is left out.
Finds and prepares; running is conduct.py's, by the same path as any sweep.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline import defaults, machine, provenance
from pipeline.config import GROUPS, Config, options
from pipeline.engine import load_engine
from pipeline.errors import ConfigError
from pipeline.language import N_, _, sentence
from pipeline.model.files import title
from pipeline.outcome import flatten
from pipeline.record.find import Subject
from pipeline.record.trial import METHOD, TrialRecord
from pipeline.stats.trials import methods
from pipeline.sweep.composed import RECORDED, filled, typed
from pipeline.sweep.hydra_app import compose
from pipeline.sweep.messages import is_open, is_setting
from pipeline.sweep.overrides import grammar
from pipeline.text import to_json

NOT_OF_THE_CELL = ("place.", "tracking.", "lang")
"""Where a trial stood in its sweep, and where its results went: both are new."""
ALONE = ("design=blocked", "stop=repetitions")
"""A cell without its sweep needs no other design; a run is measured once."""


NOT_TAKEN = ("engine.binary", "engine.url", "engine.pid", "engine.pull", "engine.allow_remote", "infer_os.environment",
             "model.", "prompt.file")
"""Besides NOT_OF_THE_CELL: never taken from what others recorded. Given behind `rerun`, else this machine's own."""


@dataclass(frozen=True)
class Again:
    """A sweep to run as it was."""

    of: str
    """The sweep's id (and the cell, if only one is measured), or the run's."""
    experiment: str
    cells: Sequence[tuple[str, Sequence[str]]]
    """(name, overrides) in the order of the plan."""
    notes: Sequence[str]
    """What differs now, a line each."""
    is_foreign: bool = False
    """Others have recorded it: a user is asked first."""
    shown: Sequence[str] = ()
    """What will run, a line for each cell."""


def prepare(subject: Subject, given: Sequence[str] = ()) -> Again:
    """Overrides for every cell of a sweep, or for the one of a run; `given` are the user's own, which win.

    Raises ConfigError: nothing to go by, or a config that this version cannot have."""
    alone = [*ALONE, *(["repetitions=1"] if subject.run_id else [])] if subject.cell else []
    first = {trial.cell: trial for trial in sorted(subject.trials, key=lambda trial: trial.order, reverse=True)}
    planned = {str(cell["cell"]): [] if subject.sweep.is_foreign else [str(text) for text in cell.get("overrides", ())]
               for cell in subject.plan.get("cells", ())}
    names = [subject.cell] if alone else [*planned, *(cell for cell in first if cell not in planned)]
    unknown = [name for name in names if name not in first]
    if unknown:
        raise ConfigError(f"{subject.sweep.sweep_id} was interrupted before {', '.join(unknown)} had a trial, so that "
                          "what it would have been was not logged. `slackwater resume "
                          f"{subject.sweep.sweep_id}{subject.option}` measures it to the end; one of "
                          "its cells is measured again by `slackwater rerun "
                          f"{subject.sweep.sweep_id}:CELL{subject.option}`.")
    cells, configs = [], []
    notes = list[str]()
    for name in names:
        overrides, config, new = (_with_values(first[name], subject, alone, given) if subject.sweep.is_foreign else
                                  _compose_as(first[name], subject, planned.get(name, []), alone, given))
        cells.append((name, overrides))
        configs.append(config)
        notes += new
    if (was := methods(subject.trials)) not in ([], [METHOD]):
        notes.append(sentence(N_("method of measuring: {was} → {now}"), was=", ".join(map(str, was)), now=METHOD))
    notes += _since(subject, [first[name] for name in names], configs)
    of = subject.run_id or ":".join(filter(None, (subject.sweep.sweep_id, subject.cell)))
    shown = [f"{name}: {_shown(config)}" for (name, _words), config in zip(cells, configs, strict=True)]
    return Again(of, subject.sweep.experiment, cells, list(dict.fromkeys(notes)), subject.sweep.is_foreign, shown)


def _compose_as(trial: TrialRecord, subject: Subject, planned: Sequence[str],
                alone: Sequence[str], given: Sequence[str]) -> tuple[list[str], Config, list[str]]:
    """Overrides that compose to the trial's config today, that config, and notes on settings that are new since.

    `alone`: overrides in place of the sweep's design, for a cell without its sweep."""
    logged, whole = _logged(trial)
    for key in ("model.path", "engine.binary", "prompt.file"):
        if isinstance(path := logged.get(key), str):
            logged[key] = str(Path(str(subject.plan.get("cwd", ""))) / path)  # relative to where it was started
    fixed = _keys([*alone, *given])
    logged = {key: value for key, value in logged.items() if not _below(key, fixed)}
    overrides = [*(text for text in _groups(logged, planned) if text.partition("=")[0] not in fixed), *alone]
    now = _leaves_of((*overrides, *given))
    notes = []
    for key in sorted(now.keys() - logged.keys()):
        if _below(key, fixed) or any(known.startswith(f"{key}.") for known in logged):
            continue
        if whole and is_open(key):
            overrides.append(f"~{key}")
        elif now[key] not in (None, "", [], {}):  # nothing is set by it, so nothing is new
            notes.append(f"{key} was not logged (a setting that is new since); now {now[key]}")
    gone = [key for key in logged if key not in now and not is_setting(key)]
    if gone:
        raise ConfigError(f"the config of {trial.cell} has {', '.join(gone)}, which this version of slackwater does "
                          f"not have. It was measured with {_version(subject)}: use that to run it again.")
    for key, value in logged.items():
        if key not in now and value != {}:
            overrides.append(f"++{key}={grammar(value)}")
        elif key in now and now[key] != value:
            overrides.append(f"{key}={grammar(value)}")
    config = typed(compose([*overrides, *given]))
    made = _own(flatten(config))
    wrong = [key for key, value in logged.items() if made.get(key, {}) != value]
    if wrong:
        raise ConfigError(f"the config of {trial.cell} cannot be made again: {wrong[0]} was {logged[wrong[0]]!r} and "
                          f"would be {made.get(wrong[0])!r}. Run it by hand: slackwater run {shlex.join(planned)}")
    return overrides, config, notes


def _with_values(trial: TrialRecord, subject: Subject, alone: Sequence[str],
                 given: Sequence[str]) -> tuple[list[str], Config, list[str]]:
    """The same of a trial of others: our own files' words, and its values as one word that is never parsed."""
    fixed, logged = _keys([*alone, *given]), _own(trial.params)
    if gone := [key for key in logged if key in GROUPS or not is_setting(key)]:
        raise ConfigError(f"{trial.cell} was recorded with {', '.join(gone)}, which this version of slackwater does "
                          "not have.")
    left = [key for key, value in logged.items() if key.startswith(NOT_TAKEN) and not key.startswith("model.")
            and value not in (None, False, {}) and not _below(key, fixed)]
    values = {key: value for key, value in logged.items() if not key.startswith(NOT_TAKEN) and not _below(key, fixed)}
    words = [*(text for text in _groups(values, ()) if text.partition("=")[0] not in fixed), *alone]
    if "model" not in fixed:
        words += _model_of(trial, subject)
        if "engine.name" in logged and logged.get("model.kind") == "ollama":
            values |= {key: logged[key] for key in ("model.kind", "model.name", "model.tag") if key in logged}
    if logged.get("prompt.file") and "prompt.file" not in fixed:
        raise ConfigError(_needed(subject, "prompt.file", "prompt.file=FILE"))
    overrides = [RECORDED + to_json(_by_setting(values)), *words]
    config = typed(filled(compose([*words, *given]), overrides))
    made = _own(flatten(config))
    if wrong := [key for key, value in values.items() if made.get(key, {}) != value]:
        raise ConfigError(f"{wrong[0]} of {trial.cell} was recorded as {values[wrong[0]]!r}, which is not a value that "
                          f"this version takes: it would be {made.get(wrong[0])!r}.")
    notes = [f"{key} was not logged (a setting that is new since); now {made[key]}" for key in sorted(made)
             if key not in logged and not key.startswith(NOT_TAKEN) and not _below(key, fixed)
             and made[key] not in (None, "", [], {}) and not any(one.startswith(f"{key}.") for one in logged)
             and not is_open(key)]
    if left:
        notes.append(sentence(N_("not taken from what others recorded: {keys}. This machine's own is used; give them "
                                 "behind rerun if that is not meant."), keys=", ".join(sorted(left))))
    return overrides, config, notes


def _model_of(trial: TrialRecord, subject: Subject) -> list[str]:
    """The model by its name, where our own files know it; one of Ollama's by its tag. Raises ConfigError."""
    name, kind = str(trial.params.get("model.name", "")), trial.params.get("model.kind")
    if name in options("model") and kind != "file":
        return [f"model={name}"]
    if kind == "ollama":
        return []
    raise ConfigError(_needed(subject, "model", "model.path=FILE.gguf"))


def _needed(subject: Subject, key: str, hint: str) -> str:
    return _("{sweep} needs {key}, and no path and no package is taken from what others recorded: "
             "slackwater rerun {name} {hint}").format(
                 sweep=subject.sweep.sweep_id, key=key, name=subject.name, hint=hint)


def _by_setting(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the schema's keys, what stands below an open one together. Raises ConfigError."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        parts = key.split(".")
        setting = next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if not is_open(".".join(parts[:n])))
        tree, below = found, [setting, *parts[setting.count(".") + 1:]]
        for part in below[:-1]:
            tree = tree.setdefault(part, {})
            if not isinstance(tree, dict):
                raise ConfigError(f"{key} stands below another value: that is not a config.")
        tree[below[-1]] = value
    return found


def _keys(words: Sequence[str]) -> set[str]:
    """What the overrides set; a path given is the whole model."""
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    return keys | ({"model"} if "model.path" in keys else set())


def _below(key: str, keys: Collection[str]) -> bool:
    return any(f"{key}.".startswith(f"{one}.") for one in keys)


def _shown(config: Config) -> str:
    """What a cell is: model, engine, and whatever our files do not say of themselves; long texts cut."""
    flat = flatten(config)
    usual = defaults.unset(flat)
    changed = {key: value for key, value in _own(flat).items()
               if not key.startswith("model.") and (key in ("engine.name", "mode.name") or usual.get(key) != value)}
    said = {"model": title(config.model), **changed}
    return ", ".join(f"{key}={_cut(str(value))}" for key, value in said.items())


def _cut(text: str) -> str:
    """In one line, of at most 80 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"


def _logged(trial: TrialRecord) -> tuple[dict[str, Any], bool]:
    """The trial's config, flattened, and whether it is whole: params leave out what is longer than MLflow takes."""
    text = trial.artifact("config.yaml")
    if text is None:
        return _own(trial.params), False
    from yaml import YAMLError, safe_load  # type: ignore[import-untyped]

    try:
        tree = safe_load(text)
    except YAMLError as error:
        raise ConfigError(f"config.yaml of {trial.cell}, trial {trial.order}, cannot be read: "
                          f"{' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"config.yaml of {trial.cell}, trial {trial.order}, holds no settings.")
    return _own(dict(_leaves("", tree))), True


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(NOT_OF_THE_CELL)}


def _groups(logged: Mapping[str, Any], planned: Sequence[str]) -> list[str]:
    """One file per group: what the sweep chose, else the file of the logged name; what differs is overridden later."""
    chosen = {}
    for group in GROUPS:
        given = [text.partition("=")[2] for text in planned if text.startswith(f"{group}=")]
        for option in (*given, str(logged.get(f"{group}.name", ""))):
            if group != "tracking" and option in options(group):
                chosen[group] = option
                break
    return [f"{group}={option}" for group, option in chosen.items()]


@functools.cache
def _leaves_of(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The composed config, flattened; not checked, since what is still to be overridden may be out of range."""
    tree = OmegaConf.to_container(compose(overrides), resolve=True)
    return _own(dict(_leaves("", tree)))


def _since(subject: Subject, trials: Sequence[TrialRecord], configs: Sequence[Config]) -> list[str]:
    """What is another one now: engine, model, machine, packages."""
    found = []
    for trial, config in zip(trials, configs, strict=True):
        now = load_engine(config).provenance()
        found += [f"{key.replace('_', ' ')} of {name}: {trial.tags[key]} → {now[key]}"
                  for key, name in (("engine_version", config.engine.name), ("model_digest", title(config.model)))
                  if key in trial.tags and key in now and trial.tags[key] != now[key]]
    here, there = provenance.facts(), subject.sweep.tags
    keys = [key for key in there if key in (*machine.FACTS, "revision") or key.startswith("package.")]
    if not keys:
        found.append(f"on which machine {subject.sweep.sweep_id} was measured was not logged")
    return found + [f"{key}: {there[key]} → {here.get(key) or 'not known'}" for key in keys
                    if there[key] != here.get(key, "")]


def _version(subject: Subject) -> str:
    tags = subject.sweep.tags
    named = f"slackwater {tags.get('package.slackwater', '')}".strip()
    return f"{named}, revision {tags['revision']}" if tags.get("revision") else named
