"""From what a trial recorded to its result: metrics by turn, verdict with reasons, artifacts in its folder.

Reads no memory and knows no store. The verdict's rules stand here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline import provenance
from pipeline.config import Config, InferOs, Stop
from pipeline.defaults import flags_on, leaves, named_environments
from pipeline.engine.base import EngineBase, Plan
from pipeline.engine.knobs import as_text
from pipeline.machine import HARDWARE
from pipeline.meter.base import Available
from pipeline.meter.sampler import SamplerReport
from pipeline.meter.timeline import write_parquet
from pipeline.metrics import INTERVALS, MOMENTS
from pipeline.model.files import title
from pipeline.phases import (
    MEAN_SAMPLES,
    MIB,
    MOMENT_SAMPLES,
    Mark,
    ProcessRows,
    Span,
    Timeline,
    account,
    apart,
    as_found_metrics,
    interval_metrics,
    moment_metrics,
    read_back,
    reading_metrics,
    release_metrics,
)
from pipeline.record.reason import INTERRUPTED, Reason, as_reason, of_error
from pipeline.record.trial import METHOD, TrialRecord, Verdict
from pipeline.stats.measures import HEADLINE, phase_of
from pipeline.text import masked, printable, to_json
from pipeline.trial import Record, kept

LOST_SLOTS_PCT = 1.0
"""Share of the sampler's readings above which a note says that they were lost; what they were needed for is judged
phase by phase (`suspect_phases_of`)."""
DERIVED = {"as_found": ("initialization", "post_generation"), "released": ("stabilized",),
           "engine": ("initialization", "stabilized")}
"""Groups of metrics that are computed from readings of these phases: not sound where one of them is not."""
SHOWN_REASONS = 3
"""Reasons that are kept of one phase; a conversation has many turns."""

NEIGHBOUR_CORES = 0.5
"""Other processes' CPU, in cores over the trial, above which a note says that speed will be noisy."""

PROMPT_PCT = 1.0
"""How far the server's count of a prompt's tokens may be from the number that was asked for."""

WARM_UP_BLOCK = 0
"""Trials of this block warm caches and are not counted (design.warmup)."""

READ_BACK_FAULTS = 64
"""Pages of our own tree, taken away and read back after the first token, from which a turn is suspect: a quarter of a
MiB, about what a server's heap moves by between two equal trials. Faults of the load do not count (a cold model is read
in by them), nor those by which the tree grows (`phases.read_back`)."""

STALL_PCT = 1.0
"""Share of a trial in which some task waited for memory (PSI), above which a note says so."""

ERROR_KIND = "error"
"""The tag of a failed trial that says which kind of error ended it (errors.py)."""

DIGITS = 9
"""Significant digits of a metric that are kept: a byte of a GiB, and below what any clock or counter here resolves."""

MACHINE = ("host", "boot_id", "kernel", *HARDWARE, "memory_total")
"""What of the machine that measured stands with every trial: with whose numbers its own compare."""


def infer_os_label(flags: InferOs) -> str:
    """The arm in a word: off, on (conf/infer_os/on.yaml), flags that are on, an environment instead, as_started."""
    if flags.environment is not None:
        return environment_label(flags.environment)
    on = flags.switched_on
    if not on:
        return "as_started" if flags.nothing_asked else "off"
    return "on" if set(on) == flags_on("on") else "+".join(on)


def environment_label(environment: Mapping[str, str]) -> str:
    """The name of an environment: a file's of conf/infer_os, else its variables, which a long one has a digest of."""
    if (name := named_environments().get(frozenset(environment.items()))) is not None:
        return name
    said = ",".join(f"{key}={value}" for key, value in environment.items())
    if re.fullmatch(r"[\w.=,:-]{1,60}", said):
        return said
    return f"environment-{hashlib.sha256(to_json(sorted(environment.items())).encode()).hexdigest()[:8]}"


