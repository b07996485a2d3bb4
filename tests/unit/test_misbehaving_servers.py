"""Servers that answer what they should not, on both drivers: an error of ours or a success, soon, in clean words."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Engine as EngineConfig
from pipeline.engine import answers, llamacpp, server_log
from pipeline.engine.base import Generation, Request, Scalar
from pipeline.engine.http import Answer, Client
from pipeline.engine.llamacpp import LlamaServer
from pipeline.engine.ollama import server as ollama_server
from pipeline.engine.ollama.api import Api
from pipeline.engine.ollama.processes import Host
from pipeline.engine.ollama.server import OllamaServer
from pipeline.engine.waiting import NEVER
from pipeline.errors import EngineError
from tests.doubles.misbehaving import HEAD, Say, serving, silent, without_end

RECORDED = Path(__file__).parents[1] / "data/ollama/0.33.0/http/smollm2"
SETTINGS: Mapping[str, Scalar] = {"model": "smollm2:latest", "num_ctx": 2048, "num_batch": 512}
REQUEST = Request(prompt="Slack water is", max_tokens=12, seed=1)
LIMIT_S = 6.0
Drive = Callable[[], object]


def recorded(name: str) -> bytes:
    answer = json.loads(next(RECORDED.glob(f"*-{name}.json")).read_text())["response"]
    return "".join(piece["body"] for piece in answer["pieces"]).encode()


def chunks(*objects: Mapping[str, Any]) -> bytes:
    """A stream as the embedded engine sends it."""
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in objects)


LLAMA = chunks(
    {"content": "", "tokens_predicted": 0, "stop": False, "prompt_progress": {"total": 4, "processed": 4}},
    *({"content": " tide", "tokens_predicted": n, "stop": False} for n in range(1, 13)),
    {"content": "", "tokens_predicted": 12, "tokens_evaluated": 4, "stop": True, "stop_type": "limit",
     "truncated": False, "timings": {"cache_n": 0, "prompt_ms": 3.5, "predicted_ms": 80.25}})
OLLAMA: Mapping[str, bytes] = {
    "/api/version": recorded("version"), "/api/ps": recorded("ps-loaded"), "/api/show": recorded("show"),
    "/api/generate": recorded("generate-stream")}


def ignore(_kind: str, _t_ns: int) -> None:
    pass


class Still:
    """A child that lives and logs nothing."""

    log_path, exit_status = Path("/nonexistent"), None

    def ended(self) -> None: ...
    def wait(self, _limit_s: float) -> None: ...
    def cannot_run(self) -> None: ...
    def end(self, _limit_s: float) -> None: ...

    def log(self, _since: int = 0) -> str:
        return ""


@pytest.fixture(autouse=True)
def _no_log_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "LOG_LAG_S", 0.0)
    monkeypatch.setattr(ollama_server, "_ENDING_S", 0.0)


def ollama(url: str = "http://127.0.0.1:1", client: Any = None) -> OllamaServer:
    """The driver of a server whose processes are out of sight."""
    api = Api(url)
    api._client = client or api._client
    return OllamaServer(api, Host(0, None, lambda: None), "smollm2:latest", None, SETTINGS,
                        EngineConfig(no_progress_s=0.1, stop_limit_s=0.5), lambda: None, "0.33.0")


def llama(url: str = "http://127.0.0.1:1", client: Any = None, pipe: bytes | None = None) -> LlamaServer:
    """The driver of an embedded engine that has loaded its model; `pipe`: what it says on its pipe, not loaded."""
    server = LlamaServer.__new__(LlamaServer)
    config: Any = type("Config", (), {"engine": EngineConfig(no_progress_s=0.1, stop_limit_s=0.1), "num_ctx": 2048})
    server._config, server._settings, server._model, server._outer = config, {"cache_prompt": True}, Path("x"), NEVER
    server._child, server._load_at, server.pid = Still(), 0, 0  # type: ignore[assignment]
    server._http, server._address = client or Client(), None if pipe is not None else url
    server._answers, answering = os.pipe()
    commands, server._commands = os.pipe()
    server._held = [commands, answering]  # type: ignore[attr-defined]
    if pipe is not None:
        os.write(answering, pipe)
    return server


def closed(server: LlamaServer) -> None:
    for descriptor in server._held:  # type: ignore[attr-defined]
        os.close(descriptor)
    server.stop()


def drive_ollama(server: OllamaServer) -> Generation:
    made = server.generate(REQUEST, ignore)
    server.proofs()
    server.buffers()
    server.api.version()
    server.api.show("smollm2")
    return made


def outcome(drive: Drive) -> str:
    """"ok", or the error in words: one of ours, within the limit, fit for a terminal and short enough for a line."""
    began = time.monotonic()
    try:
        drive()
        said = "ok"
    except EngineError as error:
        said = str(error)
    assert time.monotonic() - began < LIMIT_S
    assert said.replace("\n", "").isprintable() and len(said) < 2000
    said.encode()
    return said


def over_http(driver: str, stream: Say) -> str:
    """What becomes of a prompt that is answered so."""
    if driver == "ollama":
        with serving({**OLLAMA, "/api/generate": stream}) as url:
            server = ollama(url)
            said = outcome(lambda: drive_ollama(server))
            server.api.close()
        return said
    with serving({"/completion": stream}) as url:
        embedded = llama(url)
        said = outcome(lambda: embedded.generate(REQUEST, ignore))
        closed(embedded)
    return said


def lines(driver: str, *payloads: bytes) -> bytes:
    """Payloads in the words of a driver's protocol: TEXT and COUNT are its fields."""
    named = {"ollama": (b"response", b"eval_count", b"done"), "llamacpp": (b"content", b"tokens_predicted", b"stop")}
    text, count, end = named[driver]
    made = (payload.replace(b"TEXT", text).replace(b"COUNT", count).replace(b"END", end) for payload in payloads)
    return b"".join((b"" if driver == "ollama" else b"data: ") + line + b"\n" for line in made)


