"""The one path: what of Hydra's own config would lead round our sweeper, and a loader that forgets no ???.

hydra_app.py drives Hydra with both; nothing is measured or checked beyond the config here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from pipeline.errors import ConfigError
from pipeline.sweep.config_files import read_yaml

REPLACED = ("infer_os.environment",)
"""Mappings that are given whole: a value is all there is, and never added to what a file says."""

SWEEPER = "hydra_plugins.slackwater.sweeper.SlackwaterSweeper"

WAY_ROUND = ("bypasses slackwater's own sweeper, which is the only way to measure (a single cell is a sweep of "
              "one): leave it out.")
_STORE = "a trial works in the folder of its store (tracking.uri=…), not in one of Hydra's: leave it out."
_USUAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "hydra.mode": (("MULTIRUN", None), WAY_ROUND),
    "hydra.sweeper._target_": ((SWEEPER,), WAY_ROUND),
    "hydra.run.dir": (("outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}",), _STORE),
    "hydra.sweep.dir": (("multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}",), _STORE),
    "hydra.sweep.subdir": ((".",), _STORE),
    "hydra.output_subdir": ((None,), _STORE),
    "hydra.job.chdir": ((False, None), "trials run in the folder where slackwater was started, as relative paths "
                                       "expect: leave it out."),
}
"""Key → what it is in slackwater's own config, and what to say of anything else."""


def require_one_path(hydra: Mapping[str, Any]) -> None:
    """Raises ConfigError for a hydra.* setting that bypasses the sweeper, or that would be ignored.

    `hydra`: the node as plain values, of a file or composed."""
    choice = hydra.get("runtime", {}).get("choices", {}).get("hydra/sweeper", "slackwater")
    if choice != "slackwater":
        raise ConfigError(f"hydra/sweeper={choice} {WAY_ROUND}")
    for key, (usual, why) in _USUAL.items():
        found: Any = {"hydra": hydra}
        for name in key.split("."):
            if not isinstance(found, Mapping) or name not in found:
                break
            found = found[name]
        else:
            shown = found if found is None or isinstance(found, bool) else str(getattr(found, "name", found))
            if shown not in usual:
                raise ConfigError(f"{key}={shown}{' ' if why is WAY_ROUND else ': '}{why}")
    sweeper = hydra.get("sweeper") or {}
    odd = next((name for name in sweeper if name not in ("_target_", "params")), None)
    if odd is not None:
        raise ConfigError(f"hydra.sweeper.{odd} is not a setting of slackwater's sweeper: expected params.")
    if not isinstance(sweeper.get("params") or {}, Mapping):
        raise ConfigError(f"hydra.sweeper.params={sweeper['params']} is not allowed: expected keys with the "
                          "values to sweep over, such as mode: oneshot,interactive.")


class Repository(ConfigRepository):
    """Hydra's files. One that cannot be read, or whose defaults list is none, is named."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """As Hydra's. Raises ConfigError with the file and what is wrong in it, besides Hydra's own complaints."""
        try:
            return super().load_config(config_path)
        except (HydraException, OmegaConfBaseException):
            raise
        except Exception as error:  # whatever a file makes YAML and Hydra stumble over
            candidates = [Path(source.path) / f"{config_path.removesuffix('.yaml')}.yaml"
                          for source in self.get_sources() if source.scheme() == "file"]
            path = next((path for path in candidates if path.is_file()), Path(config_path))
            read_yaml(path)
            said = " ".join(str(error).split())
            if "Unsupported item value in defaults" in said:
                said = ("its defaults list has an unquoted off, on, yes or no, which YAML reads as a boolean: write it "
                        'in quotes, infer_os: "off"')
            raise ConfigError(f"{path}: {said}.") from error


class Loader(ConfigLoaderImpl):
    """Hydra's loader. A key that a file marks with ??? must be given after it, whatever default the schema has."""

    _demanded: set[str]

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = Repository(config_search_path)

    def load_configuration(self, config_name: str | None, overrides: list[str], run_mode: RunMode,
                           from_shell: bool = True, validate_sweep_overrides: bool = True) -> DictConfig:
        """As Hydra's, which would merge a mapping with what stands there, and fails where nothing does."""
        whole = [text for text in overrides if text.lstrip("+").partition("=")[0] in REPLACED]
        config = super().load_configuration(config_name, [text for text in overrides if text not in whole], run_mode,
                                            from_shell, validate_sweep_overrides)
        for override in OverridesParser.create().parse_overrides(whole):
            with read_write(config.hydra), open_dict(config):
                config.hydra.overrides.task.append(override.input_line)
                if not override.is_sweep_override():
                    OmegaConf.update(config, override.get_key_element().lstrip("+"), override.value(), merge=False)
        return config

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self._demanded = set()
        config = super()._compose_config_from_defaults_list(defaults, repo)
        with open_dict(config):
            for key in self._demanded:
                OmegaConf.update(config, key, "???")
        return config

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """Called in the order of merging: a later file gives what an earlier one demands."""
        loaded = super()._load_single_config(default, repo)
        if loaded.provider not in ("slackwater", "hydra") and isinstance(loaded.config, DictConfig):
            missing = OmegaConf.missing_keys(loaded.config)
            plain = OmegaConf.to_container(loaded.config, resolve=False, throw_on_missing=False)
            self._demanded = {key for key in self._demanded if not _gives(plain, key)}
            self._demanded |= {key for key in missing if key.split(".")[0] not in ("hydra", "defaults")}
        return loaded


def _gives(tree: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return bool(tree != "???")
