"""What only Ollama owes the runner, on the double with known allocations, and on a real server where there is one.

The contract that all engines share is test_engine.py. Faults that a real server does not have on demand are the
double's; what is expected of a healthy server is expected of both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig, OmegaConf

from pipeline.config import CONF_DIR, Config, Engine, InferOs, Model
from pipeline.engine import load_engine, process
from pipeline.engine.base import EventKind, Generation, Request
from pipeline.engine.ollama import model_store
from pipeline.engine.ollama.server import OllamaServer
from pipeline.engine.ollama.start import answered_version, stated_version
from pipeline.errors import ConfigError, EngineError, PromptTooLongError
from pipeline.text import engine_and_version
from tests.doubles.ollama.ggufs import write_phantom

DOUBLE = Path(__file__).parents[1] / "doubles/ollama/ollama"
MIB = 2**20
ON = {"memory_optimization": True, "quantization": True, "cpu_optimization": True}


def ignore(kind: EventKind, t_ns: int) -> None:
    """No interest in events."""


def ask(prompt: str = "The tide turns when", max_tokens: int = 8) -> Request:
    return Request(prompt=prompt, max_tokens=max_tokens, seed=1)


def engine_config(**changes: Any) -> Engine:
    shipped = OmegaConf.load(CONF_DIR / "engine/ollama.yaml")
    assert isinstance(shipped, DictConfig)
    shipped.pop("defaults")
    engine = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Engine), shipped))
    assert isinstance(engine, Engine)
    for name, value in {"no_progress_s": 5.0, "start_limit_s": 20.0, "stop_limit_s": 3.0, **changes}.items():
        setattr(engine, name, value)
    return engine


@dataclass
class Double:
    """A double in a folder of its own, whose behaviour can be changed while it runs."""

    folder: Path
    model: Path
    servers: list[OllamaServer]
    others: list[process.Child]
    """Servers that a user would run."""

    def behave(self, **values: object) -> None:
        fresh = self.folder / "behaviour.new"
        fresh.write_text(json.dumps(values))
        fresh.replace(self.folder / "behaviour.json")  # at once: the double may be reading

    @property
    def binary(self) -> Path:
        """A program of its own that knows where its behaviour stands: a server's environment is not ours to fill."""
        path = self.folder / "ollama"
        if not path.exists():
            run = f'"{sys.executable}" -S -E "{DOUBLE}" --behaviour "{self.folder / "behaviour.json"}"'
            path.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
            path.chmod(0o755)
        return path

    def config(self, flags: Mapping[str, Any] | None = None, model: Model | None = None, num_ctx: int = 2048,
               **changes: Any) -> Config:
        engine = engine_config(binary=str(self.binary), **changes)
        return Config(model=model or Model(name="phantom", kind="file", path=str(self.model)), engine=engine,
                      infer_os=InferOs(**dict(flags or {})), max_tokens=8, num_ctx=num_ctx)

    def start(self, config: Config | None = None) -> OllamaServer:
        log_path = self.folder / f"server{len(self.servers)}.log"
        server = load_engine(config or self.config()).start(log_path)
        assert isinstance(server, OllamaServer)
        self.servers.append(server)
        return server


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Q4_0 (so that there is something to repack), 64 MiB; KV 64 MiB and compute 32 MiB at the default settings."""
    return write_phantom(tmp_path_factory.mktemp("models") / "phantom.gguf", weight_type="Q4_0")


@pytest.fixture
def double(tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "users"))
    made = Double(tmp_path, phantom, [], [])
    made.behave()
    yield made
    for server in made.servers:
        server.stop()
    for other in made.others:
        other.end(3.0)


def family(server: OllamaServer) -> list[psutil.Process]:
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


def tree_kib(server: OllamaServer, field: str) -> int:
    total = 0
    for member in family(server):
        match = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{member.pid}/status").read_text(), re.MULTILINE)
        total += int(match[1]) if match else 0
    return total


# Memory that is known


@pytest.mark.parametrize(("flags", "anon_mib", "file_mib"), [({}, 160.0, 0.0), (ON, 66.0, 64.0)], ids=["off", "on"])
def test_the_tree_holds_what_was_allocated_at_every_phase(double: Double, flags: Mapping[str, bool], anon_mib: float,
                                                          file_mib: float) -> None:
    server = double.start(double.config(flags))
    idle = tree_kib(server, "RssAnon") / 1024
    server.load(ignore)
    child = server.host.child()
    assert child is not None
    program = _baseline(server, child)
    server.generate(ask(), ignore)
    held = tree_kib(server, "RssAnon") / 1024 - idle - program["baseline_anon"] / MIB
    assert held == pytest.approx(anon_mib, rel=0.01)
    mapped = next(iter(re.findall(r"^RssFile:\s+(\d+)", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)))
    assert int(mapped) / 1024 - program["baseline_file"] / MIB == pytest.approx(file_mib, abs=2.0)
    server.unload()
    assert tree_kib(server, "RssAnon") / 1024 == pytest.approx(idle, abs=2.0)


def _baseline(server: OllamaServer, child: int) -> dict[str, int]:
    """What the child's own program held before it allocated anything, from its health page."""
    import http.client

    line = psutil.Process(child).cmdline()
    connection = http.client.HTTPConnection("127.0.0.1", int(line[line.index("--port") + 1]), timeout=5)
    connection.request("GET", "/health")
    found: dict[str, int] = json.loads(connection.getresponse().read())["truth"]
    connection.close()
    return found


