"""How full the context was: what prompts and answers used of it, and whether too little for a question about the cache.

Pure functions over trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.language import N_, sentence
from pipeline.metrics import WORK
from pipeline.record.trial import TrialRecord
from pipeline.stats.trials import valid

LITTLE_PCT = 10.0
"""Below this share of its context a cell says nothing of what a filled cache costs."""


@dataclass(frozen=True)
class ContextUse:
    """Of the cell that used the smallest share of its context: tokens of prompt and answer at its fullest turn."""

    used: int
    num_ctx: int

    @property
    def pct(self) -> float:
        """The share, in percent."""
        return 100.0 * self.used / self.num_ctx

    @property
    def note(self) -> str:
        """What a reader must know; "" where enough was used."""
        if self.pct >= LITTLE_PCT:
            return ""
        return sentence(
            N_("{used} of {n} tokens of the context were used: what a filled cache costs was not measured; "
               "prompt.fill=0.9 fills it, prompt.tokens=N sets a length"), used=self.used, n=self.num_ctx)


def context_use(trials: Sequence[TrialRecord]) -> ContextUse | None:
    """The least filled cell's; None: no valid trial says it."""
    fullest: dict[str, ContextUse] = {}
    for trial in valid(trials):
        num_ctx = str(trial.params.get("num_ctx", ""))
        prompt, output = (trial.turns.get(metric) or {0: trial.metrics.get(metric, 0.0)} for metric in WORK)
        used = int(max(tokens + output.get(turn, 0.0) for turn, tokens in prompt.items()))
        if used > 0 and num_ctx.isdigit() and int(num_ctx) > 0:
            before = fullest.get(trial.cell)
            fullest[trial.cell] = ContextUse(max(used, before.used if before else 0), int(num_ctx))
    return min(fullest.values(), key=lambda use: use.pct, default=None)
