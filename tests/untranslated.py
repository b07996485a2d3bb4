"""Which texts of the code a language lacks: `make check` notes them, since English stands in for them.

It fails nothing: who adds a meter need not know every language.
"""

from __future__ import annotations

import functools
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.pofile import read_po

from pipeline.config import PACKAGE

CATALOGUES = sorted((PACKAGE / "languages").glob("*.po"))


@functools.cache
def messages() -> dict[str, str]:
    """Every text that the code and the templates mark: text → where."""
    found: dict[str, str] = {}
    for method, files in (("python", "*.py"), ("jinja2.ext:babel_extract", "*.jinja")):
        for path in sorted(PACKAGE.rglob(files)):
            for line, text, _comments, _context in extract_from_file(method, path):
                found.setdefault(str(text), f"pipeline/{path.relative_to(PACKAGE)}:{line}")
    return found


def read(path: Path) -> Catalog:
    """A catalogue. Raises PoFileError if it is damaged."""
    with path.open("rb") as file:
        return read_po(file, locale=path.stem, abort_invalid=True)


def notes() -> list[str]:
    """A line for every text that a catalogue lacks or has empty."""
    texts = messages()
    return [f"note: {where}: no {path.stem} text yet, English stands in for it: {text!r}"
            for path in CATALOGUES for catalogue in [read(path)] for text, where in texts.items()
            if (message := catalogue.get(text)) is None or not message.string]


if __name__ == "__main__":
    print("\n".join(notes()) or "every text is in every language")
