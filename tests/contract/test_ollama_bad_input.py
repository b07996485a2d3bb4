"""What can be wrong around an Ollama: each one clear error, or a warning, with what to do; nothing is started."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Engine, Model
from pipeline.engine import load_engine
from pipeline.engine.base import Request
from pipeline.engine.ollama import model_store, start
from pipeline.engine.ollama.api import Api
from pipeline.errors import ConfigError, EngineError
from pipeline.model.files import read_model
from tests.contract.test_ollama import Double, double, ignore, phantom
from tests.contract.test_ollama_attached import attached, users_server
from tests.doubles.ollama.ggufs import write_phantom
from tests.ggufs import write_split

__all__ = ["double", "phantom"]  # fixtures


@contextlib.contextmanager
def answering(status: int, kind: str, body: bytes) -> Iterator[str]:
    """A server that always says the same."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


# An address


def test_an_address_without_a_server(double: Double) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"engine\.url=http://127\.0\.0\.1:{port}: no answer .*ollama serve"):
        load_engine(attached(double, f"http://127.0.0.1:{port}")).plan()


@pytest.mark.parametrize(("status", "kind", "body", "words"), [
    (200, "text/html", b"<html><title>Corporate proxy</title></html>", r"is not Ollama: .*Corporate proxy.*proxy"),
    (404, "text/plain", b"nothing here", "is not Ollama: it answered HTTP 404 text/plain .nothing here"),
    (200, "application/json", b'{"name": "another"}', "is not Ollama: /api/version said"),
    (302, "text/html", b"", "is not Ollama: it answered HTTP 302"),
    (200, "application/json", b"[]", "is not Ollama"),
])
def test_a_server_that_is_not_ollama(double: Double, status: int, kind: str, body: bytes, words: str) -> None:
    with answering(status, kind, body) as url, pytest.raises(ConfigError, match=words):
        load_engine(attached(double, url)).plan()


