"""Where a number comes from, as it is recorded: the command as typed, without what must stay secret."""

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
