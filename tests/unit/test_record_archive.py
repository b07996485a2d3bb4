"""A sweep out of one store, into a file, into another store: nothing is lost, nothing wrong gets in."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.record import archive
from pipeline.record.find import in_file
from pipeline.record.folder import SWEEPS, SweepFolder
from pipeline.record.owner import owner_tags
from pipeline.record.trial import ARTIFACTS
from tests.conftest import ROOT
from tests.unit.made_records import BEGAN_MS, HEADLINE, PLAN, cell, export, record, said, sweep, trial, with_reasons

OF_SCHEMA_1 = ROOT / "tests" / "data" / "3c8a73e" / "finished.zip"
TRIALS = [
    replace(trial("interactive-on", 1, 190.25, order=1, metrics={
        HEADLINE: {1: 180.5, 2: 190.25}, "as_found/tree_rss_mib": {0: 1 / 3}}, model__tag=None), method=2),
    replace(trial("oneshot-off", 1, 200.0, order=2, verdict="suspect"), notes=(said("a neighbour"), said("warm"))),
    with_reasons(trial("oneshot-off", 2, 1.0, order=3, verdict="interrupted"), "interrupted", turns={}),
]
SWEEP = replace(sweep(), command="slackwater run tracking.uri=http://me:secret@host:5000", metrics={"trials": 3.0},
                tags={**sweep().tags, "tracking_uri": "http://host:5000"})


def filled(home: Path) -> SweepFolder:
    files = {name: f"{name} of http://me:secret@host\n".encode() + bytes(range(128)) for name in ARTIFACTS}
    return record(home, TRIALS, SWEEP, files=files)


def taken(path: Path, home: Path) -> tuple[SweepFolder, int]:
    return archive.take(path, home / SWEEPS)


def test_a_round_trip_keeps_everything(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    archive.write(here, tmp_path / "file")
    there, new = taken(tmp_path / "file", tmp_path / "there")
    assert new == 3 and there.path == tmp_path / "there" / "sweeps" / "tide-1"
    assert [one.at(None) for one in there.attempts()] == [one.at(None) for one in here.attempts()]
    for one, other in zip(here.attempts(), there.attempts(), strict=True):
        assert one.artifact("timeline.parquet") == other.artifact("timeline.parquet")
        assert other.artifact("server.log") == (one.artifact("server.log") or b"").replace(b":secret@", b":***@")
    read = there.sweep()
    assert (read.origin, read.owner, read.tags["host"]) == ("imported", {}, "harbour")
    assert "tracking_uri" not in read.tags
    assert there.plan() == here.plan() and there.text("summary.txt") == "It turns."
    archive.write(there, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes(), "the same sweep is the same file"


def test_long_and_odd_texts_survive_a_round_trip(tmp_path: Path) -> None:
    prompt, odd = "潮\n" * 10_000, "/home/n\udce9e\0"
    one = trial("oneshot-off", 1, 1.0, prompt__text=prompt, model__path=odd)
    plan = {"cells": [{"cell": "oneshot-off", "overrides": [f"prompt.text={prompt}", odd]}]}
    asked = replace(sweep(), question=prompt, tags={"arguments": json.dumps([prompt]), "cwd": odd})
    archive.write(record(tmp_path / "here", [one], asked, plan), tmp_path / "file")
    there, _ = taken(tmp_path / "file", tmp_path / "there")
    [read], of = there.trials(), there.sweep()
    assert (read.params["prompt.text"], read.params["model.path"]) == (prompt, odd)
    assert (of.question, of.tags["cwd"], of.tag("arguments")) == (prompt, odd, [prompt])
    assert there.plan()["cells"][0]["overrides"] == [f"prompt.text={prompt}", odd]


def test_importing_twice_changes_nothing_and_a_later_file_adds_what_is_missing(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    archive.write(here, tmp_path / "file")
    taken(tmp_path / "file", tmp_path / "there")
    assert taken(tmp_path / "file", tmp_path / "there")[1] == 0
    here.put(replace(TRIALS[2], verdict="valid", started_ms=BEGAN_MS + 99_000, reasons=()))
    here.write_notes({"deleted": ["0001-interactive-on-r1"]})
    archive.write(here, tmp_path / "later")
    there, new = taken(tmp_path / "later", tmp_path / "there")
    assert new == 1
    assert [one.name for one in there.trials()] == ["0002-oneshot-off-r1", "0003-oneshot-off-r2.2"]
    assert [one.name for one in there.superseded()] == ["0001-interactive-on-r1", "0003-oneshot-off-r2"]


def test_a_sweep_that_is_being_measured_is_in_the_file_as_far_as_it_came(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    here.write(replace(SWEEP, status="running", owner=owner_tags()))
    assert archive.write(here, tmp_path / "file").status == "interrupted"
    assert (archive.opened(tmp_path / "file").bare().status, here.bare().status) == ("interrupted", "running")


def test_the_file_is_readable_without_us_and_holds_no_password_and_no_push_notes(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    here.write_pushed("http://host:5000", {"": "a" * 32})
    archive.write(here, tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file") as file:
        names = file.namelist()
        folders = sorted({name.split("/")[1] for name in names if name.startswith("trials/")})
        assert folders == ["0001-interactive-on-r1", "0002-oneshot-off-r1", "0003-oneshot-off-r2"]
        assert "trials/*/" in file.read("README.txt").decode()
        result = json.loads(file.read(f"trials/{folders[0]}/result.json"))
        assert result["metrics"][HEADLINE] == [180.5, 190.25] and result["method"] == 2
        header, first, *_ = file.read("trials.csv").decode().splitlines()
        row = dict(zip(header.split(","), first.split(","), strict=True))
        assert row["cell"] == "interactive-on" and row["method"] == "2" and float(row[HEADLINE]) == 190.25
        assert json.loads(file.read("manifest.json"))["schema_version"] == 2
        everything = b"".join(file.read(name) for name in names if not name.endswith((".parquet", ".png", "se.txt")))
    assert b"me:***@host" in everything and b"secret" not in everything and b"http://host:5000" not in everything
    assert not [name for name in names if "pushed" in name]


def test_an_export_of_schema_1_is_read_where_it_lies_and_imported_as_a_record_of_today(tmp_path: Path) -> None:
    found = in_file(f"{OF_SCHEMA_1}:oneshot-off")
    assert found is not None and len(found.trials) == 2 and len(found.whole_sweep) == 8
    assert {one.method for one in found.whole_sweep} == {1}
    assert (found.trials[0].artifact("config.yaml") or b"").startswith(b"model:")
    folder, new = taken(OF_SCHEMA_1, tmp_path)
    assert new == 8 and folder.plan()["cells"] == found.plan["cells"]
    assert [replace(one, folder=None) for one in folder.trials()] == [
        replace(one, folder=None) for one in found.whole_sweep]
    result = json.loads((folder.path / "trials" / "0001-oneshot-off-r1" / "result.json").read_bytes())
    assert result["schema_version"] == 2 and "series" not in result
    assert json.loads((folder.path / "sweep.json").read_bytes())["schema_version"] == 2
    assert folder.text("summary.txt") == archive.opened(OF_SCHEMA_1).text("summary.txt") is not None


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object], fix_manifest: bool = False) -> Path:
    """The file with other members, the checksums brought up to date if asked."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    if fix_manifest:
        manifest = json.loads(members["manifest.json"])
        manifest["files"] = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                             for name, content in members.items() if name != "manifest.json"}
        members["manifest.json"] = json.dumps(manifest).encode()
    changed = path.with_name("changed")
    with zipfile.ZipFile(changed, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return changed


def in_member(name: str, was: bytes, now: bytes) -> Callable[[dict[str, bytes]], object]:
    return lambda members: members.update({name: members[name].replace(was, now)})


RESULT = "trials/0021-oneshot-off-r1/result.json"


@pytest.mark.parametrize(("change", "fix", "said"), [
    (in_member("manifest.json", b'"schema_version": 2', b'"schema_version": 3'), False,
     "schema_version 3, and this slackwater reads 1 and 2"),
    (in_member(RESULT, b"200", b"100"), False, r"result.json is not what was written \(SHA-256\)"),
    (lambda members: members.pop(RESULT), False, "its members are not those it lists"),
    (lambda members: members.update({"extra.txt": b""}), False, "a member 'extra.txt', which no export has"),
    (lambda members: members.update({"pushed/here.json": b"{}"}), True, "a member 'pushed/here.json'"),
    (lambda members: members.update({"trials/../../escaped/result.json": members[RESULT]}), True,
     "a member 'trials/../../escaped/result.json', which no export has"),
    (lambda members: members.update({"/etc/result.json": b""}), True, "a member '/etc/result.json'"),
    (lambda members: members.update({"trials/../result.json": members[RESULT]}), True, "trials/../result.json"),
    (lambda members: members.update({RESULT.replace("0021", "00021"): members[RESULT]}), True, "or is there twice"),
    (lambda members: members.update({RESULT.replace("0021", "0022"): members[RESULT]}), True, "is not a trial of"),
    (lambda members: members.update({RESULT: b"{}"}), True, "schema_version None, expected 2"),
    (lambda members: members.update({"sweep.json": b"no JSON"}), True, "is not a complete slackwater export"),
    (in_member("sweep.json", b'"tide-1"', b'"../../tide"'), True, "sweep_id is '../../tide', expected a name"),
    (lambda members: members.update({"manifest.json": b"{}"}), False, "does not say that it is a slackwater sweep"),
    (lambda members: members.pop("manifest.json"), False, "it has no manifest.json"),
])
def test_a_file_that_is_not_as_it_was_written_is_refused(
        tmp_path: Path, change: Callable[[dict[str, bytes]], object], fix: bool, said: str) -> None:
    good = export(tmp_path / "good", cell("oneshot-off", [200.0, 201.0]))
    archive.opened(good)
    with pytest.raises(ConfigError, match=said):
        archive.opened(rewritten(good, change, fix))


def test_a_file_cut_off_anywhere_or_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = export(tmp_path / "whole", cell("oneshot-off", [200.0, 201.0]))
    whole, as_written = path.read_bytes(), archive.opened(path).attempts()
    cut = tmp_path / "cut"
    for length in {0, 1, 100, *range(500, len(whole), len(whole) // 12), len(whole) - 1}:
        cut.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="is not a complete slackwater export"):
            archive.opened(cut)
    harmless = 0
    for at in range(40, len(whole), len(whole) // 25):
        cut.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1:])
        try:
            found = archive.opened(cut).attempts()
        except ConfigError:
            continue
        # a zip writes some fields twice, such as a member's time; then nothing that counts has changed
        harmless += 1
        assert [one.at(None) for one in found] == [one.at(None) for one in as_written]
    assert harmless < 8


def test_a_refused_file_changes_nothing_in_the_store(tmp_path: Path) -> None:
    here = filled(tmp_path / "here")
    namesake = export(tmp_path / "namesake", cell("oneshot-off", [200.0]), sweep("tide-1", BEGAN_MS + 5, host="bay"))
    with pytest.raises(ConfigError, match=r"has another sweep tide-1, of host harbour; the file's is of host bay"):
        taken(namesake, tmp_path / "here")
    broken = tmp_path / "broken"
    broken.write_bytes(namesake.read_bytes()[:-50])
    with pytest.raises(ConfigError):
        taken(broken, tmp_path / "here")
    assert len(here.attempts()) == 3 and [path.name for path in here.path.parent.iterdir()] == ["tide-1"]


def test_an_export_never_overwrites_and_leaves_no_half_file(tmp_path: Path) -> None:
    folder = record(tmp_path / "store", cell("oneshot-off", [1.0]), plan=PLAN)
    archive.write(folder, tmp_path / "one")
    with pytest.raises(ConfigError, match="already exists"):
        archive.write(folder, tmp_path / "one")
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        archive.write(folder, tmp_path / "none" / "file")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["one", "store"]


def test_only_a_file_that_is_there_is_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert in_file("tide-1") is None
    with pytest.raises(ConfigError, match=r"There is no file \./tide\.zip"):
        in_file("./tide.zip")
