"""The folder of a sweep as one file: a zip of JSON, Parquet and text that can be read without slackwater.

`write` makes it, `opened` reads it where it lies, `take` puts it into a store. What was pushed where is never in it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import re
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.record import schema
from pipeline.record.folder import NOTES, SWEEP, TEXTS, TRIALS, SweepFolder, place_of
from pipeline.record.schema import NAME
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import ARTIFACTS, RESULT, TrialRecord
from pipeline.text import masked, to_json

FORMAT = "slackwater sweep"
SCHEMA_VERSION = 2
"""Of the file. 1: until 3c8a73e, with plan and texts in sweep.json; still read."""
MANIFEST, README, TABLE = "manifest.json", "README.txt", "trials.csv"
OF_THE_STORE = ("tracking_uri", "tracking_experiment")
"""Tags of a sweep that say where it is pushed to: they are not exported."""
_TEXTS, _ARTIFACTS = ("|".join(map(re.escape, names)) for names in (TEXTS, ARTIFACTS))
_MEMBER = re.compile(rf"README\.txt|trials\.csv|sweep\.json|plan(-\d+)?\.json|notes\.json|{_TEXTS}"
                     rf"|trials/{NAME.pattern}/(result\.json|{_ARTIFACTS})", re.ASCII)
_BINARY = ("timeline.parquet", "timeline.png", "response.txt")
"""Taken as they are; of all others passwords are masked."""
_CHUNK = 1 << 20
_TAKEN = tuple(name for name in TEXTS if not name.endswith(".html"))
"""A page of others is not taken: `slackwater report` makes it from the records."""
LARGEST = 256 << 20
"""Bytes of a member; a real one is a few MB."""
LARGEST_DOCUMENT = 64 << 20
"""Of one that is read whole: JSON, and the manifest."""
LARGEST_SUM = 1 << 30
LARGEST_TRIAL = 4 << 20
"""All members together have at most LARGEST_SUM, and this for every trial."""
MOST_MEMBERS = 200_000
_MOST_PACKED = 100
"""How much smaller than it is a member above 16 MiB may be: a log packs to a thirtieth, zeros to a thousandth."""

_README = """\
One sweep of slackwater: a memory experiment on a language model server.

  {sweep_id}
  {question}

Any zip program opens this file. `slackwater import FILE` puts it into a store, `slackwater compare` reads it as it is.

