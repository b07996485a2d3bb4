"""Watching a stranger's process: found by id, name or URL, and measured as exactly as a server of ours."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import ports
from pipeline.errors import ConfigError, MeterError
from pipeline.meter.tree import members
from pipeline.meter.watch import UNSEEN, find_process, watch
from tests.truth.program import Program


def test_what_a_process_allocates_is_what_the_document_says() -> None:
    with Program() as program:
        def work() -> None:
            program.tell("hold", name="x", kind="anon", mib=100)
            program.tell("spike", mib=64, hold_ms=5)

        working = threading.Timer(0.3, work)
        working.start()
        seen: list[float] = []
        document = watch(program.pid, 3.0, on_second=lambda second: seen.append(second.t_s))
        working.join()
    whole, seconds = document["whole"], document["seconds"]
    assert len(seconds) == 3
    assert seen == [second["t_s"] for second in seconds]
    assert whole["kernel_peak_mib"] - whole["baseline_rss_mib"] == pytest.approx(164, rel=0.01)
    assert whole["kernel_peak_bound_mib"] == pytest.approx(whole["kernel_peak_mib"], rel=0.001)
    assert seconds[2]["rss_mib"] - whole["baseline_rss_mib"] == pytest.approx(100, rel=0.02)
    assert seconds[2]["pss_mib"] == pytest.approx(seconds[2]["rss_mib"], rel=0.1)
    assert whole["samples"] + whole["lost_slots"] == pytest.approx(100 * whole["t_s"], abs=5)
    for part in (whole, *seconds):
        assert {"lateness_p99_ms", "sampler_cpu_pct", "shmem_mib", "swap_mib", "sampled_peak_mib"} <= set(part)
        assert part["sampled_peak_mib"] <= part["kernel_peak_mib"] <= part["kernel_peak_bound_mib"]
    assert document["notes"] == [UNSEEN]


def test_the_peak_from_before_the_watch_is_not_in_it() -> None:
    with Program() as program:
        program.tell("spike", mib=100, hold_ms=5)
        whole = watch(program.pid, 0.5)["whole"]
    assert whole["kernel_peak_mib"] - whole["baseline_rss_mib"] < 1


def test_children_that_take_turns_are_an_interval_and_a_strangers_detached_child_is_not_counted() -> None:
    with Program() as program:
        program.send("alternate", mib=64, hold_ms=60, rounds=5)
        while len(members(program.pid)) < 3:
            time.sleep(0.01)
        time.sleep(0.1)
        whole = watch(program.pid, 1.5)["whole"]
        program.answer()
        base = whole["baseline_rss_mib"]
        assert whole["kernel_peak_mib"] - base == pytest.approx(64, abs=2)
        assert whole["kernel_peak_bound_mib"] - base == pytest.approx(128, abs=3)
        program.tell("detach", mib=50)
        assert watch(program.pid, 0.3)["whole"]["processes"] == whole["processes"]


def test_a_process_that_ends_ends_the_watch_with_what_was_seen() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    began = time.monotonic()
    document = watch(process.pid, 30)
    reaper.join()
    assert time.monotonic() - began < 40
    assert 1 <= len(document["seconds"]) <= 2
    assert document["whole"]["kernel_peak_mib"] > 1


def test_watching_what_is_not_there() -> None:
    with pytest.raises(MeterError, match="4194304 cannot be followed"):
        watch(4194304, 1)
    for wanted, said in (("4194304", "there is no process 4194304"), ("no-such-program", "no process has that name"),
                         ("http://example.invalid:80", "is not this machine"),
                         ("http://127.0.0.1:1", "nothing listens on port 1"), ("http://127.0.0.1:x", "Expected")):
        with pytest.raises(ConfigError, match=said):
            find_process(wanted)


def test_a_process_is_found_by_id_by_url_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_BYTES", 0)
    assert find_process(str(os.getpid())) == os.getpid()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        assert find_process(f"http://127.0.0.1:{server.server_port}/v1") == os.getpid()
        assert find_process(f"http://localhost:{server.server_port}") == os.getpid()
        assert find_process(f"http://{socket.gethostname()}:{server.server_port}") == os.getpid()
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        assert find_process(f"http://[::1]:{six.getsockname()[1]}") == os.getpid()


FORWARD = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
server.accept()
"""


def test_a_forwarder_is_not_taken_for_the_server_behind_it(tmp_path: Path) -> None:
    """docker-proxy, socat, ssh -L: what listens is small, maps no weights and is not a program that serves models."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", FORWARD], stdout=subprocess.PIPE) as forwarder:
        assert forwarder.stdout is not None
        url = f"http://127.0.0.1:{int(forwarder.stdout.readline())}"
        with pytest.raises(ConfigError, match=rf"process {forwarder.pid} .* holds no model: .*slackwater watch PID"):
            find_process(url)
        assert find_process(str(forwarder.pid)) == forwarder.pid
        forwarder.kill()


@pytest.mark.parametrize(("program", "weights"), [("ollama", "none"), ("python", "held.gguf")])
def test_a_server_is_told_by_its_name_or_by_the_weights_it_maps(tmp_path: Path, program: str, weights: str) -> None:
    (tmp_path / program).symlink_to(sys.executable)
    (tmp_path / weights).write_bytes(b"some")
    code = f"import mmap\nfile = open({weights!r})\nkept = mmap.mmap(file.fileno(), 4, prot=1)\n{FORWARD}"
    with subprocess.Popen([tmp_path / program, "-I", "-S", "-c", code], stdout=subprocess.PIPE,
                          cwd=tmp_path) as server:
        assert server.stdout is not None
        assert find_process(f"http://127.0.0.1:{int(server.stdout.readline())}") == server.pid
        server.kill()


def test_a_name_means_the_topmost_process_and_several_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    # A name of this test's own: other programs run on this machine.
    program = tmp_path_factory.mktemp("bin") / "slackwater-test-server"
    program.symlink_to(sys.executable)
    code = "import os, sys, time; os.fork(); print(os.getpid(), flush=True); sys.stdin.read()"
    one = subprocess.Popen([program, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert one.stdout is not None
        assert {int(one.stdout.readline()), int(one.stdout.readline())} > {one.pid}
        assert find_process("slackwater-test-server") == one.pid
        with subprocess.Popen([program, "-I", "-S", "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as two:
            assert two.stdout is not None
            two.stdout.readline()
            with pytest.raises(ConfigError, match=f"2 processes have that name: {one.pid}, {two.pid}"):
                find_process("slackwater-test-server")
    finally:
        one.communicate()