def test_the_claim_of_ps_stands_beside_the_engines_buffers(double: Double) -> None:
    server = double.start()
    server.load(ignore)
    sizes: dict[str, int] = {}
    for buffer in server.buffers():
        sizes[buffer.component] = sizes.get(buffer.component, 0) + buffer.bytes
    assert {name: size / MIB for name, size in sizes.items() if size} == pytest.approx(
        {"repacked": 64.0, "kv": 64.0, "compute": 32.0, "claimed": 160.0}, abs=0.1)
    assert server.claim == sizes["claimed"]


# Load, unload, generate


def test_an_unload_is_seen_when_the_child_has_ended_and_not_before(double: Double) -> None:
    server = double.start()
    server.load(ignore)
    double.behave(unload_s=0.4)
    child = server.host.child()
    assert child is not None
    watcher = subprocess.Popen([sys.executable, "-S", "-c", textwrap.dedent(f"""
        import os, time
        while os.path.exists("/proc/{child}"): time.sleep(0.001)
        print(time.monotonic_ns())""")], stdout=subprocess.PIPE, text=True)
    began = time.monotonic_ns()
    server.unload()
    seen, gone = time.monotonic_ns(), not Path(f"/proc/{child}").exists()
    ended = int(watcher.communicate(timeout=10)[0])
    assert seen - began > 0.4e9, "the unload is asynchronous: its answer is not its end"
    assert gone
    assert seen - ended < 1e9, "seen late even for a starved machine"
    assert not server.loaded


def test_a_model_that_does_not_go_is_an_error_after_the_limit(double: Double) -> None:
    server = double.start(double.config(stop_limit_s=0.5))
    server.load(ignore)
    double.behave(unload_s=30.0)
    with pytest.raises(EngineError, match=r"unload: no sign that its process \d+ ends for 0\.5 s.*stop_limit_s"):
        server.unload()
    double.behave(stale_ps=True)
    other = double.start(double.config(stop_limit_s=0.5))
    other.load(ignore)
    with pytest.raises(EngineError, match=r"/api/ps listed the model for 0\.5 s"):
        other.unload()


def test_thinking_counts_for_the_first_token_and_both_texts_are_kept(tmp_path: Path, double: Double) -> None:
    double.model = write_phantom(tmp_path / "t.gguf", architecture="gptoss", weights_mib=2, layers=2, context=131072)
    double.behave(thinking_tokens=3)
    events: list[EventKind] = []
    answer = double.start().generate(ask(), lambda kind, _: events.append(kind))
    assert events.count("first_token") == 1
    assert events.count("token") == 7
    assert len(answer.thinking.split()) == 3
    assert len(answer.text.split()) == 5
    assert answer.output_tokens == 8


def test_an_answer_in_one_line_has_no_first_token_and_all_its_tokens(double: Double) -> None:
    double.behave(one_line=True)
    events: list[EventKind] = []
    answer = double.start().generate(ask(), lambda kind, _: events.append(kind))
    assert events == ["request_sent", "load_start", "load_end", "last_token"]
    assert (answer.text, answer.output_tokens) == ("", 8)


def test_a_short_answer_is_counted_as_it_is(double: Double) -> None:
    double.behave(stop_at_token=3)
    answer = double.start().generate(ask(), ignore)
    assert (answer.output_tokens, answer.stop_reason) == (3, "stop")


def test_the_servers_own_durations_are_kept_in_seconds(double: Double) -> None:
    double.behave(load_s=0.3, token_s=0.02, probes=True, ready_s=0.2)
    answer = double.start().generate(ask(), ignore)
    assert answer.load_s is not None and 0.3 < answer.load_s < 10
    assert answer.decode_s is not None and 8 * 0.02 <= answer.decode_s < 5
    assert answer.prefill_s is not None and answer.prefill_s > 0


