"""What an engine owes the runner, asked of the real server with its real model; 8 tokens each.

A failure of the server is provoked with signals: it has to become an EngineError, and the server has to go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from pipeline.config import Config
from pipeline.engine import load_engine
from pipeline.engine.base import EngineBase, EventKind, Request, Server
from pipeline.errors import ConfigError, EngineError
from pipeline.model.files import files_of
from pipeline.testing.configs import config_of

TOKENS = 8
PROMPT = "The tide turns when"
Start = Callable[[Config], Server]


@dataclass
class Events:
    """What an engine reported, as it reported it."""

    seen: list[tuple[EventKind, int]] = field(default_factory=list)

    def __call__(self, kind: EventKind, t_ns: int) -> None:
        assert t_ns <= time.monotonic_ns(), "a mark is taken where the event happens"
        self.seen.append((kind, t_ns))

    @property
    def kinds(self) -> list[EventKind]:
        """The events without their times."""
        return [kind for kind, _ in self.seen]


def ask(prompt: str = PROMPT, raw: bool = True, max_tokens: int = TOKENS) -> Request:
    """A request for 8 tokens."""
    return Request(prompt=prompt, max_tokens=max_tokens, seed=42, raw=raw)


def tree(server: Server) -> list[psutil.Process]:
    """The server's process and its descendants."""
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


def tree_mib(server: Server) -> float:
    """Resident memory of the tree."""
    return float(sum(each.memory_info().rss for each in tree(server))) / 2**20


