"""What a settle rule owes a trial: an answer from what it was shown and nothing else, and one before the limit."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.phases import MIB
from pipeline.settle.base import Rule, Settling, load_rule
from pipeline.testing.configs import config_of


class SettleContract:
    """Inherit it, and say `name`."""

    name: ClassVar[str]
    """The rule's, as in `settle=NAME`."""

    @pytest.fixture
    def config(self) -> Config:
        """A config that chooses the rule; override it for other settings."""
        return config_of(f"settle={self.name}")

    @pytest.fixture
    def rule(self, config: Config) -> Rule:
        """The rule, as a trial finds it."""
        return load_rule(config)

    @staticmethod
    def seen(seconds: float, mib: float = 200.0) -> Settling:
        """What a rule is shown after this time of memory that stands still, read 100 times a second."""
        t_ns = (np.arange(0, seconds, 0.01) * 1e9).astype(np.int64)
        rss = np.full(len(t_ns), int(mib * MIB), dtype=np.int64)
        for array in (t_ns, rss):
            array.flags.writeable = False
        return Settling(t_ns, rss, 0, int(seconds * 1e9))

    def test_its_config_file_chooses_it(self, config: Config) -> None:
        assert config.settle.name == self.name

    def test_it_does_not_call_stable_what_it_has_not_seen(self, rule: Rule, config: Config) -> None:
        assert rule(self.seen(0.0), config) is False

    def test_memory_that_stands_still_is_stable_before_the_limit(self, rule: Rule, config: Config) -> None:
        assert rule(self.seen(config.settle.limit_s - 0.1), config) is True

    def test_the_answer_follows_from_what_it_was_shown(self, rule: Rule, config: Config) -> None:
        """A trial asks about twenty times a second, and may ask twice with the same."""
        times = [0.0, 1.0, 3.0, 10.0, 3.0, 1.0, 0.0]
        answers = [rule(self.seen(seconds), config) for seconds in times]
        assert answers == answers[::-1]
