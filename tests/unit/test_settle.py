"""When memory counts as stable: traces with a known answer."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.config import Config, Settle
from pipeline.errors import ConfigError
from pipeline.phases import MIB
from pipeline.settle import adaptive, fixed
from pipeline.settle.base import Settling, load_rule
from pipeline.testing import SettleContract


class TestAdaptive(SettleContract):
    name = "adaptive"


class TestFixed(SettleContract):
    name = "fixed"


def config(**settle: Any) -> Config:
    return cast(Config, SimpleNamespace(settle=Settle(**{"name": "adaptive", **settle}), stabilization_delay_s=5.0))


def fires_after(level_mib: Callable[[float], float], rule: Any = adaptive.settled, limit_s: float = 70.0,
                hz: int = 100) -> float | None:
    """Seconds until the rule says stable, on a trace sampled at `hz` that begins when waiting begins."""
    times = np.arange(0, limit_s, 1 / hz)
    t_ns = (times * 1e9).astype(np.int64)
    rss = np.array([int(level_mib(t) * MIB) for t in times], dtype=np.int64)
    for now in np.arange(0, limit_s, 0.05):
        seen = t_ns <= now * 1e9
        if rule(Settling(t_ns[seen], rss[seen], 0, int(now * 1e9)), config()):
            return float(now)
    return None


def test_still_memory_is_stable_after_one_window_and_not_before() -> None:
    assert fires_after(lambda t: 194.3) == pytest.approx(2.0, abs=0.1)


def test_a_step_starts_the_window_anew() -> None:
    assert fires_after(lambda t: 194.3 if t < 1.5 else 60.0) == pytest.approx(3.5, abs=0.1)


def test_steady_growth_within_the_range_is_not_stable() -> None:
    assert fires_after(lambda t: 100 + 0.45 * t, limit_s=20) is None


def test_a_slow_decay_is_awaited() -> None:
    fired = fires_after(lambda t: 100 + 150 * 0.5 ** (t / 2.0))
    assert fired is not None and fired > 14
    assert 150 * 0.5 ** (fired / 2.0) < 1.0


def test_noise_below_the_tolerance_does_not_matter() -> None:
    assert fires_after(lambda t: 200 + 0.3 * ((int(t * 100) * 7919) % 3 - 1)) == pytest.approx(2.0, abs=0.1)


def test_a_sampler_that_stopped_does_not_look_stable() -> None:
    t_ns = np.arange(0, int(0.5e9), int(1e7), dtype=np.int64)
    assert not adaptive.settled(Settling(t_ns, np.full(len(t_ns), 5 * MIB), 0, int(10e9)), config())


def test_fixed_waits_exactly_the_delay_whatever_memory_does() -> None:
    assert fires_after(lambda t: 100 * t, rule=fixed.settled) == pytest.approx(5.0, abs=0.051)


def test_a_rule_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"settle\.name=hope"):
        load_rule(config(name="hope"))