ENDED = b'{"TEXT": "", "END": true, "COUNT": 1, "tokens_evaluated": 3, "prompt_eval_count": 3}'
WRONG: Mapping[str, Sequence[bytes]] = {
    "cut JSON": [b'{"TEXT": "a'], "a number": [b"5"], "null": [b"null"], "a list": [b"[]"], "a text": [b'"word"'],
    "null text": [b'{"TEXT": null}'], "a number for text": [b'{"TEXT": 5}'], "an object for text": [b'{"TEXT": {}}'],
    "text for a number": [ENDED.replace(b"1,", b'"one",')], "a count below 0": [ENDED.replace(b"1,", b"-1,")],
    "a huge count": [ENDED.replace(b"1,", b"1" + b"0" * 30 + b",")], "half a token": [ENDED.replace(b"1,", b"1.5,")],
    "true for a count": [ENDED.replace(b"1,", b"true,")], "NaN": [ENDED.replace(b"1,", b"NaN,")],
    "5,000 digits": [ENDED.replace(b"1,", b"1" * 5000 + b",")], "text for the end": [b'{"TEXT": "", "END": "yes"}'],
    "nested lists": [b"[" * 100_000], "nested objects": [b'{"a":' * 100_000],
    "closed nests": [b'{"TEXT": ' + b"[" * 900 + b"]" * 900 + b"}"],
    "a lone surrogate": [b'{"TEXT": "\\ud800"}'], "no UTF-8": [b'{"TEXT": "\xff"}'],
    "UTF-16": ['{"a": 1}'.encode("utf-16")],
    "no last line": [b'{"TEXT": "a", "END": false}'], "nothing": [], "a line after the last": [ENDED, b'{"TEXT": "b"}'],
    "too many tokens": [b'{"TEXT": "a", "END": false}'] * 40 + [b'{"TEXT": "a", "COUNT": 9000000000}'],
    "a token of 1 MB": [b'{"TEXT": "' + b"a" * 1_000_000 + b'"}'],
    "an error that is null": [b'{"error": null}'], "an error that is a number": [b'{"error": 5}'],
    "an error of 1 MB": [b'{"error": "' + b"e" * 1_000_000 + b'"}'],
    "escape sequences": [b'{"error": "\\u001b[2J\\u001b]0;title\\u0007\\u202e"}'], "and raw ones": [b"\x1b[2J"],
}


@pytest.mark.parametrize("driver", ["ollama", "llamacpp"])
@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_is_not_as_expected_is_an_error_in_words(driver: str, wrong: str) -> None:
    assert over_http(driver, lines(driver, *WRONG[wrong])) != "ok"


@pytest.mark.parametrize("driver", ["ollama", "llamacpp"])
def test_an_answer_as_it_should_be_is_taken(driver: str) -> None:
    assert over_http(driver, OLLAMA["/api/generate"] if driver == "ollama" else LLAMA) == "ok"


CHUNKED = HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked")
NO_TOKEN: Mapping[str, tuple[bytes, float]] = {
    "blank lines": (b"\n", 0.02), "comments": (b": still here\n\n", 0.02), "dripped bytes": (b" ", 0.02),
}


