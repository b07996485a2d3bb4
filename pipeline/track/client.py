"""MLflow's client, made quiet, impatient and private before MLflow is imported.

The only place that imports mlflow; lazily, since that takes over a second and 170 MB.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import lock
from pipeline.errors import SlackwaterError, StoreError
from pipeline.track.location import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # by default a call to a dead server takes 246 s: a sweep has its records and does not wait
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}

HURRY_S = 2
"""How long a server may take for an answer once a user has interrupted."""

BUSY_S = 2.0
"""How long a database that another program has locked is awaited; its trials wait in the records then."""


def prepare() -> None:
    """Settings that MLflow reads at import; what the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # its traces of what it then raises, which we say in a line
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def hurry() -> None:
    """A user has interrupted: a server gets HURRY_S for each further answer, and is asked once."""
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(HURRY_S)}


@contextlib.contextmanager
def store_errors(location: Location, doing: str) -> Iterator[None]:
    """Whatever MLflow, its database layer or the disk raises becomes a StoreError: one store, many exception types."""
    try:
        yield
    except SlackwaterError:
        raise
    except Exception as error:
        raise StoreError(f"The store {location.shown} failed while {doing}: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    """The system's own words where there are any (connection refused, no space left): the layers above add pages."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def make_client(location: Location) -> MlflowClient:
    """A client on the store, which is made if there is none. Raises StoreError. Call after `check.check`."""
    prepare()
    with store_errors(location, "being opened"):
        from mlflow.tracking import MlflowClient

        if location.database is not None:
            _make_whole(location.database)
            _make_impatient()
        with _no_stray_folders(location):
            client = MlflowClient(location.uri)
            # the constructor is lazy for a server: ask something
            client.search_experiments(max_results=1)
        return client


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """One process of this user on this machine at a time: two would make one store, push or fetch one trial twice.
    Raises StoreError."""
    def busy(owner: str) -> StoreError:
        return StoreError(f"Another process ({owner}) sends or fetches results, and was not done with it while we "
                          f"waited (at most {lock.LIMIT_S:g} s). Try again when it is.")

    with lock.on_machine(f"track-{os.getuid()}", lock.LIMIT_S, busy):
        yield


def _make_whole(database: Path) -> None:
    """A new SQLite store appears at once or not at all: a Ctrl-C in its 60 migrations must not leave half of one."""
    if database.exists() and database.stat().st_size:
        return
    from mlflow.store.db import utils
    from sqlalchemy import URL

    with one_at_a_time():
        if database.exists() and database.stat().st_size:
            return  # another process was first
        unfinished = database.with_name(f".{database.name}.unfinished")
        unfinished.unlink(missing_ok=True)
        engine = utils.create_sqlalchemy_engine(URL.create("sqlite", database=str(unfinished)).render_as_string())  # type: ignore[no-untyped-call]
        utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
        engine.dispose()
        unfinished.replace(database)


def _make_impatient() -> None:
    """MLflow waits 20 s for a database that another program has locked, in C code that hears no Ctrl-C."""
    import sqlalchemy

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", _shorter, retval=True)


def _shorter(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> tuple[str, Any]:
    if statement.startswith("PRAGMA busy_timeout"):
        statement = f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}"
    return statement, parameters


@contextlib.contextmanager
def _no_stray_folders(location: Location) -> Iterator[None]:
    """MLflow makes the parent folder it reads in the address, escapes included: keep it from making `100%25 sure/`."""
    from mlflow.store.db import utils

    name = "_make_parent_dirs_if_sqlite"
    original = getattr(utils, name, None)
    if location.database is None or original is None or str(location.database) in location.uri:
        yield
        return
    setattr(utils, name, lambda uri: None)
    try:
        yield
    finally:
        setattr(utils, name, original)
