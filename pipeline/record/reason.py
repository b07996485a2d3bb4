"""Why a trial does not count, and what the user should know of it: a code and values, worded where they are read.

A Reason is its sentence in English, as it is kept and as programs read it, and knows its code: programs ask for that,
`language.worded` says the sentence in the language in use. The sentences stand here; what they are said of elsewhere.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.language import N_, Sentence

SAID = "said"
"""The code of a text that has none: of an engine or meter from elsewhere, of an earlier version."""
ERROR = "error"
"""The code of an error's message that has none of its own; `kind` names the exception."""
INTERRUPTED = "interrupted"

SENTENCES: Mapping[str, str] = {
    SAID: "{text}",
    ERROR: "{text}",
    # why a trial, or a phase of it, does not count
    INTERRUPTED: N_("interrupted"),
    "not_taken": N_("the server did not take what it was asked: {what}"),
    "not_seen": N_("{phase} was not measured: it was not seen"),
    "not_sampled": N_("{phase} was not measured: not one of its {n:.0f} samples was taken"),
    "few_samples": N_("{phase} has {n:.0f} of {of:.0f} samples, {needed} are needed"),
    "few_samples_of_turn": N_("{phase} of turn {turn} has {n:.0f} of {of:.0f} samples, {needed} are needed"),
    "few_samples_for_mean": N_("{phase} has {n:.0f} of {of:.0f} samples, {needed} are needed for its mean"),
    "few_samples_for_mean_of_turn": N_(
        "{phase} of turn {turn} has {n:.0f} of {of:.0f} samples, {needed} are needed for its mean"),
    "load_not_logged": N_(
        "{phase} of turn {turn} was not measured: no line of the server's log says when its model was loaded"),
    "not_settled": N_("memory had not settled {seconds:.0f} s after turn {turn}"),
    "clocks_differ": N_(
        "{phase} of turn {turn} took {ours_s:.1f} s by our clock and {theirs_s:.1f} s by the server's: one of the two "
        "stood still, and its speed is not known"),
    "stood_still": N_(
        "{phase} of turn {turn} stood still for {seconds:.1f} s between two tokens: its speed is not known"),
    "peak_not_reset": N_(
        "the peak could not be reset: the kernel's mark of process {pid}, another user's, counts from its start"),
    "swapped": N_("{mib:.1f} MiB of the server were swapped out"),
    "read_back": N_(
        "{n:.0f} pages of the server were taken away and read back from the disk after the first token of turn {turn}"),
    "prompt_cut": N_("the server cut the prompt of turn {turn} to {n} tokens"),
    "prompt_length": N_(
        "the server counts {n} tokens in the prompt of turn {turn}, which was cut to {wanted}"),
    "other_work": N_("{what} by turn {counts}, the cell's other trials {others}"),
    "model_changed": N_("the model's file was changed: digest {now}, the cell's other trials {was}"),
    "settings_changed": N_("the server's settings are not those of the cell's other trials (now, then): {what}"),
    "others_asked": N_("another client used the server during the trial: {what}"),
    # what the user should know although it changes no number of the question
    "phase_left_out": N_("{why}: {phase} enters no comparison"),
    "out_of_reach": N_(
        "the server's processes are out of reach of our meters: only what its API says is measured"),
    "others_unknown": N_(
        "whether another client used the server meanwhile could not be known: its log cannot be read from here"),
    "log_not_recognised": N_(
        "{n} of the {of} lines that are read of the log of {version} were not recognised ({lines}): what they prove is "
        "not observable"),
    "other_length": N_("turn {turn}: {n} tokens of the {of} asked for"),
    "slots_lost": N_("the sampler lost {pct:.1f} % of its slots"),
    "slots_lost_to_host": N_(
        "the sampler lost {pct:.1f} % of its slots; the host of this virtual machine took {cores:.2f} of a core away "
        "meanwhile"),
    "sampler_late": N_("the sampler was up to {ms:.0f} ms late (p99), more than its period"),
    "sampler_late_by_host": N_(
        "the sampler was up to {ms:.0f} ms late (p99), more than its period; the host of this virtual machine took "
        "{cores:.2f} of a core away meanwhile"),
    "model_not_evicted": N_("model file not verified as evicted: {why}"),
    "program_not_evicted": N_(
        "the engine's own files not verified as evicted, so that its program pages may differ by some MiB: {why}"),
    "neighbours_busy": N_("neighbours kept half a core or more busy: speed is noisy, memory is not"),
    "memory_stalls": N_("some task waited for memory {pct:.0f} % of the time (PSI)"),
    # what a plan says of a cell before it runs
    "newer_engine": N_(
        "{engine} {version} is newer than {newest}, the newest one checked: what its log says in other words is not "
        "seen"),
    "flag_idle": N_(
        "infer_os.{flag} changes nothing here: on {cores} usable cores on and off are both {values}"),
    "flag_adds_nothing": N_("changes none of the server's settings on this machine"),
    "num_ctx_rounded": N_("num_ctx={n} is {whole} in force: llama.cpp makes it a multiple of {step}"),
    "part_of_a_model": N_(
        "{part} is a part of a model in {n} files, which is loaded whole, from {first}"),
    "made_for_embeddings": N_(
        "{name} is made for embeddings (pooling_type): its memory is true, its text may be none"),
    "memory_may_not_fit": N_(
        "{what} needs about {need_gib:.1f} GiB of memory by its header, and this machine gives {limit_gib:.1f} GiB: it "
        "may not fit"),
    "memory_is_short": N_(
        "{what} needs about {need_gib:.1f} GiB of memory and only {free_gib:.1f} GiB are available now"),
    "variables_unread": N_(
        "{names} of this shell does not reach the server: its settings stand in the config"),
    # why a cell cannot run
    "not_honoured": N_(
        "{what} cannot be honoured by engine {engine}: {why}. Leave it off, or choose another engine. Nothing was "
        "started."),
    "value_not_allowed": N_("{key} is not allowed: expected {expected}. Nothing was started."),
    "list_not_allowed": N_(
        "{key} is not allowed: expected {expected}. Several are swept on the command line, or under "
        "hydra.sweeper.params. Nothing was started."),
    "num_ctx_too_long": N_(
        "num_ctx={n} is more than the {limit} tokens that this model was trained for; the server would cut it silently."
        " Choose num_ctx={limit} or less. Nothing was started."),
    "no_language_model": N_(
        "{name} cannot generate text: it is {what}. Give the file of a language model. Nothing was started."),
    "heads_not_packed": N_(
        "{knob} packs {n} numbers at a time, and a head of {name} has {length}: llama.cpp refuses that. Choose f16 or "
        "another model. Nothing was started."),
    "batch_too_small": N_(
        "n_ubatch={n_ubatch} is more than n_batch={n_batch}, and the server would compute {n_batch} at once. Give "
        "n_batch={n_ubatch} as well, or n_ubatch={n_batch}. Nothing was started."),
    "no_kv_cache": N_(
        "{name} keeps no KV cache ({architecture}: a recurrent state of fixed size), so there is nothing that {given} "
        "acts on"),
    "no_kv_cache_to_quantise": N_("{why}. Leave it at f16. Nothing was started."),
}
"""Code → the sentence, whose places the values fill; what a number looks like is said here too."""


