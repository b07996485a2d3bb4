"""A sweep as a user runs it: the embedded engine, a checkout with a space in its path, read back through MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import metrics

pytestmark = pytest.mark.timeout(300)

# 50 readings a second: this machine may run other tests beside
SHORT = ["repetitions=1", "max_tokens=8", "meter.rate_hz=50", "settle.window_s=0.5", "mode.think_time_s=0"]
CELLS = {"oneshot-off", "oneshot-on", "interactive-off", "interactive-on"}


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "100", "MLFLOW_DISABLE_TELEMETRY": "true"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def run(checkout: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(checkout), text=True, capture_output=True, timeout=240
    )


def started(checkout: Path, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """The program at work, to be disturbed."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(checkout),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def swept(spaced_checkout: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkout in whose store experiment=mode_gap was run from elsewhere, cut short, and what it printed."""
    elsewhere = tmp_path_factory.mktemp("else where")
    done = run(spaced_checkout, elsewhere, "run", "-m", "experiment=mode_gap", "mode=oneshot,interactive", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    return spaced_checkout, done.stdout


@pytest.fixture(scope="module")
def runs(swept: tuple[Path, str]) -> list[Any]:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{swept[0]}/mlruns/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def trials_of(runs: list[Any]) -> list[Any]:
    return [run for run in runs if run.data.tags.get("kind") == "trial"]


def test_every_cell_is_one_flat_run_and_the_sweep_is_one_more(runs: list[Any]) -> None:
    trials = trials_of(runs)
    assert {run.data.tags["cell"] for run in trials} == CELLS
    assert len(trials) == 4
    assert [run.data.tags["kind"] for run in runs].count("sweep") == 1
    assert not [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["sweep_id"] for run in runs}) == 1


def test_every_trial_is_valid_and_its_flags_were_proved(runs: list[Any], swept: tuple[Path, str]) -> None:
    for run in trials_of(runs):
        assert valid_but_for_the_sampler(run.data.tags), run.data.tags.get("reasons")
        provenance = json.loads((artifacts(run) / "provenance.json").read_text())
        states = {proof["knob"]: proof["state"] for proof in provenance["proofs"]}
        assert "contradicted" not in states.values()
        assert sum(state == "confirmed" for state in states.values()) >= len(states) // 2


def valid_but_for_the_sampler(tags: Any) -> bool:
    """A machine that runs tests on every core may keep the sampler from its slots; nothing else is excused."""
    reasons = [reason for reason in tags.get("reasons", "").splitlines() if reason]
    return tags["verdict"] in ("valid", "suspect") and all("the sampler" in reason for reason in reasons)


def artifacts(run: Any) -> Path:
    from urllib.parse import unquote, urlparse

    return Path(unquote(urlparse(run.info.artifact_uri).path))


