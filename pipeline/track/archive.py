"""One sweep as one file: a zip of JSON, Parquet and text that can be read without slackwater. Format and checks only.

What goes in from a store, and out into one, is exchange.py's business.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.result import ARTIFACTS, TrialResult
from pipeline.text import to_json
from pipeline.track.read import SweepRecord, TrialRecord
from pipeline.track.summary import SweepSummary

FORMAT = "slackwater sweep"
SCHEMA_VERSION = 1
"""Of the file. Its documents have versions of their own (TrialResult, SweepSummary)."""

MANIFEST, README, SWEEP, TABLE = "manifest.json", "README.txt", "sweep.json", "trials.csv"
_ARTIFACTS = "|".join(map(re.escape, ARTIFACTS))
_MEMBER = re.compile(rf"README\.txt|sweep\.json|trials\.csv|trials/[\w.+=\-]{{1,120}}/(result\.json|{_ARTIFACTS})",
                     re.ASCII)
_CHUNK = 1 << 20
_LARGEST = 1 << 30
"""Bytes of one member; a real one is a few MB."""

_README = """\
One sweep of slackwater: a memory experiment on a language model server.

  {sweep_id}
  {question}

Any zip program opens this file. `slackwater import FILE` puts it into a store, `slackwater compare` reads it as it is.

sweep.json      what was asked, on which machine (tags), in which order (plan: cells, overrides, settings, seed),
                and the printed summary (texts)
