"""Where Hydra looks for config files besides conf/: in the packages that bring plug-ins (pipeline/plugins.py)."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from pipeline.plugins import config_folders


class PluginConfigs(SearchPathPlugin):
    """Their folders come after conf/: a file of ours wins over one of the same name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it makes a search path."""
        for folder in config_folders():
            search_path.append(provider="slackwater plug-in", path=f"file://{folder}")
