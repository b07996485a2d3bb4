"""The embedded engine: llama.cpp's HTTP server from xllamacpp's wheel, in a child process of ours.

The child's program is llamacpp_server.py; reading its log, its process and the model file stands in the
files beside this one, shared with other engines.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.config import Config
from pipeline.engine import checks, llamacpp_available, llamacpp_log, process, server_log
from pipeline.engine.answers import UnexpectedError, quoted
from pipeline.engine.base import Buffer, EngineBase, Generation, LogCheck, OnEvent, Plan, Proof, Request, Scalar, Server
from pipeline.engine.effective import in_force
from pipeline.engine.http import ANSWER_BYTES, BrokenError, Client, RefusedError
from pipeline.engine.knobs import NOTHING_STARTED, as_text, prove, refuse, resolve
from pipeline.engine.llamacpp_answers import (
    PIPE_BYTES,
    RefusedInStream,
    Stream,
    read_command,
    read_prompt,
    read_refusal,
    read_tokens,
)
from pipeline.engine.llamacpp_settings import KNOBS, UNQUANTIZED, WORDS
from pipeline.engine.waiting import NEVER, OuterLimit, Wait
from pipeline.errors import ConfigError, EngineError, EngineUnusableError, PromptTooLongError
from pipeline.machine import usable_cores
from pipeline.model import weights
from pipeline.model.digest import Progress, known_digest
from pipeline.model.files import files_of, read_model, title

T = TypeVar("T")

LOG_LAG_S = 1.0
"""How long an error waits for its reason to appear in the log."""


class Engine(EngineBase):
    """llama.cpp, embedded: nothing to install, and up before a model is in it."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._located = weights.located(config.model)

    @property
    def model_path(self) -> Path | None:
        """The file with the weights, the first if there are several; None while it has not been fetched."""
        return files_of(self._located)[0] if self._located and self._located.exists() else None

    @property
    def tokenizer(self) -> Path | None:
        """See EngineBase: also under the model's own template, which the file holds."""
        return self.model_path

    @property
    def program_files(self) -> Sequence[Path]:
        """See EngineBase: xllamacpp's library. Python's own is ours too, and cannot leave the cache."""
        return llamacpp_available.libraries()

    @classmethod
    def here(cls) -> tuple[bool, str]:
        """See EngineBase: its library is loaded once, in a process of its own."""
        try:
            llamacpp_available.require()
        except ConfigError as error:
            return False, str(error)
        return True, f"xllamacpp {llamacpp_available.version()}"

    def fetch(self, progress: Progress) -> None:
        """See EngineBase. No model is fetched for an engine that cannot run here."""
        if self.model_path is None:
            llamacpp_available.require()
        weights.resolve(self.config.model, progress)

    def plan(self) -> Plan:
        """See EngineBase. A model that `weights.resolve` has not fetched yet is planned without its header, noted."""
        config = self.config
        if self._located is None:
            raise ConfigError(f"model={config.model.name} is a name that only Ollama knows, and engine=llamacpp needs "
                              f"a file: model=gguf model.path=FILE. {NOTHING_STARTED}")
        resolved = resolve(config.engine, config.infer_os, KNOBS, usable_cores(), config.knob, WORDS)
        newer = checks.newer_note("xllamacpp", llamacpp_available.version(), llamacpp_available.NEWEST_CHECKED)
        knobs, notes = resolved.settings, [*resolved.notes, *newer, *process.left_out()]
        slots, n_ubatch = _number(knobs, "n_parallel"), _number(knobs, "n_ubatch")
        num_ctx, rounded = checks.context_in_force(config.num_ctx)
        notes += rounded
        checks.check_settings(knobs)
        if not knobs["flash_attn"] and knobs["cache_type_v"] not in UNQUANTIZED:
            raise ConfigError(f"cache_type_v={knobs['cache_type_v']} needs flash_attn=true: llama.cpp has no quantized "
                              f"V cache without it. {NOTHING_STARTED}")
        if _number(knobs, "n_gpu_layers") > 0:
            _require_gpu(config.engine.name, resolved.chosen.get("n_gpu_layers", ""))
        header, memory = None, dict[str, int]()
        if self.model_path is None and config.model.kind == "pypi":
            notes.append(f"model={config.model.name} is fetched first; its file could not be checked yet")
        else:
            checks.check_path(self._located)
            header = read_model(self._located)
            notes += checks.check_model(header, self._located, config, knobs)
        checks.check_context(header.context_length if header else None, config.num_ctx, config.max_tokens)
        checks.check_batch(max(n_ubatch, _number(knobs, "n_batch")), num_ctx * slots)
        if header is not None:
            memory = checks.memory_need(header, num_ctx, slots, n_ubatch, str(knobs["cache_type_k"]),
                                        str(knobs["cache_type_v"]))
            note = checks.check_memory(memory, f"{title(config.model)} with num_ctx={num_ctx} in {slots} slots",
                                       mapped=knobs["load_mode"] in checks.MAPPED)
            notes += [note] if note else []
        # The server divides its context among the slots: the same context per slot is the product.
        settings = {"model": str(header.path if header else self._located), "n_ctx": num_ctx * slots, **knobs}
        return Plan(settings, tuple(notes), memory, checks.asks(knobs["n_threads"]), resolved.knobs)

    def start(self, log_path: Path) -> LlamaServer:
        """See EngineBase."""
        if self.model_path is None:
            raise EngineError(f"the model file {self._located} is not there. It is fetched before the first trial; was "
                              "it removed meanwhile?")
        server = LlamaServer(self.config, self.plan().settings, self.model_path, log_path, self.outer)
        try:
            server.ping()
        except BaseException:
            server.stop()
            raise
        return server

    def provenance(self) -> Mapping[str, str]:
        """See EngineBase; the digest only where it is known without reading the whole file."""
        facts = {"engine_version": llamacpp_available.version()}
        path = self.model_path
        if path is None:
            return facts
        header = read_model(path)
        known = known_digest(header.files)
        return facts | header.facts() | {"model_digest": f"sha256:{known}" if known else "not known"}


