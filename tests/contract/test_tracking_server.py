"""A tracking server with PostgreSQL behind it: MLflow's own server on a real cluster, both started here.

Debian's packages: postgresql (the cluster runs as nobody where the tests run as root) and libpq5, and psycopg from
tests/requirements.lock.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Tracking
from pipeline.record.folder import SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import ARTIFACTS, TrialRecord
from pipeline.track import location, opened, view
from pipeline.track.push import Push, sync
from tests.conftest import NOBODY, ROOT
from tests.unit.test_track_push import BEGAN_MS, SWEEP, begun, put

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(600)]

PASSWORD = "ebb-and-flood"


def program(name: str) -> str:
    """A program of PostgreSQL; Debian keeps them beside the PATH."""
    found = [shutil.which(name), *sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), reverse=True)]
    chosen = next((path for path in found if path), None)
    if chosen is None:
        pytest.skip(f"PostgreSQL's {name} is not installed: apt install postgresql")
    return chosen


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(answers: Any, limit_s: float = 90.0) -> None:
    deadline = time.monotonic() + limit_s
    while not answers():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty database in a cluster of its own, with its password."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -r tests/requirements.lock")
    initdb, postgres = program("initdb"), program("postgres")
    folder, port = tmp_path_factory.mktemp("cluster"), free_port()
    secret = folder / "password"
    secret.write_text(PASSWORD)
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
        for path in (folder, secret):
            os.chown(path, NOBODY, NOBODY)
        for parent in folder.parents:
            if parent.owner() == "root" and not parent.stat().st_mode & 1 and parent.is_relative_to("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    subprocess.run([*as_user, initdb, "-D", str(data), "-U", "slackwater", "-A", "scram-sha-256", "--pwfile",
                    str(secret), "-E", "UTF8", "--no-sync"], check=True, capture_output=True, cwd="/")
    options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with subprocess.Popen([*as_user, postgres, "-D", str(data), *words], stderr=subprocess.DEVNULL, cwd="/") as cluster:
        try:
            import psycopg

            address = f"postgresql://slackwater:{PASSWORD}@127.0.0.1:{port}"

            def made() -> bool:
                try:
                    with psycopg.connect(f"{address}/postgres", autocommit=True) as to:
                        to.execute("CREATE DATABASE mlflow")
                except psycopg.OperationalError:
                    return False  # it does not listen yet, or listens and is still starting up
                return True

            until(made)
            yield f"{address}/mlflow"
        finally:
            cluster.send_signal(signal.SIGQUIT)


@dataclass
class Server:
    """MLflow's tracking server, which can go away and come back at the same address."""

    database: str
    artifacts: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--artifacts-destination",
             str(self.artifacts), "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        until(lambda: listens(self.port))

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
            until(lambda: not listens(self.port))


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(database, tmp_path_factory.mktemp("served"), free_port())
    running.start()
    yield running
    running.stop()


@pytest.fixture
def push(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """This machine's way to the server, with records of this test."""
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "home"))
    return Push.open(Tracking(uri=server.uri))


def meant(push: Push, sweep_id: str) -> SweepRecord:
    """A sweep that is measured for this server."""
    return replace(SWEEP, sweep_id=sweep_id, tags={**SWEEP.tags, "tracking_uri": push.location.shown,
                                                   "tracking_experiment": "slackwater"})


def timed(push: Push, folder: SweepFolder, trial: TrialRecord) -> tuple[str | None, float]:
    began = time.monotonic()
    return push.trial(folder, trial), time.monotonic() - began


