"""The typed schema of conf/: one dataclass per group, range checks in `__post_init__`.

A typo is an error that names the key. No defaults of substance live here: they stand in conf/, where
users look. Only this module, `cli` and `sweep` know Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline.errors import ConfigError
from pipeline.language import N_, _, languages, sentence, worded
from pipeline.metrics import PHASES
from pipeline.plugins import config_folders
from pipeline.text import as_typed

PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    """conf/ and experiments/ stand beside the package in a checkout and inside it once installed."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


CONF_DIR = _shipped("conf")
EXPERIMENTS_DIR = _shipped("experiments")


def options(group: str) -> dict[str, Path]:
    """The files of a group by name, those of installed plug-ins after ours."""
    folders = [CONF_DIR, *config_folders()]
    return {path.stem: path for folder in reversed(folders) for path in sorted((folder / group).glob("*.yaml"))}


def one_of(values: Iterable[str]) -> str:
    """What a key takes that has names for its values."""
    return sentence(N_("one of {values}"), values=", ".join(values))


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(_("{key} is not allowed: expected {expected}.").format(
            key=f"{key}={value}", expected=worded(expected)))


@dataclass
class Model:
    """Which weights. `kind` says where they come from: pypi (a file inside a wheel), file, ollama (a name).

    What it is called: model/files.py, title."""

    name: str = MISSING
    kind: str = MISSING
    path: str | None = None
    """The GGUF on this machine; given, it is the model, whatever kind was chosen."""
    package: str | None = None
    version: str | None = None
    member: str | None = None
    """kind=pypi: the wheel's member that is the GGUF."""
    sha256: str | None = None
    size_bytes: int | None = None
    tag: str | None = None
    """kind=ollama: the name as `ollama pull` takes it."""

    def __post_init__(self) -> None:
        if self.path not in (None, MISSING) and self.kind != "file":
            # a path given means that file, whatever model the config has chosen before
            self.kind, self.package, self.version, self.member = "file", None, None, None
            self.sha256, self.size_bytes, self.tag = None, None, None
            if self.name == MISSING or self.name in options("model"):
                self.name = "gguf"
        if self.kind != MISSING:
            kinds = ("pypi", "file", "ollama")
            _require(self.kind in kinds, "model.kind", self.kind, one_of(kinds))


@dataclass
class FlagKnobs:
    """The knobs behind one infer_os flag, for one engine. A user may change them."""

    on: dict[str, Any] = field(default_factory=dict)
    off: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    """Why this engine has nothing behind the flag; switching it on is then an error with this text."""


