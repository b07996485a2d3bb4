"""A store that cannot serve is refused in seconds, with what was seen and what to do, before MLflow is asked."""

from __future__ import annotations

import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.config import Tracking
from pipeline.errors import StoreError
from pipeline.track import location, opened
from pipeline.track.check import check, installed_schema
from pipeline.track.location import locate, named
from pipeline.track.push import Push
from tests.conftest import ROOT, run_as_nobody


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in this checkout's mlruns."""
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "site-packages" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "home"))


def made(database: Path, revision: str | None) -> str:
    """An SQLite file that says it has this schema; its address."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        if revision is not None:
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    return f"sqlite:///{database}"


def refused(uri: str, *words: str, within_s: float = 30.0) -> None:
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        Push.open(Tracking(uri=uri))
    assert time.monotonic() - began < within_s
    for word in words:
        assert word in str(caught.value)


def test_the_installed_schema_is_the_one_mlflow_names() -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert installed_schema()[0] == _get_latest_schema_revision()  # type: ignore[no-untyped-call]


def test_a_store_of_a_newer_mlflow_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refused(made(tmp_path / "mlflow.db", "deadbeef0000"), "deadbeef0000", "pip install -U mlflow", str(tmp_path))


def test_a_store_of_an_older_mlflow_is_refused_with_the_command_that_upgrades_it(tmp_path: Path) -> None:
    head, known = installed_schema()
    older = sorted(known - {head})[0]
    refused(made(tmp_path / "mlflow.db", older), older, f"mlflow db upgrade sqlite:///{tmp_path}/mlflow.db")


def test_a_store_of_another_schema_is_refused_for_reading_too(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="deadbeef0000"):
        opened.sweeps(made(tmp_path / "mlflow.db", "deadbeef0000")).all()


def test_a_database_that_is_not_mlflows_is_left_alone(tmp_path: Path) -> None:
    refused(made(tmp_path / "mine.db", None), "MLflow did not make it")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("hello " * 1000)
    refused(f"sqlite:///{tmp_path}/mlflow.db", "not an SQLite database", str(tmp_path / "mlflow.db"))


def test_a_folder_in_the_databases_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db" / "x").mkdir(parents=True)
    refused(f"sqlite:///{tmp_path}/mlflow.db", "is not a file")


@pytest.mark.thorough
def test_a_store_that_another_program_writes_to_is_waited_for_shortly(tmp_path: Path) -> None:
    uri = made(tmp_path / "mlflow.db", installed_schema()[0])
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        refused(uri, "does not answer", within_s=40)


@pytest.mark.parametrize(("place", "said"), [
    ("database", "mlflow.db cannot be written"), ("folder", "The folder for the store"),
    ("artifacts", "The folder for the store's artifacts"), ("records", "The folder for the records"),
])
def test_what_this_user_may_not_write_is_named_before_anything_is_measured(place: str, said: str) -> None:
    program = (
        "import os, pathlib, sqlite3, sys\n"
        "from pipeline.config import Tracking\n"
        "from pipeline.errors import StoreError\n"
        "from pipeline.track import location\n"
        "from pipeline.track.check import check, installed_schema\n"
        "here = pathlib.Path(os.environ['HOME'])\n"
        "location.PACKAGE = here / 'lib' / 'pipeline'\n"
        "os.environ['SLACKWATER_HOME'] = str(here / 'home')\n"
        "for name in ('store/artifacts', 'store/sweeps'): (here / name).mkdir(parents=True)\n"
        "database = here / 'store' / 'mlflow.db'\n"
        "with sqlite3.connect(database) as made:\n"
        "    made.execute('CREATE TABLE alembic_version (version_num TEXT)')\n"
        "    made.execute('INSERT INTO alembic_version VALUES (?)', (installed_schema()[0],))\n"
        "made.close()\n"
        "where = location.locate(Tracking(uri=f'sqlite:///{database}'))\n"
        "assert check(where, write=True)\n"
        "kept = {'database': database, 'folder': here / 'store', 'artifacts': here / 'store/artifacts',\n"
        "        'records': here / 'store/sweeps'}[sys.argv[1]]\n"
        "mode = kept.stat().st_mode\n"
        "kept.chmod(mode & ~0o222)\n"
        "assert check(where, write=False)\n"
        "try:\n"
        "    check(where, write=True)\n"
        "except StoreError as error:\n"
        "    print(error)\n"
        "finally:\n"
        "    kept.chmod(mode)\n")
    done = run_as_nobody([sys.executable, "-c", program, place], cwd=Path("/"), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "tracking.uri=" in done.stdout


def test_nobody_at_the_servers_address_is_told_at_once() -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", "tracking=local")


@pytest.mark.thorough
def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        refused(f"http://127.0.0.1:{silent.getsockname()[1]}", "within 5 s", within_s=40)


class Broken(BaseHTTPRequestHandler):
    """Answers everything with 503."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def broken() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_in_trouble_is_reported_with_its_answer(broken: str) -> None:
    refused(broken, "HTTP 503")


def test_a_missing_store_is_no_error_and_reading_makes_none(tmp_path: Path) -> None:
    assert check(locate(Tracking(uri=f"sqlite:///{tmp_path}/none.db")), write=False) is False
    assert opened.sweeps(f"sqlite:///{tmp_path}/none.db").all() == []
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_the_environment_that_does_not_answer_is_named_and_results_stay_local(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    for _ in range(2):
        assert Push.open(named(None)).location.database == tmp_path / "home" / "mlflow.db"
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("MLFLOW_TRACKING_URI cannot be used") == 1  # once, however often it is opened
    assert str(tmp_path / "home") in said.err
    assert "secret" not in said.err
    with pytest.raises(StoreError):
        opened.sweeps("http://127.0.0.1:9").all()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs.db")
    assert opened.sweeps(None).shown == f"{tmp_path}/theirs.db"
    assert f"results: {tmp_path}/theirs.db (MLFLOW_TRACKING_URI)" in capsys.readouterr().err