class Reason(Sentence):
    """`Reason("swapped", {"mib": 3.0})`: "3.0 MiB of the server were swapped out"; values are plain, as measured.

    A value may be a Reason. It is a str, so that it is written, compared and shown as its sentence is. Raises
    ValueError for a code that is not in SENTENCES, or a place that no value fills."""

    code: str
    values: Mapping[str, Any]

    def __new__(cls, code: str, values: Mapping[str, Any] | None = None) -> Reason:
        values = dict(values or {})
        if code not in SENTENCES:
            raise ValueError(f"{code!r} is not a known reason")
        try:
            made = super().__new__(cls, SENTENCES[code].format(**values))
        except KeyError as missing:
            raise ValueError(f"reason {code!r} lacks the value {missing}") from missing
        made.code, made.template, made.values = code, SENTENCES[code], values
        return made

    def __getnewargs__(self) -> tuple[str, Mapping[str, Any]]:  # type: ignore[override]
        return self.code, self.values

    @property
    def text(self) -> str:
        """The sentence in English."""
        return str(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: {"code": …, "values": {…}}."""
        return {"code": self.code, "values": {
            name: value.to_dict() if isinstance(value, Reason) else value for name, value in self.values.items()}}

    @classmethod
    def from_dict(cls, data: Any, text: str | None = None) -> Reason:
        """The inverse of `to_dict`; also from a sentence, as records until 3c8a73e have it.

        A code that this version does not know, or not with these values, is said as the `text` that stood beside it,
        else as it is. Raises ValueError for what is not a reason."""
        if isinstance(data, str):
            return as_reason(data)
        if not (isinstance(data, Mapping) and isinstance(data.get("code"), str)
                and isinstance(values := data.get("values", {}), Mapping)):
            raise ValueError(f"{data!r} is not a reason")
        try:
            return cls(data["code"], {
                name: cls.from_dict(value) if isinstance(value, Mapping) and "code" in value else value
                for name, value in values.items()})
        except (TypeError, ValueError):
            listed = ", ".join(f"{name}={value}" for name, value in values.items())
            return as_reason(text or f"{data['code']} ({listed})")


def places(template: str) -> set[str]:
    """The names of the values that fill a sentence's places."""
    return {name for _text, name, _form, _conversion in string.Formatter().parse(template) if name is not None}


_WHOLE = {sentence: code for code, sentence in SENTENCES.items() if not places(sentence)}
"""Sentences that say all without a value are known by themselves, in records of any version."""


def as_reason(text: str) -> Reason:
    """The text itself if it is a Reason, else one that says it as it is."""
    if isinstance(text, Reason):
        return text
    return Reason(_WHOLE[text]) if text in _WHOLE else Reason(SAID, {"text": text})


def of_error(error: BaseException) -> Reason:
    """What an error gives as a reason: the one it was raised with, else its message."""
    said = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return said if isinstance(said, Reason) else Reason(ERROR, {"text": said, "kind": type(error).__name__})


class Explained(Protocol):
    """A trial, whatever its shape."""

    @property
    def reasons(self) -> Sequence[str]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def suspect_phases(self) -> Mapping[str, Sequence[str]]: ...


def codes_of(trial: Explained) -> dict[str, Any]:
    """`reason_codes` of a trial, for JSON: what stands beside the texts of its reasons, notes and suspect phases."""
    return {"reasons": _codes(trial.reasons), "notes": _codes(trial.notes),
            "suspect_phases": {phase: _codes(texts) for phase, texts in trial.suspect_phases.items()}}


def with_codes_of(texts: Mapping[str, Any], codes: object) -> dict[str, Any]:
    """reasons, notes and suspect_phases as Reasons, from their texts and the `reason_codes` beside them.

    A text without a code that this version knows is said as it stands."""
    beside = codes if isinstance(codes, Mapping) else {}
    phases = beside.get("suspect_phases", {})
    return {"reasons": _with_codes(texts.get("reasons", ()), beside.get("reasons")),
            "notes": _with_codes(texts.get("notes", ()), beside.get("notes")),
            "suspect_phases": {phase: _with_codes(said, phases.get(phase))
                               for phase, said in texts.get("suspect_phases", {}).items()}}


def with_code(text: str, code: Any) -> Reason:
    """The text as a Reason by the code beside it; said as it stands where there is none that this version knows."""
    try:
        return Reason.from_dict(code, text)
    except ValueError:
        return as_reason(text)


def _with_codes(texts: Sequence[str], codes: object) -> list[Reason]:
    beside = codes if isinstance(codes, list) and len(codes) == len(texts) else [None] * len(texts)
    return [with_code(text, code) for text, code in zip(texts, beside, strict=True)]


def _codes(texts: Iterable[str]) -> list[dict[str, Any]]:
    return [as_reason(text).to_dict() for text in texts]
