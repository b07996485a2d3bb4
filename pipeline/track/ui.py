"""The MLflow UI on a store: one small server on this machine, nothing sent anywhere. Reads, never logs."""

from __future__ import annotations

import os
import socket
import sys

from pipeline.config import Tracking
from pipeline.errors import ConfigError
from pipeline.track.store import open_store


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there on 127.0.0.1, else one the kernel picks."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError("no port on 127.0.0.1 is free for the MLflow UI. Name one that is: slackwater ui --port N.")


def command(uri: str, port: int) -> list[str]:
    """The server's command line: one worker; MLflow's default of four and a job runner takes 3 GB."""
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1",
            "--port", str(port), "--workers", "1"]


def serve(wanted_port: int) -> int:
    """Become the MLflow server on the local store; returns only if there is nothing to serve. Raises ConfigError."""
    store = open_store(Tracking())
    port = free_port(wanted_port)
    # the plain address opens MLflow's assistant page; this one the table of runs
    address = f"http://127.0.0.1:{port}/#/experiments/{store.experiment_id}/runs"
    if not store.sweeps():
        print("The store is empty so far: `slackwater run experiment=mode_gap` fills it.")
    print(f"MLflow's UI on {store.location.shown}\n  {address}\nin about ten seconds; Ctrl-C ends it.", flush=True)
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    words = command(store.location.uri, port)
    os.execve(words[0], words, environment)
