"""The MLflow UI on a store, at the ready view of a sweep: one small server on this machine, nothing sent anywhere.

What the page shows is defined in track/view.py, the server's own program is track/ui_program.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from pipeline.engine import process
from pipeline.errors import ConfigError, StoreError
from pipeline.interrupt import ended_by_ctrl_c
from pipeline.language import _
from pipeline.record.folder import SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.track import opened, view
from pipeline.track.check import check
from pipeline.track.client import make_client
from pipeline.track.location import Location, locate, named
from pipeline.track.push import Push

ANSWER_LIMIT_S = 90.0
"""A busy machine; a quiet one takes 4 s."""
_POLL_S = 0.1


def serve(sweep: str | None = None, uri: str | None = None, port: int = 5000, browser: bool = True) -> int:
    """Serve the store's page until Ctrl-C, or name the page if the store is a server; returns the exit code.

    `sweep`: an id, a prefix, or None for the last one. Raises ConfigError, StoreError."""
    location, sweeps = locate(named(uri)), opened.sweeps(uri)
    if not check(location, write=False):
        Push.open(named(uri))
    record = sweeps.sweep(sweep or "last") if sweep or sweeps.all() else None
    if record is None:
        print(_("The store is empty so far: `slackwater run {words}` fills it.").format(
            words=f"experiment=mode_gap{location.setting}"))
    page, note = _page(location, record)
    if note:
        print(note)
    if not location.is_server:
        return _serve(location, record, page, _free_port(port), browser)
    print(_("The store is a server with a page of its own:") + f"\n  {location.shown}{page}\n", flush=True)
    _show_view(location, record)
    if browser and _has_desktop():
        _open(location.uri + page)
    return 0


def _page(location: Location, record: SweepRecord | None) -> tuple[str, str]:
    """The page below the server's root, and what a user should know about it."""
    experiment_id = _experiment(location, record)
    if record is None or not experiment_id:
        return view.address("", experiment_id, None), "" if record is None else _(
            "{sweep} is not in MLflow yet: `slackwater sync{store}` puts it there.").format(
                sweep=record.sweep_id, store=location.option)
    if not view.understood():
        return view.address("", experiment_id, None), _(
            "This version of MLflow stores its views differently, so the page opens in MLflow's own view. Group by the "
            "tag `cell` there.")
    return view.address("", experiment_id, record.sweep_id), ""


def _experiment(location: Location, record: SweepRecord | None) -> str:
    """MLflow's page that the sweep's runs stand on; "" if it was not pushed there."""
    note = {} if record is None else SweepFolder(record.folder).push_note(location.shown)
    return str(note.get("experiment_id", ""))


def _show_view(location: Location, record: SweepRecord | None) -> None:
    """The sweep's view is there, also if it was removed for those of later sweeps."""
    experiment_id = _experiment(location, record)
    if record is None or not experiment_id or not view.understood():
        return
    try:
        view.install(location, make_client(location), experiment_id, record.sweep_id,
                     SweepFolder(record.folder).plan(), record.trials, record.started_ms)
    except StoreError as error:
        print(_("{error} The page opens without the view made for the sweep.").format(error=error))


def _serve(location: Location, record: SweepRecord | None, page: str, port: int, browser: bool) -> int:
    root = f"http://127.0.0.1:{port}"
    print(_("MLflow's page on {store}, in a few seconds:").format(store=location.shown) + f"\n  {root}{page}\n"
          + _("Ctrl-C ends it."), flush=True)
    log = location.home / "ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": location.uri, "MLFLOW_DISABLE_TELEMETRY": "true",
                   "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    program = Path(view.__file__).with_name("ui_program.py")
    # dies with us, however we end
    child = process.start([sys.executable, str(program), str(port)], environment=environment, log_path=log)
    try:
        with ended_by_ctrl_c():
            _wait_until_it_answers(root, child)
            _show_view(replace(location, uri=root, database=None), record)
            if browser and _has_desktop():
                _open(root + page)
            while (ended := child.wait(3600)) is None:
                pass
            raise StoreError(_("MLflow's server ended: {how}. Its log is {log}.").format(how=ended, log=log))
    finally:
        child.end(5)
    return 0


def _wait_until_it_answers(root: str, child: process.Child) -> None:
    """Raises StoreError if it ends, or does not answer in time."""
    import requests

    deadline = time.monotonic() + ANSWER_LIMIT_S
    while True:
        with contextlib.suppress(requests.RequestException):  # it does not listen yet
            if requests.get(f"{root}/health", timeout=5).status_code == 200:
                return
        if ended := child.ended():
            last = "\n".join(child.log().strip().splitlines()[-8:])
            raise StoreError(_("MLflow's server did not start: {how}. Its last words, from {log}:").format(
                how=ended, log=child.log_path) + f"\n{last}")
        if time.monotonic() > deadline:
            raise StoreError(_("MLflow's server does not answer within {limit:.0f} s. Its log is {log}.").format(
                limit=ANSWER_LIMIT_S, log=child.log_path))
        time.sleep(_POLL_S)


def _free_port(wanted: int) -> int:
    """`wanted` if nobody listens there on 127.0.0.1, else one the kernel picks."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError(_("no port on 127.0.0.1 is free for the MLflow UI. Name one that is: slackwater ui --port N."))


def _has_desktop() -> bool:
    """Is a person sitting at this machine's own screen? A browser opened over ssh would be a text browser, or none."""
    here = os.environ
    return bool(here.get("DISPLAY") or here.get("WAYLAND_DISPLAY")) and not (
        here.get("SSH_CONNECTION") or here.get("SSH_TTY") or here.get("CI"))


def _open(address: str) -> None:
    import webbrowser

    # its own words (a profile that is locked, a sandbox) would stand between ours
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        webbrowser.open(address)
    except webbrowser.Error:
        print(_("No browser could be opened; the address above works in any."))
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