class EngineContract:
    """Inherit it, and say `overrides`."""

    overrides: ClassVar[Sequence[str]]
    """The cell as on the command line: engine=NAME, and what it needs."""
    switched: ClassVar[Sequence[str]] = ()
    """Further overrides with which the plan must be another one, such as infer_os=on."""
    says: ClassVar[Mapping[str, str]] = {}
    """What the message of a failure must match: killed, frozen, frozen at load, dead. None need be given."""

    def config(self, *more: str) -> Config:
        """The cell, with more overrides."""
        return config_of(f"max_tokens={TOKENS}", *self.overrides, *more)

    @pytest.fixture
    def engine(self) -> EngineBase:
        """The engine, its model fetched."""
        engine = load_engine(self.config())
        engine.fetch(lambda *_: None)
        return engine

    @pytest.fixture
    def start(self, engine: EngineBase, tmp_path: Path) -> Iterator[Start]:
        """Starts a server of a config, and stops it after the test."""
        servers: list[Server] = []

        def started(config: Config) -> Server:
            servers.append(load_engine(config).start(tmp_path / "server.log"))
            return servers[-1]

        yield started
        for server in servers:
            server.stop()

    def test_it_says_whether_it_can_run_here(self, engine: EngineBase) -> None:
        here, text = engine.here()
        assert isinstance(here, bool) and text

    def test_a_plan_starts_nothing_and_sets_every_knob_explicitly(self) -> None:
        before = psutil.Process().children(recursive=True)
        off, on = (load_engine(self.config(*more)).plan() for more in ((), self.switched))
        assert set(off.settings) == set(on.settings)
        assert (off.settings != on.settings) == bool(self.switched)
        assert psutil.Process().children(recursive=True) == before

    def test_a_knob_that_it_does_not_have_is_refused_or_not_taken(self) -> None:
        heard: Collection[str] = ()
        with contextlib.suppress(ConfigError):
            heard = load_engine(self.config("knob.no_such_knob=1")).plan().knobs
        assert "no_such_knob" not in heard

    def test_a_started_server_answers_and_holds_no_model(self, start: Start) -> None:
        server = start(self.config())
        assert server.alive() is None
        assert not server.loaded

    def test_the_first_prompt_loads_and_every_event_comes_in_order(
            self, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy of the user's has no part in this
        server, events = start(self.config()), Events()
        answer = server.generate(ask(), events)
        assert events.kinds == ["request_sent", "load_start", "load_end", "first_token", *["token"] * (TOKENS - 1),
                                "last_token"]
        stamps = [t_ns for _, t_ns in events.seen]
        assert stamps == sorted(stamps)
        assert len(set(stamps[3:-1])) == TOKENS, "tokens are stamped one by one as they arrive"
        assert (answer.output_tokens, answer.truncated) == (TOKENS, False)
        assert answer.prompt_tokens > 0
        assert answer.text.strip()
        assert server.loaded
        again, warm = server.generate(ask(), later := Events()), later.kinds
        assert warm[:2] == ["request_sent", "first_token"]
        assert (again.text, again.prompt_tokens) == (answer.text, answer.prompt_tokens)

    def test_one_token_is_first_and_last(self, start: Start) -> None:
        server, events = start(self.config()), Events()
        server.load(events)
        assert events.kinds == ["load_start", "load_end"]
        assert server.generate(ask(max_tokens=1), events).output_tokens == 1
        assert events.kinds[2:] == ["request_sent", "first_token", "last_token"]

    def test_unload_gives_the_memory_back_and_the_server_stays(self, engine: EngineBase, start: Start) -> None:
        files = files_of(engine.model_path) if engine.model_path else []
        weights_mib = sum(path.stat().st_size for path in files) / 2**20
        server = start(self.config())
        empty, pid = tree_mib(server), server.pid
        assert not files or empty < weights_mib
        server.load(Events())
        loaded = tree_mib(server)
        assert loaded > empty + 0.95 * weights_mib, "a load makes the weights resident"
        server.unload()
        assert (server.loaded, server.alive(), server.pid) == (False, None, pid)
        assert tree_mib(server) < loaded - 0.95 * (weights_mib or loaded - empty)
        assert server.generate(ask(), events := Events()).output_tokens == TOKENS
        assert events.kinds[:3] == ["request_sent", "load_start", "load_end"]

    @pytest.mark.parametrize("flags", [False, True], ids=["off", "switched"])
    def test_every_setting_is_proved_and_none_is_contradicted(self, start: Start, flags: bool) -> None:
        config = self.config(*(self.switched if flags else ()))
        settings, server = load_engine(config).plan().settings, start(config)
        server.load(Events())
        proofs = {proof.knob: proof for proof in server.proofs()}
        assert {name: proof.asked for name, proof in proofs.items()} == dict(settings)
        assert [proof for proof in proofs.values() if proof.state == "contradicted"] == []
        confirmed = [name for name, proof in proofs.items() if proof.state == "confirmed"]
        assert len(confirmed) >= 0.75 * len(proofs), proofs
        assert all(proofs[name].source for name in confirmed)
        if (log := server.check_log()) is not None:
            assert list(log.missing) == [], f"{log.version}: lines of its log were not recognised"
        assert all(buffer.bytes >= 0 for buffer in server.buffers())
        self.look_closer(server, config)

    def look_closer(self, server: Server, config: Config) -> None:
        """More to ask of a loaded server, where you know more; called for each plan."""

    def test_a_server_killed_while_it_generates_is_an_error_that_says_so(self, start: Start) -> None:
        server = start(self.config())
        server.load(Events())
        victims = tree(server)

        def kill_at_first_token(kind: EventKind, t_ns: int) -> None:
            if kind == "first_token":
                for victim in victims:
                    victim.kill()

        with pytest.raises(EngineError, match=self.says.get("killed", "killed by signal 9")):
            server.generate(ask(max_tokens=400), kill_at_first_token)
        assert (server.alive() or "").startswith("killed by signal 9")
        assert not server.loaded
        server.stop()

    def test_a_server_that_stops_answering_is_left_after_the_limit_without_progress(self, start: Start) -> None:
        server = start(self.config("engine.no_progress_s=1.0", "engine.stop_limit_s=1.0"))
        server.load(Events())

        def freeze_at_first_token(kind: EventKind, t_ns: int) -> None:
            if kind == "first_token":
                for each in tree(server):
                    each.suspend()

        began = time.monotonic()
        with pytest.raises(EngineError, match=self.says.get("frozen", "")):
            server.generate(ask(max_tokens=400), freeze_at_first_token)
        assert time.monotonic() - began < 30
        server.stop()
        assert server.alive() is not None

    def test_a_load_that_stops_moving_is_left_after_the_limit_without_progress(self, start: Start) -> None:
        server = start(self.config("engine.no_progress_s=1.0", "engine.stop_limit_s=1.0"))

        def freeze(kind: EventKind, t_ns: int) -> None:
            if kind == "load_start":
                os.kill(server.pid, signal.SIGSTOP)

        with pytest.raises(EngineError, match=self.says.get("frozen at load", "")):
            server.load(freeze)

    def test_a_server_that_died_while_idle_says_how(self, start: Start) -> None:
        server = start(self.config())
        for each in tree(server):
            each.kill()
        with pytest.raises(EngineError, match=self.says.get("dead", "killed by signal 9")):
            server.load(Events())
        assert [proof for proof in server.proofs() if proof.state == "confirmed"] == []

    def test_stop_ends_all_of_it_and_may_be_called_again(self, start: Start) -> None:
        server = start(self.config())
        server.load(Events())
        pids = [each.pid for each in tree(server)]
        server.stop()
        assert [pid for pid in pids if psutil.pid_exists(pid)] == []
        assert server.alive() is not None
        server.stop()

    def test_provenance_names_the_engines_version(self, engine: EngineBase) -> None:
        facts = engine.provenance()
        assert facts["engine_version"]
        assert all(isinstance(value, str) for value in facts.values())
