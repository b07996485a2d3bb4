"""What the keys of a config are if nobody sets them: the schema's defaults under what conf/ says of them today.

Read from the files without Hydra, which takes a quarter of a second to compose a cell.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from pipeline.config import CONF_DIR, GROUPS, Config, options


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree as one level, keys joined by dots; lists and empty dicts stay one value each."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        at = f"{prefix}.{key}" if prefix else str(key)
        found.update(leaves(value, at) if isinstance(value, Mapping) and value else {at: value})
    return found


def unset(flat: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a flattened config would be if it had nothing but what its files say: conf/GROUP/NAME.yaml of each group.

    NAME stands in the config; where it is not a file of ours (a user's own, a changed name), the schema's defaults."""
    return _unset(tuple(str(flat.get(f"{group}.name", "")) for group in GROUPS))


@functools.cache
def flags_on(preset: str) -> frozenset[str]:
    """The flags that conf/infer_os/PRESET.yaml switches on."""
    return frozenset(name for name, value in _plain(_composed("infer_os", preset)).items() if value is True)


@functools.cache
def named_environments() -> Mapping[frozenset[tuple[str, str]], str]:
    """Environment of a file of conf/infer_os → its name."""
    found = {name: _plain(_composed("infer_os", name)).get("environment") for name in options("infer_os")}
    return {frozenset(environment.items()): name for name, environment in found.items() if environment is not None}


@functools.cache
def _unset(names: tuple[str, ...]) -> Mapping[str, Any]:
    values = dict(_top())
    for group, name in zip(GROUPS, names, strict=True):
        values |= _group(group, name)
    return values


@functools.cache
def _top() -> Mapping[str, Any]:
    """What stands outside the groups, and the names of the files that config.yaml picks."""
    tree = _tree(CONF_DIR / "config.yaml")
    schema = _plain(OmegaConf.structured(Config))
    own = {field.name for field in fields(Config)} - GROUPS.keys()
    return leaves({key: tree.get(key, schema[key]) for key in own})


@functools.cache
def _group(group: str, name: str) -> Mapping[str, Any]:
    values = leaves({group: _plain(_composed(group, name))})
    entries = [entry for entry in _tree(CONF_DIR / "config.yaml")["defaults"] if isinstance(entry, dict)]
    return values | {f"{group}.name": next((entry[group] for entry in entries if group in entry), None)}


def _composed(group: str, name: str) -> Any:
    """A file of a group over those that its defaults list names, over the schema."""
    path = options(group).get(name)
    if path is None:
        return OmegaConf.structured(GROUPS[group])
    tree = _tree(path)
    below = [_composed(group, entry) for entry in tree.pop("defaults", [])
             if isinstance(entry, str) and entry != "_self_"]  # not its word for another group
    return OmegaConf.merge(OmegaConf.structured(GROUPS[group]), *below, tree)


def _tree(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))


def _plain(node: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(node, throw_on_missing=False))