@pytest.mark.parametrize("driver", ["ollama", "llamacpp"])
@pytest.mark.parametrize("sign", [*NO_TOKEN, "lines without a token"])
def test_a_sign_of_life_that_brings_no_token_is_no_progress(driver: str, sign: str) -> None:
    data, pause_s = NO_TOKEN.get(sign, (lines(driver, b'{"TEXT": "", "END": false}'), 0.02))
    said = over_http(driver, without_end(data, pause_s))
    assert "made no progress" in said or (
        (driver, sign) == ("ollama", "comments") and "not JSON" in said)


@pytest.mark.parametrize("driver", ["ollama", "llamacpp"])
@pytest.mark.parametrize(("talk", "words"), [
    (silent, "made no progress"),
    (without_end(b"x" * 65536), "longer than 16 MiB"),
    (without_end(b"x" * 65536, head=b"HTTP/1.1 500 Bad\r\n\r\n"), "longer than 16 MiB"),
    (without_end(b"x" * 65536, head=b"HTTP/1.1 302 Moved\r\nLocation: http://[\r\n\r\n"), "longer than 16 MiB"),
    (without_end(b"X-Y: z\r\n", head=b"HTTP/1.1 200 OK\r\n"), ""),
    (without_end(b"\n\n", head=b""), ""),
    (lambda connection: connection.sendall(HEAD.replace(b"Connection", b"Content-Encoding: gzip\r\nX") + b"\x1f"), ""),
    (lambda connection: connection.sendall(CHUNKED + b"-5\r\n"), ""),
], ids=["silence", "a line without end", "a refusal without end", "a redirection without end", "headers without end",
        "newlines for HTTP", "said to be packed", "a chunk of -5"])
def test_what_is_sent_without_end_or_is_no_http_ends_soon(driver: str, talk: Say, words: str) -> None:
    said = over_http(driver, talk)
    assert said != "ok" and words in said


def test_tokens_past_those_asked_for_end_the_stream() -> None:
    said = over_http("ollama", without_end(lines("ollama", b'{"TEXT": "a", "END": false}')))
    assert "goes on past the 12 tokens that it was asked for" in said
    many = lines("llamacpp", b'{"TEXT": "a", "COUNT": 29, "END": false}')
    assert "goes on past the 12 tokens that it was asked for (max_tokens): 29" in over_http("llamacpp", many)


@pytest.mark.parametrize(("path", "said"), [
    ("/api/version", b'{"version": 5}'), ("/api/version", b'{"version": "\\u001b[2J"}'), ("/api/version", b"[" * 9999),
    ("/api/version", b'{"version": "' + b"1" * 5000 + b'"}'), ("/api/ps", b'{"models": 5}'),
    ("/api/ps", b'{"models": [5]}'), ("/api/ps", b'{"models": [{"name": null}]}'),
    ("/api/ps", b'{"models": [{"name": "smollm2:latest", "size": "large"}]}'),
    ("/api/ps", b'{"models": [{"name": "smollm2:latest", "expires_at": 5}]}'), ("/api/show", b'{"details": []}'),
    ("/api/show", b'{"modelfile": 5}'), ("/api/show", b'{"model_info": {"x.context_length": "long"}}'),
])
def test_a_short_answer_that_is_not_as_expected_is_an_error_in_words(path: str, said: bytes) -> None:
    with serving({**OLLAMA, path: said}) as url:
        server = ollama(url)
        assert "is not Ollama" in outcome(lambda: drive_ollama(server))
        server.api.close()


def test_a_short_answer_that_drips_is_given_up_at_its_limit() -> None:
    with serving({"/api/version": without_end(b" ", 0.02)}) as url:
        api = Api(url)
        assert "no whole answer within 0.4 s" in outcome(lambda: api.version(0.4))
        api.close()


@pytest.mark.parametrize("said", [
    b"garbage\n", b"5\n", b"null\n", b"{}\n", b"\n", b'{"ok": true}\n', b'{"error": 5}\n', b"\xff\n",
    b"[" * 9000 + b"\n",
    b'{"ok": true, "address": 5}\n', b'{"ok": true, "address": "http://192.0.2.1:80"}\n', b"no end", b"x" * 65536,
    b'{"ok": true}\n{"ok": true}\n', b'{"ok": true, "address": "\\ud800"}\n',
], ids=range(15))
def test_what_the_child_says_on_its_pipe_is_held_against_what_is_expected(said: bytes) -> None:
    server = llama(pipe=said)
    assert outcome(lambda: server.load(ignore)) != "ok"
    closed(server)


