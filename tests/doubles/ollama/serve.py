"""The double's HTTP server: endpoints, statuses, headers and texts as recorded from Ollama 0.33.0."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.doubles.ollama import models
from tests.doubles.ollama.behaviour import Behaviour
from tests.doubles.ollama.runners import (
    FOR_EVER,
    HERE,
    LOAD_TIME,
    PYTHON,
    RUN_TIME,
    Failure,
    Runner,
    Scheduler,
    duration,
    kill,
    log,
    setting,
)

JSON_TYPE, NDJSON, TEXT = "application/json; charset=utf-8", "application/x-ndjson", "text/plain"
FLUSH_BYTES = 2048
"""Go's server sends a Content-Length with bodies below this, and chunks above it."""

READ_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "HIP_VISIBLE_DEVICES", "HTTPS_PROXY",
    "HTTP_PROXY", "LLAMA_ARG_FIT", "LLAMA_ARG_FIT_TARGET", "NO_PROXY", "OLLAMA_CONTEXT_LENGTH", "OLLAMA_DEBUG",
    "OLLAMA_FLASH_ATTENTION", "OLLAMA_GPU_OVERHEAD", "OLLAMA_HOST", "OLLAMA_KEEP_ALIVE", "OLLAMA_KV_CACHE_TYPE",
    "OLLAMA_LLM_LIBRARY", "OLLAMA_LOAD_TIMEOUT", "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MAX_QUEUE", "OLLAMA_MODELS",
    "OLLAMA_NOHISTORY", "OLLAMA_NOPRUNE", "OLLAMA_NO_CLOUD", "OLLAMA_NUM_PARALLEL", "OLLAMA_ORIGINS",
    "OLLAMA_REMOTES", "OLLAMA_SCHED_SPREAD", "OLLAMA_VULKAN",
)
DEFAULTS = {"OLLAMA_CONTEXT_LENGTH": "0", "OLLAMA_KEEP_ALIVE": "5m0s", "OLLAMA_LOAD_TIMEOUT": "5m0s",
            "OLLAMA_MAX_LOADED_MODELS": "0", "OLLAMA_NUM_PARALLEL": "1", "OLLAMA_ORIGINS": "[http://localhost]",
            "OLLAMA_FLASH_ATTENTION": "false"}
