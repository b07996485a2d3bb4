"""Runs Hydra's own main with our schema, plugin and experiments; everything Hydra offers stays reachable."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import CONF_DIR, GROUPS, PACKAGE, Config

PLUGIN_ROOT = PACKAGE / "_plugin_root"

INSPECT = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--shell-completion", "-sc", "--version")
"""Hydra's flags that print something and run nothing."""

WITH_VALUE = ("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
              "--experimental-rerun", "--resolve")
"""Hydra's other flags. Every flag that is in neither is refused before Hydra sees it."""


def register_schema() -> None:
    """Put the schema where conf/*.yaml look for it: base_config, and base_<group> in each group."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="base_config", node=Config, provider="slackwater")
    for group, schema in GROUPS.items():
        store.store(group=group, name=f"base_{group}", node=schema, provider="slackwater")


def expose_plugins() -> None:
    """Let Hydra find our sweeper, here and in the workers of other launchers; it looks once, at first use."""
    # Hydra scans sys.path for hydra_plugins; a worker of another launcher finds it through PYTHONPATH
    if str(PLUGIN_ROOT) not in sys.path:
        sys.path.append(str(PLUGIN_ROOT))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(PLUGIN_ROOT) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([path for path in paths if path] + [str(PLUGIN_ROOT)])


def run_hydra(task: Callable[[Any], Any], arguments: list[str], folder: Path) -> None:
    """Compose and sweep as the arguments say; `folder` exists, Hydra makes nothing in it.

    Raises what composing raises (see messages.explain)."""
    expose_plugins()
    os.environ["HYDRA_FULL_ERROR"] = "1"

    import hydra

    register_schema()
    quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    sys.argv = ["slackwater", *arguments, f'hydra.sweep.dir="{quoted}"']
    hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")(task)()
