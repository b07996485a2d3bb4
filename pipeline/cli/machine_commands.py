"""The verbs that look at this machine: doctor and watch."""

from __future__ import annotations

from pipeline.cli.arguments import Given
from pipeline.errors import ConfigError
from pipeline.language import _


def doctor(given: Given) -> int:
    """`slackwater doctor`."""
    from pipeline.report import doctor_page
    from pipeline.sweep.lock import holder

    return doctor_page.doctor(given.has("--json"), holder())


def watch(given: Given) -> int:
    """`slackwater watch PID|NAME|URL`."""
    from pipeline.report.watch_page import watch_process

    limit = None
    if (seconds := given.value("--seconds")) is not None:
        try:
            limit = float(seconds)
        except ValueError:
            limit = 0.0
        if not 0 < limit < float("inf"):
            raise ConfigError(_("--seconds {value} is not allowed: expected a number of seconds above 0.").format(
                value=seconds))
    return watch_process(given.words[0], limit, given.has("--json"))
