"""The stages of one trial, in order (docs/structure.md, "The life of a trial").

What is read, and when, is the same in every mode; what differs is what a mode does to the server. How to
read lives in meter/, how to serve in engine/, what the readings mean in phases.py.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import interrupt
from pipeline.clear import clear_caches, clear_program
from pipeline.config import Config
from pipeline.engine import process
from pipeline.engine.answers import quoted
from pipeline.engine.base import Buffer, EngineBase, EventKind, Generation, LogCheck, Proof, Request, Server
from pipeline.errors import BugError, EngineError, MachineError, PromptTooLongError, SlackwaterError
from pipeline.meter import tree
from pipeline.meter.base import Available, Found, Meter, Target, find_all
from pipeline.meter.model_file import Eviction
from pipeline.meter.sampler import Sampler
from pipeline.meter.system import Disturbance, disturbance, snapshot, with_found
from pipeline.model.files import files_of
from pipeline.phases import MOMENT_SAMPLES, Mark, Peaks, Span, TreeReading, pause_s
from pipeline.progress import Listener, Reading, Stage, StageEntered, TokenCount, TurnMeasured, Words
from pipeline.prompts import Prompts, Recorded
from pipeline.record.reason import Reason, of_error
from pipeline.settle.base import Settling, load_rule
from pipeline.text import printable

POLL_S = 0.05
"""How often a wait looks at memory; far above the sampler's period, far below a user's patience."""

UNDIVIDED = "undivided"
"""Name of a span inside an answer whose parts could not be told apart; it is not a phase."""

RELEASE_S = 2.0
"""How long a release is watched at the full rate: how fast memory comes back is asked to a reading's exactness."""

SHOW_S = 0.1
"""How often the live display is told about memory while tokens arrive."""


@dataclass
class Record:
    """Everything one trial has measured so far; whole or not, it becomes a TrialRecord."""

    marks: list[Mark] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    peaks: list[Peaks] = field(default_factory=list)
    readings: dict[tuple[str, int], TreeReading] = field(default_factory=dict)
    meters: Sequence[Found] = ()
    """The further meters that were asked for: here, or absent with the reason."""
    meter_readings: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    """By phase and turn: `<meter>_<quantity>` → value; bytes are named so."""
    generations: dict[int, Generation] = field(default_factory=dict)
    prompts: dict[int, str] = field(default_factory=dict)
    proofs: Sequence[Proof] = ()
    log_check: LogCheck | None = None
    buffers: Sequence[Buffer] = ()
    """The engine's own account, after the last turn."""
    pauses: dict[int, float] = field(default_factory=dict)
    """By turn: seconds in which no token came although the others came fast."""
    settled: dict[int, tuple[bool, float]] = field(default_factory=dict)
    """By turn: stable or not, and the seconds it took."""
    others: str | None = ""
    """What other clients asked of the server meanwhile; None: it could not be known."""
    elsewhere: bool = False
    """The server runs where none of our meters reaches."""
    unload_ns: int | None = None
    eviction: Eviction | None = None
    program_eviction: Eviction | None = None
    """The same of the engine's own files."""
    spent_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds by purpose; what is in none of them is the pipeline's own overhead."""
    disturbed: Disturbance | None = None
    late_faults: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By turn: from its first token until it had settled (ns), and the tree's major faults between."""
    error: SlackwaterError | None = None
    interrupted: bool = False


