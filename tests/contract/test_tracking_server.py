"""A tracking server with PostgreSQL behind it: MLflow's own server on a real cluster, both started here.

Debian's packages: postgresql (the cluster runs as nobody where the tests run as root) and libpq5, and psycopg from
tests/requirements.lock.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Tracking
from pipeline.result import ARTIFACTS
from pipeline.track import location, view
from pipeline.track.store import Store, open_store
from pipeline.track.sync import send
from tests.conftest import NOBODY, ROOT
from tests.unit.test_track_store import BEGAN_MS, SWEEP, trial

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
def store(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """This machine's store on the server, with a spool of this test."""
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "home"))
    return open_store(Tracking(uri=server.uri))


def timed_record(store: Store, result: Any) -> tuple[Any, float]:
    began = time.monotonic()
    return store.record(result), time.monotonic() - began


def test_a_server_that_goes_away_costs_no_trial_and_little_time_and_gets_all_of_it_later(
        server: Server, store: Store, tmp_path: Path) -> None:
    summary = dataclasses.replace(SWEEP, sweep_id="away-1")
    store.record_sweep(summary)
    results = [trial(tmp_path / f"t{order}", sweep_id="away-1", order=order, started_ms=BEGAN_MS + order * 1000,
                     ended_ms=BEGAN_MS + order * 1000 + 900) for order in range(1, 6)]
    assert store.record(results[0]).note is None
    server.signal(signal.SIGSTOP)  # accepts, and says nothing
    silent, took_s = timed_record(store, results[1])
    assert silent.run_id is None and "slackwater sync" in silent.note
    assert took_s < 60, "MLflow alone waits for minutes"
    server.stop()
    for result in results[2:4]:
        gone, took_s = timed_record(store, result)
        assert (gone.run_id, gone.note) == (None, None) and took_s < 30
    assert store.record_sweep(dataclasses.replace(summary, status="finished", ended_ms=BEGAN_MS + 9000)).run_id is None
    server.start()

    later = open_store(Tracking(uri=server.uri))  # another process, after all of it
    assert len(later.pending()) == 4
    synced = send()  # what `slackwater sync` does: to the store it was measured for
    assert (synced.sent, list(synced.notes)) == (4, [])
    assert (send().sent, later.pending()) == (0, [])
    assert later.record(results[4]).note is None
    records = later.trials("away-1")
    assert [(record.order, record.started_ms, record.ended_ms) for record in records] == [
        (result.order, result.started_ms, result.ended_ms) for result in results]
    for record in records:
        assert record.turns == {"stabilized/tree_rss_mib": {1: 180.5, 2: 190.25}, "as_found/tree_rss_mib": {0: 37.0}}
        assert record.params["engine.args"] == ["--mlock", "a=b"]
        assert len(later.series(record.run_id)["tree_rss_mib"]) == 300
        listed = later._client.list_artifacts(record.run_id)
        assert {item.path for item in listed} == set(ARTIFACTS)
    sweep = later.find_sweep("away-1")
    assert (sweep.status, sweep.started_ms, sweep.ended_ms) == ("finished", BEGAN_MS, BEGAN_MS + 9000)
    assert not list(later.spool.root.rglob("result.json"))


def test_what_was_half_sent_is_one_run_in_the_end(store: Store, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: object) -> None:
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_log_values", dies)
        assert store.record(trial(tmp_path / "t", sweep_id="half-1")).run_id is None
    assert store.sync().sent == 1
    [record] = store.trials("half-1")
    assert (record.verdict, record.metrics["stabilized/tree_rss_mib"]) == ("valid", 190.25)


def test_a_sweep_on_a_server_has_its_view_there_and_ui_names_the_servers_page(
        server: Server, store: Store, tmp_path: Path) -> None:
    store.record(trial(tmp_path / "t", sweep_id="seen-1"))
    ended = store.record_sweep(dataclasses.replace(SWEEP, sweep_id="seen-1", started_ms=BEGAN_MS + 10**6,
                                                   status="finished", ended_ms=BEGAN_MS + 2 * 10**6))
    assert ended.note is None
    tags = store._client.get_experiment(store.experiment_id).tags
    assert view.TAG + "slackwater-seen-1" in tags
    done = subprocess.run([sys.executable, "-m", "pipeline", "ui", "--no-browser", "--store", server.uri], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{server.uri}/#/experiments/{store.experiment_id}/runs?" in done.stdout
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
