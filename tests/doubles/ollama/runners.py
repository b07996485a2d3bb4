"""Which models are loaded: one child process each, started, replaced, kept alive, killed as Ollama's scheduler does."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.doubles.ollama.behaviour import Behaviour
from tests.doubles.ollama.models import Model

HERE = Path(__file__).resolve().parent
PYTHON = (sys.executable, "-S", "-E")
LOAD_TIME = {"num_ctx": int, "num_batch": int, "num_gpu": int, "main_gpu": int, "use_mmap": bool, "num_thread": int}
RUN_TIME = {"num_keep": int, "seed": int, "num_predict": int, "top_k": int, "top_p": float, "min_p": float,
            "typical_p": float, "repeat_last_n": int, "temperature": float, "repeat_penalty": float,
            "presence_penalty": float, "frequency_penalty": float, "stop": list}
FOR_EVER = float("inf")
MIB = 2**20


class Failure(Exception):
    """An answer that is an error: status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def log(level: str, source: str, message: str, **fields: object) -> None:
    """A slog line."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".000Z"
    rest = "".join(f" {key}={quoted(str(value))}" for key, value in fields.items())
    sys.stderr.write(f"time={stamp} level={level} source={source} msg={quoted(message)}{rest}\n")
    sys.stderr.flush()


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=') else text


@dataclass
class Runner:
    """A loaded model."""

    model: Model
    options: dict[str, Any]
    child: subprocess.Popen[bytes]
    port: int
    size: int
    context: int
    keep_s: float
    users: int = 0
    expires: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Scheduler:
    """All runners of a server. Thread-safe."""

    def __init__(self, environment: dict[str, str], behaviour: Callable[[], Behaviour],
                 behaviour_path: str | None) -> None:
        self.environment, self.behaviour, self.behaviour_path = environment, behaviour, behaviour_path
        self.runners: dict[str, Runner] = {}
        self.loading: subprocess.Popen[bytes] | None = None
        self.lock = threading.RLock()
        self.load_lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, model: Model, options: dict[str, Any], keep_s: float | None,
            gone: Callable[[], bool]) -> Iterator[Runner]:
        """A runner for a request; its keep-alive begins anew when the request ends."""
        with self.load_lock:
            runner = self._ready(model, options, keep_s, gone)
            runner.users += 1
        try:
            yield runner
        finally:
            with self.lock:
                runner.users -= 1
                runner.expires = time.time() + runner.keep_s
                if runner.keep_s != FOR_EVER:
                    timer = threading.Timer(runner.keep_s, self._expire, [runner, runner.expires])
                    timer.daemon = True
                    timer.start()

    def _ready(self, model: Model, options: dict[str, Any], keep_s: float | None,
               gone: Callable[[], bool]) -> Runner:
        runner = self.runners.get(model.digest)
        if runner is not None and (runner.options != options or not alive(runner)):
            self.end(runner)
            runner = None
        if runner is None:
            while len(self.runners) >= int(self.environment.get("OLLAMA_MAX_LOADED_MODELS") or 3):
                self.end(min(self.runners.values(), key=lambda each: each.expires))
            runner = self._load(model, options, gone)
            default = setting(self.environment.get("OLLAMA_KEEP_ALIVE") or "5m")
            runner.keep_s = default if keep_s is None else keep_s
            self.runners[model.digest], self.loading = runner, None  # never in neither: a signal ends both
        elif keep_s is not None:
            runner.keep_s = keep_s
        return runner

    def _load(self, model: Model, options: dict[str, Any], gone: Callable[[], bool]) -> Runner:
        behaviour, began = self.behaviour(), time.perf_counter()
        flags = self.flags(model, options)
        port = free_port()
        environment = {**os.environ, **({"DOUBLE_BEHAVIOUR": self.behaviour_path} if self.behaviour_path else {})}
        if behaviour.old:
            command = [*PYTHON, str(HERE / "ollama"), "runner", "--model", str(model.weights), "--port", str(port)]
            environment["DOUBLE_FLAGS"] = json.dumps(flags)
        else:
            command = [*PYTHON, str(HERE / "llama-server"), "--model", str(model.weights), "--port", str(port),
                       "--host", "127.0.0.1", "--no-webui", "--offline", *command_line(flags)]
            log("INFO", "llama_server.go:433", "starting llama-server", cmd=" ".join(command[len(PYTHON):]))
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        self.loading = child
        try:
            while not (truth := health(port)):
                if child.poll() is not None:
                    status = f"exit status {child.returncode}" if child.returncode > 0 else "signal: killed"
                    log("INFO", "sched.go:641", "Load failed", error=f"llama-server process has terminated: {status}")
                    raise Failure(500, f"llama-server process has terminated: {status}")
                if gone():
                    raise Failure(499, "request canceled")
                time.sleep(0.003 if time.perf_counter() - began < 0.5 else 0.05)  # asking all the time is no idling
        except Failure:
            kill(child)
            self.loading = None
            raise
        if behaviour.old:
            self._say_old(model, flags, truth)
        who = "llama runner" if behaviour.old else "llama-server"
        log("INFO", "llama_server.go:1362", f"{who} started in {time.perf_counter() - began:.2f} seconds")
        size = sum(value for key, value in truth.items() if not key.startswith("baseline")) + compute(model, flags)
        slots = int(flags["-np"])
        return Runner(model, options, child, port, size, int(flags["-c"]) // slots, 0.0)

    def flags(self, model: Model, options: dict[str, Any]) -> dict[str, str]:
        """The child's command line, as llm/llama_server.go makes it."""
        slots = int(self.environment.get("OLLAMA_NUM_PARALLEL") or 1)
        context = options.get("num_ctx") or int(self.environment.get("OLLAMA_CONTEXT_LENGTH") or 0) or 4096
        if context > model.header.of_arch("context_length", context):
            log("WARN", "server.go:74", "requested context size too large for model", num_ctx=context,
                n_ctx_train=model.header.of_arch("context_length"))
            context = model.header.of_arch("context_length")
        batch = options.get("num_batch") or next(b for limit, b in ((4096, 512), (32768, 1024), (1 << 60, 2048))
                                                 if context * slots <= limit)
        flags = {"-c": str(context * slots), "-np": str(slots), "--log-verbosity": "4", "--no-log-prefix": "",
                 "--no-log-timestamps": "", "--no-jinja": "", "--chat-template": "chatml"}
        if not options.get("use_mmap"):
            flags["--load-mode"] = "none"
        if kv_type := self.environment.get("OLLAMA_KV_CACHE_TYPE", "").lower():
            flags |= {"--cache-type-k": kv_type, "--cache-type-v": kv_type}
        flash = self.environment.get("OLLAMA_FLASH_ATTENTION", "")
        flags["--flash-attn"] = "auto" if not flash else "off" if flash in ("0", "false") else "on"
        flags |= {"-b": str(batch), "-ub": str(batch)}
        if options.get("num_gpu", -1) >= 0:
            flags["-ngl"] = str(options["num_gpu"])
        if options.get("num_thread"):
            flags["-t"] = str(options["num_thread"])
        return {**flags, "--context-shift": "", "--keep": "4"}

    def _say_old(self, model: Model, flags: dict[str, str], truth: dict[str, int]) -> None:
        flash = {"on": "Enabled", "off": "Disabled"}.get(flags["--flash-attn"], "Auto")
        fields = {"Operation": "commit", "LoraPath": "[]", "Parallel": flags["-np"], "BatchSize": flags["-b"],
                  "FlashAttention": flash, "KvSize": flags["-c"], "KvCacheType": flags.get("--cache-type-k", ""),
                  "NumThreads": flags.get("-t", "2"), "GPULayers": "[]", "MultiUserCache": "false",
                  "UseMmap": str("--load-mode" not in flags).lower()}
        said = " ".join(f"{key}:{value}" for key, value in fields.items())
        log("INFO", "runner.go:1278", "load", request="{" + said + "}")
        weights = truth.get("weights", 0) + truth.get("mapped", 0)
        for name, size in (("model weights", weights), ("kv cache", truth["kv"]),
                           ("compute graph", compute(model, flags))):
            log("INFO", "device.go:240", name, device="CPU", size=f"{size / MIB:.1f} MiB")

    def unload(self, digest: str) -> None:
        """Queue the end of a model; returns at once."""
        runner = self.runners.get(digest)
        if runner is not None:
            threading.Thread(target=self._end_later, args=[runner], daemon=True).start()

    def _end_later(self, runner: Runner) -> None:
        while runner.users:
            time.sleep(0.002)
        time.sleep(self.behaviour().unload_s)
        self.end(runner)

    def _expire(self, runner: Runner, expires: float) -> None:
        with self.lock:
            if runner.expires != expires or runner.users:
                return
        self._end_later(runner)

    def end(self, runner: Runner) -> None:
        """SIGKILL and reap, then forget it."""
        kill(runner.child)
        with self.lock:
            if self.runners.get(runner.model.digest) is runner and not self.behaviour().stale_ps:
                del self.runners[runner.model.digest]

    def end_all(self) -> None:
        if self.loading is not None:
            kill(self.loading)
        for runner in list(self.runners.values()):
            kill(runner.child)


