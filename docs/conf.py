"""The documentation as a site: `make docs` builds it into build/docs, from the pages beside this file.

Sphinx with MyST and Furo; not MkDocs Material, which has reached its end of life. What the code knows better than a
page (the metric dictionary, the commands) is put in while building, so that it cannot drift. The site asks nothing of
any other host: Furo brings its own fonts, and there is no intersphinx.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "slackwater"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["requirements.lock"]
suppress_warnings = ["myst.strikethrough"]

html_theme = "furo"
html_title = "slackwater"
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["slackwater.css"]


def metric_dictionary() -> str:
    """The metric dictionary in Markdown: a heading per section, a definition per metric."""
    from pipeline.metrics import sections

    lines: list[str] = []
    for section in sections():
        lines += [f"## {section.title}", "", _text(section.about), ""]
        for metric in section.metrics:
            facts = [("phases", ", ".join(metric.phases)), ("source", metric.source), ("mind", metric.pitfall)]
            lines += [f"`{metric.name}` · {metric.unit}", f": {_text(metric.meaning)}", ""]
            lines += [f"  - *{name}*: {_text(said)}" for name, said in facts if said]
            lines += [""]
    return "\n".join(lines)


def command_pages() -> str:
    """What `slackwater --help` and `slackwater VERB --help` print."""
    from click import Context

    from pipeline.cli.commands import slackwater

    shown = {name: verb.get_help(Context(verb)) for name, verb in {"": slackwater, **slackwater.commands}.items()}
    # the page names the folder where this machine has the package
    return "\n".join(f"## `{f'slackwater {name}'.rstrip()}`\n\n```text\n{text.replace(f'{ROOT}/', '')}```\n"
                     for name, text in shown.items())


def _plain(text: str) -> str:
    """Text in which no character means anything to Markdown."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", text)


def _text(text: str) -> str:
    """As `_plain`, but for what stands between backticks."""
    return "".join(part if part.startswith("`") else _plain(part) for part in re.split(r"(`[^`]*`)", text))


GENERATED = {"metrics": metric_dictionary, "commands": command_pages}


def put_in(app: Any, page: str, source: list[str]) -> None:
    """A page of GENERATED ends in a comment that the code's own words replace (Sphinx's event source-read)."""
    if page in GENERATED:
        before, mark, _after = source[0].partition("<!-- generated -->")
        assert mark, f"docs/{page}.md has lost its line <!-- generated -->"
        source[0] = before + GENERATED[page]()


def reachable(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """What scrolls sideways on a phone, blocks and tables, can be reached by keyboard (event html-page-context)."""
    if "body" in context:
        context["body"] = re.sub(r'<(pre(?=>)|div(?= class="table-wrapper))', r'<\1 tabindex="0"', context["body"])


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", put_in)
    app.connect("html-page-context", reachable)
    return {"parallel_read_safe": True}
