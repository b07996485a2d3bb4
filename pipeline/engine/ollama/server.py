"""A running Ollama, driven over HTTP and watched as processes: load, generate, unload, and the proof of its settings.

How one is started or found is start.py and attached.py; what goes over the wire is api.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pipeline.config import Engine as EngineConfig
from pipeline.engine import llamacpp_log, process
from pipeline.engine.answers import Length, UnexpectedError
from pipeline.engine.base import Buffer, Generation, LogCheck, OnEvent, Proof, Request, Scalar, Server
from pipeline.engine.effective import in_force
from pipeline.engine.http import BrokenError
from pipeline.engine.ollama import log
from pipeline.engine.ollama import settings as ollama_settings
from pipeline.engine.ollama.api import Api, Last, NoSuchModelError, Piece, Running
from pipeline.engine.ollama.model_store import Name
from pipeline.engine.ollama.processes import Host, gone, not_the_one
from pipeline.engine.ollama.proofs import NOTHING_SEEN, Evidence, proofs
from pipeline.engine.ollama.start import older
from pipeline.engine.waiting import NEVER, OuterLimit, Wait
from pipeline.errors import EngineError, PromptTooLongError

_LOADING_POLL_S = 0.01
_POLL_S = 0.2
_UNLOAD_POLL_S = 0.002
_ENDING_S = 1.0
_STAYS_YEARS = 10
"""keep_alive -1 puts expires_at some 292 years ahead (the largest Go duration)."""


class OllamaServer(Server):
    """One Ollama server and one model on it. Not thread-safe."""

    def __init__(self, api: Api, host: Host, model: str, weights: Path | None, settings: Mapping[str, Scalar],
                 config: EngineConfig, end: Callable[[], None], version: str, outer: OuterLimit = NEVER) -> None:
        """`end` ends what of it is ours."""
        self._version, self._old, self._outer = version, older(version), outer
        self.api, self.host, self.pid = api, host, host.pid
        self._model, self._weights, self._settings, self._config, self._end = model, weights, settings, config, end
        self._num_ctx = int(settings["num_ctx"])
        self._loaded = False
        self._child: int | None = None
        self._load_at = 0
        self._since, self._calls, self._answers = host.log_bytes(), 0, 0
        self.claim: int | None = None
        """Bytes that /api/ps says the loaded model takes: static, from log lines."""

    @property
    def loaded(self) -> bool:
        return self._loaded and self.alive() is None

    def alive(self) -> str | None:
        return self.host.ended()

    def load(self, on_event: OnEvent) -> None:
        """See Server."""
        if self.loaded:
            return
        said: list[Piece] = []

        def take(piece: Piece, _t_ns: int) -> bool:
            if said:
                raise UnexpectedError("a second line follows the answer to a load")
            said.append(piece)
            return False

        self._talk(ollama_settings.load_body(self._model, self._settings), on_event, take)
        last = said[0].last if said else None
        if last is None or last.reason != "load":
            raise EngineError(f"Ollama answered a load with {last.reason if last else 'no last line'!r}; expected one "
                              "object, done_reason load.")

    def generate(self, request: Request, on_event: OnEvent) -> Generation:
        """See Server. Ollama cannot be made to ignore an end of text: an answer may be shorter than asked."""
        answer, since = _Answer(request.max_tokens, on_event, request.on_text), self.host.log_bytes()
        # Before 0.30 a refusal does not count the tokens; the log counts them where the server cuts.
        self._answers += 1
        body = ollama_settings.generate_body(self._model, self._settings, request, truncate=self._old)
        on_event("request_sent", time.monotonic_ns())
        watch = self._talk(body, on_event, answer.take)
        last = answer.last
        if last is None:
            raise self._error("ended its answer without a last line (it does so after 30 identical tokens, and when "
                              "its engine is replaced)")
        said = self.host.log_since(since)
        self._refuse_cut(said)
        prompt_tokens, output_tokens = last.prompt_tokens, last.output_tokens
        return Generation(
            text="".join(answer.text), thinking="".join(answer.thinking), prompt_tokens=prompt_tokens,
            cached_tokens=llamacpp_log.cached_tokens(said), output_tokens=output_tokens,
            stop_reason=last.reason,
            truncated=prompt_tokens >= self._num_ctx - 1 or prompt_tokens + output_tokens > self._num_ctx,
            prefill_s=_seconds(last.prefill_ns), decode_s=_seconds(last.decode_ns), load_s=_seconds(last.load_ns),
            unseen=("load", "prefill") if watch.guessed else (),
        )

    def unload(self) -> None:
        """See Server: asked for, then waited for until /api/ps and the process table agree that it is gone."""
        limit_s = self._config.stop_limit_s
        child = self.host.child(thorough=True)
        self._calls += 1
        self.api.send(ollama_settings.unload_body(self._model), limit_s)
        wait = Wait("unload", limit_s, "engine.stop_limit_s", self.pid, self._outer,
                    lambda: -process.resident_bytes(child) if child else 0, self.host.log_path)
        while child is not None and not gone(child):
            if reason := wait.overdue(f"no sign that its process {child} ends"):
                raise self._error(reason)
            time.sleep(_UNLOAD_POLL_S)
        pause_s = _UNLOAD_POLL_S
        while self._listed() is not None:
            if reason := wait.overdue("/api/ps listed the model"):
                raise self._error(reason)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S)  # to be asked all the time keeps a server busy, which is not progress
        self._loaded, self._child = False, None

    def others(self) -> str | None:
        """See Server: its log's lines of requests and tasks, less our own."""
        if self.host.log_path is None:
            return None
        return log.others(self.host.log_since(self._since), self._calls, self._answers)

    def proofs(self) -> Sequence[Proof]:
        """See Server: environment, "server config" line, the child's command line, its log and maps."""
        return proofs(self._settings, NOTHING_SEEN if self.alive() else self._evidence())

    def check_log(self) -> LogCheck | None:
        """See Server; None too where its log cannot be read from here."""
        if self.host.log_path is None or not self._loaded:
            return None
        return log.check(self._version, self._old, self.host.log_since(0), self.host.log_since(self._load_at))

    def buffers(self) -> Sequence[Buffer]:
        """See Server; and `claimed`, what /api/ps says in all, to be set against them."""
        since_load = self.host.log_since(self._load_at)
        own = llamacpp_log.parse(since_load).buffers or log.old_buffers(since_load)
        return [*own, *([Buffer("claimed", "/api/ps", self.claim)] if self.claim is not None else [])]

    def stop(self) -> None:
        self._loaded, self._child = False, None
        self._end()
        self.api.close()

    # What the above are made of

    def _talk(self, body: Mapping[str, object], on_event: OnEvent,
              take: Callable[[Piece, int], bool]) -> _Watch:
        """One request, watched: load events while it loads, its end if the server ends or nothing moves any more.
        `take` says whether a line brought something."""
        self._load_at = self._load_at if self._loaded else self.host.log_bytes()
        since = self.host.log_bytes()
        self._calls += 1
        watch = _Watch(self.host, self._config.no_progress_s, self._outer, self._load_at, on_event,
                       loading=not self._loaded)

        def look() -> float:
            self._refuse_cut(self.host.log_since(since))
            return watch.look()

        try:
            for piece, t_ns in self.api.generate(body, look):
                watch.answered(t_ns)
                if take(piece, t_ns):
                    watch.moved()
        except BrokenError as error:
            raise self._died(watch.doing, error) from error
        except NoSuchModelError as error:
            raise EngineError(f"{error} (engine.pull=true fetches a missing model before the first trial.)") from error
        except PromptTooLongError as error:
            counted = llamacpp_log.too_long(str(error)) or llamacpp_log.too_long(self.host.log_since(since))
            if counted is None:
                raise
            raise PromptTooLongError(f"the prompt is too long: the server counts {counted[0]} tokens, its context "
                                     f"holds {counted[1]} (num_ctx={self._num_ctx}). Raise num_ctx, or shorten the "
                                     "prompt.") from error
        except EngineError as error:
            if self.alive() is not None:
                raise self._died(watch.doing, error) from error
            why = log.reasons(self.host.log_since(self._load_at))
            new = f"\nIts log says:\n{why}" if why and why not in str(error) else ""
            raise EngineError(f"{error}{new}") from error
        watch.answered(time.monotonic_ns())
        self._same_child(self._child if self._loaded else watch.child)
        return watch

    def _refuse_cut(self, said: str) -> None:
        cut = log.cut_prompt(said)
        if cut is not None:
            raise PromptTooLongError(f"the server cut the prompt: it counts {cut.prompt} tokens, kept {cut.limit}, "
                                     f"for its context of num_ctx={self._num_ctx}. Raise num_ctx, or shorten the "
                                     "prompt.")

    def _same_child(self, before: int | None) -> None:
        child = self.host.child(thorough=True)
        asked = self.others() if self.host.pid and (child is None or child != before) else ""
        whose = f" Another client used it meanwhile: {asked}." if asked else ""
        if self.host.pid and child is None:
            if self.host.url and before is None and not asked:
                raise EngineError(not_the_one(self.host, "no process below it holds the model after a load"))
            raise self._error(f"has no process with a model in it after it answered.{whose}".removesuffix("."))
        if before is not None and child != before:
            raise EngineError(f"Ollama replaced its engine process within the trial (pid {before}, now {child}): "
                              "it loaded the model again, and what was measured before and after does not belong "
                              f"together.{whose}")
        if not self._loaded:
            self._loaded, self._child = True, child
            entry = self._listed()
            self.claim = entry.bytes if entry else None

    def _evidence(self) -> Evidence:
        child, said = self._child, self.host.log_since(0)
        since_load = self.host.log_since(self._load_at)
        command = process.command_line(child) if child else []
        named = command[command.index("--model") + 1] if "--model" in command[:-1] else None
        found = llamacpp_log.parse(since_load).buffers
        effective = in_force(since_load, self._settings, child, self._weights) if child and self._weights else {}
        entry, logged = self._listed(), llamacpp_log.model_file(since_load)
        return Evidence(
            serve_environment=process.environment_of(self.pid) if self.pid else {},
            config_line=log.server_config(said),
            child_command=command, child_environment=process.environment_of(child) if child else {},
            load_text=since_load, in_force=effective, buffers=found or log.old_buffers(since_load),
            model_path=str(Path(named).resolve()) if named and self._weights else None,
            model_logged=str(Path(logged).resolve()) if logged and self._weights else None,
            keeps=_stays(entry.expires_at) if entry and entry.expires_at else None,
            request=log.load_request(since_load),
            mapped=process.maps_file(child, self._weights) if child and self._weights else None,
        )

    def _listed(self) -> Running | None:
        ours = Name.parse(self._model)
        return next((entry for entry in self.api.running() if any(map(ours.is_called, entry.names))), None)

    def _died(self, doing: str, error: EngineError) -> EngineError:
        """A connection that broke may be the first sign of a server that is ending."""
        deadline = time.monotonic() + _ENDING_S
        while (ended := self.alive()) is None and time.monotonic() < deadline:
            time.sleep(_UNLOAD_POLL_S)
        return self._error(f"ended during {doing}: {ended}") if ended else EngineError(str(error))

    def _error(self, what: str) -> EngineError:
        why = log.reasons(self.host.log_since(self._load_at))
        return EngineError(f"Ollama {what}." + (f" Its log says:\n{why}" if why else ""))