def flatten(config: Config) -> dict[str, Any]:
    """The resolved config as one level: "engine.name" → value. Lists and empty dicts stay one value each."""
    tree = asdict(config)
    tree.pop("place")
    tree.pop("lang")  # the language of the output changes nothing that was measured
    return leaves(tree)


def metrics_of(record: Record, timeline: Timeline, report: SamplerReport | None, config: Config,
               processes: ProcessRows | None = None) -> dict[str, dict[int, float]]:
    """Metric name → turn (0 for what belongs to the trial) → value; what could not be measured is absent."""
    by_turn: dict[str, dict[int, float]] = defaultdict(dict)

    def put(values: Mapping[str, float], turn: int) -> None:
        for name, value in values.items():
            by_turn[name][turn] = value

    spans = {(span.name, span.turn): span for span in record.spans}
    for (name, turn), span in spans.items():
        if name in MOMENTS:
            put(moment_metrics(timeline, span, tree=name != "baseline"), turn)
        elif name in INTERVALS:
            inside = [peaks for peaks in record.peaks
                      if peaks.span.start_ns >= span.start_ns and peaks.span.end_ns <= span.end_ns]
            put(interval_metrics(timeline, span, inside, processes), turn)
    for (phase, turn), reading in record.readings.items():
        put(reading_metrics(phase, reading), turn)
    began = next(iter(record.meter_readings.values()), {})
    for (phase, turn), values in record.meter_readings.items():
        put({f"{phase}/{name}": value for name, value in as_metrics(values, began).items()}, turn)
    for turn, answer in record.generations.items():
        work = _work_metrics(answer.prompt_tokens, answer.output_tokens, record.marks, spans, turn)
        prefill = spans.get(("prefill", turn))
        if prefill is not None and apart(prefill.seconds, answer.prefill_s):  # the first token was bent with it
            work.pop("during_generation/time_to_first_token_s", None)
        put(work, turn)
        for name, seconds in (("prefill", answer.prefill_s), ("decode", answer.decode_s), ("load", answer.load_s)):
            if seconds is not None:
                put({f"{name}/server_duration_s": seconds}, turn)
    for turn, (stable, seconds) in record.settled.items():
        put({"stabilized/time_to_stable_s": seconds, "stabilized/is_stable": float(stable)}, turn)
    for turn, (since_ns, until_ns, faults) in record.late_faults.items():
        put({"stabilized/tree_read_back_faults": read_back(timeline, since_ns, until_ns, faults)}, turn)
    last = max(record.settled, default=0) if config.mode.source == "stdin" else config.mode.turns
    put(_account(record, by_turn, last), 0)
    before, after = spans.get(("stabilized", last)), spans.get(("released", 0))
    if record.unload_ns is not None and before and after:
        put(release_metrics(timeline, record.unload_ns, before, after), 0)
    # the model may already be gone from the last turn (keep_alive): then nothing is left for `released` to give back
    first = {name: turns[min(turns)] for name, turns in by_turn.items()}
    put(as_found_metrics(config.mode.name, first), 0)
    if report is not None:
        put({"sampler/samples": report.samples, "sampler/lost_slots": report.lost_slots,
             "sampler/lateness_p50_ms": report.lateness_p50_ms, "sampler/lateness_p99_ms": report.lateness_p99_ms,
             "sampler/cpu_pct": report.cpu_pct, "sampler/rss_mib": report.rss_mib}, 0)
    if record.disturbed is not None:
        put({"trial/neighbours_cores": record.disturbed.other_cpu_cores,
             "trial/stolen_cores": record.disturbed.stolen_cpu_cores,
             "trial/tree_major_faults": record.disturbed.tree_major_faults}, 0)
    put({f"trial/{purpose}_s": seconds for purpose, seconds in record.spent_s.items()}, 0)
    for what, evicted in (("model", record.eviction), ("program", record.program_eviction)):
        if evicted is not None:
            put({f"clear/{what}_resident_{when}_mib": resident / MIB
                 for when, resident in (("before", evicted.before), ("after", evicted.after))
                 if resident is not None}, 0)
    if record.elsewhere:  # what was read here says nothing about the machine there
        return {name: turns for name, turns in by_turn.items() if not _is_of_this_machine(name)}
    return dict(by_turn)


