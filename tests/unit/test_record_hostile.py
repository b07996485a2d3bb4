"""Files and records of others are data: whatever stands in them is taken whole and right, or refused, and does
nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import run_commands
from pipeline.errors import ConfigError
from pipeline.record import archive, schema
from pipeline.record.folder import SWEEPS
from pipeline.record.reason import Reason
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.report import pages
from pipeline.sweep.rerun import Again
from tests.unit.made_records import HEADLINE, cell, export, record, sweep, trial

MEASURED = replace(trial("oneshot-off", 1, 200.0), reasons=(Reason("swapped", {"mib": 3.0}),), verdict="suspect",
                   tags={"swept_knobs": '{"knob.threads": ["1", "2"]}'})
PLAN: dict[str, Any] = {
    "cells": [{"cell": "oneshot-off", "overrides": ["mode=oneshot"], "settings": {"n_ctx": 1}, "knobs": {"k": ["x"]}}],
    "skipped": [{"cell": "oneshot-on", "reason": "no", "reason_code": {"code": "said", "values": {"text": "no"}}}],
    "order": ["oneshot-off"], "shuffle_seed": 1, "cwd": "/then"}
ODD: list[Any] = [None, True, -1, 1.5, 10**400, float("nan"), float("inf"), "", "../../up", "\x1b[2Jx", "\ud800", [],
                  {}, [1], {"a": 1}, {"code": "swapped", "values": {"mib": "x"}}]


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def sealed(path: Path, members: dict[str, bytes]) -> Path:
    """The members as a file whose digests are right."""
    manifest = json.loads(members["manifest.json"])
    manifest["files"] = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                         for name, content in members.items() if name != "manifest.json"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {**members, "manifest.json": json.dumps(manifest).encode()}.items():
            file.writestr(name, content)
    return path


def spots(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON document where a value stands."""
    for key, value in list(document.items() if isinstance(document, dict) else enumerate(document)):
        yield document, key
        if isinstance(value, dict | list):
            yield from spots(value)


