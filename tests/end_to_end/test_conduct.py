"""How a sweep goes on: failures, retries, precision, warm-ups, a plan that goes on or begins anew.

The whole program in this process, with a store, but for the trial itself: what it would have measured is made up, so
that a sweep of twenty trials takes a second and every trial reads what the test says.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pytest
from hydra.core.utils import JobReturn, run_job, setup_globals
from omegaconf import open_dict

from pipeline import provenance
from pipeline.cli import main
from pipeline.errors import ConfigError, MeterError, StoreError
from pipeline.outcome import ERROR_KIND, WARM_UP_BLOCK, flatten
from pipeline.record.find import Sweeps
from pipeline.record.folder import SweepFolder
from pipeline.record.owner import owner_tags
from pipeline.record.reason import of_error
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.sweep.loop import run_and_close
from pipeline.track import opened
from pipeline.track.push import Push, sync
from pipeline.trial import Record
from tests.unit.made_records import HEADLINE, said, trial

WORK = {"during_generation/prompt_tokens": {1: 12.0}, "during_generation/output_tokens": {1: 8.0}}
Readings = Callable[[Any], tuple[str, float]]


class NoSampler:
    """A sampler that samples nothing."""

    pid = 0

    def __init__(self, *arguments: object) -> None:
        """Takes what a sampler takes."""

    def nothing(self, *arguments: object) -> None:
        """Nothing to do."""

    start = close = stop = timeline = processes = discard = nothing


class Program:
    """`slackwater run` on a store of its own; `reads` says what each trial finds: (verdict, settled MiB)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.seen: list[tuple[int, str]] = []
        self.error: Callable[[Any], str] = lambda config: ""
        self.tokens: Callable[[Any], float] = lambda config: 8.0
        self.reads: Readings = lambda config: ("valid", 200.0 - 20.0 * (config.place.cell == "oneshot-on"))

        def run_trial(made: Any) -> Record:
            return Record()

        def result_of(record: Record, sampled: object, config: Any, engine: object, plan: Any, folder: Path,
                      *rest: object) -> TrialRecord:
            place = config.place
            self.seen.append((place.order, place.cell))
            verdict, reading = self.reads(config)
            if place.block == WARM_UP_BLOCK and verdict == "valid":
                verdict = "warm-up"
            one = trial(place.cell, place.block, reading, sweep=place.sweep_id, order=place.order, verdict=verdict,
                        began_ms=1_760_000_000_000 + 10 * len(self.seen), metrics={
                            **WORK, "during_generation/output_tokens": {1: self.tokens(config)}})
            if record.error is not None:
                one = replace(one, verdict="failed", reasons=(of_error(record.error),))
            if error := self.error(config):
                one = replace(one, reasons=(said("engine=tide cannot run on this machine: no water."),),
                              tags={**one.tags, ERROR_KIND: error})
            return replace(one, params=flatten(config), infer_os=place.cell.partition("-")[2])

        monkeypatch.setattr("pipeline.sweep.job.Sampler", NoSampler)
        monkeypatch.setattr("pipeline.sweep.job.Trial", lambda *arguments: type("T", (), {"run": run_trial})())
        monkeypatch.setattr("pipeline.sweep.job.result_of", result_of)
        monkeypatch.setattr("pipeline.sweep.conduct.tell_concerns", lambda run, rate_hz: [])
        monkeypatch.setattr("pipeline.report.pages._report", lambda *arguments: (None, ""))

    def run(self, *words: str, verb: str = "run") -> tuple[int, str]:
        """Exit code, and all that was said."""
        code = main([verb, *words, *([f"tracking.uri=sqlite:///{self.folder}/mlflow.db"] if verb == "run" else
                                     ["--store", f"sqlite:///{self.folder}/mlflow.db"])])
        said = self.capsys.readouterr()
        return code, said.out + said.err

    @property
    def sweeps(self) -> Sweeps:
        """The records of the store."""
        return opened.sweeps(f"sqlite:///{self.folder}/mlflow.db")

    @property
    def sweep(self) -> SweepRecord:
        """The last one."""
        return self.sweeps.sweep("last")

    def trials(self) -> list[TrialRecord]:
        """Of the last sweep."""
        return self.sweeps.trials(self.sweep.sweep_id)


@pytest.fixture
def program(tmp_path: Path, empty_store: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch,
            capsys: pytest.CaptureFixture[str]) -> Program:
    shutil.copytree(empty_store, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["slackwater"])
    return Program(tmp_path / "store", monkeypatch, capsys)