@pytest.mark.parametrize("url", ["http://", "127.0.0.1:notaport", "ftp://127.0.0.1:21", "http://[::1"])
def test_an_address_that_is_none(double: Double, url: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a server"):
        load_engine(attached(double, url))


def test_another_machine_needs_permission(double: Double) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.7.* is another machine.*engine\.allow_remote=true"):
        load_engine(attached(double, "http://192.0.2.7:11434"))


def test_a_port_that_is_taken(double: Double) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = double.config(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(EngineError, match=r"port of engine\.url is taken.*a free port"):
            load_engine(config).start(double.folder / "server.log")


def test_a_managed_server_listens_here_only(double: Double) -> None:
    with pytest.raises(ConfigError, match=r"listens on this machine only.*engine=ollama_attached"):
        load_engine(double.config(url="http://0.0.0.0:11434")).plan()


# A program


def test_no_ollama_on_the_machine(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_BIN", raising=False)
    monkeypatch.setenv("PATH", str(double.folder / "empty"))
    config = double.config()
    config.engine.binary = None
    with pytest.raises(ConfigError, match=r"no `ollama` on the PATH.*/download.*engine=llamacpp needs nothing"):
        load_engine(config).plan()


@pytest.mark.parametrize(("content", "mode", "words"), [
    ("#!/bin/sh\n", 0o644, "is not an executable file.*chmod"),
    ("not a program", 0o755, "cannot be run"),
    ("#!/bin/sh\necho a shell script\n", 0o755, "is not Ollama: `--version` said 'a shell script'"),
])
def test_a_program_that_is_no_ollama(double: Double, content: str, mode: int, words: str) -> None:
    path = double.folder / "wrong"
    path.write_text(content)
    path.chmod(mode)
    config = double.config()
    config.engine.binary = str(path)
    with pytest.raises(ConfigError, match=words):
        load_engine(config).plan()


def test_a_server_that_ends_at_its_start_says_why(double: Double) -> None:
    double.behave(crash_at_start="could not create directory: permission denied, cannot continue")
    with pytest.raises(EngineError, match=r"(?s)ended at its start: exit status 1.*permission denied"):
        double.start()


def test_a_server_that_is_never_ready(double: Double) -> None:
    double.behave(ready_s=30.0)
    with pytest.raises(EngineError, match=r"during start: no answer to GET /api/version for 0\.6 s.*start_limit_s"):
        double.start(double.config(start_limit_s=0.6))


# A cell


@pytest.mark.parametrize(("change", "words"), [
    (lambda engine: engine.flags["quantization"].on.update(kv_cache_type="q9_9"), "'q9_9' is not allowed"),
    (lambda engine: engine.knobs.update(num_batch=4096), "num_batch=4096 is more than num_ctx=2048"),
    (lambda engine: engine.knobs.pop("flash_attention"), "lacks flash_attention"),
])
def test_knobs_that_the_server_would_refuse_without_a_reason(double: Double, change: Callable[[Engine], object],
                                                            words: str) -> None:
    config = double.config({"quantization": True})
    change(config.engine)
    with pytest.raises(ConfigError, match=words):
        load_engine(config).plan()


def test_a_quantized_cache_without_flash_attention(double: Double) -> None:
    config = double.config({"quantization": True})
    config.engine.knobs["flash_attention"] = False
    with pytest.raises(ConfigError, match=r"q8_0 with flash_attention=false.*Set flash_attention to true"):
        load_engine(config).plan()


def test_a_context_longer_than_the_model_was_trained_for(double: Double) -> None:
    with pytest.raises(ConfigError, match="num_ctx=100000 is more than the 8192 tokens"):
        load_engine(double.config(num_ctx=100000)).plan()


def test_a_link_to_a_model_is_asked_for_as_the_server_logs_it(double: Double) -> None:
    link = double.folder / "モデル (1).gguf"
    link.symlink_to(double.model)
    plan = load_engine(double.config(model=Model(name="gguf", kind="file", path=str(link)), num_ctx=1000)).plan()
    assert plan.settings["model"] == str(double.model.resolve())
    assert plan.settings["num_ctx"] == 1024
    assert "num_ctx=1000 is 1024 in force" in plan.notes[0]


def test_a_model_in_several_files(double: Double) -> None:
    parts = write_split(double.folder, "m", [[("token_embd.weight", [256, 4], 3, 0)], []])
    with pytest.raises(ConfigError, match=r"m-00001-of-00002\.gguf is one of 2 files, and Ollama takes one file"):
        load_engine(double.config(model=Model(name="gguf", kind="file", path=str(parts[1])))).plan()


def test_a_model_that_needs_more_memory_than_there_is(double: Double) -> None:
    double.model = write_phantom(double.folder / "big.gguf", weights_mib=4096 * 1024, width=8192)
    with pytest.raises(ConfigError, match=r"needs about 4.* GiB of memory, and this machine gives"):
        load_engine(double.config()).plan()


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
def test_layers_for_a_gpu_that_is_not_there(double: Double) -> None:
    with pytest.raises(ConfigError, match=r"infer_os\.gpu_acceleration=true cannot be honoured.*no GPU"):
        load_engine(double.config({"gpu_acceleration": True})).plan()


def test_a_flag_that_no_ollama_has(double: Double) -> None:
    with pytest.raises(ConfigError, match=r"infer_os\.npu_optimization=true cannot be honoured.*no NPU path"):
        load_engine(double.config({"npu_optimization": True})).plan()


@pytest.mark.parametrize("tag", ["", "two words", "a/b/c/d:e", "-x", "x:"])
def test_a_name_that_can_be_no_model(double: Double, tag: str) -> None:
    with pytest.raises(ConfigError, match=r"is not the name of an Ollama model|needs model\.tag"):
        load_engine(double.config(model=Model(name="m", kind="ollama", tag=tag)))


# A model folder


def test_a_model_folder_without_permission(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *args: Any, **kwargs: Any) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", forbidden)  # the tests may run as root, whom nothing is forbidden
    with pytest.raises(ConfigError, match=r"model folder .*users may not be read by this user.*Give permission"):
        model_store.find(model_store.Name.parse("tide:1b"))


def test_a_manifest_without_its_weights_and_one_without_a_gguf(double: Double) -> None:
    name, users = model_store.Name.parse("tide:1b"), double.folder / "users"
    model_store.adopt(double.model, read_model(double.model), "0" * 64, name, users)
    model_store.blob(users, "0" * 64).unlink()
    with pytest.raises(ConfigError, match=r"tide:1b is incomplete.*ollama pull tide:1b"):
        model_store.find(name)
    layers = [{"mediaType": "application/vnd.ollama.image.tensor", "digest": "sha256:0", "size": 1}]
    (users / name.path).write_text(json.dumps({"layers": layers}))
    with pytest.raises(ConfigError, match=r"holds no GGUF \(its layers: .*tensor"):
        model_store.find(name)
    (users / name.path).write_text("{")
    with pytest.raises(ConfigError, match=r"manifest .* is not understood"):
        model_store.find(name)


# A server that is already there


def test_another_ollama_is_noticed_and_left_alone(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = users_server(double)
    Api(url).send({"model": "tide:1b", "keep_alive": -1}, 20.0)
    monkeypatch.setattr(start, "DESKTOP", url)
    notes = " ".join(load_engine(double.config()).plan().notes)
    assert "another Ollama 0.33.0 runs at" in notes
    assert "hold 224 MiB" in notes  # 64 of weights, 128 of KV at the default context, 32 to compute
    double.start().generate(Request("tide", 4, 1), ignore)
    assert [entry.names[0] for entry in Api(url).running()] == ["tide:1b"]


def test_a_keep_alive_of_the_wrong_type_is_told_in_the_servers_words(double: Double) -> None:
    url, _ = users_server(double)
    with pytest.raises(EngineError, match='HTTP 400: time: missing unit in duration "300"'):
        Api(url).send({"model": "tide:1b", "keep_alive": "300"}, 5.0)


def test_the_environment_of_the_shell_chooses_the_program(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_BIN", str(double.binary))
    config = double.config()
    config.engine.binary = None
    assert load_engine(config).provenance()["engine_binary"] == os.environ["OLLAMA_BIN"]