trials.csv      one row per trial; every metric's last value. NAME_mib is in MiB, _pct in percent, _s in seconds
trials/*/       one folder per trial, in the order they ran
  result.json     the trial: verdict and reasons, times in ms since 1970, params (the config), settings (of the server),
                  metrics (name -> turn -> value; turn 0 is the trial as a whole), series (chart points: ms, MiB)
  timeline.parquet  every reading, one column per quantity, bytes; t_ns is the monotonic clock
  provenance.json   machine, versions, the settings as asked, arrived and effective, the server's own account
  config.yaml       the config of this trial, complete
  response.txt, server.log, timeline.png
manifest.json   schema_version, and the SHA-256 of every other file
"""


def write(path: Path, summary: SweepSummary, trials: Iterable[tuple[TrialResult, Mapping[str, bytes]]]) -> int:
    """Write the file, whole or not at all; returns the number of trials. The same sweep gives the same bytes.

    Raises ConfigError: the file is there already, or cannot be written."""
    if path.exists():
        raise ConfigError(f"{path} already exists. Name another file, or remove it first.")
    beside = path.with_name(f".{path.name}.part")
    listed: dict[str, dict[str, Any]] = {}
    rows: list[TrialResult] = []
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as file:
            def put(name: str, content: bytes) -> None:
                moment = time.gmtime(max(summary.started_ms / 1000, 315_532_800))  # a zip knows no time before 1980
                member = zipfile.ZipInfo(name, moment[:6])
                member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                file.writestr(member, content)
                listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

            put(README, _README.format(sweep_id=summary.sweep_id, question=summary.question).encode())
            put(SWEEP, _text(json.loads(summary.to_json())))
            for result, artifacts in trials:
                folder = f"trials/{_folder_name(result)}"
                put(f"{folder}/result.json", _text(json.loads(dataclasses.replace(result, folder="").to_json())))
                for name, content in artifacts.items():
                    put(f"{folder}/{name}", content)
                rows.append(dataclasses.replace(result, series={}))
            put(TABLE, _table(rows))
            manifest = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "written_by": _writer(),
                        "sweep_id": summary.sweep_id, "trials": len(rows), "files": dict(listed)}
            put(MANIFEST, _text(manifest))
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}. Name a file in an existing "
                          "folder that you may write to and that is not full.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
    return len(rows)


def _folder_name(result: TrialResult) -> str:
    return f"{result.order:05d}-{re.sub(r'[^A-Za-z0-9_.+=-]', '_', result.cell)[:80]}-r{result.repetition}"


def _text(document: Any) -> bytes:
    return to_json(document, indent=1, sort_keys=True).encode()


def _table(results: Sequence[TrialResult]) -> bytes:
    metrics = sorted({name for result in results for name in result.metrics})
    out = io.StringIO()
    table = csv.writer(out)
    first = ("order", "block", "repetition", "cell", "mode", "infer_os", "verdict", "method", "started_ms", "ended_ms")
    table.writerow([*first, *metrics])
    for result in results:
        table.writerow([*(getattr(result, name) for name in first), *(result.value(name) for name in metrics)])
    return out.getvalue().encode()


def _writer() -> str:
    try:
        return f"slackwater {version('slackwater')}"
    except PackageNotFoundError:
        return "slackwater"


class Archive:
    """A file that `write` made, checked whole when it is opened. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError: unreadable, no export, of another schema, truncated, altered, with foreign members."""
        self.path = path
        self._stack = contextlib.ExitStack()
        with self._stack, self._damage():
            self._zip = self._stack.enter_context(zipfile.ZipFile(path))
            self._check()
            self.summary = SweepSummary.from_json(self._zip.read(SWEEP).decode())
            self._folders = {result.order: (name, result) for name, result in self._read_results()}
            self._open = self._stack.pop_all()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def results(self) -> list[TrialResult]:
        """The trials in the order they ran; they have no folder."""
        return [result for _, (_, result) in sorted(self._folders.items())]

    def artifacts(self, order: int) -> Iterator[tuple[str, bytes]]:
        """Name and content of a trial's artifacts. Raises ConfigError."""
        folder, _ = self._folders[order]
        for name in ARTIFACTS:
            if f"{folder}/{name}" in self._zip.NameToInfo:
                with self._damage():
                    yield name, self._zip.read(f"{folder}/{name}")

    def records(self) -> tuple[SweepRecord, list[TrialRecord]]:
        """The sweep and its trials as a store would give them; a trial's `run_id` is its folder in the file."""
        trials = [record_of(folder.removeprefix("trials/"), result)
                  for _, (folder, result) in sorted(self._folders.items())]
        verdicts = [trial.verdict for trial in trials]
        one = self.summary
        sweep = SweepRecord(
            run_id=None, sweep_id=one.sweep_id, experiment=one.experiment, question=one.question, command=one.command,
            status=one.status, planned_trials=one.planned_trials,
            trials={verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
            started_ms=one.started_ms, ended_ms=one.ended_ms, tags=one.tags, metrics=one.metrics)
        return sweep, trials

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """Whatever a damaged file makes its readers raise, as one error."""
        try:
            yield
        except FileNotFoundError as error:
            raise ConfigError(f"There is no file {self.path}.") from error
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError,
                TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"{self.path} is not a complete slackwater export: {reason}. It was cut off, altered, or "
                              "is another kind of file: copy it again from where `slackwater export` wrote it. Nothing "
                              "was taken from it.") from error

    def _check(self) -> None:
        members = self._zip.infolist()
        names = [member.filename for member in members]
        if MANIFEST not in names:
            raise ValueError(f"it has no {MANIFEST}")
        manifest = json.loads(self._zip.read(MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError(f"{MANIFEST} does not say that it is a {FORMAT}")
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise ConfigError(f"{self.path} has schema_version {manifest.get('schema_version')!r}, and this slackwater "
                              f"reads {SCHEMA_VERSION}. It was written by {manifest.get('written_by', 'another one')}: "
                              "use that version. Nothing was taken from it.")
        listed: dict[str, Any] = manifest["files"]
        foreign = [name for name in {*names, *listed} - {MANIFEST} if not _MEMBER.fullmatch(name) or "/.." in name]
        if foreign:
            raise ConfigError(f"{self.path} has a member {min(foreign)!r}, which no export has. Nothing was "
                              "taken from it.")
        if sorted(names) != sorted([*listed, MANIFEST]):
            odd = {*names} ^ {*listed, MANIFEST} or {name for name in names if names.count(name) > 1}
            raise ValueError(f"its members are not those it lists ({min(odd)})")
        for member in members:
            if member.filename != MANIFEST:
                self._check_member(member, listed[member.filename])

    def _check_member(self, member: zipfile.ZipInfo, listed: Mapping[str, Any]) -> None:
        if member.file_size != listed["bytes"] or member.file_size > _LARGEST:
            raise ValueError(f"{member.filename} has {member.file_size} bytes, expected {listed['bytes']}")
        digest = hashlib.sha256()
        with self._zip.open(member) as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != listed["sha256"]:
            raise ValueError(f"{member.filename} is not what was written (SHA-256)")

    def _read_results(self) -> Iterator[tuple[str, TrialResult]]:
        orders = set[int]()
        for name in self._zip.namelist():
            if name.endswith("/result.json"):
                result = TrialResult.from_json(self._zip.read(name).decode())
                if result.sweep_id != self.summary.sweep_id or result.order in orders:
                    raise ValueError(f"{name} is not a trial of {self.summary.sweep_id}, or is there twice")
                orders.add(result.order)
                yield name.removesuffix("/result.json"), result


def record_of(folder: str, result: TrialResult) -> TrialRecord:
    """The trial as a store would give it."""
    return TrialRecord(
        run_id=folder, sweep_id=result.sweep_id, cell=result.cell, repetition=result.repetition, order=result.order,
        block=result.block, mode=result.mode, infer_os=result.infer_os,
        verdict="interrupted" if result.extra.get("interrupted") else result.verdict, reasons=result.reasons,
        notes=result.notes, started_ms=result.started_ms, ended_ms=result.ended_ms, params=result.params,
        settings=result.settings, metrics={name: turns[max(turns)] for name, turns in result.metrics.items() if turns},
        turns=result.metrics, tags=result.tags, artifact_uri="", suspect_phases=result.suspect_phases,
        method=result.method)
