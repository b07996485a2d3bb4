"""What `--store URI` means for a command that reads: the records of a store, wherever it is."""

from __future__ import annotations

from pipeline.record.find import Sweeps
from pipeline.track.location import locate, named


def sweeps(uri: str | None) -> Sweeps:
    """`uri`: a folder, sqlite:///…/mlflow.db (its records lie beside it), a server, or None for the usual store.

    Raises StoreError."""
    location = locate(named(uri))
    return Sweeps(location.records, location.shown, location.option, location.setting)
