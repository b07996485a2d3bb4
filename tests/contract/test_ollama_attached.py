"""An Ollama that already runs: taken as it was started, read at each trial, told from what else listens and asks."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import ports
from pipeline.config import Config, InferOs, Model
from pipeline.engine import load_engine, process
from pipeline.engine.base import Request, Scalar
from pipeline.engine.ollama import model_store, start
from pipeline.engine.ollama import settings as ollama_settings
from pipeline.engine.ollama.api import Api
from pipeline.engine.ollama.environment import AUTO, as_read
from pipeline.engine.ollama.plan import resolved_settings
from pipeline.errors import ConfigError, EngineError
from pipeline.model.digest import digest
from pipeline.model.files import read_model
from pipeline.outcome import infer_os_label
from pipeline.testing import config_of
from tests.contract.test_ollama import REAL, Double, double, engine_config, ignore, phantom

__all__ = ["double", "phantom"]  # fixtures


def attached(double: Double, url: str, **changes: Any) -> Any:
    config = double.config(model=Model(name="tide", kind="ollama", tag="tide:1b"))
    config.engine = engine_config(name="ollama_attached", url=url, **changes)
    config.infer_os = InferOs(as_started=True)
    return config


def meddle(url: str, path: str, body: dict[str, Any]) -> None:
    """What another client asks."""
    with urllib.request.urlopen(url + path, json.dumps(body).encode(), timeout=60.0) as answer:
        answer.read()


def users_server(double: Double, port: int = 0, host: str = "127.0.0.1", **environment: str) -> tuple[str, int]:
    """A double as a user would run it, and its process id."""
    name, users = model_store.Name.parse("tide:1b"), double.folder / "users"
    if not (users / name.path).exists():
        model_store.adopt(double.model, read_model(double.model), "0" * 64, name, users)
    number = len(double.others)
    child = start.start_serve(double.binary, double.folder / f"home{number}", users,
                              double.folder / f"users{number}.log", f"{host}:{port}", environment)
    double.others.append(child)
    return start.answering(child, 20.0).url, child.pid


def test_an_attached_server_is_read_driven_and_left_as_it_was(double: Double) -> None:
    url, pid = users_server(double, OLLAMA_KV_CACHE_TYPE="q8_0", OLLAMA_FLASH_ATTENTION="1")
    engine = load_engine(attached(double, url))
    plan = engine.plan()
    assert (plan.settings["kv_cache_type"], plan.settings["flash_attention"]) == ("q8_0", True)
    assert (plan.settings["num_parallel"], plan.settings["cache_ram_mib"]) == (1, 8192), "in force, though not set"
    assert re.search(r"is taken as it was started: .*num_parallel=1 \(not set\), kv_cache_type=q8_0, "
                     r"flash_attention=true", " ".join(plan.notes))
    Api(url).send({"model": "tide:1b", "keep_alive": -1}, 20.0)
    server = engine.start(double.folder / "attached.log")
    assert (server.pid, server.loaded) == (pid, False)
    assert Api(url).running() == []
    assert server.generate(Request("tide", 4, 1), ignore).output_tokens == 4
    states = {proof.knob: proof.state for proof in server.proofs()}
    assert {states[name] for name in ("kv_cache_type", "num_parallel", "cache_ram_mib")} == {"confirmed"}
    assert "contradicted" not in states.values()
    server.stop()
    assert Api(url).version() == "0.33.0"
    assert Api(url).running() == []
    assert "llama-server started" in (double.folder / "attached.log").read_text()
    facts = engine.provenance()
    assert facts["engine_version"] == "ollama 0.33.0"
    assert facts["model_digest"] == f"sha256:{'0' * 64}"


def test_an_address_in_the_shell_that_is_not_the_servers_is_named(
        double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = users_server(double)
    for host, named in (("0.0.0.0:11500", True), (url.removeprefix("http://"), False)):
        monkeypatch.setenv("OLLAMA_HOST", host)
        notes = " ".join(load_engine(attached(double, url)).plan().notes)
        assert (f"OLLAMA_HOST={host} of this shell is not read: the server is the one of engine.url={url}" in notes
                ) is named


def test_a_word_for_infer_os_is_a_demand_and_refused_with_the_exact_environment(double: Double) -> None:
    url, _ = users_server(double, OLLAMA_KV_CACHE_TYPE="q8_0")
    config = attached(double, url)
    config.infer_os = InferOs(quantization=True)
    with pytest.raises(ConfigError, match=r"infer_os\.memory_optimization=false.*start only.*OLLAMA_KV_CACHE_TYPE=q8_0 "
                                          r"OLLAMA_FLASH_ATTENTION=1.*ollama serve.*slackwater compare"):
        load_engine(config).plan()
    config.infer_os = InferOs()
    with pytest.raises(ConfigError, match=r"infer_os\.quantization=false.*kv_cache_type is q8_0, not f16"):
        load_engine(config).plan()


def test_a_server_started_with_the_printed_line_is_measured_as_that_arm_and_no_other(double: Double) -> None:
    config = attached(double, "http://127.0.0.1:1")
    line = {variable: str(ollama_settings.variable(name, value))
            for name, value in resolved_settings(double.config({"quantization": True}), "0.33.0").settings.items()
            if (variable := ollama_settings.ENVIRONMENT.get(name))}
    config.engine.url, _ = users_server(double, 0, "127.0.0.1", **line)
    config.infer_os = InferOs(quantization=True)
    plan = load_engine(config).plan()
    with pytest.raises(ConfigError, match=r"infer_os\.quantization=false needs settings"):
        load_engine(replace(config, infer_os=InferOs())).plan()
    as_it_is = load_engine(replace(config, infer_os=InferOs(as_started=True))).plan()
    assert as_it_is.settings == plan.settings, "one server: an A/A, which a sweep refuses"


def test_an_attached_server_is_taken_as_started_unless_infer_os_is_named() -> None:
    words = ("engine=ollama_attached", "mode=oneshot", "model=gpt-oss-20b")
    assert infer_os_label(config_of(*words).infer_os) == "as_started"
    assert infer_os_label(config_of(*words, "infer_os=off").infer_os) == "off"
    assert infer_os_label(config_of(*words, "infer_os.quantization=true").infer_os) == "quantization"
    assert infer_os_label(config_of("engine=ollama").infer_os) == "off"
    with pytest.raises(ConfigError, match=r"infer_os=as_started .* is for engine=ollama_attached"):
        resolved_settings(config_of("engine=ollama", "infer_os=as_started"), "0.33.0")


def test_a_server_started_anew_with_other_settings_ends_the_cell_by_name(double: Double) -> None:
    url, _ = users_server(double)
    engine = load_engine(attached(double, url))
    engine.planned = engine.plan().settings
    double.others.pop().end(3.0)
    port = url.rpartition(":")[2]
    users_server(double, port=int(port), OLLAMA_KV_CACHE_TYPE="q8_0")
    with pytest.raises(EngineError, match=r"started anew with other settings.*kv_cache_type was f16 and is q8_0\. The "
                                          r"cell ends here"):
        engine.start(double.folder / "attached.log")
    double.others.pop().end(3.0)
    gone = load_engine(attached(double, url))
    with pytest.raises(EngineError, match=r"no answer from") as caught:
        gone.start(double.folder / "attached.log")
    assert not isinstance(caught.value, ConfigError), "a trial fails of it, not the sweep"


def test_another_clients_requests_in_a_trial_are_named_and_counted(double: Double) -> None:
    url, _ = users_server(double)
    config = attached(double, url)
    server = load_engine(config).start(double.folder / "attached.log")
    server.generate(Request("tide", 4, 1), ignore)
    assert server.others() == ""
    body = {"model": "tide:1b", "prompt": "mine", "options": {"num_predict": 2, **ollama_settings.options(
        load_engine(config).plan().settings)}}
    for _ in range(2):
        meddle(url, "/api/generate", body)
    server.generate(Request("turn", 4, 1), ignore)
    server.unload()
    assert server.others() == "POST /api/generate from 127.0.0.1: 2; 2 more tasks in its engine than ours"
    server.stop()


def test_another_client_that_makes_the_server_load_anew_is_named_as_the_reason(double: Double) -> None:
    url, _ = users_server(double)
    server = load_engine(attached(double, url)).start(double.folder / "attached.log")
    server.generate(Request("tide", 4, 1), ignore)
    meddle(url, "/api/generate", {"model": "tide:1b", "prompt": "mine", "options": {"num_ctx": 512, "num_predict": 2}})
    with pytest.raises(EngineError, match=r"replaced its engine process.*Another client used it meanwhile: POST "
                                          r"/api/generate from 127\.0\.0\.1: 1"):
        server.generate(Request("turn", 4, 1), ignore)
    server.stop()


def test_of_two_servers_on_one_port_the_one_that_answers_is_read(double: Double) -> None:
    url, first = users_server(double)
    port = int(url.rpartition(":")[2])
    other, second = users_server(double, port=port, host="127.0.0.2", OLLAMA_KV_CACHE_TYPE="q8_0")
    for address, pid, kv_type in ((url, first, "f16"), (other, second, "q8_0")):
        engine = load_engine(attached(double, address))
        assert engine.plan().settings["kv_cache_type"] == kv_type
        server = engine.start(double.folder / "attached.log")
        assert server.pid == pid
        server.stop()


def test_a_process_that_is_not_the_one_that_answers_is_named(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = users_server(double)
    other, second = users_server(double)
    monkeypatch.setattr(ports, "listener", lambda port, host="": second)  # as of a forwarder that looks like a server
    server = load_engine(attached(double, url)).start(double.folder / "attached.log")
    with pytest.raises(EngineError, match=rf"process {second} .* listens at {url} and is not the server that answers: "
                                          r"no process below it holds the model after a load.*engine\.pid=PID"):
        server.generate(Request("tide", 4, 1), ignore)
    server.stop()
    Api(other).send({"model": "tide:1b", "keep_alive": -1}, 20.0)
    with pytest.raises(EngineError, match="it says that it holds no model, and this process holds one"):
        load_engine(attached(double, url)).start(double.folder / "attached.log")


def test_a_server_here_whose_process_cannot_be_told_is_not_measured(
        double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    url, first = users_server(double)
    monkeypatch.setattr(ports, "listener", lambda port, host="": None)  # another user's: its open files are not ours
    monkeypatch.setattr("pipeline.engine.ollama.attached.servers", lambda users=(): [first])
    assert load_engine(attached(double, url)).start(double.folder / "attached.log").pid == first
    monkeypatch.setattr("pipeline.engine.ollama.attached.servers", lambda users=(): [1, first])
    with pytest.raises(EngineError, match=rf"^not measured: .* process 1 .*; process {first} .*engine\.pid=PID"):
        load_engine(attached(double, url)).start(double.folder / "attached.log")


def test_an_attached_server_gets_no_files_and_must_have_the_model(double: Double) -> None:
    url, _ = users_server(double)
    config = attached(double, url)
    config.model.tag = "other:1b"
    with pytest.raises(ConfigError, match=r"has no model other:1b. `ollama pull other:1b`"):
        load_engine(config).plan()
    config.model = Model(name="phantom", kind="file", path=str(double.model))
    with pytest.raises(ConfigError, match=r"is a file, and a server that slackwater did not start.*engine=ollama"):
        load_engine(config)


def test_a_server_elsewhere_has_no_process_and_says_so(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = users_server(double)
    config = attached(double, url, allow_remote=True)
    engine = load_engine(config)
    monkeypatch.setattr(engine, "_local", False)  # as if the address were another machine's
    assert "no process meters for another machine" in " ".join(engine.plan().notes)
    server = engine.start(double.folder / "remote.log")
    assert server.pid == 0
    events: list[str] = []
    assert server.generate(Request("tide", 4, 1), lambda kind, _: events.append(kind)).output_tokens == 4
    assert events[:4] == ["request_sent", "load_start", "load_end", "first_token"]
    assert {proof.state for proof in server.proofs() if proof.knob != "keep_alive"} == {"not observable"}
    server.unload()
    server.stop()


# A real server, where there is one


@pytest.fixture
def real(tmp_path: Path, model_file: Path) -> Iterator[Any]:
    """Starts a real one as a user would: its address and its process."""
    if not REAL:
        pytest.skip("no Ollama here: neither OLLAMA_BIN nor `ollama` on the PATH")
    running: list[process.Child] = []
    model_store.adopt(model_file, read_model(model_file), digest([model_file]), model_store.Name.parse("smol:1b"),
                      tmp_path / "users")

    def begin(**environment: str) -> str:
        where = tmp_path / str(len(running))
        running.append(start.start_serve(Path(str(shutil.which(str(REAL)))), where, tmp_path / "users",
                                         where.with_suffix(".log"), "127.0.0.1:0", environment))
        return start.answering(running[-1], 60.0).url

    yield begin
    for child in running:
        child.end(5.0)


def at(url: str) -> Config:
    return Config(model=Model(name="smol", kind="ollama", tag="smol:1b"), max_tokens=4, num_ctx=512,
                  engine=engine_config(name="ollama_attached", url=url, no_progress_s=60.0, stop_limit_s=30.0),
                  infer_os=InferOs(as_started=True))


AS_STARTED = [
    {"flash_attention": "off", "num_parallel": "0", "kv_cache_type": "Q8_0", "cache_ram_mib": "512MiB",
     "repack": "off"},
    {"flash_attention": " '0' ", "num_parallel": "+4", "kv_cache_type": "", "n_ctx_checkpoints": "4x"},
    {"num_parallel": "2", "max_loaded_models": "auto"},
]


@pytest.mark.ollama
@pytest.mark.parametrize("words", AS_STARTED, ids=["words", "spaces", "few"])
def test_real_what_a_variable_means_is_what_the_engine_runs_with(real: Any, tmp_path: Path,
                                                                 words: dict[str, str]) -> None:
    url = real(**{ollama_settings.ENVIRONMENT[name]: text for name, text in words.items()})
    engine = load_engine(at(url))
    settings = engine.plan().settings
    server = engine.start(tmp_path / "attached.log")
    server.generate(Request("Slack water is", 4, 1), ignore)
    proofs = {proof.knob: proof for proof in server.proofs()}
    server.stop()
    for name, variable in ollama_settings.ENVIRONMENT.items():
        asked: Scalar = as_read(name, {variable: words[name]} if name in words else {}, old=False)
        assert settings[name] == asked
        assert proofs[name].state != "contradicted", proofs[name]
        assert proofs[name].effective is not None or asked == AUTO or name in ("repack", "go_memory_limit_mib")


@pytest.mark.ollama
def test_real_another_clients_requests_are_named_and_counted(real: Any, tmp_path: Path) -> None:
    url = real()
    engine = load_engine(at(url))
    options = ollama_settings.options(engine.plan().settings)
    server = engine.start(tmp_path / "attached.log")
    server.generate(Request("Slack water is", 4, 1), ignore)
    assert server.others() == ""
    meddle(url, "/api/chat", {"model": "smol:1b", "messages": [{"role": "user", "content": "hi"}],
                              "options": {**options, "num_predict": 2}})
    server.unload()
    assert server.others() == "POST /api/chat from 127.0.0.1: 1; 1 more tasks in its engine than ours"
    server.stop()