@dataclass
class Engine:
    """Which server, and how it is run."""

    name: str = MISSING
    raw: bool = True
    """Send the prompt as it is; false lets the server's own chat template do its work."""
    no_progress_s: float = 60.0
    """A wait ends when nothing has moved for this long: no token, no byte loaded, and less than 0.1 core used by the
    server's processes (engine/waiting.py)."""
    start_limit_s: float = 30.0
    """The same for a server that starts."""
    stop_limit_s: float = 10.0
    """The same for a model that is unloaded; and how long a server may take to end before it is killed."""
    trial_limit_s: float | None = None
    """A trial ends after so long even if its server is busy; null: far above its forecast (sweep/forecast.py)."""
    url: str | None = None
    """An attached engine's address."""
    pid: int | None = None
    """Its process, where what listens at the address only passes connections on (docker-proxy, socat, ssh -L)."""
    allow_remote: bool = False
    pull: bool = False
    binary: str | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    """Server settings that no flag moves, set explicitly in every cell (batch sizes, …)."""
    flags: dict[str, FlagKnobs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("no_progress_s", "start_limit_s", "stop_limit_s"):
            value = getattr(self, key)
            _require(value > 0, f"engine.{key}", value, "a number of seconds above 0")
        _require(self.trial_limit_s is None or self.trial_limit_s > 0, "engine.trial_limit_s", self.trial_limit_s,
                 "null (far above the forecast) or a number of seconds above 0")


@dataclass
class Mode:
    """How the model is used."""

    name: str = MISSING
    turns: int = 1
    think_time_s: float = 0.0
    keep_alive_s: float | None = None
    """How long the model stays after a turn: null for ever, 0 at once."""
    history: bool = False
    preload: bool = False
    fresh_server: bool = True
    source: str = "recorded"
    """Who asks: recorded (the config's texts) or stdin (a user, or piped lines; then turns is what was typed)."""

    def __post_init__(self) -> None:
        if self.name != MISSING:
            _require(self.name in ("oneshot", "interactive"), "mode.name", self.name, "oneshot or interactive")
        _require(self.source in ("recorded", "stdin"), "mode.source", self.source, "recorded or stdin")
        _require(self.source == "recorded" or self.name in ("interactive", MISSING), "mode.source", self.source,
                 "recorded, since typed prompts need mode=interactive")
        _require(self.turns >= 1, "mode.turns", self.turns, N_("a whole number from 1"))
        _require(self.name != "oneshot" or self.turns == 1, "mode.turns", self.turns,
                 "1, since a oneshot trial has one turn (mode=interactive has several)")
        _require(self.think_time_s >= 0, "mode.think_time_s", self.think_time_s, N_("seconds, 0 or more"))
        _require(self.keep_alive_s is None or self.keep_alive_s >= 0, "mode.keep_alive_s", self.keep_alive_s,
                 "null (for ever) or seconds, 0 or more")


@dataclass
class InferOs:
    """The optimisation flags a server is started with."""

    npu_optimization: bool = False
    memory_optimization: bool = False
    cpu_optimization: bool = False
    gpu_acceleration: bool = False
    quantization: bool = False
    parallel_processing: bool = False
    environment: dict[str, str] | None = None
    """Exactly these variables in the server's environment instead of the knobs behind the flags: the flags as they were
    published; {} is the server's own defaults. Only for engine=ollama."""
    as_started: bool | None = None
    """A server that runs already is taken as it was started, for no flag was named. Only for engine=ollama_attached,
    where it is what nobody has to ask for; a flag that is on asks for all of them."""

    @property
    def switched_on(self) -> list[str]:
        """Names of the flags that are on, in the schema's order."""
        return [f.name for f in fields(self) if f.type == "bool" and getattr(self, f.name)]

    @property
    def nothing_asked(self) -> bool:
        """Is a running server taken as it is?"""
        return self.as_started is True and not self.switched_on


@dataclass
class Clear:
    """How a trial gets back to a known state."""

    name: str = MISSING
    evict_model: bool = False
    drop_caches: bool = False


@dataclass
class Settle:
    """When memory counts as stable. `name` is the rule: a module in pipeline/settle/."""

    name: str = MISSING
    window_s: float = 2.0
    range_mib: float = 1.0
    range_pct: float = 0.5
    limit_s: float = 60.0

    def __post_init__(self) -> None:
        for key in ("window_s", "range_mib", "range_pct", "limit_s"):
            value = getattr(self, key)
            _require(value > 0, f"settle.{key}", value, N_("a number above 0"))


@dataclass
class Design:
    """Order, repetitions, when to stop. `name` is the rule: a module in pipeline/sweep/design/."""

    name: str = MISSING
    allow_identical: bool = False
    """Accept two cells that differ in flags but resolve to the same server settings (an A/A sweep)."""
    unsupported: str = "refuse"
    """What to do with a cell this engine or machine cannot honour: refuse the sweep, or skip the cell and list it."""
    factor: list[str] = field(default_factory=list)
    """Config keys whose change of the work (prompt, tokens, context) is the experiment's question."""
    shuffle_seed: int | None = None
    """Seed of the order; null: the top-level seed."""
    warmup: int = 0
    """Trials of every engine and model that are run before the first block, and are not counted."""
    on_failure: str = "continue"
    """After a failed trial: continue, stop, or retry:N (the same trial again, up to N times)."""
    when_busy: str = "wait"
    """If another sweep runs on this machine: wait for it, or fail."""

    def __post_init__(self) -> None:
        _require(self.warmup >= 0, "design.warmup", self.warmup, N_("a whole number, 0 or more"))
        _require(self.unsupported in ("refuse", "skip"), "design.unsupported", self.unsupported, "refuse or skip")
        _require(re.fullmatch(r"continue|stop|retry:[1-9]\d?", self.on_failure) is not None, "design.on_failure",
                 self.on_failure, "continue, stop or retry:N with N from 1 to 99")
        _require(self.when_busy in ("wait", "fail"), "design.when_busy", self.when_busy, "wait or fail")

    @property
    def attempts(self) -> int:
        """How often a trial is tried at the most."""
        return 1 + (int(self.on_failure.partition(":")[2]) if self.on_failure.startswith("retry:") else 0)


@dataclass
class Stop:
    """When a sweep has enough blocks: after `repetitions`, or once an effect is known precisely enough."""

    name: str = MISSING
    of: str = "effects"
    metric: str = "stabilized/tree_rss_mib"
    target: str | None = None
    """Half the width of the interval: "1 %", or "5 MiB" in the metric's unit."""
    limit: int = 30
    """Blocks at the most."""

    def __post_init__(self) -> None:
        if self.name == MISSING:
            return
        _require(self.name in ("repetitions", "precision"), "stop.name", self.name, "repetitions or precision")
        _require(self.of in ("effects", "gap"), "stop.of", self.of, "effects or gap")
        _require(self.limit >= 5, "stop.limit", self.limit, "5 or more blocks")
        if self.name == "precision":
            _require(self.target is not None, "stop.target", "null",
                     'how narrow is enough: half the interval, such as stop.target="1 %" or stop.target="5 MiB"')
            _require(self.wanted is not None, "stop.target", self.target,
                     'a number above 0 and a unit, such as "1 %" or "5 MiB"')

    @property
    def wanted(self) -> tuple[float, str] | None:
        """The target as a number and its unit ("%" for a share); None if it cannot be read."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[A-Za-z/]+)\s*", self.target or "")
        return (float(match[1]), match[2]) if match and float(match[1]) > 0 else None


@dataclass
class Tracking:
    """Where results go."""

    uri: str | None = None
    """null or local: the local store. usual: $MLFLOW_TRACKING_URI if it is set and can be used, else the local store.
    Else an MLflow tracking URI."""
    experiment: str = "slackwater"
    timeline_points: int = 100
    """Points per series logged as metrics; the full timeline is an artifact."""

    def __post_init__(self) -> None:
        _require(0 <= self.timeline_points <= 300, "tracking.timeline_points", self.timeline_points, "0 to 300")


@dataclass
class Prompt:
    """What is asked: texts go turn by turn into a template with one {prompt} in it, both by language."""

    name: str = MISSING
    language: str = "en"
    templates: dict[str, str] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    text: str | None = None
    """Your own words, asked every turn instead of `texts`."""
    file: str | None = None
    """Your own words from a UTF-8 file, relative to where the command was started; asked every turn."""
    tokens: int | None = None
    """Words made of `texts`, seeded, so many that the server counts this many tokens in what is sent, template
    included."""
    fill: float | None = None
    """The same, so many that prompt and answer together fill this share of num_ctx; text, file and tokens win over
    it."""
    distinct: bool = True
    """Another text each turn (after the last one, seeded words of them in a new order), or the first one every time."""

    def __post_init__(self) -> None:
        if self.name == MISSING:
            return
        _require(self.language in self.templates, "prompt.language", self.language,
                 one_of(sorted(self.templates)))
        template = self.templates[self.language]
        _require("{prompt}" in template, f"prompt.templates.{self.language}", repr(template),
                 "a text with {prompt} in it")
        given = [f"prompt.{key}" for key in ("text", "file", "tokens") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are given together, and each says what the prompt is. Give one.")
        _require(self.tokens is None or self.tokens >= 1, "prompt.tokens", self.tokens, N_("a whole number from 1"))
        _require(self.fill is None or 0 < self.fill <= 1, "prompt.fill", self.fill,
                 "a share of the context above 0, up to 1")
        self.text = None if self.text is None else as_typed(self.text, "prompt.text")
        _require(self.text is None or bool(self.text.strip()), "prompt.text", repr(self.text),
                 "a prompt that is not empty")
        texts = self.texts.get(self.language, [])
        _require(bool(texts) and all(text.strip() for text in texts), f"prompt.texts.{self.language}", texts,
                 "at least one prompt, none of them empty")

    def at(self, turn: int) -> str:
        """The prompt of turn 1…N as it is sent, template applied."""
        texts = [self.text] if self.text is not None else self.texts[self.language]
        return self.filled(texts[(turn - 1) % len(texts)] if self.distinct else texts[0])

    def filled(self, text: str) -> str:
        """A text in its template, as it is sent."""
        return self.templates[self.language].replace("{prompt}", text)


@dataclass
class Meter:
    """How memory is read."""

    name: str = MISSING
    rate_hz: float = 100.0
    window_s: float = 0.2
    """Length of the reading window at a phase's moment; the value is the window's median."""
    tree_refresh_s: float = 0.2
    sources: list[str] = field(default_factory=list)
    """Meters besides tree and system that are read at the phases' moments, where this machine has them."""

    def __post_init__(self) -> None:
        _require(1 <= self.rate_hz <= 1000, "meter.rate_hz", self.rate_hz, "1 to 1000 readings a second")
        _require(self.window_s > 0, "meter.window_s", self.window_s, "seconds above 0")
        _require(self.tree_refresh_s > 0, "meter.tree_refresh_s", self.tree_refresh_s, "seconds above 0")


@dataclass
class Place:
    """Where a trial stands in its sweep; filled in by the sweeper, never by the user."""

    sweep_id: str = ""
    cell: str = ""
    repetition: int = 1
    block: int = 1
    order: int = 1
    """1-based position in the sweep as it was run."""
    trials: int = 1
    swept_knobs: str = ""
    """JSON: the knobs that the sweep varies, by config key → their values as they were written, the reference first."""


ASKABLE = (*PHASES[1:], "as_found")
"""What the metrics that a sweep may ask about begin with."""


SPARE = 1
"""Tokens of a context that stay free: llama.cpp takes a context that is full to the last for one that was cut."""


@dataclass
class Config:
    """One cell, resolved."""

    model: Model = MISSING
    engine: Engine = MISSING
    mode: Mode = MISSING
    infer_os: InferOs = MISSING
    clear: Clear = MISSING
    settle: Settle = MISSING
    design: Design = MISSING
    stop: Stop = MISSING
    tracking: Tracking = MISSING
    prompt: Prompt = MISSING
    meter: Meter = MISSING
    knob: dict[str, Any] = field(default_factory=dict)
    """Server settings by their common names (docs/write-an-experiment.md); they win over the flags."""
    question: str = ""
    """What the sweep is for, in a sentence; an experiment file states it."""
    question_metrics: list[str] = field(default_factory=list)
    """The metrics that answer it; every other comparison is exploration."""
    repetitions: int = 3
    stabilization_delay_s: float = 5.0
    max_tokens: int = 64
    num_ctx: int = 2048
    seed: int = 42
    lang: str | None = None
    """Language of what is printed; null: $SLACKWATER_LANG, else English. Not part of what defines the sweep."""
    place: Place = field(default_factory=Place)

    @property
    def prompt_tokens(self) -> int | None:
        """How many tokens each prompt shall have as it is sent, template included; None: whatever its text has."""
        prompt, turns = self.prompt, self._turns_together
        if not isinstance(prompt, Prompt):  # MISSING
            return None
        if prompt.tokens is not None or prompt.fill is None or prompt.text is not None or prompt.file is not None:
            return prompt.tokens
        return int((min(prompt.fill * self.num_ctx, self.num_ctx - SPARE) - 2 * (turns - 1)) / turns) - self.max_tokens

    @property
    def _turns_together(self) -> int:
        """How many turns stand in the context at once."""
        return self.mode.turns if self.mode.history else 1

    def _check_prompt(self) -> None:
        """The context holds prompt and answer, of every turn if they carry the ones before (2 tokens join two)."""
        prompt, wanted, turns = self.prompt, self.prompt_tokens, self._turns_together
        if self.mode.source == "stdin":
            key = "tokens" if prompt.tokens is not None else "file"
            _require(prompt.tokens is None and prompt.file is None, f"prompt.{key}", getattr(prompt, key),
                     "null with mode.source=stdin, where the user types the prompts")
            return
        if wanted is None:
            return
        whole = turns * (wanted + self.max_tokens) + 2 * (turns - 1) + SPARE
        each = f"{turns} turns with mode.history=true, each " if turns > 1 else ""
        if wanted < 1:
            raise ConfigError(f"prompt.fill={prompt.fill:g} of num_ctx={self.num_ctx} leaves no room for a prompt: "
                              f"{each}with an answer of max_tokens={self.max_tokens}. Choose a larger num_ctx, or "
                              "fewer max_tokens. Nothing was started.")
        if whole > self.num_ctx:
            most = (self.num_ctx - SPARE - 2 * (turns - 1)) // turns - self.max_tokens
            fewer = f", or prompt.tokens={most} or fewer" if most > 0 else ", or fewer max_tokens"
            raise ConfigError(f"prompt.tokens={wanted} does not fit: {each}with an answer of "
                              f"max_tokens={self.max_tokens} it takes {whole} tokens of a context of "
                              f"num_ctx={self.num_ctx} (of one slot). Choose num_ctx={whole} or more{fewer}. "
                              "Nothing was started.")

    def __post_init__(self) -> None:
        if isinstance(self.prompt, Prompt) and isinstance(self.mode, Mode):
            self._check_prompt()
        for metric in self.question_metrics:
            phase, _, quantity = metric.partition("/")
            _require(phase in ASKABLE and bool(quantity), "question_metrics", metric,
                     "PHASE/QUANTITY, such as stabilized/tree_rss_mib, with a PHASE of " + ", ".join(ASKABLE))
        _require(self.repetitions >= 1, "repetitions", self.repetitions, N_("a whole number from 1"))
        _require(self.stabilization_delay_s >= 0, "stabilization_delay_s", self.stabilization_delay_s,
                 N_("seconds, 0 or more"))
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, N_("a whole number from 1"))
        _require(self.num_ctx >= 1, "num_ctx", self.num_ctx, N_("a whole number from 1"))
        _require(self.seed >= 0, "seed", self.seed, N_("a whole number, 0 or more"))
        _require(self.lang is None or self.lang in languages(), "lang", self.lang, one_of(languages()))


GROUPS: dict[str, type] = {
    "model": Model, "engine": Engine, "mode": Mode, "infer_os": InferOs, "clear": Clear, "settle": Settle,
    "design": Design, "stop": Stop, "tracking": Tracking, "prompt": Prompt, "meter": Meter,
}

