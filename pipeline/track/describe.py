"""The description of a run in MLflow's UI (tag mlflow.note.content): what it was and what it found, in Markdown.

A few lines for somebody who has opened one run; tables over many runs are made in report/.
"""

from __future__ import annotations

import html

from pipeline.result import TrialResult
from pipeline.track.summary import SweepSummary

NOTE_LIMIT = 7500
"""Characters; MLflow cuts a tag at 8,000 without a word."""

_MOMENTS = ("baseline", "initialization", "pre_generation", "during_generation", "post_generation", "stabilized",
            "released")
_WORDS = {"valid": "valid", "suspect": "**suspect**, left out of comparisons", "failed": "**failed**",
          "warm-up": "warm-up, run first and not counted"}


def describe_trial(result: TrialResult) -> str:
    """Place, verdict with reasons, tree and system memory by phase (of the last turn), speed."""
    verdict = "**interrupted**" if result.extra.get("interrupted") else _WORDS[result.verdict]
    flags = {"off": "no optimisation flag on", "on": "the shipped optimisation flags on"}.get(
        result.infer_os, f"{_plain(result.infer_os)} on")
    place = (f"Repetition {result.repetition} of cell `{_plain(result.cell)}` in sweep `{_plain(result.sweep_id)}`: "
             f"mode {_plain(result.mode)}, {flags}. Trial {result.order}, block {result.block}.")
    lines = [place, "", f"Verdict: {verdict}."]
    lines += [f"- {_plain(reason)}" for reason in result.reasons]
    if result.notes:
        lines += ["", "Notes:", *(f"- {_plain(note)}" for note in result.notes)]
    rows = []
    for phase in _MOMENTS:
        peak = phase == "during_generation"
        tree = result.value(f"{phase}/tree_rss_peak_mib" if peak else f"{phase}/tree_rss_mib")
        system = result.value(f"{phase}/system_used_peak_pct" if peak else f"{phase}/system_used_pct")
        if tree is not None or system is not None:
            rows.append(f"| {phase}{' (peak)' if peak else ''} | {_number(tree)} | {_number(system)} |")
    if rows:
        lines += ["", "| phase | server's tree, MiB | system used, % |", "|---|---:|---:|", *rows]
    speed = result.value("decode/tokens_per_s")
    if speed is not None:
        lines += ["", f"Speed: {speed:.1f} tokens/s."]
    return "\n".join(lines)[:NOTE_LIMIT]


def describe_sweep(summary: SweepSummary) -> str:
    """The question, the command, and the printed summary if there is one."""
    lines = [f"**{_plain(summary.question)}**" if summary.question else "A sweep.", "",
             f"{summary.planned_trials} trials planned, {summary.status}.", "", *_block(summary.command)]
    if "summary.txt" in summary.texts:
        lines += ["", *_block(summary.texts["summary.txt"])]
    return "\n".join(lines)[:NOTE_LIMIT]


def _block(text: str) -> list[str]:
    # indented, not fenced: a fence that the limit cuts would swallow the rest
    return [f"    {line}" for line in text.splitlines()]


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f}"


def _plain(text: str) -> str:
    """Text of others (errors, names) without a meaning to Markdown or HTML."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in "`|*_[]" else character for character in flat)
