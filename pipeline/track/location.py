"""Where results lie: from tracking.uri to a database, a folder of artifacts and this machine's spool.

Resolves names only: nothing is opened, made or checked here (check.py does that).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipeline.config import PACKAGE, Tracking
from pipeline.errors import StoreError
from pipeline.machine import in_home
from pipeline.provenance import without_password

_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(/.*)?$")
_SQL = re.compile(r"(postgresql|mysql|mssql)(\+\w+)?://")
_HTTP = re.compile(r"https?://")


@dataclass(frozen=True)
class Location:
    """One store, as this machine reaches it."""

    uri: str
    """As MLflow takes it, absolute. May hold a password: show `shown` instead."""
    shown: str
    """For a person, for messages and for the spool: without a password; a path where it is a file."""
    home: Path
    """This machine's own folder: the spool and the lock live there whatever the store is."""
    database: Path | None = None
    """The SQLite file."""
    artifacts: Path | None = None
    """Where artifacts go if this machine's disk holds them; None: the server decides."""

    @property
    def spool(self) -> Path:
        """Results wait here until the store has them."""
        return self.home / "spool"

    @property
    def is_server(self) -> bool:
        """An MLflow tracking server, reached over HTTP."""
        return bool(_HTTP.match(self.uri))


def home() -> Path:
    """`mlruns/` of the checkout this runs from, else $SLACKWATER_HOME, else slackwater in the XDG data folder."""
    root = PACKAGE.parent
    if (root / "pyproject.toml").is_file() and (root / "mlruns").is_dir():
        return root / "mlruns"
    if chosen := os.environ.get("SLACKWATER_HOME"):
        return in_home(chosen, "SLACKWATER_HOME")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return in_home(data, "SLACKWATER_HOME") / "slackwater"


def locate(tracking: Tracking) -> Location:
    """The store that a config asks for. Raises StoreError for an address that no store can have."""
    uri = tracking.uri
    if uri is None:
        return _sqlite(home() / "mlflow.db")
    uri = uri.rstrip("/") if _HTTP.match(uri) else uri
    shown = without_password(uri)
    if sqlite := _SQLITE.match(uri):
        # sqlite:///relative, sqlite:////absolute; SQLAlchemy 2.1 decodes %xx in it and takes ?… as a query
        path = unquote((sqlite[1] or "")[1:].partition("?")[0])
        if not path or path == ":memory:":
            raise StoreError(f"tracking.uri={shown} is a database in memory: nothing would be kept. Name a file: "
                             "sqlite:////absolute/path/mlflow.db.")
        return _sqlite(Path(path).expanduser().absolute())
    if _HTTP.match(uri):
        return Location(uri, shown, home())
    if _SQL.match(uri):
        return Location(uri, shown, home(), artifacts=home() / "artifacts")
    raise StoreError(f"tracking.uri={shown} is no address of a store. Expected http(s)://host:port of an MLflow "
                     "server, sqlite:////absolute/path/mlflow.db or postgresql://…, or null for the local store. A "
                     "plain folder or file: is the store that MLflow has given up.")


def address_of(shown: str) -> str | None:
    """The tracking.uri of a store from what is shown of it; None if that lacks a password, or for the local store."""
    if not shown or ":***@" in shown:
        return None
    return shown if _HTTP.match(shown) or _SQL.match(shown) else _sqlite(Path(shown)).uri


def _sqlite(database: Path) -> Location:
    # Only what SQLAlchemy would read as an escape or a query is quoted: MLflow makes the folder it finds in the text.
    quoted = str(database).replace("%", "%25").replace("?", "%3F")
    return Location(f"sqlite:///{quoted}", str(database), home(), database, database.parent / "artifacts")
