"""Experiments: named files that define a sweep and the question it answers. Found here, composed by Hydra."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import EXPERIMENTS_DIR, GROUPS
from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.sweep.config_files import read_yaml
from pipeline.sweep.messages import is_open, is_setting, unknown_setting
from pipeline.sweep.model_words import with_files_in
from pipeline.sweep.one_path import REPLACED, WAY_ROUND, require_one_path
from pipeline.sweep.overrides import overrides_of, sweeps, unquoted

DEMANDED = "???"
"""Hydra's word for what must be given."""


def experiments() -> dict[str, Path]:
    """Name → file; those in ./experiments/ hide shipped ones of the same name."""
    found = {}
    for folder in (EXPERIMENTS_DIR, Path.cwd() / "experiments"):
        found.update({path.stem: path for path in sorted(folder.glob("*.yaml"))})
    return found


def load_experiment(name: str) -> dict[str, Any]:
    """The file as Hydra takes it: whatever sweeps stands in hydra.sweeper.params as text, settings in the body.

    Raises ConfigError: a name that does not exist (all are listed), or a bad file, with its path and the key."""
    known = experiments()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        said = _("{key} is not known. Did you mean {close}? Experiments: {known}. Yours are the files "
                 "./experiments/NAME.yaml.") if close else _(
                     "{key} is not known. Experiments: {known}. Yours are the files ./experiments/NAME.yaml.")
        raise ConfigError(said.format(key=f"experiment={name}", close=", ".join(close), known=", ".join(sorted(known))))
    path = known[name]
    content = read_yaml(path)
    if not content:
        raise ConfigError(f"{path} holds no settings; expected lines such as `repetitions: 3` and a `question:`.")
    try:
        return _as_hydra_takes_it(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _as_hydra_takes_it(content: dict[str, Any]) -> dict[str, Any]:
    hydra = dict(_mapping(content.pop("hydra", None), "hydra"))
    sweeper = dict(_mapping(hydra.pop("sweeper", None), "hydra.sweeper"))
    params = _mapping(sweeper.get("params"), "hydra.sweeper.params")
    require_one_path({**hydra, "sweeper": sweeper})
    defaults, swept = _defaults(content.pop("defaults", None))
    body: dict[str, Any] = {}
    for key, value in _leaves("", content):
        if not is_setting(key):
            raise ConfigError(unknown_setting(key))
        if key in GROUPS and value is None:
            continue  # a heading with nothing below it
        if value == DEMANDED and key in GROUPS:
            defaults.append({f"override /{key}": value})
        elif key in GROUPS or key in REPLACED or sweeps(key, value):
            swept += overrides_of(key, value)
        else:
            _put(body, key, value)
    for key, value in _leaves("", params):
        if not is_setting(key.lstrip("+")):
            raise ConfigError(f"hydra.sweeper.params: {unknown_setting(key)}")
        if value == DEMANDED:
            raise ConfigError(f"hydra.sweeper.params.{key}: ??? is not a value. Below the file's other settings it "
                              "would have to be given on the command line.")
        swept += overrides_of(key, value)
    found: dict[str, str] = {}
    for override in swept:
        key, _equals, value = override.partition("=")
        if key in found:
            raise ConfigError(f"{key} is given twice: {found[key]} and {value}. Leave one of them out.")
        found[f"++{key}" if is_open(key) else key] = value
    return {**({"defaults": defaults} if defaults else {}), **body,
            **({"hydra": {**hydra, **({"sweeper": {"params": found}} if found else {})}} if hydra or found else {})}


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    """The settings below a key; none where nothing stands. Raises ConfigError for anything else."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{key}: {value} is not allowed: expected settings below it, one a line, or nothing.")
    return value or {}


def _leaves(prefix: str, tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting of the body with its whole key, also where a person writes `mode.turns: 2`."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value and f"{prefix}{name}" not in REPLACED:
            yield from _leaves(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _defaults(entries: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The defaults list with `override /GROUP` spelt out, and what it sweeps over as overrides."""
    if entries is not None and not isinstance(entries, list):
        raise ConfigError(f"defaults: {entries} is not allowed: expected a list, such as `- override /mode: oneshot`.")
    kept: list[dict[str, Any]] = []
    swept: list[str] = []
    for entry in entries or []:
        if entry == "_self_":
            continue  # everything else here is an override, which has no order
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ConfigError(f"defaults: `{entry}` is not understood: expected `override /GROUP: NAME`, such as "
                              "`- override /mode: oneshot`.")
        (key, value), = entry.items()
        group = str(key).removeprefix("override ").strip().lstrip("/")
        if group == "hydra/sweeper" and value != "slackwater":
            raise ConfigError(f"hydra/sweeper={value} {WAY_ROUND}")
        if any(f"override /{group}" in other for other in kept):
            raise ConfigError(f"defaults: {group} is given twice. Leave one of them out.")
        if group.startswith("hydra/"):
            kept.append({f"override /{group}": value})
            continue
        if group not in GROUPS:
            close = difflib.get_close_matches(group, GROUPS, n=1)
            raise ConfigError(f"defaults: {group} is not a group of settings."
                              + (f" Did you mean {close[0]}?" if close else f" Groups: {', '.join(GROUPS)}."))
        if value == DEMANDED:
            kept.append({f"override /{group}": value})
            continue
        (override,) = overrides_of(group, value)
        choice = override.partition("=")[2]
        if isinstance(value, list) or "," in choice:
            swept.append(override)
        else:
            kept.append({f"override /{group}": choice})
    return kept, swept


def chosen(arguments: list[str]) -> str:
    """The experiment that the command line names; "" if none. Raises ConfigError for more than one."""
    names = [argument.split("=", 1)[1] for argument in arguments if argument.lstrip("+").startswith("experiment=")]
    if len(names) > 1 or any("," in name for name in names):
        raise ConfigError(f"experiment={','.join(names)}: one experiment at a time; run them one after the other.")
    name = unquoted(names[0]) if names else ""
    return name if name != "null" else ""


def register(arguments: list[str]) -> str:
    """Make the chosen experiment known to Hydra, from whatever folder; returns its name."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    name = chosen(arguments)
    if name:
        content = with_files_in(load_experiment(name))
        ConfigStore.instance().store(group="experiment", name=name, node=OmegaConf.create(content),
                                     package="_global_", provider="experiment")
    return name
