"""Where a trial's prompts come from: the config's own texts, turn by turn, or a person who types them.

The contract and the recorded source; the person sits at report/chat.py. Nothing is measured or sent here.
"""

from __future__ import annotations

import time
from typing import Protocol

from pipeline.config import Config


class Meanwhile(Protocol):
    """What a trial offers while a prompt is waited for."""

    def idle(self) -> None:
        """To be called a few times a second: watches the server, shows its memory. Raises EngineError if it ended."""

    def unload(self) -> None:
        """Drop the model now; the next prompt loads it again. Raises EngineError."""

    def next_prompt_ns(self, turn: int) -> int:
        """When the think time before this turn is over, `time.monotonic_ns()`; in the past for the first."""


class Prompts(Protocol):
    """A source of prompts, asked once per turn, after the turn before has settled."""

    def next(self, turn: int, meanwhile: Meanwhile) -> str | None:
        """The prompt of turn 1, 2, …, template applied; None: there is no further turn.

        Waits as long as its think time asks, or its person takes. What raises is raised by `meanwhile`."""

    def refused(self, reason: str) -> bool:
        """The server will not take the last prompt. True: ask again for the same turn; False: the trial has failed."""


class Recorded:
    """The texts of the config: as many turns as `mode.turns`, `mode.think_time_s` apart."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def next(self, turn: int, meanwhile: Meanwhile) -> str | None:
        """See Prompts."""
        if turn > self.config.mode.turns:
            return None
        while (left_s := (meanwhile.next_prompt_ns(turn) - time.monotonic_ns()) / 1e9) > 0:
            time.sleep(min(left_s, 0.05))
            meanwhile.idle()
        return self.config.prompt.at(turn)

    def refused(self, reason: str) -> bool:
        """Another text would be another trial."""
        return False