@pytest.mark.parametrize(("behaviour", "words"), [
    ({"error_at_token": 3}, "error in the middle of its answer: an error was encountered while running the model"),
    ({"end_at_token": 3}, "ended its answer without a last line"),
    ({"crash_at_token": 3}, "unexpected EOF"),
    ({"crash_at_load": "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 1"},
     "failed to allocate buffer"),
    ({"busy": True}, "is busy .*End them, or use engine=ollama"),
    ({"html": False, "cut_prompts": True}, "the server cut the prompt: it counts 3000 tokens"),
])
def test_what_goes_wrong_in_an_answer_is_an_error_with_its_reason(double: Double, behaviour: Mapping[str, object],
                                                                  words: str) -> None:
    server = double.start()
    double.behave(**behaviour)
    with pytest.raises(EngineError, match=words):
        server.generate(ask("tide " * 3000 if "cut_prompts" in behaviour else "tide"), ignore)


def test_a_stall_ends_after_the_limit_and_the_server_sees_us_hang_up(double: Double) -> None:
    server = double.start(double.config(no_progress_s=0.7))
    double.behave(stall_at_token=3)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"made no progress during generation: no token for 0\.7 s"):
        server.generate(ask(), ignore)
    assert time.monotonic() - began < 30
    stalled = double.start(double.config(no_progress_s=0.7))
    double.behave(stall_at_load=True)
    with pytest.raises(EngineError, match="made no progress during load"):
        stalled.load(ignore)
    deadline = time.monotonic() + 3  # a client that hangs up during a load makes the server give it up
    while stalled.host.child() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stalled.host.child() is None


def test_a_child_replaced_within_a_trial_fails_it(double: Double) -> None:
    double.behave(replace_at_token=3, token_s=0.001)
    for loaded in (True, False):
        server = double.start()
        if loaded:
            server.load(ignore)
        with pytest.raises(EngineError, match=r"replaced its engine process within the trial \(pid \d+, now \d+\)"):
            server.generate(ask(max_tokens=12), ignore)


def test_the_same_options_on_every_call_never_reload(double: Double) -> None:
    server = double.start()
    server.load(ignore)
    child = server.host.child()
    for prompt in ("one", "two", "three"):
        server.generate(ask(prompt), ignore)
    assert server.host.child() == child


# Proof


def test_a_lie_about_a_flag_is_found(double: Double) -> None:
    double.behave(lie={"--cache-type-k": "f16", "--cache-type-v": "f16"})
    server = double.start(double.config({"quantization": True}))
    server.load(ignore)
    wrong = [proof for proof in server.proofs() if proof.state == "contradicted"]
    assert [(proof.knob, proof.asked, proof.arrived, proof.effective) for proof in wrong] == [
        ("kv_cache_type", "q8_0", "q8_0", "f16")]


def test_a_server_before_030_is_proved_from_its_load_request(double: Double) -> None:
    double.behave(version="0.24.0")
    server = double.start(double.config({"quantization": True}))
    server.generate(ask(), ignore)
    states = {proof.knob: proof.state for proof in server.proofs()}
    assert {name for name, state in states.items() if state != "confirmed"} == {"model", "go_memory_limit_mib"}
    assert "contradicted" not in states.values()
    assert {buffer.component for buffer in server.buffers()} == {"weights", "kv", "compute", "claimed"}
    assert (check := server.check_log()) is not None and (check.version, list(check.missing)) == ("Ollama 0.24.0", [])


def test_versions_that_cannot_be_proved_are_refused_before_anything_starts(double: Double) -> None:
    double.behave(version="0.19.0")
    with pytest.raises(ConfigError, match=r"Ollama 0\.19\.0, whose settings cannot be proved.*0\.24, and 0\.30"):
        load_engine(double.config()).plan()
    double.behave(version="0.24.0")
    os.utime(double.binary)  # another version is another program
    plan = load_engine(double.config(ON)).plan()
    assert not {"cache_ram_mib", "n_ctx_checkpoints", "repack"} & set(plan.settings)
    assert "memory_optimization changes use_mmap and max_loaded_models only" in " ".join(plan.notes)


