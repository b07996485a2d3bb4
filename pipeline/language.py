"""What users read, in their language: gettext over the catalogues in languages/. No sentence lives here.

English is the text in the code itself; `_` looks it up when it is called, so never call it at import (`N_` marks a
text that stands in a table and is looked up later). Every command imports this: it imports nothing heavy itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import gettext

ENGLISH = "en"
VARIABLE = "SLACKWATER_LANG"
_CATALOGUES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "languages")
_current: gettext.NullTranslations | None = None
_name = ENGLISH


def languages() -> list[str]:
    """The names that `speak` takes: English, and every catalogue there is."""
    found = os.listdir(_CATALOGUES) if os.path.isdir(_CATALOGUES) else []
    return [ENGLISH, *sorted(name.removesuffix(".po") for name in found if name.endswith(".po"))]


def speak(name: str) -> None:
    """Say everything from here on in this language. Raises ConfigError for one that has no catalogue."""
    global _current, _name
    if name == _name:
        return
    if name not in languages():
        raise ConfigError(_("lang={name} is not known. Languages: {known}.").format(
            name=name, known=", ".join(languages())))
    _current = None if name == ENGLISH else _read(name)
    _name = name


def spoken() -> str:
    """The name of the language in use, as in `<html lang>` (BCP 47)."""
    return _name


def wished() -> str:
    """The language of $SLACKWATER_LANG; English where it is not set. Not checked: `speak` does that."""
    return os.environ.get(VARIABLE) or ENGLISH


def _(text: str) -> str:
    """The text in the language in use, itself where the catalogue lacks it; `_("{n} trials").format(n=3)`."""
    return text if _current is None or not text else _current.gettext(text)


def N_(text: str) -> str:
    """The text itself. Marks it for the catalogues where it stands in a table; `_` looks it up when it is shown."""
    return text


class Sentence(str):
    """A text in English, as it is kept and as programs read it, that knows what it was made from: `worded` says it in
    the language in use."""

    template: str
    values: Mapping[str, object]


def sentence(template: str, /, **values: object) -> Sentence:
    """`template.format(**values)` as a Sentence: `sentence(N_("{n} trials"), n=3)`."""
    made = Sentence(template.format(**values))
    made.template, made.values = template, values
    return made


def worded(text: str) -> str:
    """The text in the language in use: a Sentence with what fills its places, another one as `_` has it."""
    if not isinstance(text, Sentence):
        return _(text)
    return _(text.template).format(**{
        name: worded(value) if isinstance(value, str) else value for name, value in text.values.items()})


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421} | dict.fromkeys(
    (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)


def harmless(text: str) -> str:
    """What a model, a server's log or a file wrote, as a terminal may show it: no escape sequence, no control character
    but line ends and tabs, nothing that turns the direction of what follows. As long as it was."""
    return text.translate(_PICTURES)


def _read(name: str) -> gettext.NullTranslations:
    import gettext
    import io

    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with open(os.path.join(_CATALOGUES, f"{name}.po"), "rb") as file:
        write_mo(compiled, read_po(file, locale=name, abort_invalid=True))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)
