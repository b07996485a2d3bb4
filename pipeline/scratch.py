"""A temporary folder that goes with its process: also one that was killed, at the next start of another."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "slackwater-scratch-"
FRESH_S = 60.0
"""A folder this young may not be locked yet."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed at the end; those that dead processes of this user left are removed first.

    Its owner holds its lock (flock(2)), which ends with it, in whatever container it runs."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _remove_left(folder.parent)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_left(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another process may be first
            found = folder.lstat()
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < FRESH_S:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
