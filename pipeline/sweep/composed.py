"""From Hydra's words to configs: the cells that overrides and a file describe, typed, and each composed once.

Composing takes Hydra a quarter of a second, which every trial would pay; a copy takes a hundredth of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pipeline.config import GROUPS, Config
from pipeline.engine.all_knobs import in_common_words, with_common_names
from pipeline.errors import ConfigError
from pipeline.language import N_, Sentence, sentence
from pipeline.sweep.messages import is_setting, must_be_given, unknown_setting
from pipeline.sweep.overrides import literal, overrides_of

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

PLACE = "place."
RECORDED = "recorded="
"""In front of the values that others have recorded, by setting, as JSON: data, which Hydra is never given to read."""


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
            words = [override for override in overrides if not override.startswith(RECORDED)]
            self._cells[cell] = filled(self._loader.load_sweep_config(master_config, words), overrides)
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


def filled(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config with the recorded values among the overrides, as they are: no reference in them is followed.

    Raises what OmegaConf does for a value that the schema does not take."""
    for override in overrides:
        if override.startswith(RECORDED):
            with read_write(config), open_dict(config):
                for key, value in json.loads(override.removeprefix(RECORDED)).items():
                    if isinstance(value, Mapping):
                        OmegaConf.update(config, key, {}, merge=False)
                    OmegaConf.update(config, key, literal(value), merge=True)
    return config


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


def combinations(loader: ConfigLoader, params: Mapping[str, Any],
                 arguments: Sequence[str]) -> tuple[list[list[str]], list[Sentence]]:
    """Every cell of the sweep as a list of overrides, and what of the file's sweep gave way to the command line.

    Hydra's sweep grammar; the command line wins over the file where both say the same key."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides([in_common_words(argument) for argument in arguments])
    by_hand = {_key(override): override for override in given}
    listed = parser.parse_overrides([in_common_words(override) for key, value in params.items()
                                     for override in overrides_of(str(key), value)])
    kept: list[Override] = []
    notes: list[Sentence] = []
    for override in listed:
        key, below = _key(override), [each for own, each in by_hand.items() if own.startswith(f"{_key(override)}.")]
        if key in by_hand:
            continue
        # an option of infer_os is a combination of its keys, so that a sweep over such a key asks the same question
        if key in GROUPS and not is_setting(f"{key}.name") and (
                instead := next((each for each in below if each.is_sweep_override()), None)):
            notes.append(sentence(N_("{given} takes the place of the experiment's {listed}"),
                                  given=instead.input_line, listed=override.input_line))
            continue
        kept.append(override)
    for override in (overrides := [*kept, *given]):
        key = _key(override)
        if key.split(".")[0] == "place":
            raise ConfigError("place.* is filled in by the sweep itself and cannot be set.")
        # Hydra would add a key that nobody reads
        if not is_setting(key) and key.split(".")[0] not in ("hydra", "experiment"):
            raise ConfigError(unknown_setting(key))
    cells: list[list[str]] = BasicSweeper.split_arguments(overrides, None)[0]
    return cells, notes


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def compose_cells(loader: ConfigLoader, master: DictConfig,
                  cells: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[Config], list[Sentence]]:
    """Every cell with its config, and what was left out of which. Raises ConfigError.

    A setting below a group that the sweep varies is left out where that cell's option cannot take it, as mode.turns=5
    for mode=oneshot; one that no cell can take is an error, as are cells that are the same with it."""
    options = {group: {option for cell in cells for option in _values(cell, group)} for group in GROUPS}
    varied = [group for group, found in options.items() if len(found) > 1]
    refused: dict[str, ConfigError] = {}
    taken: set[str] = set()
    left_out: dict[tuple[str, str], None] = {}
    fitted: list[list[str]] = []
    for cell in cells:
        kept = list(cell)
        for group in varied:
            below = [override for override in kept if override.lstrip("+").startswith(f"{group}.")]
            if not below or _complaint(loader.load_sweep_config(master, kept), group) is None:
                taken.update(below)
                continue
            kept = [override for override in kept if override not in below]
            for override in below:
                tried = [each for each in cell if each in kept or each == override]
                if error := _complaint(loader.load_sweep_config(master, tried), group):
                    refused[override] = error
                    left_out[override, f"{group}={_values(cell, group)[-1]}"] = None
                else:
                    kept = tried
                    taken.add(override)
        fitted.append(kept)
    if wrong := next((refused[override] for override in refused if override not in taken), None):
        raise wrong
    found: list[tuple[list[str], list[str], Config]] = []
    for whole, kept in zip(map(list, cells), fitted, strict=True):
        config = typed(loader.load_sweep_config(master, kept))
        same = next((each for each in found if each[2] == config), None)
        if same is None:
            found.append((whole, kept, config))
        elif whole == kept and same[0] == same[1]:
            _refuse_same(same[1], kept, varied)
            found.append((whole, kept, config))
    overrides, configs = [kept for _whole, kept, _config in found], [config for *_cell, config in found]
    return overrides, configs, [sentence(N_("{setting} does not apply to {choice}, which cannot take it"),
                                         setting=override, choice=choice) for override, choice in left_out]


def _values(cell: Sequence[str], key: str) -> list[str]:
    return [override.partition("=")[2] for override in cell if override.lstrip("+").startswith(f"{key}=")]


def _complaint(composed: DictConfig, group: str) -> ConfigError | None:
    """What the group's own checks say of its settings; what must be given yet is not theirs to say."""
    if OmegaConf.missing_keys(composed[group]):
        return None
    try:
        OmegaConf.to_object(composed[group])
    except ConfigError as error:
        return error
    return None


def _refuse_same(one: Sequence[str], other: Sequence[str], varied: Sequence[str]) -> None:
    """Two cells that a setting makes the same; without one, the sweep names a cell twice, which check_cells says."""
    for group in varied:
        below = [override for override in other if override.lstrip("+").startswith(f"{group}.")]
        ours, theirs = _values(other, group), _values(one, group)
        if below and ours != theirs:
            raise ConfigError(
                f"{', '.join(below)} cannot be combined with the sweep over {group}: it makes {group}={theirs[-1]} and "
                f"{group}={ours[-1]} the same. Leave it out, or choose one {group}=…, which takes the place of that "
                "sweep. Nothing was started.")
