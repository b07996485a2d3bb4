"""A sweep out of one store, into a file, into another store: nothing is lost, nothing wrong gets in."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import Tracking
from pipeline.errors import ConfigError
from pipeline.record.owner import owner_tags
from pipeline.result import ARTIFACTS
from pipeline.track import location
from pipeline.track.archive import Archive
from pipeline.track.artifacts import Artifacts
from pipeline.track.exchange import export_sweep, import_sweep
from pipeline.track.store import Store, open_store
from tests.unit.made_sweeps import BEGAN_MS, HEADLINE, cell, export, summary, trial

Opener = Callable[[str], Store]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that holds one sweep of three trials; making one takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(location, "PACKAGE", folder / "lib" / "pipeline")
        patch.setenv("SLACKWATER_HOME", str(folder / "home"))
        store = open_store(Tracking(uri=f"sqlite:///{folder}/mlflow.db"))
        shutil.copy(folder / "mlflow.db", folder / "empty.db")
        trials = [
            replace(trial("interactive-on", 1, 190.25, order=1, metrics={
                HEADLINE: {1: 180.5, 2: 190.25}, "as_found/tree_rss_mib": {0: 1 / 3}}, model__tag=None), method=2),
            replace(trial("oneshot-off", 1, 200.0, order=2, verdict="suspect"), notes=["a neighbour", "warm"]),
            replace(trial("oneshot-off", 2, 1.0, order=3, verdict="failed"), metrics={}, series={},
                    reasons=["interrupted"], extra={"interrupted": True}),
        ]
        for one in trials:
            artifacts = folder / f"trial-{one.order}"
            artifacts.mkdir()
            for name in ARTIFACTS[one.order - 1:]:
                (artifacts / name).write_bytes(f"{name} of {one.order}\n".encode() + bytes(range(256)))
            store.log_trial(replace(one, folder=str(artifacts)))
        store.log_sweep(replace(summary(), command="slackwater run tracking.uri=http://me:secret@host:5000",
                                metrics={"trials": 3.0}))
    return folder


@pytest.fixture
def opened(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens a copy of the filled or of the empty store for writing."""
    monkeypatch.setattr(location, "PACKAGE", tmp_path / "lib" / "pipeline")
    monkeypatch.setenv("SLACKWATER_HOME", str(tmp_path / "home"))

    def open_copy(which: str) -> Store:
        folder = tmp_path / which
        if not folder.exists():
            folder.mkdir()
            shutil.copy(filled / ("mlflow.db" if which == "filled" else "empty.db"), folder / "mlflow.db")
            if which == "filled":
                shutil.copytree(filled / "artifacts", folder / "artifacts")
        return open_store(Tracking(uri=f"sqlite:///{folder}/mlflow.db"))

    return open_copy


def test_a_round_trip_keeps_everything(opened: Opener, tmp_path: Path) -> None:
    here, there = opened("filled"), opened("other")
    export_sweep(here, "last", tmp_path / "file")
    moved = import_sweep(tmp_path / "file", there)
    assert (moved.trials, moved.new) == (3, 3)
    before, after = here.trials("tide-1"), there.trials("tide-1")
    assert len(after) == 3
    volatile = {"pid", "pid_start", "boot_id", "mlflow.user", "mlflow.source.name", "mlflow.source.type"}
    for one, other in zip(before, after, strict=True):
        assert replace(one, run_id="", artifact_uri="", tags={}) == replace(other, run_id="", artifact_uri="", tags={})
        assert {k: v for k, v in one.tags.items() if k not in volatile} == {
            k: v for k, v in other.tags.items() if k not in volatile}
        assert here.series(one.run_id) == there.series(other.run_id)
        files = [Artifacts(store.location) for store in (here, there)]
        names = files[0].names(one.run_id, one.artifact_uri)
        assert names == sorted(ARTIFACTS[one.order - 1:])
        assert names == files[1].names(other.run_id, other.artifact_uri)
        for name in names:
            assert files[0].read(one.run_id, one.artifact_uri, name) == files[1].read(
                other.run_id, other.artifact_uri, name)
    assert after[0].tags["host"] == "harbour" != owner_tags()["host"]
    assert after[0].metrics["as_found/tree_rss_mib"] == 1 / 3, "to the last bit"
    assert [one.method for one in after] == [2, 1, 1]
    sweeps = [store.find_sweep("tide") for store in (here, there)]
    assert (sweeps[0].question, sweeps[0].status, sweeps[0].started_ms, sweeps[0].ended_ms, sweeps[0].metrics) == (
        sweeps[1].question, sweeps[1].status, sweeps[1].started_ms, sweeps[1].ended_ms, sweeps[1].metrics)
    assert sweeps[1].started_ms == BEGAN_MS


