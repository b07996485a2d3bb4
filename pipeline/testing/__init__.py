"""Contract tests that the author of an engine, a meter, a settle rule or a design inherits; run by pytest.

    from pipeline.testing import MeterContract

    class TestHugePages(MeterContract):
        name = "huge_pages"

What each contract asks is its methods' names; what it needs to know are its class's attributes. slackwater itself
does without pytest, so nothing else of the package imports this room.
"""

try:
    import pytest
except ImportError as error:
    raise ImportError("pipeline.testing needs pytest, which slackwater does not bring: pip install pytest.") from error

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("design", "engine", "meter", "settle")))

from pipeline.testing.configs import config_of  # noqa: E402  after the line above, which is for what follows
from pipeline.testing.design import DesignContract  # noqa: E402
from pipeline.testing.engine import EngineContract, Events  # noqa: E402
from pipeline.testing.meter import MeterContract  # noqa: E402
from pipeline.testing.settle import SettleContract  # noqa: E402

__all__ = ["DesignContract", "EngineContract", "Events", "MeterContract", "SettleContract", "config_of"]