def _late(record: Record, code: str, code_by_host: str, values: Mapping[str, float]) -> Reason:
    """The reason, with its likely cause where this machine is virtual and its host took from it."""
    cores = record.disturbed.stolen_cpu_cores if record.disturbed is not None else 0.0
    return Reason(code_by_host, {**values, "cores": cores}) if cores >= 0.01 else Reason(code, values)


def _is_of_this_machine(name: str) -> bool:
    group, _, quantity = name.partition("/")
    # Where a load ends is seen in the server's processes too; its own account of the durations stays.
    return (group in ("released", "as_found")
            or quantity.startswith(("tree_", "system_", "is_stable", "time_to_stable", "claimed_minus_tree", "samples"))
            or name in ("load/duration_s", "prefill/duration_s"))


def as_metrics(values: Mapping[str, float], began: Mapping[str, float]) -> dict[str, float]:
    """A meter's reading as metrics: bytes in MiB; counters (…_us, …_count) since the trial's first reading."""
    found = {}
    for name, value in values.items():
        if name.endswith("_bytes"):
            found[f"{name.removesuffix('_bytes')}_mib"] = value / MIB
        elif name.endswith(("_us", "_count")):
            found[name] = value - began.get(name, value)
        else:
            found[name] = value
    return found


def _account(record: Record, by_turn: Mapping[str, Mapping[int, float]], last: int) -> dict[str, float]:
    """The engine's account against the tree; nothing if the model was unloaded before the last turn had settled."""
    host: dict[str, int] = defaultdict(int)
    device: dict[str, float] = defaultdict(float)
    claimed: dict[str, float] = {}
    for buffer in record.buffers:
        if buffer.component == "claimed":  # the engine's one figure for everything; beside the account, not in it
            claimed["engine/claimed_mib"] = buffer.bytes / MIB
        elif buffer.on_host:
            host[buffer.component] += buffer.bytes
        else:
            device[f"engine/{buffer.component}_{buffer.device.lower()}_mib"] += buffer.bytes / MIB
    tree = {phase: by_turn.get(f"{phase}/tree_rss_mib", {}) for phase in ("initialization", "stabilized")}
    settled = tree["stabilized"].get(last)
    if claimed and settled is not None:
        claimed["engine/claimed_minus_tree_mib"] = claimed["engine/claimed_mib"] - settled
    return {**account(host, tree["initialization"].get(0), settled), **device, **claimed}


def _work_metrics(prompt_tokens: int, output_tokens: int, marks: Sequence[Mark], spans: Mapping[tuple[str, int], Span],
                  turn: int) -> dict[str, float]:
    metrics: dict[str, float] = {"during_generation/prompt_tokens": prompt_tokens,
                                 "during_generation/output_tokens": output_tokens}
    at = {mark.name: mark.t_ns for mark in marks if mark.turn == turn}
    if "first_token" in at and "request_sent" in at:
        metrics["during_generation/time_to_first_token_s"] = (at["first_token"] - at["request_sent"]) / 1e9
    decode = spans.get(("decode", turn))
    if decode is not None and decode.seconds > 0 and output_tokens > 1:
        metrics["decode/tokens_per_s"] = (output_tokens - 1) / decode.seconds
    return metrics


def question_phases(config: Config) -> list[str]:
    """The phases of what the sweep asks about, and of what ends it."""
    ends = [config.stop.metric] if isinstance(config.stop, Stop) and config.stop.name == "precision" else []
    return list(dict.fromkeys(map(phase_of, [*(config.question_metrics or [HEADLINE]), *ends])))


