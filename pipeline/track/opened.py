"""What `--store URI` means for a command that reads: the records of a store, wherever it is."""

from __future__ import annotations

from pipeline.record.find import Sweeps
from pipeline.track.location import locate, named
from pipeline.track.pull import Fetched


def sweeps(uri: str | None) -> Sweeps:
    """`uri`: a folder, sqlite:///…/mlflow.db (its records lie beside it), a server, or None for the usual store.

    Of a server that the environment names this machine's own records are meant, unless there are none: nothing is
    asked of it then. Raises StoreError."""
    location = locate(named(uri))
    own = Sweeps(location.records, location.shown, location.option, location.setting)
    if location.database is None and uri is None and own.ids():
        return own
    return Fetched(location)