def test_long_and_odd_texts_survive_a_round_trip(opened: Opener, tmp_path: Path) -> None:
    here, there = opened("empty"), opened("other")
    prompt, odd = "潮\n" * 10_000, "/home/n\udce9e\0"
    here.log_trial(trial("oneshot-off", 1, 1.0, prompt__text=prompt, model__path=odd))
    here.log_sweep(replace(summary(), question=prompt, tags={"arguments": json.dumps([prompt]), "cwd": odd},
                           plan={"cells": [{"cell": "oneshot-off", "overrides": [f"prompt.text={prompt}", odd]}]}))
    export_sweep(here, "last", tmp_path / "file")
    import_sweep(tmp_path / "file", there)
    for store in (here, there):
        sweep, [one] = store.find_sweep("last"), store.trials()
        assert (one.params["prompt.text"], one.params["model.path"]) == (prompt, odd)
        assert (sweep.question, sweep.tags["cwd"], json.loads(sweep.tags["arguments"])) == (prompt, odd, [prompt])
    with Archive(tmp_path / "file") as file:
        assert file.summary.plan["cells"][0]["overrides"] == [f"prompt.text={prompt}", odd]


def test_importing_twice_changes_nothing_and_the_same_sweep_gives_the_same_file(opened: Opener, tmp_path: Path) -> None:
    export_sweep(opened("filled"), "last", tmp_path / "file")
    import_sweep(tmp_path / "file", opened("other"))
    assert import_sweep(tmp_path / "file", opened("other")).new == 0
    with sqlite3.connect(tmp_path / "other" / "mlflow.db") as database:
        assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (4,)
    export_sweep(opened("other"), "last", tmp_path / "again")
    files = [Archive(tmp_path / name) for name in ("file", "again")]
    assert [one.to_json() for one in files[0].results] == [one.to_json() for one in files[1].results]


def test_the_file_is_readable_without_us_and_holds_no_password(opened: Opener, tmp_path: Path) -> None:
    export_sweep(opened("filled"), "last", tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file") as file:
        names = file.namelist()
        folders = sorted({name.split("/")[1] for name in names if name.startswith("trials/")})
        assert folders == ["00001-interactive-on-r1", "00002-oneshot-off-r1", "00003-oneshot-off-r2"]
        assert "trials/*/" in file.read("README.txt").decode()
        result = json.loads(file.read(f"trials/{folders[0]}/result.json"))
        assert result["metrics"][HEADLINE] == {"1": 180.5, "2": 190.25} and result["method"] == 2
        header, first, *_ = file.read("trials.csv").decode().splitlines()
        row = dict(zip(header.split(","), first.split(","), strict=True))
        assert row["cell"] == "interactive-on" and row["method"] == "2" and float(row[HEADLINE]) == 190.25
        assert json.loads(file.read("manifest.json"))["schema_version"] == 1
        everything = b"".join(file.read(name) for name in names)
    assert b"me:***@host" in everything and b"secret" not in everything


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None], fix_manifest: bool = False) -> Path:
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


