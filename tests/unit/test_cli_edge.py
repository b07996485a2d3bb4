"""What the machine or the terminal refuses is one line and the right exit code; a bug keeps its trace."""

from __future__ import annotations

import errno
import importlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pipeline import engine
from pipeline.cli import main, program
from pipeline.cli.system_errors import refused
from pipeline.errors import ConfigError
from pipeline.meter import base
from pipeline.progress import Fetching, Notice, Waiting
from pipeline.report.live import Waits
from tests.conftest import ROOT


def slackwater(redirect: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program behind a shell's redirections; in an ASCII locale, as Python takes it without help."""
    command = f'"$@" {redirect}'
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, "bash", sys.executable, "-m", "pipeline", *words], cwd=ROOT,
        encoding="utf-8", capture_output=True, check=False, timeout=60,
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONUNBUFFERED": "",
             **environment})


@pytest.mark.parametrize(("redirect", "words", "code", "said"), [
    ("", ["--help"], 0, ""),
    ("", ["--help", "lang=ja"], 0, ""),
    ("", ["metrics", "--json"], 0, ""),
    ("| true", ["metrics"], 0, ""),
    ("| true", ["--help"], 0, ""),
    (">&-", ["--help"], 0, ""),
    ("<&- >&- 2>&-", ["--help"], 0, ""),
    (">/dev/full", ["--help"], 2, "standard output: No space left on device. Free space"),
    (">/dev/full", ["nonsense"], 2, "nonsense is not a command"),
    ("", ["metrics", "n\udce9e"], 2, "n?e"),
])
def test_an_odd_terminal_is_no_error(redirect: str, words: Sequence[str], code: int, said: str) -> None:
    done = slackwater(redirect, *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert bool(done.stderr) is bool(said)


def test_a_closed_stdout_is_not_taken_by_the_next_file(tmp_path: Path) -> None:
    """The number 1 would else go to the next file that is opened, and what is printed into it."""
    program = ("from pipeline.text import open_terminal; open_terminal(); "
               "file = open('kept', 'w', encoding='utf-8'); print('lost', flush=True); file.close()")
    subprocess.run(["bash", "-c", '"$@" <&- >&-', "bash", sys.executable, "-c", program], check=True, cwd=tmp_path,
                   timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "kept").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(("error", "said"), [
    (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device. Free space"),
    (PermissionError(errno.EACCES, "Permission denied", b"/a/\xe9"), "/a/\udce9: Permission denied. This user has no"),
    (OSError(errno.EROFS, "Read-only file system", "/a"), "give another path"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a/b"), "/a/b: Not a directory. Check that"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/x']"), "TMPDIR must name"),
    (subprocess.TimeoutExpired(["ollama", "--version"], 20.0), "`ollama --version` did not answer within 20 s"),
    (sqlite3.OperationalError("database is locked"), "A database failed: database is locked."),
])
def test_what_the_machine_refuses_is_named_with_what_to_do(error: Exception, said: str,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(error)
    assert told is not None and said in str(told)

    def fails(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(program, "_command", fails)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("slackwater: ")


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), OSError("nothing of the system's"),
                                   ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")])
def test_a_bug_keeps_its_trace(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(program, "_command", fails)
    with pytest.raises(type(error)):
        main([])


def test_who_asks_for_silence_is_told_whom_the_sweep_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    waits = Waits()
    for event in (Waiting("another sweep runs"), Notice("cells: 2"), Fetching("small", "fetching", 0, 2**20),
                  Fetching("small", "fetching", 9, 2**20)):
        waits.on_event(event)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "slackwater: another sweep runs\nslackwater: small: fetching 1 MiB\n"


@pytest.mark.parametrize("missing", ["no_such_module", None])
def test_an_engine_or_meter_that_cannot_be_loaded_is_named_and_stops_no_other(
        missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def load(name: str, package: str | None = None) -> ModuleType:
        if name in ("pipeline.engine.ollama", "pipeline.meter.npu"):
            if missing is None:
                raise SyntaxError("invalid syntax")
            raise ModuleNotFoundError(f"No module named '{missing}'")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", load)
    broken = next(here for here in engine.engines() if here.name == "ollama")
    assert not broken.here and "pipeline.engine.ollama cannot be loaded: " in broken.text
    assert {here.name for here in engine.engines()} >= {"llamacpp"}
    assert next(found for found in base.find_all() if found.name == "npu") in [
        absent for absent in base.find_all() if isinstance(absent, base.Absent)]
    for name, said in (("ollama", "engine.name=ollama: pipeline.engine.ollama cannot be loaded"),
                       ("olama", "engine.name=olama is not a known engine: expected one of llamacpp")):
        config = SimpleNamespace(engine=SimpleNamespace(name=name))
        with pytest.raises(ConfigError, match=said):
            engine.load_engine(config)  # type: ignore[arg-type]