def command_line(flags: dict[str, str]) -> list[str]:
    return [part for pair in flags.items() for part in pair if part]


def compute(model: Model, flags: dict[str, str]) -> int:
    return int(flags["-b"]) * model.header.of_arch("embedding_length") * 4 * 16


def kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        child.wait()


def alive(runner: Runner) -> bool:
    return runner.child.poll() is None and health(runner.port) is not None


def health(port: int) -> dict[str, int] | None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        truth: dict[str, int] = json.loads(connection.getresponse().read())["truth"]
        connection.close()
        return truth
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def setting(text: str) -> float:
    """A duration in the environment: Go's form, or a number of seconds."""
    with contextlib.suppress(ValueError):
        return duration(float(text))
    return duration(text)


def duration(value: str | float) -> float:
    """keep_alive in seconds: a number, or a Go duration; negative is for ever. Raises ValueError in Go's words."""
    if isinstance(value, (int, float)):
        return FOR_EVER if value < 0 else float(value)
    text, units = value, {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    total, rest, sign = 0.0, text.lstrip("+-"), text.startswith("-")
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number):]
        unit = next((u for u in sorted(units, key=len, reverse=True) if rest.startswith(u)), None)
        if not number or unit is None:
            what = "invalid" if rest or not number else "missing unit in"
            raise ValueError(f"time: {what} duration {json.dumps(text)}")
        total += float(number) * units[unit]
        rest = rest[len(unit):]
    return FOR_EVER if sign else total
