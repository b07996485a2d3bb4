"""The files of a run, read back from wherever its store keeps them. Writing them is store.py's business."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.track.client import make_client, store_errors
from pipeline.track.location import Location, folder_of

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class Artifacts:
    """Files at the top of a run's artifact folder: from this machine's disk where they lie there, else over MLflow."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._mlflow: MlflowClient | None = None

    def names(self, run_id: str, artifact_uri: str) -> Sequence[str]:
        """Sorted; empty for a run without any. Raises StoreError."""
        folder = self._folder(run_id, artifact_uri)
        if folder is not None:
            return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
        with store_errors(self._location, "listing artifacts"):
            return sorted(found.path for found in self._client.list_artifacts(run_id) if not found.is_dir)

    def read(self, run_id: str, artifact_uri: str, name: str) -> bytes | None:
        """The file's content; None if the run has no such file. Raises StoreError."""
        if name not in self.names(run_id, artifact_uri):
            return None
        folder = self._folder(run_id, artifact_uri)
        with store_errors(self._location, f"reading {name}"):
            if folder is not None:
                return (folder / name).read_bytes()
            with tempfile.TemporaryDirectory(prefix="slackwater-") as here:
                return Path(self._client.download_artifacts(run_id, name, here)).read_bytes()

    def _folder(self, run_id: str, artifact_uri: str) -> Path | None:
        """Where the files lie on this machine; None if only the server knows."""
        if self._location.artifacts is not None:
            # a store that was moved or copied has its files beside it, whatever address was written down
            beside = self._location.artifacts / run_id / "artifacts"
            if beside.is_dir():
                return beside
        return folder_of(artifact_uri)

    @property
    def _client(self) -> MlflowClient:
        if self._mlflow is None:
            self._mlflow = make_client(self._location)
        return self._mlflow
