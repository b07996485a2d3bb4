"""SHA-256 of model files: computed once, kept in the cache folder, trusted while the file has not changed.

A digest belongs to a file, never to a name: two models may be called the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.machine import in_home

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("fetching", "unpacking", "checking"), bytes done and bytes in all (0: unknown)."""

_CHUNK = 1 << 20


def cache_folder() -> Path:
    """$SLACKWATER_CACHE, else $XDG_CACHE_HOME/slackwater, else ~/.cache/slackwater."""
    if own := os.environ.get("SLACKWATER_CACHE"):
        return in_home(own, "SLACKWATER_CACHE")
    return in_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "SLACKWATER_CACHE") / "slackwater"


def known_digest(files: Sequence[Path]) -> str | None:
    """SHA-256 of a model's files if all are known and unchanged since; costs no reading of them.

    Of several files: the SHA-256 of their digests, a line each."""
    found = [digest for path in files if (digest := _known(path)) is not None]
    return _joined(found) if len(found) == len(files) else None


def digest(files: Sequence[Path], progress: Progress | None = None) -> str:
    """SHA-256 of a model's files (see known_digest), each computed once. Raises OSError."""
    total, done, found = sum(path.stat().st_size for path in files), 0, []
    for path in files:
        known = _known(path)
        if known is None:
            sha = hashlib.sha256()
            before = _identity(path)
            with path.open("rb", buffering=0) as stream:
                while block := stream.read(_CHUNK):
                    sha.update(block)
                    done += len(block)
                    if progress:
                        progress("checking", done, total)
            known = sha.hexdigest()
            remember(path, known, before)
        else:
            done += path.stat().st_size
        found.append(known)
    return _joined(found)


def remember(path: Path, sha256: str, identity: dict[str, Any] | None = None) -> None:
    """Keep a file's digest; `identity`: what the file was when it was read, if it may have changed meanwhile."""
    stamp = _stamp(path)
    # Without the stamp the file is only hashed again next time.
    with contextlib.suppress(OSError):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        part = stamp.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps((identity or _identity(path)) | {"sha256": sha256}), encoding="utf-8")
        part.replace(stamp)


def _joined(digests: Sequence[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{each}\n" for each in digests).encode()).hexdigest()


def _known(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stamp = json.loads(_stamp(path).read_text(encoding="utf-8"))
        if stamp == _identity(path) | {"sha256": stamp["sha256"]}:
            return str(stamp["sha256"])
    return None


def _identity(path: Path) -> dict[str, Any]:
    # Size and time of the content alone are the same after `cp -p` of another model: the file's own time is not.
    stat = path.stat()
    return {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns,
            "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}


def _stamp(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]
    return cache_folder() / "digests" / f"{name}.json"
