"""What the double shall do otherwise than a healthy server: one JSON file, read anew whenever it counts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass
class Behaviour:
    """All times in seconds; a token is counted from 1."""

    version: str = "0.33.0"
    ready_s: float = 0.0
    """Listening, but silent for so long."""
    probes: bool = False
    """Short-lived children look for GPUs before the first answer."""
    load_s: float = 0.0
    unload_s: float = 0.0
    """Asked to unload, the child lives on for so long."""
    token_s: float = 0.003
    crash_at_start: str | None = None
    """`serve` ends at once with exit status 1 and this line."""
    crash_at_load: str | None = None
    """The child ends with exit status 1 while loading, this line in its log."""
    stall_at_load: bool = False
    crash_at_token: int | None = None
    stall_at_token: int | None = None
    error_at_token: int | None = None
    """An error line inside the stream."""
    end_at_token: int | None = None
    """The stream ends without its last line."""
    stop_at_token: int | None = None
    """End of text: fewer tokens than asked for."""
    replace_at_token: int | None = None
    """The child is killed and another one started behind the answer's back."""
    thinking_tokens: int = 0
    """The first tokens of an answer are thinking (only models that can)."""
    one_line: bool = False
    """A harmony answer that never shows a token: one line, response empty."""
    cut_prompts: bool = False
    """Prompts that are too long are cut silently, whatever `truncate` says."""
    busy: bool = False
    html: bool = False
    stale_ps: bool = False
    """/api/ps lists a model for ever."""
    lie: dict[str, str] = field(default_factory=dict)
    """Flags of the child's command line that it replaces by other values in what it does, and logs."""
    registry: dict[str, str] = field(default_factory=dict)
    """What can be pulled: name → GGUF file."""

    @classmethod
    def read(cls, path: str | None) -> Behaviour:
        """From a file; without one, a healthy server."""
        values: dict[str, Any] = json.loads(Path(path).read_text()) if path and Path(path).exists() else {}
        unknown = set(values) - {each.name for each in fields(cls)}
        if unknown:
            raise ValueError(f"unknown behaviour {sorted(unknown)}")
        return cls(**values)

    @property
    def old(self) -> bool:
        """A server before 0.30."""
        return tuple(int(part) for part in self.version.split(".")[:2]) < (0, 30)
