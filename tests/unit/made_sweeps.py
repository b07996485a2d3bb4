"""Trials and sweeps that were never run, with values a test knows. For tests of what happens after measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.result import TrialResult
from pipeline.track.summary import SweepSummary

HEADLINE = "stabilized/tree_rss_mib"
BEGAN_MS = 1_760_000_000_000
MACHINE = {"host": "harbour", "kernel": "6.1", "cores_usable": "4", "package.numpy": "2.4"}


def trial(cell: str, block: int, value: float, *, sweep: str = "tide-1", order: int = 0, digest: str = "sha256:aa",
          version: str = "1.0", settings: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None,
          verdict: Any = "valid", began_ms: int = BEGAN_MS, **params: Any) -> TrialResult:
    """A trial of one turn; `cell` is MODE-FLAGS, further params as a__b=value."""
    mode, _, infer_os = cell.partition("-")
    on = infer_os.startswith("on")
    order = order or 10 * block + len(cell)
    return TrialResult(
        sweep_id=sweep, cell=cell, repetition=block, block=block, order=order, mode=mode, infer_os=infer_os,
        verdict=verdict, reasons=[] if verdict == "valid" else ["it was made so"], notes=[],
        started_ms=began_ms + 1000 * order, ended_ms=began_ms + 1000 * order + 900,
        params={"mode.name": mode, "infer_os.quantization": on, "model.name": "small", "num_ctx": 512, "seed": 42,
                **{key.replace("__", "."): text for key, text in params.items()}},
        settings={"cache_type_k": "q8_0" if on else "f16", **(settings or {})},
        metrics={HEADLINE: {1: value}, "decode/tokens_per_s": {1: 5000 / value},
                 "during_generation/prompt_tokens": {1: 12.0}, "during_generation/output_tokens": {1: 8.0},
                 **(metrics or {})},
        series={"tree_rss_mib": [(0, 1.0), (100, value)]},
        tags={"engine": "made_up", "model": "small", "engine_version": version, "model_digest": digest,
              "host": "harbour"}, folder="")


def cell(name: str, values: Sequence[float], **changes: Any) -> list[TrialResult]:
    """One trial per block, 1…n."""
    return [trial(name, block, value, **changes) for block, value in enumerate(values, start=1)]


def summary(sweep: str = "tide-1", began_ms: int = BEGAN_MS, **machine: str) -> SweepSummary:
    """A finished sweep's summary."""
    return SweepSummary(sweep, "tide", "Does the tide turn?", "slackwater run experiment=tide", 4,
                        {"cells": [], "shuffle_seed": 42}, began_ms, "finished", began_ms + 60_000,
                        texts={"summary.txt": "It turns."}, tags={**MACHINE, **machine})
