"""From Hydra's words to configs: the cells that overrides and a file describe, typed, and each composed once.

Composing takes Hydra a quarter of a second, which every trial would pay; a copy takes a hundredth of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pipeline.config import Config
from pipeline.engine.all_knobs import in_common_words, with_common_names
from pipeline.errors import ConfigError
from pipeline.sweep.messages import is_setting, must_be_given, unknown_setting
from pipeline.sweep.overrides import overrides_of

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

PLACE = "place."


class ComposedOnce:
    """Hydra's config loader, with a memory for cells. What it is asked besides goes to the loader itself."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._cells: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """The config of a job, as Hydra composes it: a cell's jobs differ in place alone."""
        overrides = [override for override in sweep_overrides if not override.startswith(PLACE)]
        cell = tuple(overrides)
        if cell not in self._cells:
            self._cells[cell] = self._loader.load_sweep_config(master_config, overrides)
        config = self._cells[cell].copy()
        for override in sweep_overrides:
            if override.startswith(PLACE):
                key, _, value = override.partition("=")
                OmegaConf.update(config, key, json.loads(value))
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.overrides.task = list(sweep_overrides)
        return config

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by pickle of one that has no loader yet
            raise AttributeError(name)
        return getattr(self._loader, name)


def typed(composed: DictConfig) -> Config:
    """The composed config as the schema's dataclasses. Raises ConfigError where a range check fails."""
    bare = composed.copy()
    with open_dict(bare):
        bare.pop("hydra", None)
    if missing := sorted(OmegaConf.missing_keys(bare)):
        raise ConfigError(must_be_given(missing))
    config = OmegaConf.to_object(bare)
    if not isinstance(config, Config):
        raise ConfigError("the composed config is not slackwater's: conf/config.yaml must begin with base_config.")
    return with_common_names(config)


def combinations(loader: ConfigLoader, params: Mapping[str, Any], arguments: Sequence[str]) -> list[list[str]]:
    """Every cell of the sweep as a list of overrides; Hydra's sweep grammar, the command line wins over the file."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    arguments = [in_common_words(argument) for argument in arguments]
    typed_by_hand = {argument.lstrip("+~").split("=", 1)[0] for argument in arguments}
    listed = [in_common_words(override) for key, value in params.items()
              for override in overrides_of(str(key), value)]
    # `infer_os.quantization=true,false` replaces the file's sweep over `infer_os`, not only its own key
    kept = [override for override in listed
            if not any(f"{given}.".startswith(f"{override.lstrip('+').partition('=')[0]}.") for given in typed_by_hand)]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides([*kept, *arguments])
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if key.split(".")[0] == "place":
            raise ConfigError("place.* is filled in by the sweep itself and cannot be set.")
        # Hydra would add a key that nobody reads
        if not is_setting(key) and key.split(".")[0] not in ("hydra", "experiment"):
            raise ConfigError(unknown_setting(key))
    cells: list[list[str]] = BasicSweeper.split_arguments(overrides, None)[0]
    return cells
