"""Runs Hydra's own main with our schema, plugin and experiments; everything Hydra offers stays reachable."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.config import CONF_DIR, GROUPS, PACKAGE, Config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

PLUGIN_ROOT = PACKAGE / "_plugin_root"

INSPECT = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--shell-completion", "-sc", "--version")
"""Hydra's flags that print something and run nothing."""

WITH_VALUE = ("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
              "--experimental-rerun", "--resolve")
"""Hydra's other flags. Every flag that is in neither is refused before Hydra sees it."""


def register_schema() -> None:
    """Put the schema where conf/*.yaml look for it: base_config, and base_<group> in each group."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    def node(schema: type, knobs: str) -> Any:
        """The schema; where it takes knobs by name, any name is taken, without a +: the engine says which it has."""
        made = OmegaConf.structured(schema)
        if knobs in made:
            OmegaConf.set_struct(made[knobs], False)
        return made

    store = ConfigStore.instance()
    store.store(name="base_config", node=node(Config, "knob"), provider="slackwater")
    for group, schema in GROUPS.items():
        store.store(group=group, name=f"base_{group}", node=node(schema, "knobs"), provider="slackwater")


def expose_plugins() -> None:
    """Let Hydra find our sweeper, here and in the workers of other launchers; it looks once, at first use."""
    # Hydra scans sys.path for hydra_plugins; a worker of another launcher finds it through PYTHONPATH
    if str(PLUGIN_ROOT) not in sys.path:
        sys.path.append(str(PLUGIN_ROOT))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(PLUGIN_ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([path for path in paths if path] + [str(PLUGIN_ROOT)])


def compose(overrides: Sequence[str]) -> DictConfig:
    """The config of one cell, as conf/ and the overrides say: what `slackwater run` would compose, unchecked."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    expose_plugins()
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=["hydra/sweeper=basic", *overrides])


def run_hydra(arguments: list[str], folder: Path) -> None:
    """Compose and sweep as the arguments say, or print what they ask; `folder` exists, Hydra makes nothing in it.

    This is Hydra's own main without its choice of a run mode: whatever is measured goes through our sweeper. Raises
    ConfigError for what bypasses it, and what composing raises (see messages.explain)."""
    expose_plugins()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's info prints its own traces otherwise

    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path, get_args_parser
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from pipeline.sweep.one_path import Loader, require_one_path
    from pipeline.sweep.overrides import override_of

    register_schema()
    version.setbase("1.3")
    parser = get_args_parser()
    setattr(parser, "error", _refuse)  # noqa: B010
    given = parser.parse_intermixed_args(arguments)
    if given.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun bypasses slackwater's own sweeper: `slackwater rerun` measures "
                          "again.")
    if given.cfg is None and not given.help and (given.resolve or given.package is not None):
        raise ConfigError("--resolve and --package belong to --cfg: slackwater run --cfg job --package mode.")
    overrides = [override_of(word) for word in given.overrides]
    search_path = create_config_search_path(given.config_path or str(CONF_DIR))
    if given.config_dir is not None:
        if not Path(given.config_dir).is_dir():
            raise ConfigError(f"--config-dir {given.config_dir} is not a folder.")
        search_path.prepend("command-line", f"file://{Path(given.config_dir).absolute()}", SearchPathQuery("schema"))
    app = Hydra("slackwater", Loader(search_path))
    name = given.config_name or "config"
    GlobalHydra.instance().clear()
    GlobalHydra.instance().initialize(app)
    try:
        if given.help:
            app.app_help(name, parser, given)
        elif given.hydra_help:
            app.hydra_help(name, parser, given)
        elif given.cfg is not None:
            try:
                app.show_cfg(name, overrides, given.cfg, given.package, given.resolve)
            except SystemExit:  # Hydra has said this itself
                raise ConfigError(f"--package {given.package} is not part of the config.") from None
        elif given.info is not None:
            app.show_info(given.info, name, overrides)
        elif given.shell_completion:
            app.shell_completion(name, overrides)
        else:
            composed = app.compose_config(name, overrides, RunMode.MULTIRUN)
            require_one_path(OmegaConf.to_container(composed.hydra, resolve=False))  # type: ignore[arg-type]
            quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
            app.multirun(name, _no_task, [*overrides, f'hydra.sweep.dir="{quoted}"'])
    finally:
        GlobalHydra.instance().clear()


def _no_task(composed: Any) -> NoReturn:
    raise AssertionError("our sweeper says which job is run")


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}.")
