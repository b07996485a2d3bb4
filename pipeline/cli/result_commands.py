"""The verbs that read, move or serve what was measured. Each passes its arguments to the package that does the work."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.arguments import Given
from pipeline.errors import ConfigError
from pipeline.language import _


def runs(given: Given) -> int:
    """`slackwater runs`."""
    from pipeline.report import pages

    pages.runs(given.has("--json"), given.value("--store"))
    return 0


def show(given: Given) -> int:
    """`slackwater show [SWEEP]`."""
    from pipeline.report import pages

    pages.show(given.first("last"), given.has("--json"), given.value("--store"))
    return 0


def report(given: Given) -> int:
    """`slackwater report [SWEEP]`."""
    from pipeline.report import pages

    target = given.value("-o")
    return pages.report(given.first("last"), None if target is None else Path(target), given.value("--store"),
                        given.has("--json"))


def compare(given: Given) -> int:
    """`slackwater compare A B`."""
    from pipeline.report import compare_page

    undecided = given.value("--undecided") or "fail"
    if undecided not in ("fail", "pass"):
        raise ConfigError(_("--undecided {value} is not allowed: expected fail or pass.").format(value=undecided))
    return compare_page.compare(given.words[0], given.words[1], uri=given.value("--store"),
                             limits=given.values("--fail-if"), as_json=given.has("--json"),
                             allow_different_work=given.has("--allow-different-work"),
                             undecided_fails=undecided == "fail")


def export(given: Given) -> int:
    """`slackwater export SWEEP FILE`."""
    from pipeline.report import export_import

    return export_import.export(given.words[0], Path(given.words[1]), given.value("--store"), given.has("--json"))


def import_(given: Given) -> int:
    """`slackwater import FILE`."""
    from pipeline.report import export_import

    return export_import.import_(Path(given.words[0]), given.value("--store"), given.has("--json"))


def sync(given: Given) -> int:
    """`slackwater sync [--store URI]`."""
    from pipeline.report import pages

    return pages.sync(given.value("--store"))


def metrics(given: Given) -> int:
    """`slackwater metrics [NAME]`."""
    from pipeline.report.metrics_page import metrics_page

    metrics_page(given.first(""), given.has("--json"))
    return 0


def ui(given: Given) -> int:
    """`slackwater ui [SWEEP]`: serves until Ctrl-C."""
    from pipeline.sweep.lock import holder
    from pipeline.track.ui import serve

    port = given.value("--port")
    if port is not None and not (port.isdigit() and int(port) < 65536):
        raise ConfigError(_("--port {value} is not allowed: expected a port number up to 65535.").format(value=port))
    if pid := holder():
        print(_("Careful: a sweep runs on this machine (process {pid}), and a web server\n"
                "beside it moves what it measures.").format(pid=pid), flush=True)
    return serve(given.words[0] if given.words else None, given.value("--store"), int(port or 5000),
                 browser=not given.has("--no-browser"))