def mutated(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.1:
        return chance.choice([b"", b"[]", b"null", b"\xff\xfe", b"[" * 5000 + b"]" * 5000])
    document = json.loads(content)
    node, key = chance.choice(list(spots(document)))
    if chance.random() < 0.8:
        node[key] = copy.deepcopy(chance.choice(ODD))
    else:
        node.pop(key)
    return json.dumps(document).encode()


@pytest.mark.parametrize("seed", range(4))
def test_an_archive_with_wrong_values_is_taken_and_shown_or_refused_and_leaves_nothing(
        tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    of = replace(sweep(), tags={**sweep().tags, "question_metrics": '["stabilized/tree_rss_mib"]'})
    good = members_of(export(tmp_path / "good", [MEASURED, *cell("oneshot-on", [1.0, 2.0])], of, PLAN))
    refused = []
    for number in range(20):
        members, home = dict(good), tmp_path / f"home-{number}"
        name = chance.choice([name for name in members if name.endswith(("result.json", "sweep.json", "plan.json"))])
        members[name] = mutated(members[name], chance)
        path = sealed(tmp_path / "file", members)
        try:
            folder, _new = archive.take(path, home / SWEEPS)
        except ConfigError as error:
            refused.append(str(error))
            assert not home.exists()
            continue
        with redirect_stdout(StringIO()) as shown:
            pages.show(folder.sweep_id, chance.random() < 0.5, f"sqlite:///{home}/mlflow.db")
        assert "\x1b[2J" not in shown.getvalue()
    assert all("Nothing was taken from it." in said and said.isprintable() for said in refused)
    assert {path.name for path in tmp_path.iterdir()} <= {"good", "good-store", "file"} | {
        f"home-{number}" for number in range(20)}


@pytest.mark.parametrize(("change", "said"), [
    ({"sweep_id": "../up"}, "sweep_id is '../up', expected a name"), ({"cell": "a\x1b[2J"}, "cell is"),
    ({"order": True}, "order is True"), ({"order": -1}, "order is int"), ({"started_ms": 1.5}, "started_ms is 1.5"),
    ({"verdict": ["valid"]}, "verdict is list"), ({"metrics": {HEADLINE: {"1": "2"}}}, "is '2', expected a finite num"),
    ({"metrics": {HEADLINE: {"x": 2}}}, "is 'x', expected the number of a turn"), ({"tags": {"host": 5}}, "tags.host"),
    ({"metrics": {HEADLINE: 10**400}}, "expected a finite number"), ({"params": {"seed": 10**400}}, "params.seed"),
    ({"reasons": "no"}, "reasons is 'no', expected a list"), ({"suspect_phases": {"a": 1}}, "suspect_phases.a"),
    ({"tags": {"swept_knobs": "[1]"}}, "tags.swept_knobs is list, expected an object"),
])
def test_a_trial_of_others_is_held_against_one_schema(change: dict[str, Any], said: str) -> None:
    whole = json.loads(MEASURED.to_json())
    assert TrialRecord.from_dict(whole) == MEASURED
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        TrialRecord.from_dict({**whole, **change})


@pytest.mark.parametrize(("change", "said"), [
    ({"sweep_id": "/etc/x"}, "sweep_id"), ({"sweep_id": ".."}, "sweep_id"), ({"origin": "mine"}, "origin is 'mine'"),
    ({"question": 5}, "question is int"), ({"planned_trials": "4"}, "planned_trials"), ({"ended_ms": -1}, "ended_ms"),
    ({"tags": {"arguments": '{"a": 1}'}}, "tags.arguments is dict, expected a list"), ({"fetched": 1}, "fetched"),
    ({"tags": {"question_metrics": "[5]"}}, "tags.question_metrics is int"), ({"metrics": {"n": "5"}}, "metrics.n"),
])
def test_a_sweep_of_others_is_held_against_one_schema(change: dict[str, Any], said: str) -> None:
    whole = json.loads(sweep().to_json())
    with pytest.raises(ValueError, match=said):
        SweepRecord.from_json(json.dumps({**whole, **change}))


def large(path: Path, *sizes: tuple[str, int], kind: int = 0) -> Path:
    """An archive whose last members are zeros of these sizes."""
    members = members_of(path)
    changed = path.with_name("large")
    with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            if name not in dict(sizes):
                file.writestr(name, content)
        for name, size in sizes:
            member = zipfile.ZipInfo(name)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, kind << 16
            with file.open(member, "w", force_zip64=True) as zeros:
                for _ in range(size >> 20):
                    zeros.write(bytes(1 << 20))
    return changed


TRIAL = "trials/0021-oneshot-off-r1"


@pytest.mark.parametrize(("name", "mib", "said"), [
    ("manifest.json", 3, "manifest.json has 3 MiB, at most 2 MiB are read"),
    (f"{TRIAL}/result.json", 3, "result.json has 3 MiB, at most 2 MiB"),
    (f"{TRIAL}/server.log", 19, "server.log has 19 MiB, at most 18 MiB"),
    (f"{TRIAL}/server.log", 17, "server.log is packed to less than a hundredth of its 17 MiB"),
])
def test_a_file_that_would_fill_memory_or_disk_is_refused_before_it_is_unpacked(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mib: int, said: str) -> None:
    path = large(export(tmp_path / "good", cell("oneshot-off", [200.0])), (name, mib << 20))
    monkeypatch.setattr(archive, "LARGEST_DOCUMENT", 2 << 20)
    monkeypatch.setattr(archive, "LARGEST", 18 << 20)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(ConfigError, match=said):
        archive.opened(path)


def test_members_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(tmp_path / "good", cell("oneshot-off", [200.0]))
    archive.opened(path)
    monkeypatch.setattr(archive, "LARGEST_TRIAL", 0)
    monkeypatch.setattr(archive, "LARGEST_SUM", sum(map(len, members_of(path).values())) - 1)
    with pytest.raises(ConfigError, match="members with 0 MiB together"):
        archive.opened(path)


def _link(path: Path) -> Path:
    return large(path, (f"{TRIAL}/server.log", 0), kind=stat.S_IFLNK | 0o777)


def _twice(path: Path) -> Path:
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("sweep.json", b"{}")
    return path


@pytest.mark.parametrize(("change", "said"), [
    (_link, "server.log is no ordinary file"), (_twice, r"its members are not those it lists \(sweep.json\)")])
def test_a_link_or_a_name_twice_is_refused(tmp_path: Path, change: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        archive.opened(change(export(tmp_path / "good", cell("oneshot-off", [200.0]))))


def test_a_page_of_others_is_not_taken_but_made_here(tmp_path: Path) -> None:
    members = members_of(export(tmp_path / "good", cell("oneshot-off", [200.0])))
    members["report.html"] = b"<script>alert(1)</script>"
    folder, _new = archive.take(sealed(tmp_path / "file", members), tmp_path / SWEEPS)
    assert not (folder.path / "report.html").exists() and (folder.path / "summary.txt").exists()


def test_what_is_named_here_can_be_read_here() -> None:
    for said in ("潮 off", "../up", "a\nb\x1b[2J", "", "x" * 200):
        assert schema.name(schema.as_name(said), "id") and schema.label(f"c-{schema.as_label(said)}", "cell")


@pytest.fixture
def imported(tmp_path: Path) -> str:
    """A store with an imported sweep; its URI."""
    of = replace(sweep(), status="interrupted", question="\x1b[2Jwhy",
                 tags={"arguments": '["+hydra.callbacks.x._target_=os.system"]', "cwd": str(tmp_path)})
    archive.take(export(tmp_path / "file", cell("oneshot-off", [1.0]), of), tmp_path / SWEEPS)
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_what_others_typed_is_never_resumed(imported: str) -> None:
    with pytest.raises(ConfigError, match="was measured by others, and what they typed is not run here"):
        run_commands.resume(run_commands.Flags(None), "tide-1", imported)


@pytest.mark.parametrize("yes", [False, True])
def test_rerun_of_what_others_recorded_shows_it_and_needs_a_yes(
        capsys: pytest.CaptureFixture[str], yes: bool) -> None:
    again = Again("tide-1", "", [], [], True, ["a\x1b[2J: seed=1"])
    flags = run_commands.Flags(None, yes=yes)
    with nullcontext() if yes else pytest.raises(ConfigError, match="nobody is at a terminal here: add --yes"):
        assert run_commands._agreed(again, flags)
    said = capsys.readouterr().err
    assert "recorded by others" in said and "seed=1" in said and "\x1b" not in said


def test_trials_of_others_do_not_come_among_our_own(tmp_path: Path) -> None:
    path = export(tmp_path / "file", cell("oneshot-off", [1.0, 2.0]))
    record(tmp_path / "mine", cell("oneshot-off", [1.0]))
    with pytest.raises(ConfigError, match=r"was measured here, and .* has trials of it that are not"):
        archive.take(path, tmp_path / "mine" / SWEEPS)