sweep.json      what was asked, on which machine (tags), how it ended
plan.json       cells, overrides, settings, seed, order
trials.csv      one row per trial; every metric's last value. NAME_mib is in MiB, _pct in percent, _s in seconds
trials/*/       one folder per trial, in the order they ran; NAME.2 is a second attempt
  result.json     the trial: verdict and reasons, times in ms since 1970, params (the config), settings (of the server),
                  metrics (name -> turn -> value; turn 0 is the trial as a whole)
  timeline.parquet  every reading, one column per quantity, bytes; t_ns is the monotonic clock
  provenance.json   machine, versions, the settings as asked, arrived and effective, the server's own account
  config.yaml       the config of this trial, complete
  response.txt, server.log, timeline.png
notes.json      trials that were deleted since: they count in nothing
summary.json, summary.txt, report.html   what was made of it
manifest.json   schema_version, and the SHA-256 of every other file
"""


def write(folder: SweepFolder, path: Path) -> SweepRecord:
    """Write the file, whole or not at all; returns the sweep as it is in it. The same sweep gives the same bytes.

    Raises ConfigError: the file is there already, or cannot be written; StoreError: the sweep cannot be read."""
    if path.exists():
        raise ConfigError(f"{path} already exists. Name another file, or remove it first.")
    sweep = folder.sweep()
    # one that still runs, or whose owner died, is in the file as far as it came
    sweep = replace(sweep, owner={}, origin="", status="interrupted" if sweep.status == "running" else sweep.status,
                    tags={key: text for key, text in sweep.tags.items() if key not in OF_THE_STORE})
    beside = path.with_name(f".{path.name}.part")
    listed: dict[str, dict[str, Any]] = {}
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as file:
            def put(name: str, content: bytes) -> None:
                moment = time.gmtime(max(sweep.started_ms / 1000, 315_532_800))  # a zip knows no time before 1980
                member = zipfile.ZipInfo(name, moment[:6])
                member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                content = content if name.endswith(_BINARY) else _private(content)
                file.writestr(member, content)
                listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

            put(README, _README.format(sweep_id=sweep.sweep_id, question=sweep.question).encode(errors="replace"))
            put(SWEEP, sweep.to_json().encode())
            for name in sorted(each.name for each in folder.path.iterdir() if each.name != SWEEP):
                if _MEMBER.fullmatch(name):
                    put(name, (folder.path / name).read_bytes())
            put(TABLE, _table(folder.trials()))
            for name in folder.names():
                for part in (RESULT, *ARTIFACTS):
                    if (folder.path / TRIALS / name / part).is_file():
                        put(f"{TRIALS}/{name}/{part}", (folder.path / TRIALS / name / part).read_bytes())
            manifest = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "written_by": _writer(),
                        "sweep_id": sweep.sweep_id, "trials": sum(sweep.trials.values()), "files": dict(listed)}
            put(MANIFEST, to_json(manifest, indent=1, sort_keys=True).encode())
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}. Name a file in an existing "
                          "folder that you may write to and that is not full.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
    return sweep


def _private(content: bytes) -> bytes:
    """Without passwords in addresses: the file is passed on."""
    return masked(content.decode(errors="surrogateescape")).encode(errors="surrogateescape")


def _table(trials: Sequence[TrialRecord]) -> bytes:
    metrics = sorted({name for trial in trials for name in trial.turns})
    out = io.StringIO()
    table = csv.writer(out)
    first = ("order", "block", "repetition", "cell", "mode", "infer_os", "verdict", "method", "started_ms", "ended_ms")
    table.writerow([*first, *metrics])
    for trial in trials:
        table.writerow([*(getattr(trial, name) for name in first), *(trial.value(name) for name in metrics)])
    return out.getvalue().encode(errors="backslashreplace")


def _writer() -> str:
    try:
        return f"slackwater {version('slackwater')}"
    except PackageNotFoundError:
        return "slackwater"


def opened(path: Path) -> SweepFolder:
    """The sweep in a file that `write` made, checked whole, to be read where it lies.

    Raises ConfigError: unreadable, no export, of another schema, truncated, altered, with foreign members."""
    with _damage(path):
        file = zipfile.ZipFile(path)  # closed with the folder that reads it
        _check(path, file)
        folder = SweepFolder(zipfile.Path(file))
        sweep, trials = folder.bare(), folder.attempts()
        places = set()
        for trial in trials:
            place = trial.order, trial.attempt
            if trial.sweep_id != sweep.sweep_id or place in places or place != place_of(trial.name):
                raise ValueError(f"{trial.folder.name} is not a trial of {sweep.sweep_id}, or is there twice")
            places.add(place)
        for part in folder.path.iterdir():
            _check_document(part)
    return folder


def _check_document(path: Any) -> None:
    """What stands beside the trials, which their readers take for nothing where it is wrong."""
    if path.name in TEXTS:
        path.read_text(encoding="utf-8")
    elif path.name == SWEEP:  # of schema 1
        document = schema.parsed(path.read_bytes())
        schema.plan(document.get("plan", {}))
        schema.texts(document)
    elif path.name == NOTES:
        schema.notes(schema.parsed(path.read_bytes()))
    elif path.name.startswith("plan"):
        schema.plan(schema.parsed(path.read_bytes()))


def take(path: Path, sweeps: Path) -> tuple[SweepFolder, int]:
    """Put the file's sweep among those in the folder `sweeps`: the sweep, and how many of its trials were not there.

    Raises ConfigError (see `opened`; another sweep of that id) and StoreError."""
    source = opened(path)
    sweep = replace(source.bare(), origin="imported", owner={})
    target = SweepFolder(sweeps / sweep.sweep_id)
    if not target.path.is_dir():
        aside = sweeps / f".import-{sweep.sweep_id}-{os.getpid()}"
        made = SweepFolder(aside)
        try:
            made.begin(sweep, source.plan())
            new = _copy(source, made, sweep)
            made.move(target.path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return target, new
    there = target.bare()
    if there.started_ms != sweep.started_ms:
        hosts = there.tags.get("host", "unknown"), sweep.tags.get("host", "unknown")
        raise ConfigError(f"{sweeps.parent} has another sweep {sweep.sweep_id}, of host {hosts[0]}; the file's is of "
                          f"host {hosts[1]}. Import it into a store of its own: --store "
                          "sqlite:////absolute/path/mlflow.db. `slackwater compare` reads the file as it is.")
    if there.origin != "imported" and _new(source, target):
        raise ConfigError(f"{sweep.sweep_id} was measured here, and {path} has trials of it that are not: they would "
                          "count as this store's own. Import it into a store of its own: --store "
                          "sqlite:////absolute/path/mlflow.db. Nothing was taken from it.")
    return target, _copy(source, target, sweep if there.origin == "imported" else None)


def _new(source: SweepFolder, target: SweepFolder) -> list[TrialRecord]:
    known = {(trial.order, trial.started_ms) for trial in target.attempts()}
    return [trial for trial in source.attempts() if (trial.order, trial.started_ms) not in known]


def _copy(source: SweepFolder, target: SweepFolder, sweep: SweepRecord | None) -> int:
    """The trials that the target lacks, and (unless it is measured by its own owner) what stands beside them."""
    trials = _new(source, target)
    for trial in trials:
        staged = target.stage(trial.order, trial.cell, trial.repetition)
        for name in ARTIFACTS:
            if (content := trial.artifact(name)) is not None:
                (staged / name).write_bytes(content)
        target.put(trial, staged)
    if sweep is not None:
        for name in _TAKEN:
            if (text := source.text(name)) is not None:
                target.write_text(name, text)
        for name in (f"plan-{number}.json" for number in range(2, 1 + len(source.plans()))):
            if not (target.path / name).exists():
                target.write_once(name, (source.path / name).read_text(encoding="utf-8"))
        if not target.notes() and (notes := source.notes()):
            target.write_notes(notes)
        target.write(sweep)
    return len(trials)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its readers raise, as one error."""
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {path}.") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError, TypeError,
            KeyError, AttributeError, StoreError) as error:
        reason = " ".join(str(error.__cause__ if isinstance(error, StoreError) else error).split())
        raise ConfigError(f"{path} is not a complete slackwater export: {reason or type(error).__name__}. It was "
                          "cut off, altered, or is another kind of file: copy it again from where `slackwater export` "
                          "wrote it. Nothing was taken from it.") from error


def _check(path: Path, file: zipfile.ZipFile) -> None:
    members = {member.filename: member for member in file.infolist()}
    if MANIFEST not in members:
        raise ValueError(f"it has no {MANIFEST}")
    for member in members.values():
        _check_size(member)
    _check_sizes(members)
    manifest = schema.parsed(b"".join(_read(file, members[MANIFEST])))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} does not say that it is a {FORMAT}")
    if manifest.get("schema_version") not in (1, SCHEMA_VERSION):
        raise ConfigError(f"{path} has schema_version {manifest.get('schema_version')!r}, and this slackwater "
                          f"reads 1 and {SCHEMA_VERSION}. It was written by {manifest.get('written_by', 'another one')}"
                          ": use that version. Nothing was taken from it.")
    listed = schema.mapped(schema.mapped(schema.plain))(manifest.get("files"), "files")
    if foreign := [name for name in {*members, *listed} - {MANIFEST} if not _MEMBER.fullmatch(name)]:
        raise ConfigError(f"{path} has a member {min(foreign)!r}, which no export has. Nothing was taken from it.")
    names = file.namelist()
    if sorted(names) != sorted([*listed, MANIFEST]):
        odd = {*names} ^ {*listed, MANIFEST} or {name for name in names if names.count(name) > 1}
        raise ValueError(f"its members are not those it lists ({min(odd)})")
    for name, member in members.items():
        if name != MANIFEST:
            _check_content(file, member, listed[name])


def _check_sizes(members: Mapping[str, zipfile.ZipInfo]) -> None:
    trials = sum(name.endswith(f"/{RESULT}") for name in members)
    whole, most = sum(member.file_size for member in members.values()), LARGEST_SUM + LARGEST_TRIAL * trials
    if len(members) > MOST_MEMBERS or whole > most:
        raise ValueError(f"it has {len(members)} members with {whole >> 20} MiB together; at most {MOST_MEMBERS} "
                         f"members and, with {trials} trials, {most >> 20} MiB are read")


def _check_size(member: zipfile.ZipInfo) -> None:
    most = LARGEST_DOCUMENT if member.filename.endswith(".json") else LARGEST
    if member.file_size > most:
        raise ValueError(f"{member.filename} has {member.file_size >> 20} MiB, at most {most >> 20} MiB are read")
    if member.file_size > max(16 << 20, _MOST_PACKED * member.compress_size):
        raise ValueError(f"{member.filename} is packed to less than a hundredth of its {member.file_size >> 20} MiB")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is no ordinary file")


def _check_content(file: zipfile.ZipFile, member: zipfile.ZipInfo, listed: Mapping[str, Any]) -> None:
    if member.file_size != listed.get("bytes"):
        raise ValueError(f"{member.filename} has {member.file_size} bytes, expected {listed.get('bytes')}")
    digest = hashlib.sha256()
    for chunk in _read(file, member):
        digest.update(chunk)
    if digest.hexdigest() != listed.get("sha256"):
        raise ValueError(f"{member.filename} is not what was written (SHA-256)")


def _read(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Piece by piece; never more than the member says it has."""
    with file.open(member) as content:
        while chunk := content.read(_CHUNK):
            yield chunk
