"""What every engine owes the runner, on the real server with the real default model; 8 tokens each."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import DictConfig, OmegaConf

from pipeline.config import CONF_DIR, Config, Engine, InferOs, Model
from pipeline.engine import load_engine, process
from pipeline.engine.base import EngineBase, EventKind, Request, Server
from pipeline.errors import ConfigError, EngineError, PromptTooLongError
from pipeline.model import weights
from pipeline.model.files import read_model

ENGINES = ["llamacpp", "ollama-double", pytest.param("ollama", marks=pytest.mark.ollama)]
OLLAMA_DOUBLE = Path(__file__).parents[1] / "doubles/ollama/ollama"
TOKENS = 8
PROMPT = "The tide turns when"
ON = {"memory_optimization": True, "quantization": True, "cpu_optimization": True}


@dataclass
class Events:
    """What an engine reported, as it reported it."""

    seen: list[tuple[EventKind, int]] = field(default_factory=list)

    def __call__(self, kind: EventKind, t_ns: int) -> None:
        assert t_ns <= time.monotonic_ns()
        self.seen.append((kind, t_ns))

    @property
    def kinds(self) -> list[EventKind]:
        return [kind for kind, _ in self.seen]


def group(name: str, option: str, schema: type) -> Any:
    """An option of conf/ as the typed value that an engine gets."""
    shipped = OmegaConf.load(CONF_DIR / name / f"{option}.yaml")
    assert isinstance(shipped, DictConfig)
    shipped.pop("defaults")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), shipped))


@pytest.fixture(scope="session")
def model() -> Model:
    default: Model = group("model", "smollm2-135m", Model)
    weights.resolve(default)
    return default


@pytest.fixture(params=ENGINES)
def configure(request: pytest.FixtureRequest, model: Model) -> Callable[..., Config]:
    """Config of a cell: flags of infer_os, and fields of conf/engine/ to change."""

    def build(flags: Mapping[str, Any] | None = None, **changes: Any) -> Config:
        engine = group("engine", request.param.removesuffix("-double"), Engine)
        if request.param == "ollama-double":
            engine.binary = str(OLLAMA_DOUBLE)
        elif request.param == "ollama" and not (os.environ.get("OLLAMA_BIN") or shutil.which("ollama")):
            pytest.skip("no Ollama here: neither OLLAMA_BIN nor `ollama` on the PATH")
        for name, value in changes.items():
            setattr(engine, name, value)
        return Config(model=model, engine=engine, infer_os=InferOs(**dict(flags or {})), max_tokens=TOKENS)

    return build


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Config], Server]]:
    servers: list[Server] = []

    def started(config: Config) -> Server:
        servers.append(load_engine(config).start(tmp_path / "server.log"))
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


def ask(prompt: str = PROMPT, raw: bool = True, max_tokens: int = TOKENS) -> Request:
    return Request(prompt=prompt, max_tokens=max_tokens, seed=42, raw=raw)


def tree(server: Server) -> list[psutil.Process]:
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


def tree_mib(server: Server) -> float:
    return sum(each.memory_info().rss for each in tree(server)) / 2**20


def weights_of(config: Config) -> Path:
    path = weights.located(config.model)
    assert path is not None
    return path


def test_a_plan_starts_nothing_and_sets_every_knob_explicitly(configure: Callable[..., Config]) -> None:
    before = psutil.Process().children(recursive=True)
    off, on = (load_engine(configure(flags)).plan() for flags in ({}, ON))
    assert set(off.settings) == set(on.settings)
    assert off.settings != on.settings
    assert psutil.Process().children(recursive=True) == before


def test_a_started_server_answers_and_holds_no_model(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure())
    assert server.alive() is None
    assert not server.loaded
    assert tree_mib(server) < weights_of(configure()).stat().st_size / 2**20
    assert all(process.maps_file(each.pid, weights_of(configure())) is False for each in tree(server))


def test_the_first_prompt_loads_and_every_event_comes_in_order(
    configure: Callable[..., Config], start: Callable[[Config], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy of the user's has no part in this
    server, events = start(configure()), Events()
    answer = server.generate(ask(), events)
    assert events.kinds == ["request_sent", "load_start", "load_end", "first_token", *["token"] * (TOKENS - 1),
                            "last_token"]
    stamps = [t_ns for _, t_ns in events.seen]
    assert stamps == sorted(stamps)
    assert len(set(stamps[3:-1])) == TOKENS, "tokens are stamped one by one as they arrive"
    assert (answer.output_tokens, answer.truncated) == (TOKENS, False)
    assert answer.prompt_tokens == 4
    assert answer.text.strip()
    assert server.loaded
    again, warm = server.generate(ask(), later := Events()), later.kinds
    assert warm[:2] == ["request_sent", "first_token"]
    assert (again.text, again.prompt_tokens) == (answer.text, answer.prompt_tokens)


def test_one_token_is_first_and_last(configure: Callable[..., Config], start: Callable[[Config], Server]) -> None:
    server, events = start(configure()), Events()
    server.load(events)
    assert events.kinds == ["load_start", "load_end"]
    assert server.generate(ask(max_tokens=1), events).output_tokens == 1
    assert events.kinds[2:] == ["request_sent", "first_token", "last_token"]


def test_unload_gives_the_memory_back_and_the_server_stays(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure())
    empty, pid = tree_mib(server), server.pid
    server.load(Events())
    model_mib = weights_of(configure()).stat().st_size / 2**20
    loaded = tree_mib(server)
    assert loaded > empty + 0.95 * model_mib
    server.unload()
    assert (server.loaded, server.alive(), server.pid) == (False, None, pid)
    assert tree_mib(server) < loaded - 0.95 * model_mib
    assert server.generate(ask(), events := Events()).output_tokens == TOKENS
    assert events.kinds[:3] == ["request_sent", "load_start", "load_end"]


@pytest.mark.parametrize("flags", [{}, ON, {"parallel_processing": True}], ids=["off", "on", "parallel"])
def test_every_setting_is_proved_and_none_is_contradicted(
    configure: Callable[..., Config], start: Callable[[Config], Server], flags: Mapping[str, Any]
) -> None:
    config = configure(flags)
    settings, server = load_engine(config).plan().settings, start(config)
    server.load(Events())
    proofs = {proof.knob: proof for proof in server.proofs()}
    assert {name: proof.asked for name, proof in proofs.items()} == dict(settings)
    assert [proof for proof in proofs.values() if proof.state == "contradicted"] == []
    confirmed = [name for name, proof in proofs.items() if proof.state == "confirmed"]
    assert len(confirmed) >= 0.75 * len(proofs), proofs
    assert all(proofs[name].source for name in confirmed)
    # The buffers that the engine admits to are the bytes that the model's header implies.
    header = read_model(weights_of(config))
    held = {part: sum(buffer.bytes for buffer in server.buffers() if buffer.component == part)
            for part in ("weights", "kv", "compute")}
    kv_type, slots = ("q8_0" if "quantization" in flags else "f16"), (4 if "parallel_processing" in flags else 1)
    assert held["weights"] == pytest.approx(sum(tensor.bytes or 0 for tensor in header.tensors), rel=0.01)
    assert held["kv"] == pytest.approx(slots * header.kv_bytes(config.num_ctx, 0, kv_type, kv_type), rel=0.01)
    assert held["compute"] > 0


def test_the_servers_own_template_may_be_used(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure())
    bare, wrapped = (server.generate(ask(raw=raw), Events()) for raw in (True, False))
    assert wrapped.prompt_tokens > bare.prompt_tokens


def test_a_prompt_longer_than_the_context_is_named_with_the_servers_counts(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure())
    with pytest.raises(PromptTooLongError, match=r"counts \d{4} tokens.*2048.*Raise num_ctx"):
        server.generate(ask("tide " * 3000), Events())
    assert server.generate(ask(), Events()).output_tokens == TOKENS


def test_a_server_killed_while_it_generates_is_an_error_that_says_so(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure())
    server.load(Events())
    victims = tree(server)

    def kill_at_first_token(kind: EventKind, t_ns: int) -> None:
        if kind == "first_token":
            for victim in victims:
                victim.kill()

    with pytest.raises(EngineError, match="ended during generation: killed by signal 9"):
        server.generate(ask(max_tokens=400), kill_at_first_token)
    ended = server.alive()
    assert ended is not None
    assert ended.startswith("killed by signal 9")
    assert not server.loaded
    server.stop()


def test_a_server_that_stops_answering_is_left_after_the_limit_without_progress(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure(no_progress_s=1.0, stop_limit_s=1.0))
    server.load(Events())

    def freeze_at_first_token(kind: EventKind, t_ns: int) -> None:
        if kind == "first_token":
            for each in tree(server):
                each.suspend()

    began = time.monotonic()
    with pytest.raises(EngineError, match="made no progress during generation: no token for 1 s"):
        server.generate(ask(max_tokens=400), freeze_at_first_token)
    assert time.monotonic() - began < 30
    server.stop()
    assert server.alive() is not None


def test_a_load_that_stops_moving_is_left_after_the_limit_without_progress(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure(no_progress_s=1.0, stop_limit_s=1.0))

    def freeze(kind: EventKind, t_ns: int) -> None:
        if kind == "load_start":
            os.kill(server.pid, signal.SIGSTOP)

    with pytest.raises(EngineError, match="made no progress during load"):
        server.load(freeze)


def test_a_server_that_died_while_idle_says_how(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure())
    for each in tree(server):
        each.kill()
    with pytest.raises(EngineError, match="ended during load: killed by signal 9"):
        server.load(Events())
    assert server.proofs()
    assert all(proof.effective is None for proof in server.proofs())


def test_stop_ends_all_of_it_and_may_be_called_again(
    configure: Callable[..., Config], start: Callable[[Config], Server]
) -> None:
    server = start(configure())
    server.load(Events())
    pids = [each.pid for each in tree(server)]
    server.stop()
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert server.alive() is not None
    server.stop()


def test_provenance_names_engine_and_model(configure: Callable[..., Config], model: Model) -> None:
    facts = load_engine(configure()).provenance()
    assert facts["engine_version"]
    assert facts["model_digest"] == f"sha256:{model.sha256}"
    assert all(isinstance(value, str) for value in facts.values())


def test_an_unknown_engine_is_an_error_that_lists_the_known_ones(configure: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"engine\.name=lamacpp is not a known engine: expected one of .*llamacpp"):
        load_engine(configure(name="lamacpp"))
    for name in ("llamacpp", "ollama"):
        assert isinstance(load_engine(configure(name=name)), EngineBase)