def suspect_phases_of(record: Record, metrics: Mapping[str, Mapping[int, float]],
                      config: Config) -> dict[str, list[Reason]]:
    """Phase → why its values do not count: it lacks the readings that they need (a moment MOMENT_SAMPLES, an interval
    MEAN_SAMPLES for its mean, if it was long enough to have them), memory had not settled, its peak could not be reset.

    Lost readings elsewhere touch nothing. A group that is computed from a phase shares its reasons (DERIVED)."""
    found: dict[str, list[Reason]] = defaultdict(list)
    for phase in (*MOMENTS, *INTERVALS):
        moment = phase in MOMENTS
        needed = MOMENT_SAMPLES if moment else MEAN_SAMPLES
        for turn, samples in metrics.get(f"{phase}/samples", {}).items():
            due = samples + metrics.get(f"{phase}/lost_samples", {}).get(turn, 0)
            if samples < needed and (moment or needed <= due):
                code = "few_samples" + ("" if moment else "_for_mean") + ("_of_turn" if turn else "")
                found[phase].append(Reason(code, {"phase": phase, "n": samples, "of": due, "needed": needed,
                                                  **({"turn": turn} if turn else {})}))
    for turn, (stable, seconds) in record.settled.items():
        if not stable:
            found["stabilized"].append(Reason("not_settled", {"turn": turn, "seconds": seconds}))
    for turn, answer in record.generations.items():
        for part in answer.unseen if not record.elsewhere else ():
            found[part].append(Reason("load_not_logged", {"phase": part, "turn": turn}))
        for part, servers_s in (("prefill", answer.prefill_s), ("decode", answer.decode_s)):
            ours_s = metrics.get(f"{part}/duration_s", {}).get(turn)
            if ours_s is not None and servers_s is not None and apart(ours_s, servers_s):
                found[part].append(Reason("clocks_differ", {
                    "phase": part, "turn": turn, "ours_s": ours_s, "theirs_s": servers_s}))
    for turn, seconds in record.pauses.items():
        found["decode"].append(Reason("stood_still", {"phase": "decode", "turn": turn, "seconds": seconds}))
    not_reset = sorted({pid for peaks in record.peaks for pid in peaks.not_reset})
    if not_reset:
        found["during_generation"].append(Reason("peak_not_reset", {"pid": not_reset[0]}))
    for group, phases in DERIVED.items():
        of = phases if group != "as_found" else phases[:1] if config.mode.name == "interactive" else phases[1:]
        found[group] += [reason for phase in of for reason in found.get(phase, ())]
    return {phase: reasons[:SHOWN_REASONS] for phase, reasons in found.items() if reasons}


def not_measured(metrics: Mapping[str, Mapping[int, float]], config: Config) -> list[Reason]:
    """The question's phases that were not measured at all: not one reading of a moment, an interval never seen."""
    found = []
    for phase in question_phases(config):
        samples = metrics.get(f"{phase}/samples", {})
        if phase in INTERVALS and not samples:
            found.append(Reason("not_seen", {"phase": phase}))
        if phase in MOMENTS:
            found += [Reason("not_sampled", {"phase": phase, "n": lost})
                      for turn, lost in metrics.get(f"{phase}/lost_samples", {}).items() if not samples.get(turn)]
    return found


