"""What a person reads, in their language: gettext over the catalogues in languages/. No sentence lives here.

English is the text in the code itself; `_` looks it up when it is called, so never call it at import.
"""

from __future__ import annotations

import gettext
import io
from pathlib import Path

from pipeline.errors import ConfigError

ENGLISH = "en"
_CATALOGUES = Path(__file__).parent / "languages"
_current: gettext.NullTranslations = gettext.NullTranslations()
_name = ENGLISH


def languages() -> list[str]:
    """The names that `speak` takes: English, and every catalogue there is."""
    return [ENGLISH, *sorted(path.stem for path in _CATALOGUES.glob("*.po"))]


def speak(name: str) -> None:
    """Say everything from here on in this language. Raises ConfigError for one that has no catalogue."""
    global _current, _name
    if name not in languages():
        raise ConfigError(f"lang={name} is not known. Languages: {', '.join(languages())}.")
    _current = gettext.NullTranslations() if name == ENGLISH else _read(_CATALOGUES / f"{name}.po")
    _name = name


def spoken() -> str:
    """The name of the language in use, as in `<html lang>` (BCP 47)."""
    return _name


def _(text: str) -> str:
    """The text in the language in use, itself where the catalogue lacks it; `_("{n} trials").format(n=3)`."""
    return _current.gettext(text) if text else ""


def _read(path: Path) -> gettext.NullTranslations:
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with path.open("rb") as file:
        write_mo(compiled, read_po(file, locale=path.stem, abort_invalid=True))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)
