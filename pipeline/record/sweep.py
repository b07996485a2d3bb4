"""The one shape of a sweep: what was asked, by whom and where, and how it ended. A value; files are folder.py's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.record import schema
from pipeline.text import to_json

SCHEMA_VERSION = 2
"""Of sweep.json. 1: the summary until 3c8a73e, with plan and texts in it; still read."""

SweepStatus = Literal["running", "finished", "failed", "interrupted"]
Origin = Literal["", "imported", "pulled", "taken over"]


@dataclass(frozen=True)
class SweepRecord:
    """One sweep. Its trials and its plan lie beside it."""

    sweep_id: str
    experiment: str
    """Name of the experiment file; empty for a sweep typed on the command line."""
    question: str
    command: str
    """The command line that runs it again."""
    planned_trials: int | None
    started_ms: int
    """Unix time, milliseconds."""
    status: SweepStatus = "running"
    ended_ms: int | None = None
    answer: str = ""
    """What it found, in a sentence or a few; empty until it has ended."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about the sweep as a whole."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Facts in words: the machine that measured (host, boot_id, …), arguments, environment, plan_hash, concerns, …"""
    owner: Mapping[str, str] = field(default_factory=dict)
    """The process that writes here: host, boot_id, pid, pid_start; empty if none does any more."""
    origin: Origin = ""
    """"": measured by whoever this store belongs to; else how it came here."""
    fetched: bool = True
    """False: of its trials nothing is here yet but that they are in another store; they come when it is named."""

    # Where it was found; no part of sweep.json.
    trials: Mapping[str, int] = field(default_factory=dict)
    """Verdict → number of trials that count."""
    run_id: str = ""
    """MLflow's summary run, if it was pushed to the store at hand."""
    folder: Any = None
    """The folder of the sweep: a Path, or a zipfile.Path inside an export."""

    @property
    def is_foreign(self) -> bool:
        """Did it come from elsewhere? Then it is data: nothing of it is ever run as it stands."""
        return self.origin in ("imported", "pulled")

    def refuse_running(self) -> None:
        """Raises ConfigError for a sweep that another process is measuring now."""
        if self.status == "running":
            owner = self.owner or self.tags
            raise ConfigError(_("{sweep} is running (process {pid} on {host}): wait for it, or end that process."
                                ).format(sweep=self.sweep_id, pid=owner.get("pid", "?"), host=owner.get("host", "?")))

    def to_json(self) -> str:
        """sweep.json; `from_json` is its inverse."""
        return to_json({"schema_version": SCHEMA_VERSION,
                        **{name: value for name, value in vars(self).items() if name in _KEPT}}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> SweepRecord:
        """Raises ValueError for what is not such a document, or of another schema version."""
        data = schema.parsed(text)
        if not isinstance(data, dict) or data.get("schema_version") not in (1, SCHEMA_VERSION):
            version = data.get("schema_version") if isinstance(data, dict) else None
            raise ValueError(f"schema_version {version!r}, expected {SCHEMA_VERSION}")
        try:
            return cls(**schema.record(data, _FIELDS))
        except TypeError as error:
            raise ValueError(f"no sweep: {error}") from error

    def tag(self, name: str) -> Any:
        """What a tag holds as JSON; None if there is none, or one that an earlier version has cut."""
        try:
            return schema.parsed(self.tags.get(name, "null"))
        except ValueError:
            return None

    def at(self, folder: Any, trials: Mapping[str, int], run_id: str = "") -> SweepRecord:
        """The same, with where it was found and what lies beside it."""
        return replace(self, folder=folder, trials=dict(trials), run_id=run_id)


_KEPT = [name for name in SweepRecord.__dataclass_fields__ if name not in ("trials", "run_id", "folder")]
_FIELDS: Mapping[str, schema.Check] = {
    "sweep_id": schema.name, "status": schema.one_of(get_args(SweepStatus)), "origin": schema.one_of(get_args(Origin)),
    "started_ms": schema.whole, "ended_ms": schema.or_none(schema.whole), "fetched": schema.truth,
    "planned_trials": schema.or_none(schema.whole), "metrics": schema.numbers, "tags": schema.sweep_tags,
    "owner": schema.mapped(schema.text), **dict.fromkeys(("experiment", "question", "command", "answer"), schema.text),
}
