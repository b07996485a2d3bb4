"""Where a number comes from, as it is recorded: the command as typed, without what must stay secret."""

import os

import pytest

from pipeline import provenance


def test_the_command_is_recorded_as_typed_and_without_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACKWATER_COMMAND", "")
    provenance.started_as(["run", "mode=oneshot", "tracking.uri=postgresql://me:secret@db/mlflow", "prompt.text=a b"])
    recorded = provenance.command()
    assert recorded.startswith("slackwater run mode=oneshot ")
    assert "secret" not in recorded
    assert "me:***@db/mlflow" in recorded
    assert "'prompt.text=a b'" in recorded


@pytest.mark.parametrize("word", ["n\udce9e", "\x80", "x" * 200_000])
def test_a_command_of_any_words_is_kept_whole_and_leaves_an_environment_that_programs_can_start_with(
        word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACKWATER_COMMAND", "")
    monkeypatch.setattr(provenance, "_here", [])
    provenance.started_as(["run", word])
    kept = os.environ["SLACKWATER_COMMAND"]
    assert kept.isascii() and len(kept) < 128 * 1024
    assert word in provenance.command()
    monkeypatch.setattr(provenance, "_here", [])
    assert provenance.command().startswith("slackwater run "), "what another process is told"
