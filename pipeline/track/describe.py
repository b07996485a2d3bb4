"""The description of a run in MLflow's UI (tag mlflow.note.content): what it was and what it found, in Markdown; and
its dataset, the prompts.

A few lines for somebody who has opened one run; tables over many runs are made in report/.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.metrics import PARTS, PHASES
from pipeline.prompts import text_source
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.text import engine_and_version, printable

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

NOTE_LIMIT = 7500
"""Characters; MLflow cuts a tag at 8,000 without a word."""

_SHOWN = tuple(phase for phase in PHASES if phase not in PARTS)
_WORDS = {"valid": "**valid**", "suspect": "**suspect**, left out of comparisons", "failed": "**failed**",
          "interrupted": "**interrupted**", "warm-up": "warm-up, run first and not counted"}
_HEADLINE = (("settled {:.1f} MiB", "stabilized/tree_rss_mib"), ("peak {:.1f}", "during_generation/tree_rss_peak_mib"),
             ("released {:.1f}", "released/tree_rss_mib"), ("{:.1f} tokens/s", "decode/tokens_per_s"))
_COLUMNS = ("tree_rss{}_mib", "tree_anon{}_mib", "tree_file{}_mib", "system_used{}_pct")


def describe_trial(result: TrialRecord) -> str:
    """Verdict and headline first, since the page folds the rest away; place; memory by phase (of the last turn)."""
    found = ", ".join(text.format(value) for text, metric in _HEADLINE
                      if (value := result.value(metric)) is not None)
    flags = {"off": "no optimisation flag on", "on": "the shipped optimisation flags on"}.get(
        result.infer_os, f"{_plain(result.infer_os)} on")
    flags += f", {_plain(result.tags['knobs'])}" if result.tags.get("knobs") else ""
    lines = [f"{_WORDS[result.verdict]}{': ' if found else ''}{found}.", "",
             *(f"- {_plain(reason.text)}" for reason in result.reasons), "",
             f"Repetition {result.repetition} of {_code(result.cell)} in sweep {_code(result.sweep_id)}: "
             f"{_plain(result.mode)}, {flags}. Trial {result.order}, block {result.block}."]
    if server := engine_and_version(result.tags.get("engine", ""), result.tags.get("engine_version", "")):
        digest = result.tags.get("model_digest", "")
        weights = _plain(result.tags.get("model", "")) + (f" ({_code(digest[:19])})" if digest else "")
        lines += ["", f"{weights} in {_plain(server)}." if weights else f"{_plain(server)}."]
    rows = []
    for phase in _SHOWN:
        is_peak = phase == "during_generation"
        values = [_number(result, phase, column, is_peak) for column in _COLUMNS]
        if any(values):
            rows.append(f"| {phase}{', peak' if is_peak else ''} | {' | '.join(values)} |")
    if rows:
        lines += ["", "| phase | server's tree, MiB | anonymous | file-mapped | system used, % |",
                  "|---|---:|---:|---:|---:|", *rows]
    if result.notes:
        lines += ["", "Notes:", *(f"- {_plain(note.text)}" for note in result.notes)]
    return _limited(lines)


def describe_sweep(summary: SweepRecord, printed: str | None, report: str | None) -> str:
    """The question, its answer, the command, the name of its page and the printed summary if there are any."""
    lines = [f"**{_plain(summary.question)}**" if summary.question else "A sweep.", ""]
    if summary.answer:
        lines += [_plain(summary.answer), ""]
    where = f" The full report is {_code(report)}, under Artifacts." if report else ""
    # a line of code would not wrap: a long one pushes half of MLflow's page out of the window
    lines += [f"{summary.planned_trials} trials planned, {summary.status}.{where}", "", _code(summary.command)]
    if printed:
        lines += ["", *_block(printed)]
    return _limited(lines)


def dataset(params: Mapping[str, Any], tags: Mapping[str, str]) -> DatasetInput | None:
    """The prompts in MLflow's words; None where there is nothing to say.

    Weights are no dataset, and no model of MLflow's either (it has not logged them and does not hold them): they are
    the tags `model` and `model_digest`."""
    found = text_source(params, tags)
    if found is None:
        return None
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest, count = found
    source = {"config": "conf/prompt", "name": params.get("prompt.name"), "language": params.get("prompt.language"),
              **{key: params[f"prompt.{key}"] for key in ("file", "tokens", "fill") if params.get(f"prompt.{key}")}}
    return DatasetInput(Dataset(name, digest, "slackwater", json.dumps(source), None, json.dumps({"num_rows": count})),
                        [InputTag("mlflow.data.context", "prompts")])


def _limited(lines: list[str]) -> str:
    text, end = printable("\n".join(lines)), "\n\n… and more, which is too long for this page."
    return text if len(text) <= NOTE_LIMIT else text[:NOTE_LIMIT - len(end)] + end


def _block(text: str) -> list[str]:
    # indented, not fenced: a fence that the limit cuts would swallow the rest
    return [f"    {line}" for line in text.splitlines()]


def _number(result: TrialRecord, phase: str, column: str, is_peak: bool) -> str:
    """The metric's value; of an interval its peak, the kernel's where there is one. "" if it was not measured."""
    for part in ("_peak", "_sampled_peak") if is_peak else ("",):
        value = result.value(f"{phase}/{column.format(part)}")
        if value is not None:
            return f"{value:.1f}"
    return ""


def _code(text: str) -> str:
    """A code span; nothing in it has a meaning but the backtick."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    """Text of others (errors, names) without a meaning to Markdown or HTML."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in "`|*_[]" else character for character in flat)
