"""What a trial makes of an answer whose parts could not all be seen: nothing that was not measured, and every peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, Mode
from pipeline.engine.checks import newer_note
from pipeline.engine.ollama.server import _Watch
from pipeline.engine.ollama.start import NEWEST_CHECKED
from pipeline.engine.waiting import NEVER
from pipeline.meter import tree
from pipeline.trial import UNDIVIDED, Trial

S = 1_000_000_000


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trial:
    class Quiet:
        pid = 1

        def attend(self, seconds: float = 0.0) -> None: ...
        def on_event(self, event: object) -> None: ...
        def since(self, t_ns: int) -> Any:
            return type("Seen", (), {"t_ns": ()})()

    monkeypatch.setattr("pipeline.trial.load_rule", lambda config: None)
    for name, answer in (("members", []), ("reset_peaks", []), ("read_peaks", {7: 5}), ("read_major_faults", {})):
        monkeypatch.setattr(tree, name, lambda *_, answer=answer: answer)
    quiet: Any = Quiet()
    made = Trial(Config(mode=Mode(name="oneshot")), quiet, quiet, tmp_path, quiet, prompts=quiet)
    made.server = quiet
    return made


def test_the_parts_of_a_load_that_was_not_seen_are_no_phases_and_their_peaks_still_count(trial: Trial) -> None:
    for second, kind in enumerate(("request_sent", "load_start", "load_end", "first_token", "last_token")):
        trial.on_event(kind, second * S, 1)  # type: ignore[arg-type]
    trial.forget(("load", "prefill"), 1)
    names = [span.name for span in trial.record.spans]
    assert names == [UNDIVIDED, UNDIVIDED, "decode", "during_generation"]
    whole = trial.record.spans[-1]
    inside = [peaks for peaks in trial.record.peaks
              if whole.start_ns <= peaks.span.start_ns and peaks.span.end_ns <= whole.end_ns]
    assert len(inside) == 3
    assert not [mark for mark in trial.record.marks if mark.name.startswith(("load/", "prefill/"))]


def test_an_answer_that_came_all_at_once_has_no_prefill_that_swallows_the_rest(trial: Trial) -> None:
    for second, kind in enumerate(("request_sent", "load_start", "load_end", "last_token")):
        trial.on_event(kind, second * S, 1)  # type: ignore[arg-type]
    assert [span.name for span in trial.record.spans] == ["load", UNDIVIDED, "during_generation"]


@pytest.mark.parametrize(("line", "guessed"), [
    ('time=… level=INFO msg="llama-server started in 0.40 seconds"\n', False), ("a line in other words\n", True)])
def test_the_end_of_a_load_that_the_log_does_not_tell_is_called_guessed(line: str, guessed: bool) -> None:
    host: Any = type("Host", (), {"pid": 0, "child": lambda self, thorough=False: 7, "ended": lambda self: None,
                                  "log_since": lambda self, at: line, "log_bytes": lambda self: 1, "log_path": None})()
    seen: list[str] = []
    watch = _Watch(host, 60.0, NEVER, 0, lambda kind, t_ns: seen.append(kind), loading=True)
    watch._begin(1)
    watch.answered(2)
    assert (watch.guessed, seen) == (guessed, ["load_start", "load_end"])


@pytest.mark.parametrize(("version", "noted"), [("0.33.0", False), ("0.24.0", False), ("0.34.1", True), ("1.0", True),
                                                ("0.0.0", False)])
def test_a_version_newer_than_the_newest_one_checked_is_named(version: str, noted: bool) -> None:
    found = newer_note("Ollama", version, NEWEST_CHECKED)
    assert bool(found) == noted
    assert all(note.startswith(f"Ollama {version} is newer than 0.33, the newest one checked") for note in found)


def test_a_pause_between_two_tokens_is_kept(trial: Trial) -> None:
    trial.on_event("first_token", 0, 1)
    for at in (1, 2, 3, 18, 19):
        trial.on_event("token", at * S // 10, 1)
    trial.on_event("last_token", 19 * S // 10, 1)
    assert trial.record.pauses == {1: pytest.approx(1.5)}
