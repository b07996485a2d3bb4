"""Experiments: named files that define a sweep and the question it answers. Found here, composed by Hydra."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pipeline.config import EXPERIMENTS_DIR, GROUPS
from pipeline.errors import ConfigError


def experiments() -> dict[str, Path]:
    """Name → file; those in ./experiments/ hide shipped ones of the same name."""
    found = {}
    for folder in (EXPERIMENTS_DIR, Path.cwd() / "experiments"):
        found.update({path.stem: path for path in sorted(folder.glob("*.yaml"))})
    return found


def load_experiment(name: str) -> dict[str, Any]:
    """The file's content, checked. Raises ConfigError for a name that does not exist (all are listed) or a bad file."""
    from omegaconf import OmegaConf
    from yaml import YAMLError  # type: ignore[import-untyped]

    known = experiments()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"experiment={name} is not known.{hint} Experiments: {', '.join(sorted(known))}. "
                          "Yours are the files ./experiments/NAME.yaml.")
    path = known[name]
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} holds no settings; expected lines such as `repetitions: 3` and a `question:`.")
    params = (content.get("hydra") or {}).get("sweeper", {}).get("params", {})
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    for key, value in [*(pair for entry in entries for pair in entry.items()), *params.items()]:
        group = str(key).removeprefix("override ").lstrip("/")
        if isinstance(value, bool) and group in GROUPS:
            word = "on" if value else "off"
            raise ConfigError(f'{path}: {group}: {word} without quotes is a boolean in YAML. Write {group}: "{word}".')
    return {str(key): value for key, value in content.items()}


def chosen(arguments: list[str]) -> str:
    """The experiment that the command line names; "" if none. Raises ConfigError for more than one."""
    names = [argument.split("=", 1)[1] for argument in arguments if argument.lstrip("+").startswith("experiment=")]
    if len(names) > 1 or any("," in name for name in names):
        raise ConfigError(f"experiment={','.join(names)}: one experiment at a time; run them one after the other.")
    return names[0] if names and names[0] != "null" else ""


def register(arguments: list[str]) -> str:
    """Make the chosen experiment known to Hydra, from whatever folder; returns its name."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    name = chosen(arguments)
    if name:
        ConfigStore.instance().store(group="experiment", name=name, node=OmegaConf.create(load_experiment(name)),
                                     package="_global_", provider="slackwater")
    return name
