"""What a meter owes a trial: to be here or absent with a reason, and figures that the metric dictionary knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline import metrics
from pipeline.meter.base import NOTHING, Absent, Found, Meter, Reading, Target
from pipeline.outcome import as_metrics
from pipeline.plugins import METERS


class MeterContract:
    """Inherit it, and say `name`. Override `found` with one on recorded files where few machines have the source."""

    name: ClassVar[str]
    """The meter's, as in `meter.sources`."""

    @pytest.fixture
    def found(self, tmp_path: Path) -> Found:
        """The meter on this machine, or on recorded files."""
        found: Found = METERS.load(self.name, "meter.sources").find(Path("/"), Target([os.getpid()]))
        return found

    @pytest.fixture
    def absent(self, tmp_path: Path) -> Found:
        """The meter on a machine that has nothing: an empty root."""
        found: Found = METERS.load(self.name, "meter.sources").find(tmp_path, NOTHING)
        return found

    @pytest.fixture
    def meter(self, found: Found) -> Meter:
        """The meter; a test that needs one is skipped with the reason where it is absent."""
        if isinstance(found, Absent):
            pytest.skip(f"{self.name} is absent: {found.reason}")
        return found.meter

    @pytest.fixture
    def pids(self) -> list[int]:
        """The tree that is measured."""
        return [os.getpid()]

    @pytest.fixture
    def reading(self, meter: Meter, pids: list[int]) -> Reading:
        """One reading."""
        return meter.read(pids)

    def test_it_has_one_name_and_says_where_its_figures_come_from(self, found: Found) -> None:
        module = METERS.load(self.name, "meter.sources")
        assert found.name == module.Meter.name == self.name
        assert module.Meter.source and module.Meter.checked in ("on hardware", "on recorded data")

    def test_where_it_is_absent_it_gives_a_reason_and_no_zero(self, absent: Found) -> None:
        assert isinstance(absent, Absent)
        assert absent.name == self.name and len(absent.reason.split()) > 1

    def test_a_figure_is_a_number_and_its_name_ends_in_its_unit(self, reading: Reading) -> None:
        assert reading
        for quantity, value in reading.items():
            assert isinstance(value, int | float), quantity
            assert quantity.endswith(("_bytes", "_pct", "_us", "_mhz", "_count")), quantity

    def test_the_metric_dictionary_knows_every_figure(self, reading: Reading) -> None:
        """A meter's `SECTION` says what its figures mean, in units that people read."""
        names = as_metrics({f"{self.name}_{quantity}": value for quantity, value in reading.items()}, {})
        unknown = [name for name in names if metrics.find(f"stabilized/{name}") is None]
        assert unknown == [], "give the meter's file a SECTION with a Metric of each"

    def test_it_can_be_read_again_after_a_phase_began(self, meter: Meter, pids: list[int]) -> None:
        before = meter.read(pids)
        meter.reset()
        assert meter.read(pids).keys() == before.keys()