def verdict_of(record: Record, metrics: Mapping[str, Mapping[int, float]], report: SamplerReport | None,
               config: Config) -> tuple[Verdict, list[Reason], list[Reason]]:
    """Verdict, its reasons, and notes. Suspect is what touches the number of the question: a reason that concerns the
    whole trial, or a phase of a question metric that is suspect. A busy neighbour and lost slots are notes."""
    if record.interrupted:
        return "interrupted", [Reason(INTERRUPTED)], []
    if record.error is not None:
        return "failed", [of_error(record.error)], []
    reasons, notes = list[Reason](), list[Reason]()
    if record.elsewhere:
        notes.append(Reason("out_of_reach"))
    elif missing := not_measured(metrics, config):
        return "failed", missing, []
    asked = question_phases(config)
    for phase, why in suspect_phases_of(record, metrics, config).items():
        if phase in asked:
            reasons += why
        elif phase not in DERIVED or phase in MOMENTS:
            notes += [Reason("phase_left_out", {"why": reason, "phase": phase}) for reason in why]
    reasons = list(dict.fromkeys(reasons))
    swaps = [value for name, turns in metrics.items()
             if name.endswith(("/tree_swap_mib", "/tree_swap_sampled_peak_mib")) for value in turns.values()]
    swapped = max(swaps, default=0.0)
    if swapped > 0:
        reasons.append(Reason("swapped", {"mib": swapped}))
    for turn, faults in metrics.get("stabilized/tree_read_back_faults", {}).items():
        if faults >= READ_BACK_FAULTS:
            reasons.append(Reason("read_back", {"turn": turn, "n": faults}))
    for turn, answer in record.generations.items():
        if answer.truncated:
            reasons.append(Reason("prompt_cut", {"turn": turn, "n": answer.prompt_tokens}))
        wanted = config.prompt_tokens if turn == 1 or not config.mode.history else None
        if wanted is not None and abs(answer.prompt_tokens - wanted) > max(2, PROMPT_PCT / 100 * wanted):
            reasons.append(Reason("prompt_length", {"turn": turn, "n": answer.prompt_tokens, "wanted": wanted}))
        if answer.output_tokens != config.max_tokens and config.mode.source == "recorded":
            notes.append(Reason("other_length", {"turn": turn, "n": answer.output_tokens, "of": config.max_tokens}))
    if record.others:
        reasons.append(Reason("others_asked", {"what": record.others}))
    elif record.others is None:
        notes.append(Reason("others_unknown"))
    if (log := record.log_check) is not None and log.missing:
        notes.append(Reason("log_not_recognised", {"version": log.version, "n": len(log.missing), "of": log.expected,
                                                   "lines": ", ".join(log.missing)}))
    if report is not None:
        lost_pct = 100.0 * report.lost_slots / max(report.samples + report.lost_slots, 1)
        if lost_pct > LOST_SLOTS_PCT:
            notes.append(_late(record, "slots_lost", "slots_lost_to_host", {"pct": lost_pct}))
        if report.lateness_p99_ms > 1000.0 / report.rate_hz:
            notes.append(_late(record, "sampler_late", "sampler_late_by_host", {"ms": report.lateness_p99_ms}))
    if record.eviction is not None and not record.eviction.verified:
        notes.append(Reason("model_not_evicted", {"why": record.eviction.reason}))
    if record.program_eviction is not None and not record.program_eviction.verified:
        notes.append(Reason("program_not_evicted", {"why": record.program_eviction.reason}))
    if (disturbed := record.disturbed) is not None:
        if disturbed.other_cpu_cores > NEIGHBOUR_CORES:
            notes.append(Reason("neighbours_busy"))
        if disturbed.memory_some_pct is not None and disturbed.memory_some_pct > STALL_PCT:
            notes.append(Reason("memory_stalls", {"pct": disturbed.memory_some_pct}))
    if config.place.block == WARM_UP_BLOCK:
        return "warm-up", [], [*reasons, *notes]
    return ("suspect" if reasons else "valid"), reasons, notes


@dataclass(frozen=True)
class Sampled:
    """What the sampler leaves behind. `report` is None if it died."""

    timeline: Timeline
    processes: ProcessRows
    report: SamplerReport | None