def test_a_server_that_goes_away_costs_no_trial_and_little_time_and_gets_all_of_it_later(
        server: Server, push: Push, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sweep = meant(push, "away-1")
    folder = begun(push.location.records, sweep)
    assert push.sweep(folder, sweep) is None
    trials = [put(folder, order=order, started_ms=BEGAN_MS + order * 1000, ended_ms=BEGAN_MS + order * 1000 + 900,
                  turns={"stabilized/tree_rss_mib": {1: 180.5, 2: 190.25}, "as_found/tree_rss_mib": {0: 37.0}})
              for order in range(1, 6)]
    assert push.trial(folder, trials[0]) is None
    server.signal(signal.SIGSTOP)  # accepts, and says nothing
    silent, took_s = timed(push, folder, trials[1])
    assert "slackwater sync" in str(silent)
    assert took_s < 60, "MLflow alone waits for minutes"
    server.stop()
    for trial in trials[2:4]:
        gone, took_s = timed(push, folder, trial)
        assert gone is None and took_s < 30
    ended = replace(sweep, status="finished", ended_ms=BEGAN_MS + 9000, owner={})
    folder.write(ended)
    assert "wait in" in str(push.sweep(folder, ended))
    server.start()

    later = Push.open(Tracking(uri=server.uri))  # another process, after all of it
    assert later.pending(folder) == 5, "the fifth was not even tried"
    synced = sync()  # what `slackwater sync` does: to the store it was measured for
    assert (synced.sent, list(synced.notes)) == (5, [])
    assert (sync().sent, later.pending(folder)) == (0, 0)
    runs = {run.data.tags["order"]: run for run in later.client.search_runs(
        [later.experiment_id], "tags.sweep_id = 'away-1' AND tags.kind = 'trial'")}
    assert [(runs[str(trial.order)].info.start_time, runs[str(trial.order)].info.end_time) for trial in trials] == [
        (trial.started_ms, trial.ended_ms) for trial in trials]
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "another"))  # a colleague's machine
    pulled = opened.sweeps(server.uri).subject("away-1")
    assert [trial.to_json() for trial in pulled.trials] == [trial.to_json() for trial in trials]
    for trial in pulled.trials:
        assert len(later.client.get_metric_history(trial.run_id, "timeline/tree_anon_mib")) == 100
        assert {item.path for item in later.client.list_artifacts(trial.run_id)} == {*ARTIFACTS, "result.json"}
    assert (pulled.sweep.status, pulled.sweep.started_ms, pulled.sweep.ended_ms, pulled.sweep.origin) == (
        "finished", BEGAN_MS, BEGAN_MS + 9000, "pulled")


def test_what_was_half_pushed_is_one_run_in_the_end(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: object) -> None:
        raise ConnectionError("reset by peer")

    folder = begun(push.location.records, meant(push, "half-1"))
    trial = put(folder)
    with monkeypatch.context() as patch:
        patch.setattr(push, "_values", dies)
        assert "reset by peer" in str(push.trial(folder, trial))
    assert push.send(folder)[0] == 2
    [run] = push.client.search_runs([push.experiment_id], "tags.sweep_id = 'half-1' AND tags.kind = 'trial'")
    assert (run.data.tags["verdict"], run.data.metrics["stabilized/tree_rss_mib"]) == ("valid", 190.25)


def test_a_sweep_on_a_server_has_its_view_there_and_ui_names_the_servers_page(server: Server, push: Push) -> None:
    sweep = replace(meant(push, "seen-1"), status="finished", started_ms=BEGAN_MS + 10**6,
                    ended_ms=BEGAN_MS + 2 * 10**6)
    folder = begun(push.location.records, sweep)
    put(folder)
    assert push.sweep(folder, sweep) == "1 waiting results were sent." or push.pending(folder) == 0
    assert view.TAG + "slackwater-seen-1" in push.client.get_experiment(push.experiment_id).tags
    done = subprocess.run([sys.executable, "-m", "pipeline", "ui", "--no-browser", "--store", server.uri], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{server.uri}/#/experiments/{push.experiment_id}/runs?" in done.stdout
    assert "viewStateShareKey=slackwater-" in done.stdout


def test_a_sweep_straight_into_the_database_leaves_its_password_nowhere(
        database: str, spaced_checkout: Path, model_file: Path) -> None:
    own = database.replace("/mlflow", "/straight")
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE DATABASE straight")
    command = [sys.executable, "-m", "pipeline", "run", "mode=oneshot", "repetitions=1", "max_tokens=4",
               "settle.window_s=0.5", "meter.rate_hz=20", "clear=none", f"tracking.uri='{own}'"]
    done = subprocess.run(command, cwd=spaced_checkout, capture_output=True, text=True, check=False,
                          env={**os.environ, "TMPDIR": str(spaced_checkout.parent)})
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run([sys.executable, "-m", "pipeline", "show", "--json", "--store", own], cwd=spaced_checkout,
                           capture_output=True, text=True, check=True).stdout
    assert '"verdict": "valid"' in shown or "the sampler" in shown
    dump = subprocess.run([program("pg_dump"), own], capture_output=True, text=True, check=True).stdout
    assert "tree_rss_mib" in dump and "slackwater:***@" in dump
    files = [path for path in (spaced_checkout / "mlruns").rglob("*") if path.is_file()]
    assert {"config.yaml", "provenance.json", "plan.json"} <= {path.name for path in files}
    everything = {"the database": dump, "what was printed": done.stdout + done.stderr + shown}
    everything |= {path.name: path.read_bytes().decode(errors="replace") for path in files}
    assert [name for name, text in everything.items() if PASSWORD in text] == []
