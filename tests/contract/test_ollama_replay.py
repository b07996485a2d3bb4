"""Every recorded exchange with a real Ollama, played against the double: what differs is a bug of the double.

Compared: status, headers that matter, keys in their order, types, and the order of events; texts of errors to the
letter. Times, token texts and what belongs to the recorded model are not.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.ollama import log as ollama_log
from tests.doubles.ollama.ggufs import write_phantom

HERE = Path(__file__).parents[1]
DOUBLE = HERE / "doubles/ollama"
RECORDED = HERE / "data/ollama/0.33.0"
GO_BUFFER = 2048
"""Go's server gives a length to bodies up to here, and sends longer ones in chunks."""

OPEN = ("model_info", "tensors", "modelfile", "template", "parameters", "context")
"""Belongs to the recorded model: only its type is compared."""

SERVER_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "01-as-published": {"OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_NUM_PARALLEL": "1", "OLLAMA_LOAD_TIMEOUT": "60",
                        "OLLAMA_NUM_THREADS": "2", "OLLAMA_GPU_LAYERS": "20"},
    "02-kv-q8-fa1": {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "1"},
    "03-kv-q8-fa0": {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"},
    "04-kv-q8-unset": {"OLLAMA_KV_CACHE_TYPE": "q8_0"},
    "05-kv-bogus": {"OLLAMA_KV_CACHE_TYPE": "q9_9"},
    "06-parallel-4": {"OLLAMA_NUM_PARALLEL": "4"},
    "08-mmap-true-norepack": {"LLAMA_ARG_REPACK": "0"},
    "09-cache-ram-0": {"LLAMA_ARG_CACHE_RAM": "0", "LLAMA_ARG_CTX_CHECKPOINTS": "0"},
}


@dataclass
class Running:
    """A double that serves."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    port: int

    def behave(self, **values: object) -> None:
        fresh = self.folder / "behaviour.new"
        fresh.write_text(json.dumps(values))
        fresh.replace(self.folder / "behaviour.json")  # at once: the double may be reading

    def child_command(self) -> list[str]:
        """The last "starting llama-server" line, port and paths aside."""
        lines = [line for line in self.log.read_text().splitlines() if "starting llama-server" in line]
        return flags_of(lines[-1])


def flags_of(line: str) -> list[str]:
    words = line.partition('cmd="')[2].rstrip('"').split()
    flags = words[words.index("--model"):]
    del flags[1], flags[2]
    return flags


def start_double(folder: Path, settings: Mapping[str, str] | None = None, **behaviour: object) -> Running:
    (folder / "models").mkdir(parents=True, exist_ok=True)
    running = Running.__new__(Running)
    running.folder, running.log = folder, folder / "log"
    running.behave(**behaviour)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "OLLAMA_HOST": "127.0.0.1:0",
                   "OLLAMA_MODELS": str(folder / "models"), **(settings or {})}
    with open(running.log, "wb") as log:
        running.process = subprocess.Popen(
            [sys.executable, "-SE", str(DOUBLE / "ollama"), "--behaviour", str(folder / "behaviour.json"), "serve"],
            env=environment, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 20
    while (said := ollama_log.listening(running.log.read_text())) is None:
        assert time.monotonic() < deadline, running.log.read_text()
        time.sleep(0.005)
    running.port = int(said[0].rpartition(":")[2])
    return running


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Running]:
    running = start_double(tmp_path)
    yield running
    stop(running)


def stop(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(10) == 0


def recorded(folder: str) -> list[dict[str, Any]]:
    paths = sorted((RECORDED / "http" / folder).glob("*.json"))
    assert paths
    return [{**json.loads(path.read_text()), "file": path.stem} for path in paths]


@dataclass
class Answer:
    """A response, live or recorded."""

    status: int
    headers: Mapping[str, str]
    body: str

    @classmethod
    def of(cls, exchange: Mapping[str, Any]) -> Answer:
        response = exchange["response"]
        return cls(response["status"], response["headers"], "".join(piece["body"] for piece in response["pieces"]))

    @property
    def events(self) -> list[tuple[Any, int]]:
        """Shapes of the lines in their order, equal neighbours counted."""
        if "json" not in self.headers.get("Content-Type", "") or not self.body:
            return [(self.body, 1)]
        shapes = [shape(json.loads(line)) for line in self.body.splitlines() if line.strip()]
        return [(each, len(list(group))) for each, group in groupby(shapes)]


def shape(value: Any, key: str = "") -> Any:
    """Keys in their order with the types below them; texts only where the text is the point."""
    if key in OPEN:
        return type(value).__name__
    if isinstance(value, dict):
        return tuple((name, shape(inner, name)) for name, inner in value.items())
    if isinstance(value, list):
        return [shape(value[0], "")] if value else []
    if key in ("error", "done", "done_reason", "status") and isinstance(value, (str, bool)):
        return value if key != "status" else " ".join(str(value).split()[:3])
    return type(value).__name__


def ask(port: int, exchange: Mapping[str, Any], body: bytes | None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    request = exchange["request"]
    connection.request(request["method"], request["path"], body, dict(request["headers"]))
    response = connection.getresponse()
    if exchange.get("client_aborted"):
        text = b"".join(response.readline() for _ in exchange["response"]["pieces"])
    else:
        text = response.read()
    connection.close()
    return Answer(response.status, dict(response.getheaders()), text.decode())


def compare(live: Answer, exchange: Mapping[str, Any]) -> None:
    known, name = Answer.of(exchange), exchange["file"]
    assert live.status == known.status, name
    for header in ("Content-Type", "Allow"):
        assert live.headers.get(header) == known.headers.get(header), (name, header)
    if (len(live.body) > GO_BUFFER) == (len(known.body) > GO_BUFFER):
        for header in ("Content-Length", "Transfer-Encoding"):
            assert (header in live.headers) == (header in known.headers), (name, header)
    assert [each for each, _ in live.events] == [each for each, _ in known.events], name


def prepared(exchange: dict[str, Any], gguf: bytes) -> bytes | None:
    """The request's body as it is sent; what a recording cuts short is put back, its model becomes ours."""
    request = exchange["request"]
    digest = "sha256:" + sha256(gguf).hexdigest()
    recorded_digest = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    request["path"] = request["path"].replace(recorded_digest, digest)
    body = request["body"]
    if body is None:
        return None
    if isinstance(body, str):
        return gguf if body.endswith("bytes>") else body.encode()
    if "…cut" in str(body.get("prompt")):
        body["prompt"] = " ".join(f"word{i}" for i in range(3000))
    return json.dumps(body).replace(recorded_digest, digest).encode()