def result_of(record: Record, sampled: Sampled, config: Config, engine: EngineBase | None, plan: Plan, folder: Path,
              started_ms: int, ended_ms: int) -> TrialRecord:
    """The trial as it is kept, its artifacts written into `folder`; what was measured before a failure is in it.

    `engine`: None if it could not even be loaded."""
    here = provenance.facts()
    provided = dict(here)
    with kept(record, folder):
        provided |= engine.provenance() if engine is not None else {}
    with kept(record, folder):
        _write_artifacts(record, sampled, config, plan, folder, provided)
    metrics = dict[str, dict[int, float]]()
    with kept(record, folder):
        metrics |= metrics_of(record, sampled.timeline, sampled.report, config, sampled.processes)
    metrics |= {f"plan/{component}_mib": {0: held / MIB} for component, held in plan.memory.items()}
    verdict, reasons, notes = verdict_of(record, metrics, sampled.report, config)
    place = config.place
    called = {"model.name": title(config.model)}
    return TrialRecord(
        sweep_id=place.sweep_id, cell=place.cell, repetition=place.repetition, block=place.block, order=place.order,
        mode=config.mode.name, infer_os=infer_os_label(config.infer_os), verdict=verdict,
        reasons=tuple(reasons), notes=(*map(as_reason, plan.notes), *notes), started_ms=started_ms,
        ended_ms=ended_ms, params=flatten(config) | called, settings=dict(plan.settings),
        turns={name: {turn: float(f"{value:.{DIGITS}g}") for turn, value in turns.items()}
               for name, turns in metrics.items()},
        suspect_phases=suspect_phases_of(record, metrics, config), method=METHOD,
        tags={"engine": config.engine.name, "model": called["model.name"],
              **({"swept_knobs": place.swept_knobs} if place.swept_knobs else {}),
              **({"knobs": ", ".join(f"{name}={as_text(value)}" for name, value in config.knob.items())}
                 if config.knob else {}),
              **({"typed": f"{len(record.generations)} prompts"} if config.mode.source == "stdin" else {}),
              **({"prompt_digest": _digest_of(record.prompts)} if config.mode.source == "recorded" else {}),
              **({ERROR_KIND: type(record.error).__name__} if record.error is not None else {}),
              **{key: provided[key] for key in ("engine_version", "model_digest") if key in provided},
              **{key: here[key] for key in MACHINE if key in here}},
    )


def _digest_of(prompts: Mapping[int, str]) -> str:
    """SHA-256 of what was asked, by turn, as it was sent."""
    return hashlib.sha256(json.dumps(list(prompts.values()), ensure_ascii=False).encode()).hexdigest()


def _write_artifacts(record: Record, sampled: Sampled, config: Config, plan: Plan, folder: Path,
                     provided: Mapping[str, str]) -> None:
    shown = OmegaConf.structured(config)
    if config.tracking.uri is not None:
        shown.tracking.uri = masked(config.tracking.uri)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(shown), encoding="utf-8")
    (folder / "provenance.json").write_text(to_json({
        "command": provenance.command(),
        "machine": dict(provided),
        "settings": dict(plan.settings),
        "prompts_sha256": {turn: hashlib.sha256(text.encode()).hexdigest() for turn, text in record.prompts.items()},
        "proofs": [asdict(proof) for proof in record.proofs],
        "buffers": [asdict(buffer) for buffer in record.buffers],
        "meters": [{"meter": found.name, "here": found.note or "yes"} if isinstance(found, Available)
                   else {"meter": found.name, "absent": found.reason} for found in record.meters],
    }, indent=2), encoding="utf-8")
    texts = [f"--- turn {turn}: prompt ({answer.prompt_tokens} tokens)\n{record.prompts[turn]}\n"
             f"--- turn {turn}: response ({answer.output_tokens} tokens, {answer.stop_reason})\n"
             + (f"[thinking] {answer.thinking}\n" if answer.thinking else "") + f"{answer.text}\n"
             for turn, answer in record.generations.items()]
    (folder / "response.txt").write_text(printable("".join(texts)) or "no response: the trial ended before one came\n",
                                         encoding="utf-8")
    (folder / "server.log").touch()
    if len(sampled.timeline.t_ns):
        write_parquet(folder / "timeline.parquet", sampled.timeline, record.marks, sampled.processes)