def test_a_failed_trial_does_not_end_a_sweep_unless_asked_to(program: Program) -> None:
    program.reads = lambda config: ("failed" if config.place.order == 2 else "valid", 200.0)
    code, said = program.run("mode=oneshot", "repetitions=3")
    assert code == 1
    assert [one.verdict for one in program.trials()] == ["valid", "failed", "valid"]
    assert "1 failed" in said
    code, said = program.run("mode=oneshot", "repetitions=3", "design.on_failure=stop")
    assert code == 1
    assert [one.verdict for one in program.trials()] == ["valid", "failed"]
    assert "stopped after the failed trial 2" in said


def test_whatever_happens_in_a_trial_is_its_result_and_the_sweep_goes_on(
        program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    faults: dict[int, Exception] = {
        1: MeterError("The sampler (process 5) did not answer within 10 s."), 2: OSError(28, "No space left on device"),
        3: ConfigError("engine.url=http://127.0.0.1:9: no answer."), 4: RuntimeError("nobody foresaw \x1b[2J this")}

    def start(_sampler: NoSampler) -> None:
        if (fault := faults.get(len(program.seen) + 1)) is not None:
            raise fault

    monkeypatch.setattr(NoSampler, "start", start)
    code, said = program.run("mode=oneshot", "repetitions=5")
    trials = program.trials()
    assert code == 1 and "Nothing was" not in said and "Traceback" not in said
    assert [one.verdict for one in trials] == ["failed"] * 4 + ["valid"]
    for one, words in zip(trials, ("did not answer within 10 s", "No space left", "no answer",
                                   "RuntimeError: nobody foresaw ␛[2J this"), strict=False):
        assert words in one.reasons[0]
    assert "RuntimeError: nobody foresaw" in (trials[3].folder / "traceback.txt").read_text()
    assert not (trials[2].folder / "traceback.txt").exists()


def test_a_disk_that_takes_no_more_records_ends_the_sweep_and_what_was_measured_is_shown(
        program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = SweepFolder._replace

    def put(folder: SweepFolder, record: TrialRecord, staged: Path | None = None) -> TrialRecord:
        if record.order < 3:
            return put_on_disk(folder, record, staged)
        monkeypatch.setattr(SweepFolder, "_replace", full)  # from now on nothing can be written
        raise StoreError("trials/3 cannot be written: No space left on device.")

    def full(*_arguments: object) -> None:
        raise StoreError("sweep.json cannot be written: No space left on device.")

    put_on_disk = SweepFolder.put
    monkeypatch.setattr(SweepFolder, "put", put)
    code, said = program.run("mode=oneshot", "repetitions=5")
    assert code == 1
    assert "oneshot" in said.partition("What was measured")[2]
    assert said.splitlines()[-1] == "slackwater: trials/3 cannot be written: No space left on device."
    monkeypatch.setattr(SweepFolder, "_replace", takes)
    assert [one.verdict for one in program.trials()] == ["valid", "valid"]


@pytest.mark.thorough
def test_trials_that_fail_for_one_reason_end_the_sweep_which_says_it_once(program: Program) -> None:
    program.reads = lambda config: ("failed", 200.0)
    code, said = program.run("mode=oneshot", "repetitions=8")
    assert code == 1
    assert [one.order for one in program.trials()] == [1, 2, 3]
    assert "stopped after 3 trials in a row that failed for one reason" in said.splitlines()[-1]
    assert said.count("for the same reason as trial") == 2 and "Left out: trials 1, 2, 3 (" in said
    program.run("mode=oneshot", "repetitions=5", "design.on_failure=continue")
    assert len(program.trials()) == 5
    program.reads = lambda config: ("suspect", 200.0)
    program.run("mode=oneshot", "repetitions=6")
    assert len(program.trials()) == 6


@pytest.mark.thorough
def test_trials_are_counted_as_alike_up_to_a_whole_block_and_one_that_differs_begins_anew(program: Program) -> None:
    program.reads = lambda config: ("failed" if config.place.order not in (3,) else "valid", 200.0)
    program.run("mode=oneshot,interactive", "infer_os=off,on", "repetitions=3")
    assert [one.order for one in program.trials()] == [1, 2, 3, 4, 5, 6, 7]


def test_an_engine_that_cannot_run_here_ends_the_sweep_at_its_first_trial_with_one_line(program: Program) -> None:
    program.reads = lambda config: ("failed", 200.0)
    program.error = lambda config: "EngineUnusableError"
    for more in ([], ["design.on_failure=retry:2"]):
        code, said = program.run("mode=oneshot,interactive", "repetitions=3", *more)
        assert code == 2
        assert [one.verdict for one in program.trials()] == ["failed"]
        assert said.splitlines()[-1] == "slackwater: engine=tide cannot run on this machine: no water."
        assert said.count("no water") <= 2      # the trial's own line, and the last


def test_an_engine_that_cannot_run_any_more_ends_a_sweep_that_has_measured(program: Program) -> None:
    program.reads = lambda config: ("failed" if config.place.order == 3 else "valid", 200.0)
    program.error = lambda config: "EngineUnusableError" if config.place.order == 3 else ""
    code, said = program.run("mode=oneshot", "repetitions=5")
    assert code == 1
    assert [one.verdict for one in program.trials()] == ["valid", "valid", "failed"]
    assert said.splitlines()[-1] == "slackwater: engine=tide cannot run on this machine: no water."


def test_a_failed_trial_is_run_again_as_often_as_asked_and_counts_once(program: Program) -> None:
    program.reads = lambda config: ("failed" if len(program.seen) in (2, 3) else "valid", 200.0)
    code, said = program.run("mode=oneshot", "repetitions=3", "design.on_failure=retry:2")
    assert code == 0, said
    assert [order for order, _ in program.seen] == [1, 2, 2, 2, 3]
    assert [(one.order, one.verdict) for one in program.trials()] == [(1, "valid"), (2, "valid"), (3, "valid")]
    _, others = program.sweeps.attempts(program.sweep.sweep_id)
    assert [(one.order, one.attempt, one.verdict) for one in others] == [(2, 1, "failed"), (2, 2, "failed")]
    assert said.count("is run again") == 2
    assert "3 trials, all valid" in said


@pytest.mark.thorough
def test_precision_stops_by_width_alone_and_reports_the_interval_it_looked_at(program: Program) -> None:
    rng = np.random.default_rng(5)
    program.reads = lambda config: ("valid", (180.0 if config.place.cell == "oneshot-on" else 200.0)
                                    + float(rng.normal(0, 1.0)))
    code, said = program.run("mode=oneshot", "infer_os=off,on", "stop=precision", "stop.target=1.5 MiB")
    assert code == 0, said
    trials = program.trials()
    blocks = max(one.block for one in trials)
    assert 5 <= blocks < 30
    assert len(trials) == 2 * blocks
    assert f"precision after {blocks} blocks" in said
    assert "precise enough" in said
    assert "not run" not in said
    _, shown = program.run("--json", verb="show")
    row = next(row for row in json.loads(shown)["effects"] if row["metric"] == HEADLINE)
    assert row["level"] == 0.97
    assert "covers 95 %" in row["method"]
    assert (row["hi"] - row["lo"]) / 2 <= 1.5
    assert row["kind"] == "less"
    code, said = program.run("mode=oneshot", "infer_os=off,on", "stop=precision", "stop.target=0.01 MiB",
                             "stop.limit=5")
    assert code == 0, said
    assert "ended at stop.limit=5 blocks, before 0.01 MiB was reached" in " ".join(said.split())
    assert len(program.trials()) == 10


@pytest.mark.thorough
def test_warm_ups_come_first_are_not_counted_and_are_run_again_after_an_interruption(program: Program) -> None:
    def interrupted(config: Any) -> tuple[str, float]:
        if len(program.seen) == 3:
            raise KeyboardInterrupt
        return "valid", 9999.0 if config.place.block == WARM_UP_BLOCK else 200.0

    program.reads = interrupted
    words = ("mode=oneshot", "infer_os=off,on", "repetitions=2", "design.warmup=1")
    code, _ = program.run(*words)
    assert code == 130
    assert [(one.order, one.verdict) for one in program.trials()] == [(1, "warm-up"), (2, "valid")]
    code, said = program.run(*words)
    assert code == 0, said
    assert "goes on: 1 of 4 trials are done" in said
    assert [order for order, _ in program.seen] == [1, 2, 3, 1, 3, 4, 5]
    trials = program.trials()
    assert [(one.order, one.block, one.verdict) for one in trials] == [
        (1, 0, "warm-up"), (2, 1, "valid"), (3, 1, "valid"), (4, 2, "valid"), (5, 2, "valid")]
    assert "Warm-up, not counted: trial 1" in said
    assert "4 trials, all valid" in said
    assert "9999" not in said.partition("What was measured")[2]


def test_a_finished_sweep_and_a_fresh_one_begin_anew_an_unfinished_one_goes_on(program: Program) -> None:
    program.run("mode=oneshot", "repetitions=2")
    first = program.trials()[0].run_id
    _, said = program.run("mode=oneshot", "repetitions=2")
    assert "goes on" not in said
    assert program.trials()[0].run_id != first

    def interrupted(config: Any) -> tuple[str, float]:
        if config.place.order == 2:
            raise KeyboardInterrupt
        return "valid", 200.0

    program.reads = interrupted
    code, _ = program.run("mode=oneshot", "repetitions=2")
    assert code == 130
    begun = program.trials()[0].run_id
    program.reads = lambda config: ("valid", 200.0)
    _, said = program.run("mode=oneshot", "repetitions=2", "--fresh")
    assert "goes on" not in said
    assert [one.order for one in program.trials()] == [1, 2]
    assert program.trials()[0].run_id != begun


@pytest.mark.thorough
def test_a_changed_environment_is_accepted_only_when_told_and_then_recorded(
        program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: Any) -> tuple[str, float]:
        if config.place.order == 2:
            raise KeyboardInterrupt
        return "valid", 200.0

    program.reads = interrupted
    program.run("mode=oneshot", "repetitions=2")
    here = dict(provenance.facts())
    monkeypatch.setattr(provenance, "facts", lambda: here | {"kernel": "7.0-new"})
    program.reads = lambda config: ("valid", 200.0)
    code, said = program.run(verb="resume")
    assert code == 2
    assert "kernel" in said and "7.0-new" in said and "--accept-change" in said
    assert len(program.trials()) == 1
    code, said = program.run("--accept-change", verb="resume")
    assert code == 0, said
    assert [one.order for one in program.trials()] == [1, 2]
    assert "7.0-new" in program.sweep.tags["accepted_changes"]


def test_a_sweep_whose_process_was_killed_is_closed_and_goes_on(program: Program) -> None:
    def killed(config: Any) -> tuple[str, float]:
        if config.place.order == 2:
            os._exit(137)  # as SIGKILL: nothing is closed, nothing is said
        return "valid", 200.0

    program.reads = killed
    child = os.fork()
    if child == 0:
        program.run("mode=oneshot", "repetitions=3")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 137
    assert str(program.sweep.status) == "interrupted", "its owner is gone, whatever MLflow's run says"
    program.reads = lambda config: ("valid", 200.0)
    code, said = program.run("mode=oneshot", "repetitions=3")
    assert code == 0, said
    assert "goes on: 1 of 3 trials are done" in said
    assert [order for order, _ in program.seen] == [2, 3]
    assert program.sweep.status == "finished"
    assert [(one.order, one.verdict) for one in program.trials()] == [(1, "valid"), (2, "valid"), (3, "valid")]


@pytest.mark.thorough
def test_a_sweep_whose_store_moved_goes_on_where_it_is_now(program: Program) -> None:
    def interrupted(config: Any) -> tuple[str, float]:
        if config.place.order == 2:
            raise KeyboardInterrupt
        return "valid", 200.0

    program.reads = interrupted
    program.run("mode=oneshot", "repetitions=2")
    was = program.folder
    program.folder = was.rename(was.with_name("elsewhere"))
    program.reads = lambda config: ("valid", 200.0)
    code, said = program.run(verb="resume")
    assert code == 0, said
    assert [(one.order, one.verdict) for one in program.trials()] == [(1, "valid"), (2, "valid")]
    assert not (was / "mlflow.db").exists(), "a store was made where it had been"


@pytest.mark.thorough
def test_a_factorial_plan_runs_every_combination_in_every_block(program: Program) -> None:
    def reads(config: Any) -> tuple[str, float]:
        flags = config.infer_os
        return "valid", 200.0 - 10.0 * flags.memory_optimization - 7.0 * flags.quantization + 0.01 * config.place.order

    program.reads = reads
    code, said = program.run("mode=oneshot", "design=factorial", "repetitions=2",
                             "engine.flags.parallel_processing.on={n_parallel:1}",
                             "engine.flags.cpu_optimization.on={n_threads:all_but_one}")
    assert code == 0, said
    trials = program.trials()
    assert [len({one.cell for one in trials if one.block == block}) for block in (1, 2)] == [4, 4]
    assert "memory_optimization (10.0 MiB)" in said
    assert "quantization (7.0 MiB)" in said
    assert "Not run: npu_optimization" in said


def test_a_sweep_that_goes_on_judges_the_work_as_if_it_had_not_been_interrupted(program: Program) -> None:
    """Its first trial generated 8 tokens, the others 9: they are suspect, whichever process ran the first."""
    program.tokens = lambda config: 8.0 if config.place.order == 1 else 9.0

    def interrupted(config: Any) -> tuple[str, float]:
        if len(program.seen) == 2:
            raise KeyboardInterrupt
        return "valid", 180.0

    program.reads = interrupted
    assert program.run("mode=oneshot", "repetitions=3")[0] == 130
    code, said = program.run("mode=oneshot", "repetitions=3")
    assert code == 0 and "goes on: 1 of 3 trials are done" in said
    assert "warning: measured by method 1 so far, by method 2 from here on" in said
    other = ("output_tokens by turn {1: 9}, the cell's other trials {1: 8}",)
    assert [(one.verdict, one.reasons) for one in program.trials()] == [
        ("valid", ()), ("suspect", other), ("suspect", other)]


# Where trials run, and where their records go


def work(payload: bytes, overrides: list[str], number: int) -> JobReturn:
    """In a process of a launcher: what it was sent is all it knows."""
    context, master, task = cloudpickle.loads(payload)
    setup_globals()
    config = context.config_loader.load_sweep_config(master, overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    return Context().run(run_job, task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial in a process of its own, one at a time, sent as Hydra's launchers with processes send it; forked, so
    that what the test made up holds there too."""
    def elsewhere(launch: Any, jobs: Sequence[list[str]], first: int) -> list[JobReturn]:
        launcher, returned = launch.__self__, []
        payload = cloudpickle.dumps((launcher.hydra_context, launcher.config, launcher.task_function))
        for number, overrides in enumerate(jobs, first):
            with get_context("fork").Pool(1) as pool:
                returned.append(pool.apply(work, (payload, overrides, number)))
        return returned

    monkeypatch.setattr("pipeline.sweep.conduct.run_and_close",
                        lambda run, plan, launch: run_and_close(run, plan, partial(elsewhere, launch)))


@pytest.mark.thorough
def test_trials_in_processes_of_a_launcher_leave_the_same_records(
        program: Program, request: pytest.FixtureRequest) -> None:
    program.tokens = lambda config: 9.0 if config.place.order == 3 else 8.0
    words = ("mode=oneshot", "infer_os=off,on", "repetitions=2", "design=fixed", "--fresh")
    assert program.run(*words)[0] == 0
    here = program.trials()
    assert [one.verdict for one in here] == ["valid", "valid", "suspect", "valid"]
    request.getfixturevalue("workers")
    seen = len(program.seen)
    code, said = program.run(*words)
    assert code == 0, said
    assert len(program.seen) == seen, "a trial ran in this process"
    there = program.trials()
    assert there[0].sweep_id != here[0].sweep_id

    def alike(one: TrialRecord) -> TrialRecord:
        return replace(one, sweep_id="", started_ms=0, ended_ms=0, run_id="", folder=one.folder.name)

    assert list(map(alike, there)) == list(map(alike, here))
    assert all(one.run_id for one in there), "sent to MLflow by the process of the sweep"


@pytest.mark.usefixtures("workers")
def test_a_trial_that_fails_in_a_process_of_a_launcher_ends_the_sweep_if_asked_to(program: Program) -> None:
    program.reads = lambda config: ("failed" if config.place.order == 1 else "valid", 200.0)
    code, said = program.run("mode=oneshot", "repetitions=3", "design.on_failure=stop")
    assert code == 1
    assert "stopped after the failed trial 1" in said
    assert [one.verdict for one in program.trials()] == ["failed"]


def test_a_sweep_that_runs_is_not_gone_on_with_and_its_process_is_named(program: Program) -> None:
    program.run("mode=oneshot", "repetitions=1")
    folder = program.sweeps.folder(program.sweep.sweep_id)
    folder.write(replace(folder.bare(), status="running", owner=owner_tags()))
    code, said = program.run(verb="resume")
    assert code == 2
    assert program.sweep.sweep_id in said and f"process {os.getpid()}" in said
    assert len(program.seen) == 1


def test_a_sweep_goes_on_while_its_store_is_away_and_its_trials_wait(
        program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: Any) -> tuple[str, float]:
        if config.place.order == 2:
            raise KeyboardInterrupt
        return "valid", 200.0

    def away(tracking: object) -> Push:
        raise StoreError("The store does not answer.")

    program.reads = interrupted
    assert program.run("mode=oneshot", "repetitions=2")[0] == 130
    program.reads = lambda config: ("valid", 200.0)
    with monkeypatch.context() as patch:
        patch.setattr(Push, "open", away)
        code, said = program.run(verb="resume")
    assert code == 0, said
    assert "The store does not answer." in said
    first, second = program.trials()
    assert (first.verdict, second.verdict) == ("valid", "valid")
    assert first.run_id and not second.run_id
    assert sync(f"sqlite:///{program.folder}/mlflow.db").sent == 2  # the attempt that was interrupted waits too
    assert all(one.run_id for one in program.trials())
