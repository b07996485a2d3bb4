"""Cells composed once: a launcher asks for a job's config by its overrides, and a cell's jobs differ in place alone.

Composing takes Hydra a quarter of a second, which every trial would pay; a copy takes a hundredth of that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

PLACE = "place."


class ComposedOnce:
    """Hydra's config loader, with a memory for cells. What it is asked besides goes to the loader itself."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._cells: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """The config of a job, as Hydra composes it."""
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
        return getattr(self._loader, name)
