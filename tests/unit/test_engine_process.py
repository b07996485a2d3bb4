"""Servers are started clean, die with us, and end with everything below them. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline import interrupt
from pipeline.engine import process
from pipeline.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]
SLEEP = "import time; time.sleep(60)"
# A server whose child leaves another behind in a session of its own, and a server that ignores SIGTERM.
STRAY = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
FAMILY = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STRAY!r}]); print('up', flush=True); {SLEEP}"
LOST = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True, env={{}})"
EMPTIED = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LOST!r}]); print('up', flush=True); {SLEEP}"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); {SLEEP}"


def until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], process.Child]]:
    children = []

    def started(code: str) -> process.Child:
        child = process.start([sys.executable, "-c", code], environment=process.clean_environment(),
                              log_path=tmp_path / "server.log")
        children.append(child)
        return child

    yield started
    for child in children:
        child.end(1.0)


def test_only_allow_listed_variables_reach_a_server(
    start: Callable[[str], process.Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLAMA_ARG_CTX_SIZE", "OMP_NUM_THREADS", "OLLAMA_HOST", "PYTHONPATH", "HTTP_PROXY", "LC_TEST", "HOME"):
        monkeypatch.setenv(name, "x")
    child = start(f"print('up', flush=True); {SLEEP}")
    until(lambda: "up" in child.log())
    seen = process.environment_of(child.pid)
    assert {name for name, value in seen.items() if value == "x"} == {"LC_TEST", "HOME"}
    assert process.clean_environment({"OLLAMA_HOST": "y"})["OLLAMA_HOST"] == "y"


def test_it_is_the_program_itself_in_a_session_of_its_own(start: Callable[[str], process.Child]) -> None:
    child = start(f"print('up', flush=True); {SLEEP}")
    until(lambda: "up" in child.log())
    assert process.command_line(child.pid)[1] == "-c"
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert child.ended() is None


@pytest.mark.parametrize(("code", "ended"), [("raise SystemExit(3)", "exit status 3"), ("pass", "exit status 0")])
def test_how_it_ended_is_said(start: Callable[[str], process.Child], code: str, ended: str) -> None:
    assert start(code).wait(20.0) == ended


def test_a_kill_that_we_did_not_send_is_said_with_what_the_kernel_counts(start: Callable[[str], process.Child]) -> None:
    child = start(SLEEP)
    os.kill(child.pid, signal.SIGKILL)
    ended = child.wait(20.0)
    assert ended is not None
    assert ended.startswith("killed by signal 9; ")
    assert "out-of-memory" in ended


def test_a_program_that_cannot_run_ends_with_the_reason_in_its_log(tmp_path: Path) -> None:
    child = process.start(["/nonexistent/server"], environment={}, log_path=tmp_path / "log")
    assert child.wait(20.0) == "exit status 127"
    assert "cannot run /nonexistent/server: No such file" in child.log()
    with pytest.raises(EngineError, match="could not be started"):
        process.start(["x"], environment={}, log_path=tmp_path / "absent" / "log")


def test_ending_takes_strays_in_other_sessions_along_and_reaps_them(start: Callable[[str], process.Child]) -> None:
    child = start(FAMILY)
    until(lambda: "up" in child.log())
    # The stray's parent has ended, so it hangs below this process now, in a session of its own.
    (stray,) = child.descendants()
    assert stray.ppid() == os.getpid()
    assert os.getsid(stray.pid) == stray.pid != child.pid
    child.end(5.0)
    assert not psutil.pid_exists(stray.pid)
    assert not psutil.pid_exists(child.pid)


def test_a_grandchild_with_an_emptied_environment_is_found_and_ended_and_helpers_are_not(
        start: Callable[[str], process.Child]) -> None:
    helper = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)  # as the sampler is
    child = start(EMPTIED)
    until(lambda: "up" in child.log())
    other = start(SLEEP)
    beside = subprocess.Popen([sys.executable, "-c", SLEEP])
    (stray,) = child.descendants()
    assert stray.ppid() == os.getpid()
    child.end(5.0)
    assert gone(stray.pid) and gone(child.pid)
    assert helper.poll() is None and beside.poll() is None and other.ended() is None
    for each in (helper, beside):
        each.kill()
        each.wait()


def test_a_process_that_even_a_kill_does_not_end_is_named_and_not_awaited_for_ever(
        start: Callable[[str], process.Child], monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that the kernel holds in state D."""
    child = start(f"print('up', flush=True); {SLEEP}")
    until(lambda: "up" in child.log())
    with monkeypatch.context() as patched:
        patched.setattr(process, "KILLED_LIMIT_S", 0.2)
        patched.setattr(child._popen, "terminate", lambda: None)
        patched.setattr(child._popen, "kill", lambda: None)
        with pytest.raises(EngineError, match=f"Process {child.pid} was killed and has not ended in 0.2 s"):
            child.end(0.1)