@contextmanager
def kept(record: Record, folder: Path) -> Iterator[None]:
    """What happens inside ends a trial and not its sweep: the first error is in the record, a bug's traceback in the
    folder, and that a user interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        record.interrupted = True
    except SlackwaterError as error:
        record.error = record.error or error
    except OSError as error:
        said = f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
        record.error = record.error or MachineError(f"The machine refused something during the trial: {said}.")
    except Exception as error:  # noqa: BLE001  a bug costs one trial
        if record.error is None:
            record.error = BugError(f"A bug: {type(error).__name__}: {quoted(str(error))}. traceback.txt in this "
                                    "trial's folder says where; please report it.")
            with suppress(OSError):
                (folder / "traceback.txt").write_text(printable(traceback.format_exc()), encoding="utf-8")


class Trial:
    """One repetition of a cell on a running sampler. `run` is the table of stages; the rest is one method per stage."""

    def __init__(self, config: Config, engine: EngineBase, sampler: Sampler, folder: Path, listener: Listener,
                 prompts: Prompts | None = None) -> None:
        self.config, self.engine, self.sampler, self.listener = config, engine, sampler, listener
        self.prompts = prompts or Recorded(config)
        self.folder = folder
        self.own = (os.getpid(), sampler.pid)
        self.record = Record()
        self.server: Server | None = None
        self.rule = load_rule(config)
        self.exclude: frozenset[int] = frozenset()
        self.model: Sequence[Path] = ()
        self.history: list[str] = []
        self.tokens = 0
        self.tokens_ns: list[int] = []
        self.request_ns = 0
        self.first_token: tuple[int, Mapping[int, int]] = (0, {})
        """When, and the major faults of each process until then."""
        self.part: tuple[str, int, Mapping[int, int], Sequence[int]] | None = None
        self.shown_ns = 0

    def run(self) -> Record:
        """All stages. Never raises what a trial can suffer: a failure or Ctrl-C ends it early and is in the record."""
        try:
            with kept(self.record, self.folder):
                process.guarded()  # before anything is measured
                self.before = snapshot(own_pids=self.own)
                self.clear()
                self.start()
                if self.config.mode.preload:
                    self.load()
                turn = 1
                while (prompt := self.ask(turn)) is not None:
                    self.measure("pre_generation", turn)
                    if self.generate(turn, prompt):
                        self.measure("post_generation", turn)
                        self.settle(turn)
                        turn += 1
                self.release()
                self.record.disturbed = disturbance(self.before, snapshot(self.members(), self.own))
        finally:
            self.end()
        return self.record

    # The stages

    def clear(self) -> None:
        """No server of ours is left; the model file leaves the page cache if asked. System memory is recorded."""
        self.enter("clear")
        with self.spend("clear"):
            path = self.engine.model_path
            self.model = files_of(path) if path is not None else ()
            self.record.eviction = clear_caches(self.config.clear, path)
            self.record.program_eviction = clear_program(self.config.clear, self.engine.program_files)
        self.window("baseline", 0)

    def start(self) -> None:
        """The server is up and answering with no model in it, and what is measured from here on is its tree."""
        self.enter("start")
        # what already hangs below us is a helper of ours; what appears from here on is the server's
        self.exclude = frozenset(tree.members(os.getpid())) - {os.getpid()}
        with self.spend("start"):
            self.server = self.engine.start(self.folder / "server.log")
        self.record.elsewhere = self.server.pid == 0
        if not self.record.elsewhere:
            self.sampler.follow(self.server.pid, os.getpid(), self.exclude)
            self.before = with_found(self.before, snapshot(self.members(), ()))
            with self.spend("read"):
                target = Target(self.members(), self.engine.model_path)
                self.record.meters = find_all(target=target, names=self.config.meter.sources)
        self.measure("initialization", 0)

    def load(self) -> None:
        """The weights become resident before the first prompt."""
        self.enter("load", 1)
        with self.spend("load"):
            self.running.load(lambda kind, t_ns: self.on_event(kind, t_ns, 1))
        self.proved()

    def measure(self, phase: str, turn: int) -> None:
        """One reading window at a named moment, and PSS at its end."""
        self.enter("measure", turn)
        self.window(phase, turn)
        self.read_tree(phase, turn)

    def ask(self, turn: int) -> str | None:
        """The next prompt, once its source has it: after the think time, or when the user has typed it."""
        with self.spend("think"):
            return self.prompts.next(turn, self)

    def generate(self, turn: int, asked: str) -> bool:
        """One prompt and its answer; kernel peaks are reset at the start and read at every boundary inside.

        False if the server would not take the prompt and another is offered for the same turn."""
        self.enter("generate", turn)
        config, typed = self.config, self.config.mode.source == "stdin"
        prompt = "\n".join([*self.history, asked]) if config.mode.history else asked
        self.record.prompts[turn] = prompt
        request = Request(prompt=prompt, max_tokens=config.max_tokens, seed=config.seed, raw=config.engine.raw,
                          natural_end=typed, on_text=self.show_words if typed else None)
        self.tokens, self.tokens_ns = 0, []
        for meter in self.meters:
            meter.reset()
        try:
            with self.spend("generate"):
                answer = self.running.generate(request, lambda kind, t_ns: self.on_event(kind, t_ns, turn))
        except PromptTooLongError as error:
            self.part = None
            if not self.prompts.refused(of_error(error)):
                raise
            return False
        self.read_meters("during_generation", turn, only="peak")
        self.record.generations[turn] = answer
        self.forget(answer.unseen, turn)
        self.history += [asked, answer.text]
        self.proved()
        return True

    def settle(self, turn: int) -> None:
        """Wait until the tree's RSS is stable; the wait for the next prompt contains it."""
        self.enter("settle", turn)
        mode = self.config.mode
        since_ns = self.last("during_generation", turn).end_ns
        fixed_s = self.config.stabilization_delay_s if self.config.settle.name == "fixed" else 0.0
        with self.spend("settle"):
            unload_s = mode.keep_alive_s
            if unload_s is not None and unload_s <= max(mode.think_time_s, fixed_s):
                self.wait_until(since_ns + int(unload_s * 1e9))
                self.unload()
                if self.config.settle.name != "fixed":
                    since_ns = time.monotonic_ns()
            stable = self.wait_stable(since_ns)
        now_ns = time.monotonic_ns()
        self.record.settled[turn] = (stable, (now_ns - since_ns) / 1e9)
        self.span("stabilized", turn, max(now_ns - self.window_ns, since_ns), now_ns)
        self.read_tree("stabilized", turn)
        first_ns, until_then = self.first_token
        now = tree.read_major_faults(self.members())
        self.record.late_faults[turn] = (first_ns, now_ns, sum(now[pid] - until_then[pid]
                                                               for pid in now.keys() & until_then.keys()))
        if mode.source == "stdin":
            self.listener.on_event(self.measured(turn))

    def release(self) -> None:
        """Unload with the server still up: how much comes back, and how fast."""
        self.enter("release")
        with self.spend("prove"):
            self.record.buffers = tuple(self.running.buffers())
        self.sampler.attend(RELEASE_S)
        with self.spend("release"):
            self.record.unload_ns = time.monotonic_ns()
            self.running.unload()
            self.record.others = self.running.others()
            self.record.marks.append(Mark("unloaded", time.monotonic_ns()))
            self.wait_until(time.monotonic_ns() + int(self.config.meter.window_s * 1e9))
        self.window("released", 0)
        self.read_tree("released", 0)

    def end(self) -> None:
        """The server's own end. Ctrl-C waits meanwhile: an orderly end is bounded, an orphan is not."""
        with interrupt.held_back() as held, self.spend("stop"):
            with kept(self.record, self.folder):
                self.sampler.unfollow()
            with kept(self.record, self.folder):
                if self.server is not None:
                    self.server.stop()
        self.record.interrupted = self.record.interrupted or held.came

    # What a source of prompts may ask for while it waits (prompts.Meanwhile)

    def next_prompt_ns(self, turn: int) -> int:
        """See Meanwhile: the think time runs from the last token, and contains the settling."""
        if turn == 1:
            return 0
        return self.last("during_generation", turn - 1).end_ns + int(self.config.mode.think_time_s * 1e9)

    def idle(self) -> None:
        """See Meanwhile."""
        self.show()
        if (ended := self.running.alive()) is not None:
            raise EngineError(f"{self.config.engine.name} ended before the next prompt: {ended}. See server.log.")

    def unload(self) -> None:
        """See Meanwhile."""
        self.running.unload()

    # What the stages are made of

    @property
    def running(self) -> Server:
        assert self.server is not None, "start comes before every stage that needs a server"
        return self.server

    def enter(self, stage: Stage, turn: int = 0) -> None:
        interrupt.check()
        self.listener.on_event(StageEntered(stage, turn, self.config.mode.turns))

    @contextmanager
    def spend(self, purpose: str) -> Iterator[None]:
        began = time.monotonic_ns()
        try:
            yield
        finally:
            self.record.spent_s[purpose] += (time.monotonic_ns() - began) / 1e9

    def span(self, name: str, turn: int, start_ns: int, end_ns: int) -> None:
        self.record.spans.append(Span(name, turn, start_ns, end_ns))
        self.record.marks += [Mark(f"{name}/start", start_ns, turn), Mark(f"{name}/end", end_ns, turn)]

    def last(self, name: str, turn: int) -> Span:
        return next(span for span in reversed(self.record.spans) if (span.name, span.turn) == (name, turn))

    @property
    def window_ns(self) -> int:
        """How long a moment is looked at: at least until it has the readings that its value needs, at a low rate."""
        meter = self.config.meter
        return int(max(meter.window_s, (MOMENT_SAMPLES + 1) / meter.rate_hz) * 1e9)

    def window(self, phase: str, turn: int) -> None:
        start_ns = time.monotonic_ns()
        self.sampler.attend(self.window_ns / 1e9 + POLL_S)
        with self.spend("window"):
            self.wait_until(start_ns + self.window_ns)
        self.span(phase, turn, start_ns, time.monotonic_ns())

    def wait_until(self, t_ns: int) -> None:
        while (left_ns := t_ns - time.monotonic_ns()) > 0:
            time.sleep(min(left_ns / 1e9, POLL_S))
            self.show()

    def wait_stable(self, since_ns: int) -> bool:
        limit_ns = since_ns + int(max(self.config.settle.limit_s, self.config.stabilization_delay_s) * 1e9)
        settle = self.config.settle
        rule_s = self.config.stabilization_delay_s if settle.name == "fixed" else settle.window_s
        # the reading is the end of the wait: the full rate from shortly before the rule can first be satisfied
        attend_ns = since_ns + int(rule_s * 1e9) - self.window_ns - int(2e9 * POLL_S)
        while True:
            self.show()
            if time.monotonic_ns() >= attend_ns:
                self.sampler.attend()
            seen = self.sampler.since(since_ns)
            now_ns = time.monotonic_ns()
            if self.rule(Settling(seen.t_ns, seen.tree_rss, since_ns, now_ns), self.config):
                return True
            if now_ns > limit_ns:
                return False
            if (ended := self.running.alive()) is not None:
                raise EngineError(f"{self.config.engine.name} ended while memory settled: {ended}. See server.log.")
            time.sleep(min(POLL_S, max(limit_ns - now_ns, 0) / 1e9))

    def members(self) -> list[int]:
        return [] if self.record.elsewhere else tree.members(self.running.pid, os.getpid(), self.exclude)

    def read_tree(self, phase: str, turn: int) -> None:
        with self.spend("read"):
            self.record.readings[phase, turn] = tree.read_tree(self.members(), with_pss=True, model=self.model)

        self.read_meters(phase, turn)

    @property
    def meters(self) -> list[Meter]:
        return [found.meter for found in self.record.meters if isinstance(found, Available)]

    def read_meters(self, phase: str, turn: int, only: str = "") -> None:
        with self.spend("read"):
            pids = self.members()
            self.record.meter_readings[phase, turn] = {
                f"{meter.name}_{quantity}": value for meter in self.meters
                for quantity, value in meter.read(pids).items() if only in quantity}

    def proved(self) -> None:
        if not self.record.proofs:
            with self.spend("prove"):
                self.record.proofs = tuple(self.running.proofs())
                self.record.log_check = self.running.check_log()
            wrong = [proof for proof in self.record.proofs if proof.state == "contradicted"]
            if wrong:
                said = "; ".join(f"{proof.knob} asked {proof.asked}, effective {proof.effective} ({proof.source})"
                                 for proof in wrong)
                raise EngineError(Reason("not_taken", {"what": said}))

    def on_event(self, kind: EventKind, t_ns: int, turn: int) -> None:
        """Marks of the request, in the thread that reads the stream; peaks are read where one part ends."""
        if kind == "token":
            self.tokens += 1
            self.tokens_ns.append(t_ns)
            self.show(TokenCount(self.tokens, self.config.max_tokens))
            return
        self.record.marks.append(Mark(kind, t_ns, turn))
        self.sampler.attend()
        if kind == "request_sent":
            self.request_ns = t_ns
            self.open_part("prefill", t_ns)
        elif kind == "load_start":
            self.open_part("load", t_ns)
        elif kind == "load_end":
            self.close_part(t_ns, turn)
            self.open_part("prefill", t_ns)
        elif kind == "first_token":
            self.tokens, self.tokens_ns = 1, [t_ns]
            self.first_token = t_ns, tree.read_major_faults(self.members())
            self.close_part(t_ns, turn)
            self.open_part("decode", t_ns)
        elif kind == "last_token":
            if not self.tokens and self.part is not None:  # all came at once: where the prompt ended was not seen
                self.part = (UNDIVIDED, *self.part[1:])
            self.close_part(t_ns, turn)
            if (pause := pause_s(self.tokens_ns)) is not None:
                self.record.pauses[turn] = pause
            self.span("during_generation", turn, self.request_ns, t_ns)

    def open_part(self, name: str, t_ns: int) -> None:
        members = self.members()
        not_reset = tree.reset_peaks(members)
        self.part = (name, t_ns, tree.read_peaks(members), not_reset)

    def close_part(self, t_ns: int, turn: int) -> None:
        if self.part is None:
            return
        name, start_ns, at_start, not_reset = self.part
        self.part = None
        self.span(name, turn, start_ns, t_ns)
        self.record.peaks.append(Peaks(self.record.spans[-1], tree.read_peaks(self.members()), at_start, not_reset))

    def forget(self, parts: Sequence[str], turn: int) -> None:
        """These parts of the answer were not seen: their peaks count for the whole answer, nothing else is left."""
        edges = {f"{part}/{edge}" for part in parts for edge in ("start", "end")}
        record = self.record
        record.spans = [replace(span, name=UNDIVIDED) if span.name in parts and span.turn == turn else span
                        for span in record.spans]
        record.marks = [mark for mark in record.marks if mark.name not in edges or mark.turn != turn]

    def show_words(self, text: str) -> None:
        self.listener.on_event(Words(text))

    def measured(self, turn: int) -> TurnMeasured:
        """The turn in a line, for a user who watches; what is logged comes from the timeline and the peaks."""
        rss = {phase: self.record.readings[phase, turn].rss for phase in (
            "pre_generation", "post_generation", "stabilized")}
        span = self.last("during_generation", turn)
        seen = self.sampler.since(span.start_ns)
        peaks = [int(peak) for peak, t_ns in zip(seen.columns["tree_hwm"], seen.t_ns, strict=True)
                 if t_ns <= span.end_ns]
        stable, seconds = self.record.settled[turn]
        decoding = [part.seconds for part in self.record.spans if (part.name, part.turn) == ("decode", turn)]
        return TurnMeasured(turn, rss["pre_generation"], max(peaks, default=0), rss["post_generation"],
                            rss["stabilized"], seconds, stable, self.record.generations[turn].output_tokens,
                            sum(decoding))

    def show(self, event: TokenCount | None = None) -> None:
        """Tell the live display, at most every SHOW_S; it sees samples, never a reading of its own."""
        now_ns = time.monotonic_ns()
        if now_ns - self.shown_ns < SHOW_S * 1e9:
            return
        self.shown_ns = now_ns
        seen = self.sampler.since(now_ns - int(1e9))
        if len(seen.t_ns):
            last: Mapping[str, int] = {name: int(values[-1]) for name, values in seen.columns.items()}
            self.listener.on_event(Reading(last["tree_anon"], last["tree_file"], last["tree_shmem"], last["tree_swap"],
                                           last["tree_hwm"], int(seen.t_ns[-1])))
        if event is not None:
            self.listener.on_event(event)