def test_the_published_environment_is_passed_exactly_and_judged_variable_by_variable(double: Double) -> None:
    shipped: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "infer_os/as_published.yaml"))
    config = double.config()
    config.infer_os = InferOs(environment=shipped["environment"])
    server = double.start(config)
    environment = psutil.Process(server.pid).environ()
    ours = {name for name in environment if name.startswith(("OLLAMA_", "LLAMA_", "ONNX", "GO"))}
    assert ours - set(shipped["environment"]) == {
        "OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_NOPRUNE", "OLLAMA_NO_CLOUD", "GOMEMLIMIT"}
    server.load(ignore)
    found = {proof.knob: proof for proof in server.proofs()}
    assert found["env.OLLAMA_LOAD_TIMEOUT"].state == "confirmed"
    assert found["env.OLLAMA_NUM_THREADS"].state == "not observable"
    assert str(found["environment as published"].effective).startswith("3 of 6 variables are read")
    assert [proof for proof in found.values() if proof.state == "contradicted"] == []


# What a server leaves behind


def test_nothing_is_written_into_the_users_model_folder_and_no_weights_are_copied(double: Double) -> None:
    users = double.folder / "users"
    model_store.adopt(double.model, ollama_models_header(double.model), "0" * 64, model_store.Name.parse("tide:1b"),
                        users)
    before = {path: path.lstat().st_mtime_ns for path in users.rglob("*")}
    server = double.start(double.config(model=Model(name="tide", kind="ollama", tag="tide:1b")))
    assert server.generate(ask(), ignore).output_tokens == 8
    own = double.folder / "server0.ollama"
    assert own.is_dir()
    copied = [path for path in own.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in copied) < MIB
    server.stop()
    assert {path: path.lstat().st_mtime_ns for path in users.rglob("*")} == before
    assert not own.exists()


def ollama_models_header(path: Path) -> Any:
    from pipeline.model.files import read_model

    return read_model(path)


