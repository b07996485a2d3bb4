"""Where results lie: from tracking.uri to a database, a folder of artifacts and the records.

Resolves names only: nothing is opened, made or checked here (check.py does that).
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline import language
from pipeline.config import PACKAGE, Tracking
from pipeline.errors import StoreError
from pipeline.language import _
from pipeline.text import masked

USUAL = "usual"
"""tracking.uri without anybody's choice: $MLFLOW_TRACKING_URI if it is set and can be used, else the local store."""
VARIABLE = "MLFLOW_TRACKING_URI"
HOME_VARIABLE = "SLACKWATER_HOME"

_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(/.*)?$")
_SQL = re.compile(r"(postgresql|mysql|mssql)(\+\w+)?://")
_HTTP = re.compile(r"https?://")


@dataclass(frozen=True)
class Location:
    """One store, as this machine reaches it."""

    uri: str
    """As MLflow takes it, absolute. May hold a password: show `shown` instead."""
    shown: str
    """For a person, for messages and for notes: without a password; a path where it is a file."""
    home: Path
    """This machine's own folder, whatever the store is."""
    database: Path | None = None
    """The SQLite file."""
    artifacts: Path | None = None
    """Where artifacts go if this machine's disk holds them; None: the server decides."""
    chosen_by: str = ""
    """What named it: tracking.uri, MLFLOW_TRACKING_URI, or SLACKWATER_HOME for the local store; "": nothing did."""
    passed_over: str = ""
    """Why this is the local store although MLFLOW_TRACKING_URI is set."""

    @property
    def records(self) -> Path:
        """The folder with sweeps/ in it: beside the database file, else this machine's own folder."""
        return self.database.parent if self.database is not None else self.home

    @property
    def option(self) -> str:
        """What stands behind a printed command so that it means this store; "" for the store it takes by itself."""
        if self.uri == locate(named(None)).uri:
            return ""
        return f" --store {shlex.quote(self.uri if self.database is not None else self.shown)}"

    @property
    def setting(self) -> str:
        """The same behind `slackwater run`."""
        return self.option.replace(" --store ", " tracking.uri=", 1)

    @property
    def is_server(self) -> bool:
        """An MLflow tracking server, reached over HTTP."""
        return bool(_HTTP.match(self.uri))


def home() -> Path:
    """$SLACKWATER_HOME, else `mlruns/` of the checkout this runs from, else slackwater in the XDG data folder."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(chosen).expanduser().absolute()
    root = PACKAGE.parent
    if (root / "pyproject.toml").is_file() and (root / "mlruns").is_dir():
        return root / "mlruns"
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "slackwater"


def named(uri: str | None) -> Tracking:
    """The store that `--store URI` names; without it the one that results usually go to. Also a folder with one."""
    if uri is not None and "://" not in uri and (folder := Path(uri).expanduser()).is_dir():
        return Tracking(uri=_sqlite(folder.absolute() / "mlflow.db").uri)
    return Tracking(uri=USUAL if uri is None else uri)


def local(passed_over: str = "") -> Location:
    """This machine's own store. `passed_over`: why it is not the one that MLFLOW_TRACKING_URI names."""
    chosen_by = HOME_VARIABLE if os.environ.get(HOME_VARIABLE) else ""
    return replace(_sqlite(home() / "mlflow.db"), chosen_by=chosen_by, passed_over=passed_over)


def locate(tracking: Tracking) -> Location:
    """The store that a config asks for: tracking.uri, else MLFLOW_TRACKING_URI, else the local one.

    Raises StoreError for a tracking.uri that no store can have; a variable that none can have is passed over."""
    if tracking.uri is None or tracking.uri == "local":
        return local()
    if tracking.uri != USUAL:
        return replace(_at(tracking.uri), chosen_by="tracking.uri")
    address = os.environ.get(VARIABLE, "").strip()
    if not address:
        return local()
    try:
        return replace(_at(address), chosen_by=VARIABLE)
    except StoreError as error:
        return local(str(error).replace("tracking.uri=", f"{VARIABLE}="))


def _at(uri: str) -> Location:
    uri = uri.rstrip("/") if _HTTP.match(uri) else uri
    shown = masked(uri)
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
    raise StoreError(f"tracking.uri={shown} is not the address of a store. Expected http(s)://host:port of an MLflow "
                     "server, sqlite:////absolute/path/mlflow.db or postgresql://…, or null for the local store. A "
                     "plain folder or file: is a kind of store that MLflow no longer supports.")


def address_of(shown: str) -> str | None:
    """The tracking.uri of a store from what is shown of it; None if that lacks a password, or for the local store."""
    if not shown or ":***@" in shown:
        return None
    return shown if _HTTP.match(shown) or _SQL.match(shown) else _sqlite(Path(shown)).uri


def folder_of(artifact_uri: str) -> Path | None:
    """The folder on this machine's disk that an artifact address names; None for one elsewhere."""
    address = urlparse(artifact_uri)
    return Path(unquote(address.path)) if address.scheme in ("file", "") and address.path else None


def _sqlite(database: Path) -> Location:
    # Only what SQLAlchemy would read as an escape or a query is quoted: MLflow makes the folder it finds in the text.
    quoted = str(database).replace("%", "%25").replace("?", "%3F")
    return Location(f"sqlite:///{quoted}", str(database), home(), database, database.parent / "artifacts")


@functools.cache
def say_where(location: Location) -> None:
    """Once per process and store: what a variable of the environment decides stands in no command and no config."""
    if location.passed_over:
        said = _("{variable} cannot be used, and results stay in {store}: {why}").format(
            variable=VARIABLE, store=location.shown, why=location.passed_over)
    elif location.chosen_by == VARIABLE:
        said = _("results: {store} ({variable})").format(store=location.shown, variable=VARIABLE)
    else:
        return
    print(f"slackwater: {language.harmless(said)}", file=sys.stderr)
