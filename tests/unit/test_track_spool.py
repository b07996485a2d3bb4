"""What was measured is on the disk, whole, until a store has it; what a crash leaves is never taken for a result."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.result import TrialResult
from pipeline.track.spool import Spool
from pipeline.track.summary import SweepSummary

STORE = "/somewhere/mlflow.db"


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "home" / "spool", STORE)


def trial(folder: Path, order: int = 3, cell: str = "oneshot-on") -> TrialResult:
    (folder / "timeline.png").write_bytes(b"\x89PNG")
    return TrialResult("sweep-1", cell, 1, 1, order, "oneshot", "on", "valid", [], [], 10, 20, {"seed": 42},
                       {}, {"stabilized/tree_rss_mib": {1: 5.5}}, {"tree_rss_mib": [(0, 1.0)]}, {}, str(folder))


def test_a_result_comes_back_as_it_was_with_its_artifacts(spool: Spool) -> None:
    result = trial(spool.stage("sweep-1", 3, "oneshot-on", 1))
    assert spool.pending() == []
    kept = spool.put(result)
    [waiting] = spool.pending()
    assert (waiting.sweep_id, waiting.store, waiting.is_trial) == ("sweep-1", STORE, True)
    found = spool.take(waiting)
    assert found == dataclasses.replace(result, folder=kept.folder)
    assert (found.path / "timeline.png").read_bytes() == b"\x89PNG"
    assert found.path.name == "0003-oneshot-on-r1"


def test_a_result_from_elsewhere_is_copied_and_its_folder_left_alone(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    kept = spool.put(trial(tmp_path / "mine"))
    assert (kept.path / "timeline.png").exists()
    assert (tmp_path / "mine" / "timeline.png").exists()


def test_a_trial_run_again_does_not_replace_one_that_still_waits(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for started_ms in (10, 11):
        spool.put(dataclasses.replace(trial(tmp_path / "mine"), started_ms=started_ms))
    assert {spool.take(item).started_ms for item in spool.pending()} == {10, 11}


def test_a_cell_with_any_name_gets_a_folder_in_the_spool(spool: Spool) -> None:
    for order, cell in enumerate(["../../etc", "a b/c=1,2", "x" * 500, "日本", ""]):
        kept = spool.put(trial(spool.stage("..", order, cell, 1), order, cell))
        assert kept.path.is_relative_to(spool.root)
        assert kept.path.resolve().is_relative_to(spool.root.resolve())
    assert len(spool.pending()) == 5


def test_a_damaged_result_is_reported_and_stays(spool: Spool) -> None:
    kept = spool.put(trial(spool.stage("sweep-1", 3, "oneshot-on", 1)))
    (kept.path / "result.json").write_text('{"schema_version": 1, "sweep')
    with pytest.raises(StoreError, match=r"result\.json.*stays where it is"):
        spool.take(spool.pending()[0])
    assert len(spool.pending()) == 1


def test_a_result_of_a_newer_version_is_reported_and_stays(spool: Spool) -> None:
    kept = spool.put(trial(spool.stage("sweep-1", 3, "oneshot-on", 1)))
    (kept.path / "result.json").write_text('{"schema_version": 99}')
    with pytest.raises(StoreError, match="schema_version 99"):
        spool.take(spool.pending()[0])


def test_a_summary_waits_behind_the_trials_of_its_sweep(spool: Spool) -> None:
    summary = SweepSummary("sweep-1", "mode_gap", "Which?", "slackwater run", 2, {"order": [1]}, 5, "finished", 9)
    spool.put_sweep(summary)
    spool.put(trial(spool.stage("sweep-1", 3, "oneshot-on", 1)))
    assert [item.is_trial for item in spool.pending()] == [True, False]
    assert spool.take_sweep(spool.pending()[1]) == summary


def test_a_finished_sweep_leaves_nothing_behind_but_never_an_unsent_trial(spool: Spool) -> None:
    kept = spool.put(trial(spool.stage("sweep-1", 3, "oneshot-on", 1)))
    spool.discard("sweep-1")
    assert len(spool.pending()) == 1
    spool.remove(kept.path)
    spool.discard("sweep-1")
    assert list(spool.root.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_but_not_its_results_nor_the_work_of_a_living_one(spool: Spool) -> None:
    program = ("import sys\nfrom pathlib import Path\nfrom pipeline.track.spool import Spool\n"
               "import test_track_spool as t\nspool = Spool(Path(sys.argv[1]), t.STORE)\n"
               "spool.stage('dead-empty', 1, 'c', 1)\n"
               "spool.put(t.dataclasses.replace(t.trial(spool.stage('dead', 1, 'c', 1)), sweep_id='dead'))\n"
               "spool.stage('dead', 2, 'c', 1)\n")
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, str(spool.root)], check=True,
                   env={"PYTHONPATH": f"{root}:{root / 'tests' / 'unit'}"})
    mine = spool.stage("living", 1, "c", 1)
    spool.clean()
    assert {path.name for path in spool.root.iterdir()} == {"dead", "living"}
    assert mine.is_dir()
    assert not list((spool.root / "dead").glob(".partial-*"))
    assert [item.sweep_id for item in spool.pending()] == ["dead"]