def test_a_line_and_a_text_of_the_embedded_engine_are_quoted_in_its_error() -> None:
    server = llama(pipe=b'{"error": "bad \\u001b[31m"}\n')
    assert "failed to load: bad ␛[31m" in outcome(lambda: server.load(ignore))
    closed(server)
    assert answers.quoted(b"\x1b[2J" + b"a" * 999) == "␛[2J" + "a" * 156 + "…"


# What a fuzzer makes of true answers; the client is a stub, so that thousands cost nothing

VALUES: Sequence[Any] = (None, True, -1, 0, 10**30, 1e300, 0.5, "", "\ud800", "\x1b[2J", "9" * 50, [], {}, [[]],
                         {"a": 1})


class Said:
    """A client to whom these answers are given."""

    def __init__(self, answers_by_path: Mapping[str, bytes]) -> None:
        self._answers = answers_by_path

    def close(self) -> None: ...

    def ask(self, _method: str, url: str, _body: object, _limit_s: float) -> Answer:
        return Answer(200, "application/json", self._said(url).decode(errors="replace"))

    def lines(self, url: str, _body: object, _look: object, kind: str = "") -> Iterator[tuple[bytes, int]]:
        for line in self._said(url).split(b"\n"):
            yield line, time.monotonic_ns()

    def _said(self, url: str) -> bytes:
        return next(said for path, said in self._answers.items() if url.endswith(path))


def mutated(said: bytes, chance: random.Random) -> bytes:
    """The answer with one thing changed: some bytes, or a value of a line."""
    at = chance.randrange(len(said))
    if chance.random() < 0.5:
        junk = chance.choice([b"", bytes([chance.randrange(256)]), b"\x00\xff", b"}{", b"\n\n", said[:at]])
        return said[:at] + junk + said[at + chance.randrange(40):]
    several = said.split(b"\n")
    where = chance.choice([n for n, line in enumerate(several) if b"{" in line])
    line = several[where]
    field, colon, data = line.partition(b": ") if line.startswith(b"data") else (b"", b"", line)
    value = json.loads(data)
    inside = chance.choice([value, *(each for each in value.values() if isinstance(each, dict) and each)])
    inside[chance.choice(list(inside))] = chance.choice(VALUES)
    several[where] = field + colon + json.dumps(value).encode()
    return b"\n".join(several)


@pytest.mark.parametrize("driver", ["ollama", "llamacpp"])
def test_300_changed_answers_are_each_an_error_of_ours_or_a_success(driver: str) -> None:
    chance, seen = random.Random(15), dict[bool, int]()
    for _ in range(300):
        if driver == "ollama":
            path = chance.choice(list(OLLAMA))
            ours = ollama(client=Said({**OLLAMA, path: mutated(OLLAMA[path], chance)}))
            said = outcome(lambda server=ours: drive_ollama(server))  # type: ignore[misc]
        else:
            embedded = llama(client=Said({"/completion": mutated(LLAMA, chance)}))
            said = outcome(lambda server=embedded: server.generate(REQUEST, ignore))  # type: ignore[misc]
            closed(embedded)
        seen[said == "ok"] = seen.get(said == "ok", 0) + 1
    assert seen[True] > 30 and seen[False] > 30


# Logs

def test_a_long_log_is_read_by_head_and_tail_and_a_long_line_by_its_beginning(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_log, "READ_BYTES", 100)
    log = tmp_path / "server.log"
    log.write_bytes(b"first\n" + b"x" * 500 + b"\nlast\n")
    read = server_log.read(log)
    assert read.startswith("first\nxx") and read.endswith("xx\nlast\n") and "412 bytes of this log" in read
    assert server_log.read(log, 507) == "last\n"
    log.write_bytes(b"a" * 20_000 + b"\nb")
    monkeypatch.setattr(server_log, "READ_BYTES", 100_000)
    assert server_log.read(log) == "a" * server_log.LINE_CHARACTERS + "\nb"
    assert server_log.read(None) == server_log.read(tmp_path / "missing") == ""


def test_a_log_is_kept_whole_up_to_a_cap_and_beyond_it_says_what_is_missing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"x" * 1000)
    server_log.cut(log)
    assert log.read_bytes() == b"x" * 1000
    monkeypatch.setattr(server_log, "KEPT_BYTES", 100)
    server_log.cut(log)
    assert "900 bytes of this log were left out" in log.read_text() and log.stat().st_size < 200
    assert [each.name for each in tmp_path.iterdir()] == ["server.log"]