POSTS = ("/api/generate", "/api/chat", "/api/show", "/api/create", "/api/pull")
GETS = ("/", "/api/version", "/api/tags", "/api/ps")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    scheduler: Scheduler
    behaviour: Callable[[], Behaviour]

    def log_message(self, format: str, *args: Any) -> None:
        sys.stdout.write(f'[GIN] {time.strftime("%Y/%m/%d - %H:%M:%S")} | {args[1] if len(args) > 1 else "":>3} | '
                         f'{"1.5ms":>13} | {self.client_address[0]:>15} | {self.command:<8} "{self.path}"\n')
        sys.stdout.flush()

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Server":
            super().send_header(keyword, value)

    # Methods

    def do_GET(self) -> None:
        if self.behaviour().html:
            self.body(200, "text/html", b"<html><head><title>Corporate proxy</title></head></html>")
        elif self.path == "/":
            self.body(200, "text/plain; charset=utf-8", b"Ollama is running")
        elif self.path == "/api/version":
            self.json(200, {"version": self.behaviour().version})
        elif self.path == "/api/tags":
            self.json(200, {"models": [model.tags() for model in models.every(self.folder)]})
        elif self.path == "/api/ps":
            self.json(200, {"models": self.loaded()})
        else:
            self.nowhere(POSTS, "POST")

    def do_HEAD(self) -> None:
        if self.path.startswith("/api/blobs/"):
            there = models.blob(self.folder, self.path.rpartition("/")[2]).exists()
            self.send_response(200 if there else 404)
            if not there:
                self.send_header("Content-Type", JSON_TYPE)
                self.send_header("Content-Length", "102")
            self.end_headers()
        else:
            self.do_GET()

    def do_DELETE(self) -> None:
        self.nowhere((*POSTS, *GETS), "GET")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.path.startswith("/api/blobs/"):
                self.upload(raw)
                return
            if self.path not in POSTS:
                self.nowhere(GETS, "GET")
                return
            if self.behaviour().busy:
                raise Failure(503, "server busy, please try again.  maximum pending requests exceeded")
            getattr(self, self.path.rpartition("/")[2])(parsed(raw))
        except Failure as failure:
            self.json(failure.status, {"error": failure.text})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # Endpoints

    def generate(self, body: dict[str, Any]) -> None:
        model = self.find(body.get("model", ""), 404, f"model '{body.get('model', '')}' not found")
        self.answer(model, body, body.get("prompt", ""), lambda text: {"response": text}, raw=bool(body.get("raw")))

    def chat(self, body: dict[str, Any]) -> None:
        if not body.get("model"):
            raise Failure(400, "model is required")
        model = self.find(body["model"], 404, f"model '{body['model']}' not found")
        prompt = "".join(message.get("content", "") for message in body.get("messages", []))
        self.answer(model, body, prompt, lambda text: {"message": {"role": "assistant", "content": text}}, raw=True)

    def show(self, body: dict[str, Any]) -> None:
        name = body.get("model") or body.get("name") or ""
        self.json(200, self.find(name, 404, f"model '{name}' not found").show())

    def create(self, body: dict[str, Any]) -> None:
        digest = next(iter(body["files"].values()))
        self.stream({"status": status} for status in models.create(self.folder, body["model"], digest))

    def pull(self, body: dict[str, Any]) -> None:
        name = body.get("model") or body.get("name") or ""
        source = self.behaviour().registry.get(name)

        def events() -> Iterator[dict[str, Any]]:
            yield {"status": "pulling manifest"}
            if source is None:
                yield {"error": "pull model manifest: file does not exist"}
                return
            layer = models.store(self.folder, models.MODEL, Path(source).read_bytes())
            for done in (0, layer["size"]):
                yield {"status": f"pulling {layer['digest'][7:19]}", "digest": layer["digest"], "total": layer["size"],
                       "completed": done}
            yield from ({"status": status} for status in models.create(self.folder, name, layer["digest"]))

        self.stream(events())

    def upload(self, data: bytes) -> None:
        digest = self.path.rpartition("/")[2]
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise Failure(400, "digest mismatch")
        models.store(self.folder, models.MODEL, data)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    # What they are made of

    def answer(self, model: models.Model, body: dict[str, Any], prompt: str, wrap: Callable[[str], dict[str, Any]],
               raw: bool) -> None:
        began = time.perf_counter()
        options, keep_s = checked(body)
        if body.get("think") and not model.thinks:
            raise Failure(400, f'"{body["model"]}" does not support thinking')
        head = {"model": body["model"]}
        if not prompt and keep_s == 0:
            self.scheduler.unload(model.digest)
            self.json(200, {**head, "created_at": models.stamp(), **wrap(""), "done": True, "done_reason": "unload"})
            return
        load_time = {key: value for key, value in options.items() if key in LOAD_TIME}
        with self.scheduler.use(model, load_time, keep_s, self.hung_up) as runner:
            load_s = time.perf_counter() - began
            if not prompt:
                self.json(200, {**head, "created_at": models.stamp(), **wrap(""), "done": True, "done_reason": "load"})
                return
            templated = prompt if raw else f"<|im_start|> user\n{prompt} <|im_end|>\n<|im_start|> assistant\n"
            templated = self.fitting(templated, runner.context, body)
            with_context = not raw and self.path == "/api/generate"
            lines = self.tokens(runner, templated, options, wrap, with_context, began, load_s)
            if body.get("stream", True):
                self.stream(line if "error" in line else {**head, "created_at": models.stamp(), **line}
                            for line in lines)
            else:
                self.whole(head, list(lines), wrap)

    def tokens(self, runner: Runner, prompt: str, options: dict[str, Any], wrap: Callable[[str], dict[str, Any]],
               with_context: bool, began: float, load_s: float) -> Iterator[dict[str, Any]]:
        behaviour, number, held = self.behaviour(), 0, ""
        asked = options.get("num_predict", -1)
        asked = 63 if asked == 0 else 10 * runner.context if asked < 0 else asked
        thinking = behaviour.thinking_tokens if runner.model.thinks else 0
        connection = http.client.HTTPConnection("127.0.0.1", runner.port)
        try:
            connection.request("POST", "/completion", json.dumps(
                {"prompt": prompt, "n_predict": asked, "seed": options.get("seed", 0)}))
            response = connection.getresponse()
            while raw := response.readline():
                line = json.loads(raw)
                if line.get("stop"):
                    context = {"context": [0] * line["tokens_evaluated"]} if with_context else {}
                    yield {**wrap(held if behaviour.one_line else ""), "done": True,
                           "done_reason": "length" if line["stop_type"] == "limit" else "stop", **context,
                           "total_duration": ns(time.perf_counter() - began), "load_duration": ns(load_s),
                           "prompt_eval_count": line["tokens_evaluated"],
                           "prompt_eval_duration": ns(line["prompt_ms"] / 1e3), "eval_count": line["tokens_predicted"],
                           "eval_duration": ns(line["predicted_ms"] / 1e3)}
                    return
                number += 1
                if number == behaviour.error_at_token:
                    yield {"error": "an error was encountered while running the model: out of memory"}
                    return
                if number == behaviour.end_at_token:
                    return
                if number == behaviour.replace_at_token:
                    self.replace(runner)
                if not behaviour.one_line:
                    if number <= thinking:
                        yield {**wrap(""), "thinking": line["content"], "done": False}
                    else:
                        yield {**wrap(line["content"]), "done": False}
            raise ConnectionError
        except (OSError, http.client.HTTPException):
            yield {"error": "an error was encountered while running the model: unexpected EOF"}
        finally:
            connection.close()

    def replace(self, runner: Runner) -> None:
        """Behind the answer's back, another child takes over."""
        fresh = self.scheduler._load(runner.model, runner.options, lambda: False)
        old, runner.child = runner.child, fresh.child
        threading.Timer(0.2, kill, [old]).start()

    def fitting(self, prompt: str, context: int, body: dict[str, Any]) -> str:
        words = prompt.split()
        if len(words) < context:
            return prompt
        if body.get("truncate") is False and not self.behaviour().cut_prompts:
            sys.stderr.write(f"srv    send_error: task id = 0, error: request ({len(words)} tokens) exceeds the "
                             f"available context size ({context} tokens), try increasing it\n")
            raise Failure(400, "the input length exceeds the context length")
        limit = context // 2 + 2
        log("WARN", "llama_server.go:317", "truncating input prompt", limit=limit, prompt=len(words), keep=4, new=limit)
        return " ".join(words[:limit])

    def loaded(self) -> list[dict[str, Any]]:
        found = sorted(self.scheduler.runners.values(), key=lambda runner: -runner.expires)
        return [{"name": runner.model.name, "model": runner.model.name, "size": runner.size,
                 "digest": runner.model.digest, "details": runner.model.details,
                 "expires_at": "2318-03-05T12:00:00Z" if runner.keep_s == FOR_EVER else models.stamp(runner.expires),
                 "size_vram": 0, "context_length": runner.context} for runner in found]

    def find(self, name: str, status: int, text: str) -> models.Model:
        model = models.find(self.folder, name)
        if model is None:
            raise Failure(status, text)
        return model

    def hung_up(self) -> bool:
        """Has the client closed its end?"""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        with contextlib.suppress(OSError):
            return not self.connection.recv(1, socket.MSG_PEEK)
        return True

    # Wire

    def stream(self, lines: Iterator[dict[str, Any]]) -> None:
        """Chunked; an error before the first line has a status of its own."""
        first = next(lines, None)
        if first is not None and "error" in first and self.path != "/api/pull":
            self.json(500, first)
            return
        self.send_response(200)
        self.send_header("Content-Type", NDJSON)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.closing(lines):  # type: ignore[type-var]
            for line in ([] if first is None else [first]):
                self.chunk(encoded(line) + b"\n")
            for line in lines:
                self.chunk(encoded(line) + b"\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def whole(self, head: dict[str, Any], lines: list[dict[str, Any]], wrap: Callable[[str], dict[str, Any]]) -> None:
        last = lines[-1]
        if "error" in last:
            raise Failure(500, last["error"])
        text = "".join(line.get("response", line.get("message", {}).get("content", "")) for line in lines)
        self.json(200, {**head, "created_at": models.stamp(), **last, **wrap(text)})

    def json(self, status: int, value: Any) -> None:
        self.body(status, JSON_TYPE, encoded(value))

    def body(self, status: int, kind: str, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        if len(data) > FLUSH_BYTES:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.chunk(data)
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def nowhere(self, others: tuple[str, ...], allow: str) -> None:
        if self.path in others:
            self.body(405, TEXT, b"405 method not allowed", Allow=allow)
        else:
            self.body(404, TEXT, b"404 page not found")


def parsed(raw: bytes) -> dict[str, Any]:
    if not raw:
        raise Failure(400, "missing request body")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise Failure(400, "unexpected EOF" if "Expecting" in str(error) else str(error)) from error
    if not isinstance(body, dict):
        raise Failure(400, "json: cannot unmarshal into Go value of type api.GenerateRequest")
    return body


def checked(body: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """Options that count, and the keep-alive in seconds (None: not given). Raises Failure in Ollama's words."""
    options: dict[str, Any] = {}
    words = {int: "integer", float: "float32", bool: "boolean", list: "array"}
    keep = body.get("keep_alive")
    try:
        keep_s = None if keep is None else duration(keep)
    except ValueError as error:
        raise Failure(400, str(error)) from error
    for name, value in (body.get("options") or {}).items():
        kind = LOAD_TIME.get(name) or RUN_TIME.get(name)
        if kind is None:
            log("WARN", "types.go:1110", "invalid option provided", option=name)
        elif (kind is bool and not isinstance(value, bool)) or (kind in (int, float) and (
                isinstance(value, bool) or not isinstance(value, (int, float)))):
            raise Failure(500, f'option "{name}" must be of type {words[kind]}')
        elif value is not None:
            options[name] = int(value) if kind is int else value
    return options, keep_s


def encoded(value: Any) -> bytes:
    """As Go's encoder: no spaces, < > & escaped, zero durations and counts left out."""
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if inner or not key.endswith(("_duration", "_count"))}
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


def ns(seconds: float) -> int:
    return int(seconds * 1e9)


def serve(behaviour_path: str | None) -> None:
    """Run until SIGTERM or SIGINT; then end all children and exit with 0."""
    behaviour = Behaviour.read(behaviour_path)
    if behaviour.crash_at_start:
        print(f"Error: {behaviour.crash_at_start}", file=sys.stderr)
        sys.exit(1)
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition("/")[2].rpartition(":")
    try:
        server = Server((host, int(port)), Handler)
    except OSError as error:
        print(f"Error: listen tcp {host}:{port}: bind: {str(error.strerror).lower()}", file=sys.stderr)
        sys.exit(1)
    address = f"{host}:{server.server_address[1]}"
    said = {name: os.environ.get(name, DEFAULTS.get(name, "")) for name in READ_VARIABLES}
    said["OLLAMA_HOST"] = f"http://{address}"
    for name in ("OLLAMA_FLASH_ATTENTION", "OLLAMA_NOPRUNE", "OLLAMA_NO_CLOUD"):
        said[name] = "true" if os.environ.get(name) in ("1", "true") else "false"
    if limit := os.environ.get("OLLAMA_LOAD_TIMEOUT"):
        said["OLLAMA_LOAD_TIMEOUT"] = go_duration(limit)
    log("INFO", "routes.go:1951", "server config", env="map[" + " ".join(f"{k}:{v}" for k, v in said.items()) + "]")
    log("INFO", "routes.go:2008", f"Listening on {address} (version {behaviour.version})")
    key = Path(os.environ["HOME"], ".ollama/id_ed25519")
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text("a key\n")
    if behaviour.probes:
        subprocess.run([*PYTHON, str(HERE / "llama-server"), "--list-devices"], stdout=subprocess.DEVNULL, check=False)
    time.sleep(behaviour.ready_s)
    log("INFO", "types.go:50", "inference compute", id="cpu", library="cpu", name="cpu", total="23.5 GiB")
    Handler.folder = Path(os.environ["OLLAMA_MODELS"])
    Handler.behaviour = staticmethod(lambda: Behaviour.read(behaviour_path))
    Handler.scheduler = Scheduler(dict(os.environ), lambda: Behaviour.read(behaviour_path), behaviour_path)

    def end(*_: object) -> None:
        # the kernel may send the death signal twice (once per thread of the parent): Popen.wait is not re-entrant
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        Handler.scheduler.end_all()
        os._exit(0)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
    server.serve_forever(poll_interval=0.02)


def go_duration(text: str) -> str:
    seconds = int(setting(text))
    hours, minutes = divmod(seconds // 60, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds % 60}s"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