def test_a_user_who_interrupts_waits_two_seconds_for_a_server_and_not_its_limit(
        start: Callable[[str], process.Child], monkeypatch: pytest.MonkeyPatch) -> None:
    child = start(STUBBORN)
    until(lambda: "up" in child.log())
    monkeypatch.setattr(process, "HURRY_S", 0.3)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with interrupt.listening(is_program=False), interrupt.held_back():
        child.end(30.0)
    assert time.monotonic() - began < 10
    interrupt._came.clear()


def test_what_ignores_sigterm_is_killed_after_the_limit(start: Callable[[str], process.Child]) -> None:
    child = start(STUBBORN)
    until(lambda: "up" in child.log())
    began = time.monotonic()
    child.end(0.3)
    assert 0.3 <= time.monotonic() - began < 20
    assert child.ended() == "killed by signal 9"
    child.end(0.3)  # again, and nothing happens


def test_the_death_of_the_orchestrator_takes_the_server_along(tmp_path: Path) -> None:
    code = ("import sys, time; from pathlib import Path; from pipeline.engine import process\n"
            "child = process.start([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
            "                      environment=process.clean_environment(), log_path=Path(sys.argv[1]))\n"
            "print(child.pid, flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True,
                          cwd=ROOT) as orchestrator:
        assert orchestrator.stdout is not None
        pid = int(orchestrator.stdout.readline())
        until(lambda: "time.sleep(60)" in " ".join(process.command_line(pid)[-1:]))
        orchestrator.kill()
    until(lambda: gone(pid))


def test_a_server_deaf_to_sigterm_and_its_child_end_when_the_orchestrator_is_killed(tmp_path: Path) -> None:
    """As Ollama is started: the kernel's SIGTERM is to make it end its own."""
    deaf = ("import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={{}}); "
            f"print(child.pid, flush=True); {SLEEP}")
    code = ("import signal, sys, time; from pathlib import Path; from pipeline.engine import guard, process\n"
            "guard.GRACE_S = 0.2\n"
            "child = process.start([sys.executable, '-c', sys.argv[2]], environment=process.clean_environment(),\n"
            "                      log_path=Path(sys.argv[1]), death_signal=signal.SIGTERM)\n"
            "print(child.pid, flush=True); time.sleep(60)")
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", code, str(log), deaf], stdout=subprocess.PIPE, text=True,
                          cwd=ROOT) as orchestrator:
        assert orchestrator.stdout is not None
        pids = [int(orchestrator.stdout.readline())]
        until(lambda: log.read_text().endswith("\n"))
        pids.append(int(log.read_text()))
        orchestrator.kill()
    until(lambda: all(map(gone, pids)))


def test_mapped_files_are_told_from_read_ones(start: Callable[[str], process.Child], tmp_path: Path) -> None:
    files = [tmp_path / "mapped one", tmp_path / "read"]
    for path in files:
        path.write_bytes(b"x" * 4096)
    child = start(f"import mmap; one, two = (open(name, 'rb') for name in {[str(p) for p in files]!r})\n"
                  "kept = mmap.mmap(one.fileno(), 0, prot=mmap.PROT_READ); data = two.read()\n"
                  f"print('up', flush=True); {SLEEP}")
    until(lambda: "up" in child.log())
    assert process.maps_file(child.pid, files[0]) is True
    assert process.maps_file(child.pid, files[1]) is False
    assert process.resident_bytes(child.pid) > 0
    child.end(1.0)
    assert process.maps_file(child.pid, files[0]) is None


def test_a_variable_for_a_server_that_ours_does_not_get_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OLLAMA_", "LLAMA_ARG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OLLAMA_MODELS", "/models")  # which slackwater itself reads
    assert process.left_out() == []
    monkeypatch.setenv("OLLAMA_KV_CACHE_TYPE", "q8_0")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "512")
    assert process.left_out() == ["LLAMA_ARG_CTX_SIZE, OLLAMA_KV_CACHE_TYPE of this shell does not reach the server: "
                                  "its settings stand in the config"]
    assert not {"OLLAMA_KV_CACHE_TYPE", "LLAMA_ARG_CTX_SIZE"} & process.clean_environment().keys()