class LlamaServer(Server):
    """The child process, and HTTP to the llama.cpp server in it while a model is loaded."""

    def __init__(self, config: Config, settings: Mapping[str, Scalar], model: Path, log_path: Path,
                 outer: OuterLimit = NEVER) -> None:
        self._config, self._settings, self._model, self._outer = config, settings, model, outer
        self._http = Client()
        self._address: str | None = None
        self._load_at = 0
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        pairs = [f"{name}={as_text(value)}" for name, value in settings.items()]
        try:
            self._child = process.start(
                [*llamacpp_available.program(), str(commands), str(answers), *pairs],
                environment=process.clean_environment(), log_path=log_path, pass_fds=(commands, answers),
            )
        finally:
            os.close(commands)
            os.close(answers)
        self.pid = self._child.pid

    @property
    def loaded(self) -> bool:
        return self._address is not None and self.alive() is None

    def ping(self) -> None:
        """Returns once the child answers. Raises EngineError if it makes no progress."""
        self._command("ping", self._wait("start", "start_limit_s"), "no answer")

    def load(self, on_event: OnEvent) -> None:
        """See Server."""
        if self.loaded:
            return
        self._load_at = server_log.size(self._child.log_path)
        on_event("load_start", time.monotonic_ns())
        address = self._command("load", self._wait("load"), "its memory did not grow")
        on_event("load_end", time.monotonic_ns())
        if not address:
            raise self._error("loaded the model and did not say where it listens")
        self._address = address

    def generate(self, request: Request, on_event: OnEvent) -> Generation:
        """See Server. Decoding is greedy; end-of-text is ignored, so that the answer has max_tokens tokens.

        Raises PromptTooLongError also when prompt and answer together do not fit the context."""
        on_event("request_sent", time.monotonic_ns())
        self.load(on_event)
        wait = self._wait("generation")
        prompt = request.prompt if request.raw else self._templated(request.prompt, wait)
        answer = Stream(request.max_tokens, on_event, request.on_text)
        body = {
            "prompt": prompt, "n_predict": request.max_tokens, "seed": request.seed, "temperature": 0.0,
            "ignore_eos": not request.natural_end, "cache_prompt": self._settings["cache_prompt"], "stream": True,
            "return_progress": True,  # a long prompt shows progress before its first token
        }
        try:
            for line, t_ns in self._lines("/completion", body, wait, "no token"):
                if answer.take(line, t_ns):
                    wait.moved()
        except RefusedInStream as error:
            raise self._refusal(error.data) from error
        except UnexpectedError as error:
            raise self._error(f"said what was not expected: {error}") from error
        return self._finished(answer, request)

    def unload(self) -> None:
        """See Server."""
        self._address = None
        self._command("unload", self._wait("unload", "stop_limit_s"), "its memory did not shrink")

    def tokens(self, prompt: str, raw: bool) -> int:
        """How many tokens `generate` will count for a prompt; loads if nothing is loaded. Raises EngineError."""
        self.load(lambda kind, t_ns: None)
        wait = self._wait("counting tokens")
        content = prompt if raw else self._templated(prompt, wait)
        body = {"content": content, "add_special": True, "parse_special": True}
        return self._ask("/tokenize", body, wait, read_tokens)

    def proofs(self) -> Sequence[Proof]:
        """See Server: command line of the child, llama.cpp's log, and whether the model file is mapped."""
        arrived = dict(pair.partition("=")[::2] for pair in process.command_line(self.pid) if "=" in pair)
        effective = in_force(self._load_log(), self._settings, self.pid, self._model) if self.loaded else {}
        return [
            prove(name, asked, arrived.get(name), *effective.get(name, (None, "")))
            for name, asked in self._settings.items()
        ]

    def check_log(self) -> LogCheck | None:
        """See Server. The log is written by a thread of its own: its last lines are waited for."""
        deadline = time.monotonic() + LOG_LAG_S
        while (missing := llamacpp_log.parse(self._load_log()).unrecognised) and time.monotonic() < deadline:
            time.sleep(0.02)
        return LogCheck(f"xllamacpp {llamacpp_available.version()}", len(llamacpp_log.LINES), missing)

    def buffers(self) -> Sequence[Buffer]:
        """See Server: from llama.cpp's log."""
        return llamacpp_log.parse(self._load_log()).buffers

    def alive(self) -> str | None:
        return self._child.ended()

    def stop(self) -> None:
        """See Server."""
        for descriptor in (self._commands, self._answers):
            if descriptor >= 0:
                os.close(descriptor)
        self._commands = self._answers = -1
        self._address = None
        self._http.close()
        self._child.end(self._config.engine.stop_limit_s)

    def _load_log(self) -> str:
        return self._child.log(self._load_at)

    def _wait(self, doing: str, limit: str = "no_progress_s") -> Wait:
        limit_s: float = getattr(self._config.engine, limit)
        sign = {"load": 1, "unload": -1}.get(doing, 0)
        return Wait(doing, limit_s, f"engine.{limit}", self.pid, self._outer,
                    lambda: sign * process.resident_bytes(self.pid), self._child.log_path)

    def _command(self, do: str, wait: Wait, missing: str) -> str:
        """One command to the child: the address it answers with, "" for most."""
        try:
            os.write(self._commands, json.dumps({"do": do}).encode() + b"\n")
        except OSError as error:
            raise self._died(wait.doing) from error
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        received = b""
        while not received.endswith(b"\n"):
            if poll.poll(wait.pause_s * 1000):
                block = os.read(self._answers, 65536)
                if not block:
                    raise self._died(wait.doing)
                received += block
            if len(received) > PIPE_BYTES:
                raise self._error(f"answered on its pipe with more than {PIPE_BYTES} bytes: {quoted(received)}")
            if not received.endswith(b"\n") and (reason := wait.overdue(missing)):
                raise self._error(reason)
        try:
            address, why = read_command(received)
        except UnexpectedError as error:
            raise self._error(f"said what was not expected: {error}") from error
        if why:
            raise self._error(f"failed to {wait.doing}: {why.rstrip('. ')}")
        return address

    def _lines(self, path: str, body: Mapping[str, object], wait: Wait, missing: str) -> Iterator[tuple[bytes, int]]:
        """The answer's lines and when they arrived. Raises EngineError: refused, ended, no progress."""
        def look() -> float:
            if reason := wait.overdue(missing):
                raise self._error(reason)
            return wait.look_s

        try:
            yield from self._http.lines(f"{self._address}{path}", body, look)
        except RefusedError as error:
            raise self._refusal(error.answer.text) from error
        except BrokenError as error:
            raise self._broken(str(error)) from error

    def _ask(self, path: str, body: Mapping[str, object], wait: Wait, read: Callable[[bytes], T]) -> T:
        said = bytearray()
        for line, _ in self._lines(path, body, wait, "no answer"):
            said += line
            if len(said) > ANSWER_BYTES:
                raise self._error(f"answered {path} with more than {ANSWER_BYTES // 2**20} MiB: {quoted(bytes(said))}")
        try:
            return read(bytes(said))
        except UnexpectedError as error:
            raise self._error(f"said what was not expected: {error}") from error

    def _templated(self, prompt: str, wait: Wait) -> str:
        return self._ask("/apply-template", {"messages": [{"role": "user", "content": prompt}]}, wait, read_prompt)

    def _finished(self, answer: Stream, request: Request) -> Generation:
        last = answer.last
        if last is None:
            raise self._broken("the connection was closed")
        prompt_tokens, output_tokens = last.prompt_tokens, last.output_tokens
        if output_tokens < request.max_tokens and (last.truncated or last.reason == "limit"):
            raise PromptTooLongError(
                f"prompt and answer do not fit: the server counts {prompt_tokens} prompt tokens and stopped after "
                f"{output_tokens} of {request.max_tokens} at its context of num_ctx={self._config.num_ctx}. Raise "
                "num_ctx, or lower max_tokens, or shorten the prompt."
            )
        return Generation(
            text="".join(answer.text), prompt_tokens=prompt_tokens, cached_tokens=last.cached_tokens,
            output_tokens=output_tokens, stop_reason=last.reason, truncated=last.truncated,
            prefill_s=_seconds(last.prompt_ms), decode_s=_seconds(last.predicted_ms),
        )

    def _error(self, what: str) -> EngineError:
        # llama.cpp writes its log from a thread of its own: the reason may come after the answer
        deadline = time.monotonic() + LOG_LAG_S
        while not (said := llamacpp_log.complaints(self._child.log())) and time.monotonic() < deadline:
            time.sleep(0.02)
        return EngineError(f"llamacpp {what}." + (f" Its log says: {said}" if said else ""))

    def _died(self, doing: str) -> EngineError:
        ended = self._child.wait(2.0) or "it closed its pipe but still runs"
        if (why := llamacpp_available.lacking(self._child.exit_status, self._child.log())) is not None:
            return EngineUnusableError(why)
        if (never := self._child.cannot_run()) is not None:
            return EngineUnusableError(f"engine=llamacpp cannot run on this machine: {never}.")
        return self._error(f"ended during {doing}: {ended}")

    def _broken(self, why: str) -> EngineError:
        if self._child.wait(1.0) is not None:
            return self._died("generation")
        return self._error(f"broke the stream before its last line ({why})")

    def _refusal(self, said: bytes | str) -> EngineError:
        try:
            refusal = read_refusal(said)
        except UnexpectedError:
            return self._error(f"refused the request: {quoted(said)}")
        if refusal.kind == "exceed_context_size_error":
            return PromptTooLongError(
                f"the prompt is too long: the server counts {refusal.prompt_tokens} tokens, its context holds "
                f"{refusal.context} (num_ctx={self._config.num_ctx}). Raise num_ctx, or shorten the prompt."
            )
        return self._error(f"refused the request: {refusal.message}")


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0


def _number(settings: Mapping[str, Scalar], name: str) -> int:
    return int(settings[name])


def _require_gpu(engine: str, knob: str) -> None:
    """Raises ConfigError where there is none. `knob`: the key that asks for it by name, else it is the flag."""
    llamacpp_available.require()
    devices, version = llamacpp_available.devices(), llamacpp_available.version()
    if not any(device["type"] in ("GPU", "IGPU") for device in devices):
        seen = ", ".join(f"{device['name']} ({device['type']})" for device in devices) or "no device"
        raise refuse(knob or "infer_os.gpu_acceleration=true", engine,
                     f"xllamacpp {version} sees no GPU, only {seen}; its wheel on the package index "
                     "computes on the CPU, a build for CUDA, ROCm or Vulkan is needed for a GPU")