def test_the_same_artifacts_lie_in_every_run(runs: list[Any]) -> None:
    for run in trials_of(runs):
        names = {path.name for path in artifacts(run).iterdir()}
        assert {
            "timeline.parquet",
            "timeline.png",
            "config.yaml",
            "provenance.json",
            "response.txt",
            "server.log",
        } <= names
        assert (artifacts(run) / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_every_phase_was_read_in_both_modes(runs: list[Any]) -> None:
    for run in trials_of(runs):
        metrics = run.data.metrics
        for phase in ("initialization", "pre_generation", "post_generation", "stabilized", "released"):
            assert metrics[f"{phase}/tree_rss_mib"] > 10, (run.data.tags["cell"], phase)
            assert metrics[f"{phase}/samples"] > 5
        assert metrics["during_generation/tree_rss_peak_mib"] >= metrics["post_generation/tree_rss_mib"] - 1
        assert metrics["during_generation/output_tokens"] == 8
        assert metrics["baseline/system_used_pct"] > 0


def test_the_dictionary_knows_every_metric_that_was_logged(runs: list[Any]) -> None:
    logged = {name for run in runs for name in run.data.metrics}
    assert len(logged) > 150
    assert sorted(name for name in logged if metrics.find(name) is None) == []


def test_initialization_is_the_empty_server_in_both_modes_and_the_model_shows_after_it(runs: list[Any]) -> None:
    for run in trials_of(runs):
        metrics = run.data.metrics
        assert metrics["initialization/tree_rss_mib"] < 60
        assert metrics["post_generation/tree_rss_mib"] > metrics["initialization/tree_rss_mib"] + 90
        loaded_before = metrics["pre_generation/tree_rss_mib"] > 120
        assert loaded_before == (run.data.tags["mode"] == "interactive")


def test_the_old_gap_is_a_projection_of_the_same_trials(runs: list[Any]) -> None:
    for run in trials_of(runs):
        metrics = run.data.metrics
        source = "initialization" if run.data.tags["mode"] == "interactive" else "post_generation"
        assert metrics["as_found/tree_rss_mib"] == pytest.approx(metrics[f"{source}/tree_rss_mib"])
        assert metrics["as_found/system_used_pct"] == pytest.approx(metrics[f"{source}/system_used_pct"])


def test_quantised_kv_and_no_prompt_cache_make_a_smaller_server(runs: list[Any]) -> None:
    settled = {run.data.tags["cell"]: run.data.metrics["stabilized/tree_rss_mib"] for run in trials_of(runs)}
    assert settled["oneshot-on"] < settled["oneshot-off"] - 10
    assert settled["interactive-on"] < settled["interactive-off"] - 10


def test_the_summary_names_the_cells_and_the_next_command(swept: tuple[Path, str]) -> None:
    printed = swept[1]
    for word in ("oneshot", "interactive", "as found", "unified", "slackwater ui", "cells: 4, trials: 4, blocks: 1",
                 "duration: unknown", "by the model file", "no other sweep on this machine"):
        assert word in printed
    assert "\x1b[" not in printed


def test_show_prints_the_same_sweep_again_as_one_json_document(swept: tuple[Path, str], tmp_path: Path) -> None:
    done = run(swept[0], tmp_path, "show", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert {trial["cell"] for trial in document["trials"]} == CELLS
    for key in ("run_id", "cell", "repetition", "order", "mode", "verdict", "reasons", "params", "metrics"):
        assert key in document["trials"][0]
    settled = {trial["cell"]: trial["metrics"]["stabilized/tree_rss_mib"] for trial in document["trials"]}
    assert settled["oneshot-on"] < settled["oneshot-off"] - 10
    if any(trial["verdict"] != "valid" for trial in document["trials"]):
        pytest.skip("the sampler lost slots on this busy machine: a suspect trial is in no comparison")
    unified = [
        row for row in document["gap"]["unified"] if row["metric"] == "stabilized/tree_rss_mib" and row["turn"] == 1
    ]
    assert {row["infer_os"] for row in unified} == {"off", "on"}
    for row in unified:
        assert row["difference"] == pytest.approx(row["oneshot"] - row["interactive"])
        assert abs(row["difference"]) < 10
    found = [row for row in document["gap"]["as_found"] if row["metric"] == "as_found/tree_rss_mib"]
    assert all(row["difference"] > 100 for row in found)
    [effect, *_] = [row for row in document["effects"] if row["metric"] == "stabilized/tree_rss_mib"]
    assert effect["difference"] < -10


def test_runs_lists_the_sweep(swept: tuple[Path, str], tmp_path: Path) -> None:
    done = run(swept[0], tmp_path, "runs", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["sweeps"]) == 1


def test_every_trial_is_a_small_record_and_all_were_sent(swept: tuple[Path, str]) -> None:
    [sweep] = (swept[0] / "mlruns" / "sweeps").glob("[!.]*")
    trials = sorted(path.name for path in (sweep / "trials").iterdir())
    assert [name.partition("-")[0] for name in trials] == ["0001", "0002", "0003", "0004"]
    assert max((sweep / "trials" / name / "result.json").stat().st_size for name in trials) <= 20_000
    [sent] = (sweep / "pushed").iterdir()
    assert json.loads(sent.read_text())["runs"].keys() == {*trials, ""}


@pytest.mark.thorough
def test_trials_in_processes_of_hydras_joblib_launcher(
    swept: tuple[Path, str], tmp_path: Path, empty_store: Path
) -> None:
    """One at a time, since each block is one trial."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    done = run(swept[0], tmp_path, "run", "mode=oneshot", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SHORT,
               "repetitions=2", f"tracking.uri={store}")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(run(swept[0], tmp_path, "show", "--json", "--store", store).stdout)
    assert [trial["cell"] for trial in document["trials"]] == ["oneshot-off"] * 2
    assert all(valid_but_for_the_sampler(trial | {"reasons": "\n".join(trial["reasons"])})
               and trial["run_id"] for trial in document["trials"])


def wait_for(condition: Any, limit_s: float = 160.0) -> Any:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail("waited in vain")


def servers_below(pid: int) -> list[psutil.Process]:
    try:
        return [
            child
            for child in psutil.Process(pid).children(recursive=True)
            if any("llamacpp_server" in word for word in child.cmdline())
        ]
    except psutil.Error:
        return []


def test_ctrl_c_keeps_finished_trials_ends_the_server_and_exits_130(
    spaced_checkout: Path, model_file: Path, tmp_path: Path, empty_store: Path
) -> None:
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    running = started(
        spaced_checkout,
        tmp_path,
        "run",
        "-m",
        "mode=oneshot",
        "infer_os=off,on",
        "repetitions=3",
        "max_tokens=4",
        "settle.window_s=0.3",
        f"tracking.uri={store}",
    )
    try:
        first = wait_for(lambda: servers_below(running.pid))[0]
        second = wait_for(lambda: [s for s in servers_below(running.pid) if s.pid != first.pid])[0]
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not second.is_running()
    document = json.loads(run(spaced_checkout, tmp_path, "show", "--json", "--store", store).stdout)
    verdicts = [trial["verdict"] for trial in document["trials"]]
    assert verdicts[0] in ("valid", "suspect")
    assert verdicts[-1] in ("failed", "interrupted")
    assert len(verdicts) == 2


def test_killing_the_orchestrator_leaves_no_server_and_no_sampler(
    spaced_checkout: Path, model_file: Path, tmp_path: Path, empty_store: Path
) -> None:
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    running = subprocess.Popen(
        command("run", "mode=oneshot", "repetitions=1", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"),
        cwd=tmp_path,
        env=environment(spaced_checkout),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: servers_below(running.pid))
    below = psutil.Process(running.pid).children(recursive=True)
    assert len(below) >= 2
    running.kill()
    running.wait()
    wait_for(
        lambda: not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE],
        10,
    )


@pytest.mark.thorough
def test_a_server_that_dies_fails_its_trial_and_the_sweep_goes_on(
    spaced_checkout: Path, model_file: Path, tmp_path: Path, empty_store: Path
) -> None:
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    running = started(
        spaced_checkout,
        tmp_path,
        "run",
        "mode=oneshot",
        "repetitions=2",
        "max_tokens=150",
        "num_ctx=1024",
        "settle.window_s=0.3",
        f"tracking.uri={store}",
    )
    try:
        server = wait_for(lambda: servers_below(running.pid))[0]
        time.sleep(1.5)
        server.kill()
        stdout, stderr = running.communicate(timeout=100)
    finally:
        running.kill()
    assert running.returncode == 1, stderr
    assert "killed by signal 9" in stdout + stderr
    document = json.loads(run(spaced_checkout, tmp_path, "show", "--json", "--store", store).stdout)
    assert [trial["verdict"] == "failed" for trial in document["trials"]] == [True, False]
    assert "killed by signal 9" in document["trials"][0]["reasons"][0]
    assert document["trials"][0]["metrics"]["initialization/tree_rss_mib"] > 10