def test_the_server_gets_a_clean_environment(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_NUM_PARALLEL", "LLAMA_ARG_THREADS", "HTTPS_PROXY", "OLLAMA_HOST"):
        monkeypatch.setenv(name, "7")
    environment = psutil.Process(double.start().pid).environ()
    assert environment["OLLAMA_NUM_PARALLEL"] == "1"
    assert environment["OLLAMA_HOST"] == "127.0.0.1:0"
    assert not {"LLAMA_ARG_THREADS", "HTTPS_PROXY"} & set(environment)
    assert Path(environment["HOME"]).is_relative_to(double.folder)


@pytest.mark.parametrize("moment", ["idle", "loading", "loaded"])
def test_the_whole_tree_ends_when_the_orchestrator_is_killed(double: Double, moment: str) -> None:
    double.behave(load_s=20.0 if moment == "loading" else 0.0)
    program = textwrap.dedent("""
        import os, pickle, sys
        from pathlib import Path
        from pipeline.engine import load_engine
        config, moment, folder = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
        server = load_engine(config).start(folder / "server.log")
        tell = lambda: print(server.pid, server.host.child() or 0, flush=True)
        if moment == "idle":
            tell()
        else:
            wanted = "load_start" if moment == "loading" else "load_end"
            server.load(lambda kind, t: tell() if kind == wanted else None)
        os.read(0, 1)
    """)
    import pickle

    packed = pickle.dumps(double.config()).hex()
    orchestrator = subprocess.Popen([sys.executable, "-c", program, packed, moment, str(double.folder)],
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert orchestrator.stdout is not None
    pids = [int(pid) for pid in orchestrator.stdout.readline().split() if int(pid)]
    assert len(pids) == (1 if moment == "idle" else 2)
    orchestrator.send_signal(signal.SIGKILL)
    orchestrator.wait()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_children_of_a_killed_serve_are_ended_with_it(double: Double) -> None:
    server = double.start()
    server.load(ignore)
    child = server.host.child()
    assert child is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert not psutil.pid_exists(child)


# Getting a model


def test_a_model_is_found_claimed_and_unloaded_in_every_spelling_that_ollama_takes(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "manifests/registry.ollama.ai/library/My-Model/Tag"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:00"}]}')
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/sha256-00").write_bytes(b"GGUF")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    for spelling in ("my-model:tag", "MY-MODEL:TAG", "library/My-model:tag"):
        found = model_store.find(model_store.Name.parse(spelling))
        assert found is not None and str(found.name) == "My-Model:Tag"
        assert model_store.Name.parse(spelling).is_called("My-Model:Tag")
    assert model_store.near(model_store.Name.parse("my-modell:tag")).startswith("Did you mean My-Model:Tag? ")
    assert not model_store.Name.parse("my-model").is_called("My-Model:Tag")


def test_a_build_that_says_no_version_is_called_built_from_source(tmp_path: Path) -> None:
    binary = tmp_path / "ollama"
    for inside, version in (("(devel)", "(built from source; it says no version)"),
                            ("v0.33.0-rc2", "0.33.0-rc2 (built from source)")):
        binary.write_text("#!/bin/sh\necho client version is 0.0.0\nexit\n"
                          f"mod\tgithub.com/ollama/ollama\t{inside}\t\n")
        binary.chmod(0o755)
        os.utime(binary, (1, len(inside)))
        assert stated_version(binary) == version
    assert answered_version("0.33.0") == "0.33.0"
    assert engine_and_version("ollama", f"ollama {version}") == "ollama 0.33.0-rc2 (built from source)"
    assert engine_and_version("llamacpp", "2026.10") == "llamacpp 2026.10"


def test_a_missing_model_is_an_error_with_the_pull_command_and_engine_pull_gets_it(double: Double) -> None:
    double.behave(registry={"tide:1b": str(double.model)})
    model = Model(name="tide", kind="ollama", tag="tide:1b")
    with pytest.raises(ConfigError, match=r"tide:1b is not on this machine.*`ollama pull tide:1b`.*engine\.pull=true"):
        load_engine(double.config(model=model)).plan()
    seen: list[tuple[str, int, int]] = []
    engine = load_engine(double.config(model=model, pull=True))
    assert "fetched first" in " ".join(engine.plan().notes)
    engine.fetch(lambda *args: seen.append(args))
    assert max(done for _, done, _ in seen) == double.model.stat().st_size
    assert not (double.folder / "users").exists(), "a pull fills a folder of ours, never the user's"
    assert double.start(double.config(model=model)).generate(ask(), ignore).output_tokens == 8


def test_a_pull_of_a_name_that_does_not_exist_says_so(double: Double) -> None:
    engine = load_engine(double.config(model=Model(name="no", kind="ollama", tag="no:1b"), pull=True))
    with pytest.raises(ConfigError, match=r"no:1b could not be pulled: .*file does not exist.*Check the name"):
        engine.fetch(lambda *args: None)


# A real server, where there is one


REAL = os.environ.get("OLLAMA_BIN") or shutil.which("ollama")


@pytest.fixture
def real(tmp_path: Path, model_file: Path) -> Iterator[Callable[..., OllamaServer]]:
    if not REAL:
        pytest.skip("no Ollama here: neither OLLAMA_BIN nor `ollama` on the PATH")
    servers: list[OllamaServer] = []

    def start(flags: Mapping[str, Any] | None = None) -> OllamaServer:
        config = Config(model=Model(name="smollm2", kind="file", path=str(model_file)),
                        engine=engine_config(no_progress_s=60.0, start_limit_s=60.0),
                        infer_os=InferOs(**dict(flags or {})), max_tokens=8)
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        server = load_engine(config).start(folder / "server.log")
        assert isinstance(server, OllamaServer)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.mark.ollama
def test_real_a_quantized_cache_costs_what_its_engine_says_it_saves(real: Callable[..., OllamaServer]) -> None:
    anon: dict[str, float] = {}
    held: dict[tuple[str, str], float] = {}
    for name, flags in (("f16", {}), ("q8_0", {"quantization": True})):
        server = real(flags)
        server.load(ignore)
        status = Path(f"/proc/{server.host.child()}/status").read_text()
        server_command = psutil.Process(server.host.child()).cmdline()
        anon[name] = int(re.findall(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)[0]) / 1024
        for component in ("kv", "compute"):
            held[component, name] = sum(each.bytes for each in server.buffers() if each.component == component) / MIB
    kv, compute = (held[component, "f16"] - held[component, "q8_0"] for component in ("kv", "compute"))
    assert kv == pytest.approx(21.1, abs=0.05)
    # The compute buffers differ too, and may be resident; before 0.30 the engine is a Go program with its own heap.
    tolerance = 3.0 if "runner" in server_command else 1.0
    assert kv - tolerance < anon["f16"] - anon["q8_0"] < kv + max(compute, 0.0) + tolerance


@pytest.mark.ollama
def test_real_a_prompt_longer_than_the_context_is_refused_with_its_count(real: Callable[..., OllamaServer]) -> None:
    with pytest.raises(PromptTooLongError, match=r"counts \d{4} tokens"):
        real().generate(ask("tide " * 3000), ignore)


@pytest.mark.ollama
def test_real_greedy_answers_are_the_same_twice(real: Callable[..., OllamaServer]) -> None:
    answers: list[Generation] = [real().generate(ask("Slack water is"), ignore) for _ in range(2)]
    assert answers[0].text == answers[1].text
    assert answers[0].prompt_tokens == answers[1].prompt_tokens == 4
