"""Is the store there, ours to write, and of the schema that the installed MLflow reads?

Asked before MLflow is, which retries a store it cannot open for 102 s and a server for minutes. The one place that
looks into a database by itself: reads its version, writes nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import StoreError, innermost
from pipeline.record.folder import SWEEPS
from pipeline.track.location import Location

CONNECT_LIMIT_S = 5
"""How long a store may take to answer the first question."""
_ELSEWHERE = ("Make it writable, or put the store elsewhere: tracking.uri=sqlite:////absolute/path/mlflow.db; the "
              "records lie beside it, of another kind of store in $SLACKWATER_HOME, without it in mlruns/ of a "
              "checkout.")


def check(location: Location, write: bool) -> bool:
    """True: the store is there. False: there is none yet, and one can be made (`write`) or nothing is to be read.

    Raises StoreError: unreachable, not writable (`write` only), not an MLflow store, of another schema."""
    if location.database is not None:
        there = _check_sqlite(location.database, location, write)
    else:
        there = True
        _check_server(location) if location.is_server else _check_sql(location)
    if write:
        if location.artifacts is not None:
            _writable_folder(location.artifacts, "the store's artifacts")
        _writable_folder(location.records / SWEEPS, "the records")
    return there


def _writable_folder(folder: Path, what: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder for {what}, {folder}, cannot be made: {error.strerror}. {_ELSEWHERE}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"The folder for {what}, {folder}, cannot be written by this user. {_ELSEWHERE}")


def _check_sqlite(database: Path, location: Location, write: bool) -> bool:
    if write:
        # SQLite writes its journal beside the file
        _writable_folder(database.parent, "the store")
    try:
        if not database.exists() or database.stat().st_size == 0:
            return False
    except OSError as error:
        raise StoreError(f"The store {database} cannot be looked at: {error.strerror}. {_ELSEWHERE}") from error
    if not database.is_file():
        raise StoreError(f"The store {database} is not a file. Expected an SQLite database of MLflow's. {_ELSEWHERE}")
    if not os.access(database, (os.R_OK | os.W_OK) if write else os.R_OK):
        verb = "written" if os.access(database, os.R_OK) else "read"
        raise StoreError(f"The store {database} cannot be {verb} by this user. {_ELSEWHERE}")
    try:
        address = f"file:{quote(str(database))}?mode={'rw' if write else 'ro'}"
        with closing(sqlite3.connect(address, uri=True, timeout=CONNECT_LIMIT_S)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            found = None
            if "alembic_version" in tables:
                found = next((row[0] for row in connection.execute("SELECT version_num FROM alembic_version")), None)
            _check_schema(found, tables, location)
            if write:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
    except sqlite3.OperationalError as error:
        raise StoreError(f"The store {database} does not answer within {CONNECT_LIMIT_S} s: {error}. Another program "
                         "may be writing to it (an MLflow UI, another sweep); wait for it or end it.") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"The store {database} is not an SQLite database: {error}. Move the file away to start a new "
                         "store, or name another one: tracking.uri=sqlite:////absolute/path/mlflow.db.") from error
    return True


def installed_schema() -> tuple[str, frozenset[str]]:
    """The newest and all schema versions (Alembic revisions) that the installed MLflow knows.

    Read from the files in mlflow/store/db_migrations, since importing MLflow takes over a second."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise StoreError("MLflow is not installed. Install slackwater with its dependencies: pip install slackwater.")
    found: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
    for script in (Path(spec.origin).parent / "store/db_migrations/versions").glob("*.py"):
        pattern = r"^(revision|down_revision)\b[^=\n]*=\s*[\"'](\w+)[\"']"
        for name, revision in re.findall(pattern, script.read_text(encoding="utf-8"), re.MULTILINE):
            found[name].add(revision)
    heads = found["revision"] - found["down_revision"]
    if len(heads) != 1:
        raise StoreError(f"MLflow {version('mlflow')} has {len(heads)} schema heads, expected one. Reinstall MLflow.")
    return heads.pop(), frozenset(found["revision"])


def _check_schema(found: str | None, tables: set[str], location: Location) -> None:
    if found is None:
        if not tables - {"alembic_version"}:
            return
        raise StoreError(f"The store {location.shown} is a database, but MLflow did not make it (no schema version in "
                         "it). Name another one: tracking.uri=sqlite:////absolute/path/mlflow.db.")
    head, known = installed_schema()
    if found == head:
        return
    installed = version("mlflow")
    if found in known:
        raise StoreError(f"The store {location.shown} has schema {found}, made by an older MLflow; MLflow {installed} "
                         f"wants {head}. Copy the store away, then bring it up to date: mlflow db upgrade "
                         f"{shlex.quote(location.uri)}.")
    raise StoreError(f"The store {location.shown} has schema {found}, which MLflow {installed} does not know (it wants "
                     f"{head}): another MLflow made it, most likely a newer one. Use that version "
                     "(pip install -U mlflow), or another store (tracking.uri=sqlite:////absolute/path/mlflow.db).")


def _check_server(location: Location) -> None:
    import requests

    try:
        # any answer will do: whether it is MLflow, and lets us in, its own client finds out at once
        answer = requests.get(f"{location.uri}/health", timeout=CONNECT_LIMIT_S)
    except requests.RequestException as error:
        raise StoreError(f"No MLflow server answers at {location.shown} within {CONNECT_LIMIT_S} s: "
                         f"{innermost(error)}. Start it, correct tracking.uri, or use the local store "
                         "(tracking=local).") from error
    if answer.status_code >= 500:
        raise StoreError(f"The server at {location.shown} answers with HTTP {answer.status_code}. Expected a healthy "
                         "MLflow server; look at its log, or use the local store (tracking=local).")


def _check_sql(location: Location) -> None:
    """Does a database server answer? Of which schema it is MLflow itself says at once."""
    import sqlalchemy

    try:
        limit = {} if location.uri.startswith("mssql") else {"connect_timeout": CONNECT_LIMIT_S}
        engine = sqlalchemy.create_engine(location.uri, poolclass=sqlalchemy.pool.NullPool, connect_args=limit)
        engine.connect().close()
        engine.dispose()
    except ModuleNotFoundError as error:
        driver = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}.get(error.name or "", error.name)
        raise StoreError(f"{location.shown} needs the Python package {error.name}, which is not installed. "
                         f"Install it: pip install '{driver}'.") from error
    except sqlalchemy.exc.ArgumentError as error:
        raise StoreError(f"tracking.uri={location.shown} is not a database address: {error}.") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StoreError(f"The store {location.shown} does not answer: {reason}. Start the database, or correct "
                         "tracking.uri.") from error
