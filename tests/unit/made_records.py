"""Trials and sweeps that were never run, with values a test knows. For tests of what happens after measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.record import archive
from pipeline.record.find import Sweeps
from pipeline.record.folder import SWEEPS, SweepFolder
from pipeline.record.reason import Reason
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import ARTIFACTS, TrialRecord

HEADLINE = "stabilized/tree_rss_mib"
BEGAN_MS = 1_760_000_000_000
MACHINE = {"host": "harbour", "kernel": "6.1", "cores_usable": "4", "package.numpy": "2.4"}
PLAN: dict[str, Any] = {"cells": [], "shuffle_seed": 42}


def said(text: str) -> Reason:
    """A reason of which nothing but its words is known."""
    return Reason("said", {"text": text})


def trial(cell: str, block: int, value: float, *, sweep: str = "tide-1", order: int = 0, digest: str = "sha256:aa",
          version: str = "1.0", settings: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None,
          verdict: Any = "valid", began_ms: int = BEGAN_MS, **params: Any) -> TrialRecord:
    """A trial of one turn; `cell` is MODE-FLAGS, further params as a__b=value."""
    mode, _, infer_os = cell.partition("-")
    on = infer_os.startswith("on")
    order = order or 10 * block + len(cell)
    return TrialRecord(
        sweep_id=sweep, cell=cell, repetition=block, block=block, order=order, mode=mode, infer_os=infer_os,
        verdict=verdict, reasons=() if verdict == "valid" else (said("it was made so"),),
        started_ms=began_ms + 1000 * order, ended_ms=began_ms + 1000 * order + 900,
        params={"mode.name": mode, "infer_os.quantization": on, "model.name": "small", "num_ctx": 512, "seed": 42,
                **{key.replace("__", "."): text for key, text in params.items()}},
        settings={"cache_type_k": "q8_0" if on else "f16", **(settings or {})},
        turns={HEADLINE: {1: value}, "decode/tokens_per_s": {1: 5000 / value},
               "during_generation/prompt_tokens": {1: 12.0}, "during_generation/output_tokens": {1: 8.0},
               **(metrics or {})},
        tags={"engine": "made_up", "model": "small", "engine_version": version, "model_digest": digest,
              "host": "harbour"})


def cell(name: str, values: Sequence[float], **changes: Any) -> list[TrialRecord]:
    """One trial per block, 1…n."""
    return [trial(name, block, value, **changes) for block, value in enumerate(values, start=1)]


def sweep(sweep_id: str = "tide-1", began_ms: int = BEGAN_MS, **machine: str) -> SweepRecord:
    """A finished sweep."""
    return SweepRecord(sweep_id, "tide", "Does the tide turn?", "slackwater run experiment=tide", 4, began_ms,
                       "finished", began_ms + 60_000, tags={**MACHINE, **machine})


def record(home: Path, trials: Sequence[TrialRecord], of: SweepRecord | None = None,
           plan: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None) -> SweepFolder:
    """The sweep in the store `home`, each trial with these files."""
    of = of or sweep(trials[0].sweep_id)
    folder = SweepFolder(home / SWEEPS / of.sweep_id)
    folder.begin(of, PLAN if plan is None else plan)
    for one in trials:
        staged = folder.stage(one.order, one.cell, one.repetition)
        for name, content in (files or {}).items():
            (staged / name).write_bytes(content)
        folder.put(one, staged)
    folder.write_text("summary.txt", "It turns.")
    return folder


def sweeps(home: Path) -> Sweeps:
    """The store `home`."""
    return Sweeps(home, str(home / "mlflow.db"), f" --store sqlite:///{home}/mlflow.db",
                  f" tracking.uri=sqlite:///{home}/mlflow.db")


def export(path: Path, trials: Sequence[TrialRecord], of: SweepRecord | None = None,
           plan: Mapping[str, Any] | None = None) -> Path:
    """The trials as one file, each with every artifact."""
    files = {name: f"this is {name}".encode() for name in ARTIFACTS}
    archive.write(record(path.with_name(f"{path.name}-store"), trials, of, plan, files), path)
    return path


def with_reasons(one: TrialRecord, *texts: str, **changes: Any) -> TrialRecord:
    """The trial with these reasons."""
    return replace(one, reasons=tuple(map(said, texts)), **changes)