class _Answer:
    """One streamed answer. Thinking counts as much as the response: it is what the first token may be."""

    def __init__(self, max_tokens: int, on_event: OnEvent, on_text: Callable[[str], None] | None = None) -> None:
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.last: Last | None = None
        self._on_event, self._on_text, self._length, self._tokens = on_event, on_text, Length(max_tokens), 0

    def take(self, piece: Piece, t_ns: int) -> bool:
        """One line of the stream: did it bring something? Raises UnexpectedError: it goes on where it had to end."""
        if self.last is not None:
            raise UnexpectedError("Ollama goes on after the last line of its answer")
        came = bool(piece.text or piece.thinking)
        self._length.add(self._tokens + came, len(piece.text) + len(piece.thinking))
        if came:
            self.text.append(piece.text)
            self.thinking.append(piece.thinking)
            self._on_event("token" if self._tokens else "first_token", t_ns)
            self._tokens += 1
        if piece.text and self._on_text is not None:
            self._on_text(piece.text)
        if piece.last is not None:
            self.last = piece.last
            self._on_event("last_token", t_ns)
        return came


class _Watch:
    """Looks at a server while it works on a request: when its load begins and ends, whether anything still moves."""

    def __init__(self, host: Host, limit_s: float, outer: OuterLimit, since: int, on_event: OnEvent,
                 loading: bool) -> None:
        self._host, self._since, self._on_event = host, since, on_event
        self._loading, self._begun = loading, False
        self.child: int | None = None
        """The process that began to load."""
        self.guessed = False
        """The load's end was not seen, and stands at the answer's first line."""
        self._wait = Wait(self.doing, limit_s, "engine.no_progress_s", host.pid, outer, self._loaded_bytes,
                          host.log_path)

    @property
    def doing(self) -> str:
        """What the server is at, in a word."""
        return "load" if self._loading else "generation"

    def look(self) -> float:
        """Seconds until the next look. Raises EngineError if the server ended or the wait is over."""
        t_ns, ended = time.monotonic_ns(), self._host.ended()
        if ended:
            raise EngineError(f"Ollama ended during {self.doing}: {ended}. See server.log.")
        if self._loading:
            child = self._host.child()
            if child is not None and not self._begun:
                self.child = child
                self._begin(t_ns)
            if self._begun and log.loaded(self._host.log_since(self._since)):
                self._end(t_ns)
        if reason := self._wait.overdue("its memory did not grow" if self._loading else "no token"):
            raise EngineError(f"Ollama {reason}.")
        return _LOADING_POLL_S if self._loading else _POLL_S

    def moved(self) -> None:
        """A token has come; a line without one is no progress."""
        self._wait.moved()

    def answered(self, t_ns: int) -> None:
        """A line of the answer has come: whatever had to be loaded is loaded."""
        if self._loading:
            self.child = self.child or self._host.child()
            self.guessed = not (self._begun and log.loaded(self._host.log_since(self._since)))
            self._begin(t_ns)
            self._end(t_ns)

    def _begin(self, t_ns: int) -> None:
        if not self._begun:
            self._begun = True
            self._wait.moved()
            self._on_event("load_start", t_ns)

    def _end(self, t_ns: int) -> None:
        self._loading = False
        self._wait.doing = self.doing
        self._wait.moved()
        self._on_event("load_end", t_ns)

    def _loaded_bytes(self) -> int:
        child = self._host.child() if self._host.pid and self._loading else None
        return process.resident_bytes(child) if child else 0


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def _stays(expires_at: str) -> bool:
    year = expires_at[:4]
    return year.isdecimal() and int(year) > datetime.now().year + _STAYS_YEARS
