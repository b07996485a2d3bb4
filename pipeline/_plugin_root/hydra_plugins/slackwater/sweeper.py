"""The sweeper plugin as Hydra wants it: a class under `hydra_plugins`. What a sweep is stands in pipeline/sweep/."""

from __future__ import annotations

from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SlackwaterSweeper(Sweeper):
    """Hands Hydra's pieces to `pipeline.sweep.conduct.conduct`."""

    def __init__(self, params: dict[str, Any] | DictConfig | None = None) -> None:
        plain = OmegaConf.to_container(params) if isinstance(params, DictConfig) else params
        self.params: dict[str, Any] = plain or {}  # type: ignore[assignment]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before `sweep`."""
        from hydra.core.plugins import Plugins

        from pipeline.errors import ConfigError
        from pipeline.sweep.composed import ComposedOnce

        # the launcher composes a config per job through this loader
        loader = cast(ConfigLoader, ComposedOnce(hydra_context.config_loader))
        self.hydra_context = hydra_context = HydraContext(loader, hydra_context.callbacks)
        self.config = config
        try:
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config)
        except Exception as error:
            said = " ".join(str(error.__cause__ or error).split())
            raise ConfigError(f"hydra/launcher: {config.hydra.launcher._target_} cannot be used: {said}") from error

    def sweep(self, arguments: list[str]) -> Any:
        """Run every trial of the sweep that the overrides describe."""
        from pipeline.sweep.conduct import conduct

        assert self.hydra_context is not None, "Hydra calls setup first"
        assert self.config is not None
        assert self.launcher is not None
        context, config, launcher = self.hydra_context, self.config, self.launcher

        def calling(job: TaskFunction) -> Any:
            launcher.setup(hydra_context=context, task_function=job, config=config)
            return launcher.launch

        return conduct(context.config_loader, config, calling, self.params, arguments)


ConfigStore.instance().store(group="hydra/sweeper", name="slackwater", provider="slackwater", node={
    "_target_": "hydra_plugins.slackwater.sweeper.SlackwaterSweeper", "params": None})