def of_version_2(members: dict[str, bytes]) -> None:
    members["manifest.json"] = members["manifest.json"].replace(b'"schema_version": 1', b'"schema_version": 2')


RESULT = "trials/00021-oneshot-off-r1/result.json"


def one_byte(members: dict[str, bytes]) -> None:
    members[RESULT] = members[RESULT].replace(b"200.0", b"100.0")


@pytest.mark.parametrize(("change", "fix", "said"), [
    (of_version_2, False, "schema_version 2, and this slackwater reads 1"),
    (one_byte, False, r"result.json is not what was written \(SHA-256\)"),
    (lambda members: members.pop(RESULT), False, "its members are not those it lists"),
    (lambda members: members.update({"extra.txt": b""}), False, "a member 'extra.txt', which no export has"),
    (lambda members: members.update({"trials/../../escaped/result.json": members[RESULT]}), True,
     "a member 'trials/../../escaped/result.json', which no export has"),
    (lambda members: members.update({"/etc/result.json": b""}), True, "a member '/etc/result.json'"),
    (lambda members: members.update({"trials/../result.json": members[RESULT]}), True, "trials/../result.json"),
    (lambda members: members.update({"trials/x/result.json": members[RESULT]}), True, "or is there twice"),
    (lambda members: members.update({RESULT: b"{}"}), True, "schema_version None, expected 1"),
    (lambda members: members.update({"sweep.json": b"no JSON"}), True, "is not a complete slackwater export"),
    (lambda members: members.update({"manifest.json": b"{}"}), False, "does not say that it is a slackwater sweep"),
    (lambda members: members.pop("manifest.json"), False, "it has no manifest.json"),
])
def test_a_file_that_is_not_as_it_was_written_is_refused(
        tmp_path: Path, change: Callable[[dict[str, bytes]], None], fix: bool, said: str) -> None:
    good = export(tmp_path / "good", cell("oneshot-off", [200.0, 201.0]))
    Archive(good)
    with pytest.raises(ConfigError, match=said):
        Archive(rewritten(good, change, fix))


def test_a_file_cut_off_anywhere_or_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    whole = export(tmp_path / "whole", cell("oneshot-off", [200.0, 201.0])).read_bytes()
    cut = tmp_path / "cut"
    for length in {0, 1, 100, *range(500, len(whole), len(whole) // 12), len(whole) - 1}:
        cut.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="is not a complete slackwater export"):
            Archive(cut)
    harmless = 0
    for at in range(40, len(whole), len(whole) // 25):
        cut.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1:])
        try:
            found = Archive(cut).results
        except ConfigError:
            continue
        # a zip writes some fields twice, such as a member's time; then nothing that counts has changed
        harmless += 1
        assert [one.to_json() for one in found] == [one.to_json() for one in Archive(tmp_path / "whole").results]
    assert harmless < 8


def test_a_refused_file_changes_nothing_in_the_store(opened: Opener, tmp_path: Path) -> None:
    store = opened("filled")
    namesake = export(tmp_path / "namesake", cell("oneshot-off", [200.0]), summary("tide-1", BEGAN_MS + 5, host="bay"))
    with pytest.raises(ConfigError, match=r"has another sweep tide-1, of host harbour; the file's is of host bay"):
        import_sweep(namesake, store)
    broken = tmp_path / "broken"
    broken.write_bytes(namesake.read_bytes()[:-50])
    with pytest.raises(ConfigError):
        import_sweep(broken, store)
    assert len(store.trials()) == 3 and len(store.sweeps()) == 1


def test_an_export_never_overwrites_and_leaves_no_half_file(tmp_path: Path) -> None:
    path = export(tmp_path / "one", cell("oneshot-off", [1.0]))
    with pytest.raises(ConfigError, match="already exists"):
        export(path, cell("oneshot-off", [1.0]))
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        export(tmp_path / "none" / "file", cell("oneshot-off", [1.0]))
    assert sorted(found.name for found in tmp_path.iterdir()) == ["one"]
