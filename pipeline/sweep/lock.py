"""One sweep at a time on a machine: two would disturb each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline import lock
from pipeline.errors import ConfigError

NAME = "sweep"
LIMIT_S = 7 * 24 * 3600.0
"""How long another sweep is awaited: longer than any takes."""


@contextmanager
def machine_lock(when_busy: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold this machine for a sweep; `waiting` is told once whom we wait for.

    Raises ConfigError if another sweep runs and `when_busy` is fail, or it does not end."""
    def busy(owner: str) -> ConfigError:
        error = ConfigError(f"another sweep runs on this machine (process {owner}), and two would disturb each other. "
                            "Wait for it, or design.when_busy=wait does so.")
        if when_busy == "fail":
            raise error
        waiting(f"another sweep runs on this machine (process {owner}): waiting for it")
        return error

    with lock.on_machine(NAME, LIMIT_S, busy):
        yield


def holder() -> str:
    """The process whose sweep holds this machine ("unknown" if it cannot be seen from here); "" if none does."""
    return lock.holder(NAME)
