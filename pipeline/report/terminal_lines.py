"""Lines of a terminal, by columns and not by characters: wrapped, cut, padded. Japanese breaks between its characters.

No words and no numbers: those are `wording`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pipeline.language import harmless

_TOGETHER = re.compile(
    r"(?<=[0-9]) (?=MiB|KiB|points|ポイント|トークン|%|/s|s\b|ms\b|…)|(?<=…) |(?<=\bn) (?==)|(?<==) ")
"""Spaces at which a line must not break: before a unit, inside an interval, inside "n = 3"."""
_NEVER_FIRST = "、。，．・：；？！）」』】〉》〕ー々…%％゛゜ぁぃぅぇぉっゃゅょァィゥェォッャュョ"
_NEVER_LAST = "（「『【〈《〔"
_KEPT_WHOLE = re.compile(r"[ァ-ヶー]+")
"""A word in katakana, like a word in Latin letters, is broken only if it is longer than a line."""


def _breaks(plain: str) -> list[int]:
    """Where a new line may begin."""
    bound = _TOGETHER.sub("\u00a0", plain)
    found = []
    for at in range(1, len(bound)):
        before, after = bound[at - 1], bound[at]
        wide = cell_len(before) == 2 or cell_len(after) == 2
        if before == " " != after or (wide and after not in f"{_NEVER_FIRST} \u00a0"
                                      and before not in f"{_NEVER_LAST}\u00a0" and not before.isdigit()
                                      and not _KEPT_WHOLE.fullmatch(before + after)):
            found.append(at)
    return [*found, len(bound)]


def wrap(text: Text, width: int) -> list[Text]:
    """The text in lines of at most `width` columns, styles kept; one empty line for an empty text."""
    plain, width = text.plain, max(10, width)
    cuts: list[int] = []
    start = last = 0
    for at in _breaks(plain):
        if cell_len(plain[start:at].rstrip()) > width:
            if last > start:
                cuts.append(last)
                start = last
            while cell_len(plain[start:at].rstrip()) > width:  # one word longer than a line
                start += _fitting(plain[start:at], width)
                cuts.append(start)
        last = at
    lines = list(text.divide(cuts)) if plain else [text]
    for line in lines:
        line.rstrip()
    return lines


def _fitting(plain: str, width: int) -> int:
    taken = 0
    for count, character in enumerate(plain):
        taken += cell_len(character)
        if taken > width:
            return count
    return len(plain)


def pack(console: Console, parts: Sequence[str], between: str, style: str = "") -> None:
    """Print parts one after the other, as many as a line has room for; a line breaks between two of them first."""
    line = ""
    for part in parts:
        longer = f"{line}{between}{part}" if line else part
        if line and cell_len(longer) > console.width:
            paragraph(console, Text(line, style))
            longer = part
        line = longer
    paragraph(console, Text(line, style))


def paragraph(console: Console, text: Text, indent: int = 0, first: str = "") -> None:
    """Print a text over as many lines as it needs, each after the first `indent` columns in. Nothing is markup."""
    for number, line in enumerate(wrap(_shown(text), console.width - indent)):
        lead = pad(first, indent) if number == 0 else " " * indent
        row(console, Text.assemble(lead, line))


def _shown(text: Text) -> Text:
    """The text without anything that a terminal would obey; reasons and notes may quote a server's log."""
    if (plain := harmless(text.plain)) != text.plain:
        text.plain = plain  # of the same length: the styles stay where they are
    return text


def row(console: Console, text: Text) -> None:
    """Print one line, cut with … where the terminal ends."""
    console.print(_shown(text), highlight=False, no_wrap=True, overflow="ellipsis")


def whole(console: Console, text: Text) -> None:
    """Print one line that is to be copied: never cut, wrapped by the terminal alone."""
    console.print(_shown(text), highlight=False, soft_wrap=True)


def pad(text: str, columns: int) -> str:
    """The text and blanks, never shorter than the text."""
    return text + " " * (columns - cell_len(text))


def pad_left(text: str, columns: int) -> str:
    """Blanks and the text, never shorter than the text."""
    return " " * (columns - cell_len(text)) + text


def cut(text: str, columns: int) -> str:
    """Exactly so many columns: padded, or cut with …."""
    return set_cell_size(text, columns) if cell_len(text) <= columns else \
        set_cell_size(text, max(0, columns - 1)) + "…"
