"""Engines, meters, settle rules and designs of another package: found by entry points, with their config files.

The package is a folder and the folder of its metadata, as pip would have put them on sys.path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import Config, options
from pipeline.engine import engines, load_engine
from pipeline.errors import ConfigError
from pipeline.meter.base import Absent, Available, find_all
from pipeline.plugins import ENGINES, Installed, installed
from pipeline.provenance import package_versions
from pipeline.settle.base import load_rule
from pipeline.sweep.cells import check_cells
from pipeline.sweep.composed import typed
from pipeline.sweep.design import load_design
from pipeline.sweep.hydra_app import compose

FILES = {
    "tidal/__init__.py": "",
    "tidal/rule.py": "def settled(seen, config):\n    return seen.now_ns > seen.since_ns\n",
    "tidal/order.py": "def blocks(cells, repetitions, seed):\n"
                      "    return [list(reversed(range(cells))) for _ in range(repetitions)]\n",
    "tidal/gauge.py": """
from pipeline.meter import base

class Meter(base.Meter):
    name, source, checked = "gauge", "nowhere", "on recorded data"

    def read(self, pids=()):
        return {"level_bytes": 1}

def find(root=None, target=base.NOTHING):
    return base.Available(Meter())
""",
    "tidal/server.py": "from pipeline.engine.llamacpp import Engine\n",
    "tidal/broken.py": "import a_module_that_is_not_here\n",
    "tidal/rude.py": "raise SystemExit('I end\\nyour program')\n",
    "tidal/empty.py": "",
    "tidal/conf/settle/ebb.yaml": "defaults:\n  - base_settle\nname: ebb\nlimit_s: 5.0\n",
    "tidal/conf/settle/fixed.yaml": "defaults:\n  - base_settle\nname: ebb\n",
    "tidal-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tidal\nVersion: 1.0\n",
    "tidal-1.0.dist-info/entry_points.txt": """
[slackwater.settle]
ebb = tidal.rule
fixed = tidal.rule
[slackwater.designs]
backwards = tidal.order
[slackwater.meters]
gauge = tidal.gauge
hollow = tidal.empty
[slackwater.engines]
broken = tidal.broken
rude = tidal.rude
tidal = tidal.server
""",
}


@pytest.fixture(autouse=True)
def tidal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "tidal"]:
        del sys.modules[name]


def config(*overrides: str) -> Config:
    return typed(compose(overrides))


def test_a_config_file_of_the_package_is_an_option_and_its_rule_is_the_one_that_runs() -> None:
    settling = config("settle=ebb")
    assert (settling.settle.name, settling.settle.limit_s) == ("ebb", 5.0)
    assert load_rule(settling).__module__ == "tidal.rule"
    assert "ebb" in options("settle")
    assert "tidal.broken" not in sys.modules, "nothing is imported that was not asked for"


def test_what_is_ours_wins_over_a_plug_in_of_the_same_name() -> None:
    assert load_rule(config("settle=fixed")).__module__ == "pipeline.settle.fixed"
    assert options("settle")["fixed"].parent.parent.name == "conf"
    assert options("settle")["fixed"].parts[-4] != "tidal"


def test_a_design_a_meter_and_an_engine_of_the_package_are_found_by_name() -> None:
    assert load_design("backwards").blocks(3, 2, 1) == [[2, 1, 0], [2, 1, 0]]
    [found] = find_all(names=["gauge"])
    assert isinstance(found, Available) and found.meter.read() == {"level_bytes": 1}
    cells, _skipped = check_cells([config("engine.name=tidal", "meter.sources=[gauge]", "design.name=backwards")], [[]])
    assert cells[0].plan.settings


def test_one_that_breaks_is_named_and_skipped() -> None:
    listed = {each.name: each for each in engines()}
    assert listed["llamacpp"].here and listed["tidal"].here
    assert not listed["broken"].here and "No module named 'a_module_that_is_not_here'" in listed["broken"].text
    assert "SystemExit: I end your program" in listed["rude"].text
    [hollow] = [found for found in find_all() if found.name == "hollow"]
    assert isinstance(hollow, Absent)
    assert "tidal.empty of the package tidal is not a valid meter: it has no Meter.read and no find." in hollow.reason


@pytest.mark.parametrize(("override", "said"), [
    ("engine.name=broken", r"engine\.name=broken: tidal\.broken of the package tidal cannot be loaded: "
                           r"ModuleNotFoundError: No module named 'a_module_that_is_not_here'\. Fix that package"),
    ("meter.sources=[hollow]", r"meter\.sources=hollow: tidal\.empty of the package tidal is not a valid meter"),
    ("engine.name=tidall", r"engine\.name=tidall is not a known engine: expected one of llamacpp, ollama.*, tidal\."),
    ("meter.sources=[gaug]", r"meter\.sources=gaug is not a known meter: expected one of cgroup, gauge, gpu"),
])
def test_asking_for_one_that_breaks_is_an_error_with_its_cause(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_cells([config(override)], [[]])
    if override.startswith("engine"):
        with pytest.raises(ConfigError, match=said):
            load_engine(config(override))


def test_its_version_is_recorded_with_every_number() -> None:
    assert package_versions()["tidal"] == "1.0"


def test_the_doctor_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert Installed("gauge", "meter", "tidal", "") in installed()
    main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    listed = {each["name"]: each for each in document["plugins"]}
    assert listed["backwards"] == {"name": "backwards", "kind": "design", "package": "tidal", "reason": ""}
    assert "cannot be loaded" in listed["broken"]["reason"]
    assert "has this name already" in listed["fixed"]["reason"]
    main(["doctor"])
    page = capsys.readouterr().out
    assert "Plug-ins" in page and "– rude" in page and "✓ backwards" in page


def test_an_entry_point_that_says_nonsense_breaks_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "odd-1.0.dist-info").mkdir()
    (tmp_path / "odd-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (tmp_path / "odd-1.0.dist-info/entry_points.txt").write_text("[slackwater.engines]\nodd = 7/seven\n")
    sys.path.insert(0, f"{tmp_path}/")
    try:
        assert "cannot be loaded" in next(each.reason for each in installed() if each.name == "odd")
        assert "odd" in ENGINES.all() and "ebb" in options("settle")
    finally:
        sys.path.remove(f"{tmp_path}/")
