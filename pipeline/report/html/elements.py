"""What a report is made of: text of others made harmless, tables, and plots that have a table behind them.

Values only; how they look is in templates/, what they say in the modules that make them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.language import _

LONGEST = 4000
"""Characters of any one text; a model's answer may be a megabyte, and a reader wants its beginning."""

_JOINERS = "\u200c\u200d"
"""Of category Cf, but letters of several scripts need them."""


def clean(text: str, longest: int = LONGEST) -> str:
    """The text with control characters made visible and its end cut off, with a word on how much there is.

    Escape sequences, overrides of the writing direction and characters that no encoding has would change what a
    reader sees, or break the file; they become their number."""
    kept = text if len(text) <= longest else text[:longest]
    shown = "".join(map(_visible, kept)) if not kept.isascii() or not kept.isprintable() else kept
    if len(text) > longest:
        shown += " " + _("… (cut: {n} characters in all)").format(n=f"{len(text):,}")
    return shown


def _visible(character: str) -> str:
    if character in "\n\t" or character in _JOINERS:
        return character
    code = ord(character)
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or code & 0xFFFE == 0xFFFE
    return f"‹U+{code:04X}›" if hidden else character


@dataclass(frozen=True)
class Table:
    """A table. `caption` says what it is; cells are texts; `head_rows` is where a row's own name stands: column 0."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    """Columns of figures, which are set flush right."""


@dataclass(frozen=True)
class Legend:
    """What a colour, a shape or a shade means; `sign` is a class of report.css and a symbol of the template."""

    sign: str
    text: str


@dataclass(frozen=True)
class Plot:
    """A picture with what stands for it where it is not seen: title, description, and the numbers behind it.

    `wide` and `narrow` are the same picture for a desk and for a phone; without `narrow` one serves both."""

    key: str
    """Unique in the page."""
    title: str
    description: str
    wide: Markup
    narrow: Markup | None = None
    tables: Sequence[Table] = ()
    note: str = ""
    """Said below the picture, for everybody."""
    legend: Sequence[Legend] = ()


@dataclass(frozen=True)
class Fact:
    """A name and what it is: a line of a definition list."""

    name: str
    text: str