def test_the_exchanges_with_a_small_model(double: Running) -> None:
    gguf = write_phantom(double.folder / "m.gguf", weights_mib=2, layers=2, width=512, heads=8, kv_heads=2).read_bytes()
    behaviours: dict[str, dict[str, Any]] = {
        "21-generate-stream": {"token_s": 0.002}, "24-chat-stream": {"stop_at_token": 3},
        "25-generate-stop-early": {"stop_at_token": 15}, "29-generate-num-predict-0": {"stop_at_token": 20},
        "37-crash-mid-stream": {"crash_at_token": 20}, "40-client-abort": {"token_s": 0.01},
    }
    for exchange in recorded("smollm2"):
        double.behave(**behaviours.get(exchange["file"], {}))
        body = prepared(exchange, gguf)
        if exchange["file"] == "35-ps-after-unload":
            wait_until_unloaded(double.port, exchange)
        live = ask(double.port, exchange, body)
        compare(live, exchange)
        if exchange["file"] == "37-crash-mid-stream":
            assert len(live.body.splitlines()) == 20, "19 tokens, then the error line"


def wait_until_unloaded(port: int, exchange: Mapping[str, Any]) -> None:
    """The unload was answered before it was done, here as in the recording."""
    deadline = time.monotonic() + 5
    while json.loads(ask(port, exchange, None).body)["models"]:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.thorough
def test_one_generation_under_each_server_setting(tmp_path: Path) -> None:
    gguf = write_phantom(tmp_path / "m.gguf", weights_mib=1, layers=1, width=256, heads=4, kv_heads=1)
    for exchange in recorded("flags"):
        running = start_double(tmp_path / exchange["file"], SERVER_SETTINGS.get(exchange["file"]),
                               registry={"smollm2": str(gguf)})
        try:
            create = {"request": {"method": "POST", "path": "/api/pull", "headers": {}}}
            ask(running.port, create, b'{"model": "smollm2"}')
            live = ask(running.port, exchange, prepared(exchange, b""))
            if exchange["file"] == "03-kv-q8-fa0":  # the real one adds the child's line; that line is in our log too
                known = Answer.of(exchange)
                assert (live.status, live.headers["Content-Type"]) == (known.status, known.headers["Content-Type"])
                assert known.body.startswith(live.body.rstrip('"}\n'))
            else:
                compare(live, exchange)
            log = RECORDED / "log" / f"{exchange['file'][3:]}.stderr.log"
            lines = [line for line in log.read_text().splitlines() if "starting llama-server" in line]
            assert running.child_command() == flags_of(lines[-1]), exchange["file"]
        finally:
            stop(running)


def test_a_model_of_gpt_oss_shape_answers_in_one_line_and_is_not_listed_while_it_loads(double: Running) -> None:
    gguf = write_phantom(double.folder / "m.gguf", architecture="gptoss", weights_mib=2, layers=2, context=131072)
    double.behave(load_s=0.5, one_line=True, registry={"gpt-oss": str(gguf)})
    ask(double.port, {"request": {"method": "POST", "path": "/api/pull", "headers": {}}}, b'{"model": "gpt-oss"}')
    exchanges = {exchange["file"]: exchange for exchange in recorded("gpt-oss-20b")}
    answers: dict[str, Answer] = {}

    def play(name: str) -> None:
        answers[name] = ask(double.port, exchanges[name], prepared(exchanges[name], b""))

    play("01-tags")
    generation = threading.Thread(target=play, args=["05-generate-oneshot"])
    generation.start()
    for name in ("02-ps-during-load-2s", "03-ps-during-load-10s", "04-ps-during-load-30s"):
        time.sleep(0.1)
        play(name)
    generation.join()
    play("06-ps")
    play("07-unload")
    assert sorted(answers) == sorted(exchanges)
    for name, answer in answers.items():
        compare(answer, exchanges[name])
