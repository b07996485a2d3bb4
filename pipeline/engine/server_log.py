"""A server's log, read and kept within bounds: one may write without end. What its lines mean is llamacpp_log.py's,
ollama/log.py's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import IO

READ_BYTES = 8 * 2**20
"""Of what is longer, the head and the tail are read: a load stands at the one end, the last request at the other."""
KEPT_BYTES = 64 * 2**20
"""Of what is longer, the head and the tail are kept."""
MOST_BYTES = 2**30
"""A server that writes more during one wait is ended, before the disk is full."""
LINE_CHARACTERS = 16384
"""Of a longer line the beginning is read."""

_LONG = re.compile(rf"[^\n]{{{LINE_CHARACTERS + 1}}}")


def size(path: Path | None) -> int:
    """Bytes; 0 without one."""
    with contextlib.suppress(OSError):
        return path.stat().st_size if path else 0
    return 0


def read(path: Path | None, since: int = 0) -> str:
    """What was written from this byte on, head and tail if it is long; empty without a log that can be read."""
    with contextlib.suppress(OSError):
        if path is not None:
            with path.open("rb") as stream:
                text = b"".join(_parts(stream, since, READ_BYTES)).decode(errors="replace")
            return "\n".join(line[:LINE_CHARACTERS] for line in text.split("\n")) if _LONG.search(text) else text
    return ""


def cut(path: Path) -> None:
    """Keep KEPT_BYTES of a log that nobody writes any more, and a line that says how much is missing."""
    if size(path) > KEPT_BYTES:
        made = path.with_name(f"{path.name}.cut")
        with contextlib.suppress(OSError):  # where a disk is full, the log stays as it is
            copy(path, 0, made)
            os.replace(made, path)


def copy(source: Path, since: int, target: Path) -> None:
    """KEPT_BYTES of what was written from this byte on. Raises OSError."""
    with source.open("rb") as stream, target.open("wb") as out:
        length = os.fstat(stream.fileno()).st_size - since
        if length <= KEPT_BYTES:
            stream.seek(since)
            shutil.copyfileobj(stream, out)
        else:
            out.writelines(_parts(stream, since, KEPT_BYTES))


def _parts(stream: IO[bytes], since: int, most: int) -> list[bytes]:
    length = os.fstat(stream.fileno()).st_size - since
    stream.seek(since)
    if length <= most:
        return [stream.read(most)]
    head = stream.read(most // 2)
    stream.seek(since + length - most // 2)
    note = f"\n… {length - most} bytes of this log were left out by slackwater …\n".encode()
    return [head, note, stream.read(most // 2)]
