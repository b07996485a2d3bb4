"""Ctrl-C and SIGTERM, held back while something must not be left half done. Nothing else about signals lives here."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Held:
    """Whether a signal came meanwhile."""

    came: bool = False


@contextmanager
def held_back() -> Iterator[Held]:
    """Note SIGINT and SIGTERM instead of acting on them; whoever holds them back decides what a noted one means.

    One that is ignored stays so: a script's background job, cron and nohup start programs deaf to Ctrl-C.
    For bounded work only. Call from the main thread."""
    held = Held()

    def note(number: int, frame: FrameType | None) -> None:
        held.came = True

    before = {number: signal.signal(number, note) for number in SIGNALS
              if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
