"""The contracts that pipeline/testing ships fail what breaks them, as an author would see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = {
    "rash/__init__.py": "",
    "rash/rule.py": "def settled(seen, config):\n    return True\n",
    "rash/order.py": "import random\n\ndef blocks(cells, repetitions, seed):\n"
                     "    return [random.sample(range(cells), cells - 1) for _ in range(repetitions)]\n",
    "rash/gauge.py": "from pipeline.meter import base\n\n"
                     "class Meter(base.Meter):\n    name, source, checked = 'gauge', 'nowhere', 'by eye'\n\n"
                     "    def read(self, pids=()):\n        return {'level': 'high'}\n\n"
                     "def find(root=None, target=base.NOTHING):\n    return base.Available(Meter())\n",
    "rash/conf/settle/rash.yaml": "defaults:\n  - base_settle\nname: rash\n",
    "rash/conf/design/rash.yaml": "defaults:\n  - blocked\n  - _self_\nname: rash\n",
    "rash-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: rash\nVersion: 1\n",
    "rash-1.dist-info/entry_points.txt": "[slackwater.settle]\nrash = rash.rule\n[slackwater.designs]\n"
                                         "rash = rash.order\n[slackwater.meters]\ngauge = rash.gauge\n",
    "test_rash.py": "from pipeline.testing import DesignContract, MeterContract, SettleContract\n\n"
                    "class TestRule(SettleContract):\n    name = 'rash'\n\n"
                    "class TestOrder(DesignContract):\n    name = 'rash'\n\n"
                    "class TestGauge(MeterContract):\n    name = 'gauge'\n",
}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=folder, text=True, capture_output=True, timeout=120,
                          env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{folder}:{ROOT}", "HOME": str(folder)})


@pytest.mark.thorough
def test_what_breaks_a_contract_fails_it_with_the_values_that_show_it(tmp_path: Path) -> None:
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_rash.py")
    failed = {line.split("::")[1] + "." + line.split("::")[2].split(" ")[0]
              for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == {
        "TestRule.test_it_does_not_call_stable_what_it_has_not_seen",
        "TestOrder.test_every_block_runs_every_cell_once", "TestOrder.test_the_seed_alone_decides_the_order",
        "TestGauge.test_it_has_one_name_and_says_where_its_figures_come_from",
        "TestGauge.test_where_it_is_absent_it_gives_a_reason_and_no_zero",
        "TestGauge.test_a_figure_is_a_number_and_its_name_ends_in_its_unit",
        "TestGauge.test_the_metric_dictionary_knows_every_figure"}, done.stdout + done.stderr
    assert "draw from a generator of your own" in done.stdout
    assert "assert True is False" in done.stdout, "pytest rewrites the contracts' assertions, and shows their values"


def test_without_pytest_the_room_says_what_it_needs(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", "import sys; sys.modules['pytest'] = None; import pipeline.testing")
    assert done.stderr.rstrip().endswith("pipeline.testing needs pytest, which slackwater does not bring: "
                                         "pip install pytest.")
