"""The contract of an engine: what the runner may ask of a server that serves a model.

An engine is one file beside this one, with a class `Engine` in it that keeps this contract, plus one
file in conf/engine/. Nothing about memory is read here; that is what meters do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.config import Config
from pipeline.engine.waiting import NEVER, OuterLimit
from pipeline.model.digest import Progress as Progress  # a part of the contract

Scalar = bool | int | float | str

EventKind = Literal["request_sent", "load_start", "load_end", "first_token", "token", "last_token"]
OnEvent = Callable[[EventKind, int], None]
"""Called where the event happens, with `time.monotonic_ns()` taken there. Must return at once."""


@dataclass(frozen=True)
class Request:
    """One prompt. `options` are the same on every call of a trial."""

    prompt: str
    max_tokens: int
    seed: int
    raw: bool = True
    natural_end: bool = False
    """Stop where the model ends its answer; else an engine that can goes on to max_tokens."""
    on_text: Callable[[str], None] | None = None
    """Called with each piece of the answer as it arrives, for a user who reads along. Must return at once."""


@dataclass(frozen=True)
class Generation:
    """What came back for one prompt. Durations are the server's own, in seconds; None: it did not say."""

    text: str
    prompt_tokens: int
    """Prompt tokens as the server counted them, cached ones included."""
    cached_tokens: int | None
    output_tokens: int
    stop_reason: str
    truncated: bool
    prefill_s: float | None = None
    decode_s: float | None = None
    load_s: float | None = None
    thinking: str = ""
    unseen: Sequence[str] = ()
    """Parts (load, prefill, decode) whose edge could not be seen: their marks stand where something else happened."""


ProofState = Literal["confirmed", "contradicted", "not observable"]


@dataclass(frozen=True)
class Proof:
    """One knob of the server settings, proved in three steps (DESIGN 5.3). None: that step shows nothing."""

    knob: str
    asked: Scalar
    arrived: str | None
    effective: str | None
    state: ProofState
    source: str = ""
    """Where `effective` was read: "log: <line>", "/props", "maps", …"""


@dataclass(frozen=True)
class LogCheck:
    """How much of a server's log was recognised after a load: of a version that words it anew, proofs fall silent."""

    version: str
    """Of the program, with its name: "Ollama 0.33.0"."""
    expected: int
    """Lines that are relied on."""
    missing: Sequence[str]
    """What those say that are not there in words that are known."""


@dataclass(frozen=True)
class Buffer:
    """Bytes that the engine says it holds: component is weights, repacked, kv, compute, output or prompt_cache;
    or `claimed`, one figure for everything that an API gives (Ollama's /api/ps), which is not part of the others."""

    component: str
    device: str
    """As llama.cpp names the buffer's type: CPU, CPU_Mapped, CPU_REPACK, CUDA0, CUDA_Host, …"""
    bytes: int

    @property
    def on_host(self) -> bool:
        """In this machine's memory, so part of the process tree's; CUDA_Host is pinned host memory."""
        return self.device.startswith(("CPU", "BLAS")) or self.device.endswith("Host")


class Server(ABC):
    """A running server that this process started (or, if attached, found). Not thread-safe."""

    pid: int
    """The process whose descendants are the measured tree; 0: it runs on another machine, or is not ours to see."""

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Is a model in it now?"""

    @abstractmethod
    def load(self, on_event: OnEvent) -> None:
        """Make the weights resident; emits load_start and load_end.

        Raises EngineError if the server dies, refuses, or makes no progress (waiting.py)."""

    @abstractmethod
    def generate(self, request: Request, on_event: OnEvent) -> Generation:
        """Send one prompt and stream the answer; loads first if nothing is loaded.

        Emits request_sent, [load_start, load_end], first_token, token per further token, last_token.
        Raises PromptTooLongError, EngineError (server died, no progress (waiting.py), error in the stream)."""

    @abstractmethod
    def unload(self) -> None:
        """Drop the model with the server still up; returns when it is gone. Raises EngineError (no progress)."""

    @abstractmethod
    def proofs(self) -> Sequence[Proof]:
        """One Proof per server setting, from command line, API, log and maps. Only complete after a load."""

    @abstractmethod
    def buffers(self) -> Sequence[Buffer]:
        """What the engine itself says it holds, after a load."""

    def check_log(self) -> LogCheck | None:
        """Were the lines of its log that are relied on recognised, after a load? None: nothing is read of a log."""
        return None

    def others(self) -> str | None:
        """What other clients asked of it since the trial began, who and how much; "" nothing, as of a server of ours,
        whose port nobody knows; None: it cannot be known."""
        return ""

    @abstractmethod
    def alive(self) -> str | None:
        """None while the server runs, else how it ended: "exit status 3", "killed by signal 9"."""

    @abstractmethod
    def stop(self) -> None:
        """End the server and everything below it; returns when all of it is reaped. Never raises for a dead server."""


@dataclass(frozen=True)
class Plan:
    """What a cell asks of an engine, resolved before any server is started."""

    settings: Mapping[str, Scalar]
    """Every knob that reaches the server, explicitly; two cells with equal settings run the same server."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Lines the user should read, such as a flag that changes nothing on this machine."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the server will about hold, by component (weights, kv, compute), as the model file's header says;
    empty: not known."""
    asks: Sequence[str] = field(default_factory=tuple)
    """What the server needs of the machine besides memory (cores, a port), in the user's language."""
    knobs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Knob that was set by its own name (`knob.NAME`, or `engine.knobs.NAME` of one that a flag owns) → what it sets,
    which flag it overrides, what it decides besides: lines for the plan. One that is not in it was not heard."""


class EngineBase(ABC):
    """A kind of server, configured for one cell."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.outer: OuterLimit = NEVER
        """When the trial that this engine serves ends at the latest; every wait of its server keeps it."""
        self.planned: Mapping[str, Scalar] = {}
        """What the cell's settings were when the sweep began; a server that is found otherwise serves another cell."""

    @classmethod
    @abstractmethod
    def here(cls) -> tuple[bool, str]:
        """Can it run on this machine? With its version, or what is missing. Starts no server."""

    @abstractmethod
    def fetch(self, progress: Progress) -> None:
        """Get the model if it is missing and make sure it is the right one; called before the first trial.

        Raises ConfigError: not to be had, or another checksum."""

    @abstractmethod
    def plan(self) -> Plan:
        """Check the cell against engine, model and machine, and resolve its flags to server settings.

        Starts nothing, costs well under a second. Raises ConfigError that names key, value and what to do."""

    @abstractmethod
    def start(self, log_path: Path) -> Server:
        """Start a server, answering and with no model in it, its log going to `log_path`. Call from the main thread.

        Raises EngineError if it does not answer and makes no progress (waiting.py), EngineUnusableError where no server
        of this engine can run on this machine: then the sweep ends."""

    @abstractmethod
    def provenance(self) -> Mapping[str, str]:
        """Versions and digests: engine, engine build, model digest, model file."""

    @property
    @abstractmethod
    def model_path(self) -> Path | None:
        """The file with the weights, if this machine has it; of a split model the first (pipeline/model/files.py finds
        the others)."""

    @property
    def tokenizer(self) -> Path | None:
        """The GGUF whose tokenizer counts this cell's prompts as its server will; None: only the server can tell."""
        return None

    @property
    def program_files(self) -> Sequence[Path]:
        """The engine's own executable and libraries, which no other program maps; none for a server that runs already.

        How they came into the page cache moves a tree's RSS by 3 %, so `clear` brings them into one state."""
        return ()
