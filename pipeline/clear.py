"""The clear stage: what leaves the page cache before a trial. The servers' own end belongs to the engines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Clear
from pipeline.errors import ConfigError, MeterError
from pipeline.meter.model_file import Eviction, evict_all
from pipeline.model.files import files_of

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def check(clear: Clear) -> None:
    """Raises ConfigError if this user may not do what `clear` asks."""
    if clear.drop_caches and not os.access(DROP_CACHES, os.W_OK):
        raise ConfigError(f"clear={clear.name} needs root: {DROP_CACHES} is not writable for this user. "
                          "clear=unload evicts the model file alone and needs no rights.")


def clear_program(clear: Clear, files: Sequence[Path]) -> Eviction | None:
    """Evict the engine's own files, so that every trial maps them out of the same page cache: pages that an
    installation has just written lie in larger folios there, of which a fault maps more (RSS +3 %).

    None: nothing was asked, or this machine has none. What cannot be evicted is the reason, and no error."""
    if not clear.evict_model or not files:
        return None
    try:
        return evict_all(files)
    except MeterError as error:
        return Eviction(None, None, False, str(error))


def clear_caches(clear: Clear, model: Path | None) -> Eviction | None:
    """Evict the model's files, and every clean page if asked (proc_sys_vm(5): 3 = page cache, dentries, inodes).

    None: nothing was asked, or this machine does not have them. Raises MeterError if one cannot be opened."""
    if clear.drop_caches:
        os.sync()  # only clean pages can be dropped
        DROP_CACHES.write_text("3\n", encoding="ascii")
    return evict_all(files_of(model)) if clear.evict_model and model is not None else None
