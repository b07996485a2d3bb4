"""What `--store URI` means for a command that reads: the records of a store, wherever it is."""

from __future__ import annotations

from pipeline.record.find import Subject, Sweeps, in_file
from pipeline.track.location import Location, locate, named, say_where
from pipeline.track.pull import Fetched


def sweeps(uri: str | None) -> Sweeps:
    """`uri`: a folder, sqlite:///…/mlflow.db (its records lie beside it), a server, or None for the usual store.

    Of a server that the environment names this machine's own records are meant, unless there are none: nothing is
    asked of it then. Raises StoreError."""
    location = locate(named(uri))
    say_where(location)
    own = sweeps_of(location)
    if location.database is None and uri is None and own.ids():
        return own
    return Fetched(location)


def sweeps_of(location: Location) -> Sweeps:
    """What this machine has measured for that store."""
    return Sweeps(location.records, location.shown, location.option, location.setting)


def subject(name: str, uri: str | None) -> Subject:
    """SWEEP, SWEEP:CELL, RUN, FILE or FILE:CELL, where SWEEP is an id, a prefix or `last` and RUN an MLflow run id.

    A file that is there wins. Raises ConfigError (nothing of that name, no trial in it) and StoreError."""
    return in_file(name) or sweeps(uri).subject(name)
