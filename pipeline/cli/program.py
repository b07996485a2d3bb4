"""One command: its words, its language, and what each way to end means for the exit code."""

from __future__ import annotations

import os
import sys

from click.exceptions import Exit

from pipeline import interrupt, language
from pipeline.cli.commands import slackwater
from pipeline.errors import ConfigError, SlackwaterError
from pipeline.language import _
from pipeline.text import masked, open_terminal


def run(words: list[str]) -> int:
    """Run the command that these words are, and return its exit code. Raises KeyboardInterrupt, and bugs."""
    open_terminal()
    try:
        code = _command(words)
        sys.stdout.flush()
        return code
    except SlackwaterError as error:
        return _complain(error)
    except KeyboardInterrupt:
        _flush()
        raise
    except (BrokenPipeError, SystemExit) as error:
        # rich makes an exit of a broken pipe
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _say_no_more()
        return 0
    except Exception as error:
        from pipeline.cli.system_errors import TRACE, refused

        if interrupt.came() and not os.environ.get(TRACE):
            raise KeyboardInterrupt from error  # what a library made of the interruption
        told = refused(error)
        if told is None:
            raise
        return _complain(told)


def _complain(error: SlackwaterError) -> int:
    _flush()
    said = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    print(f"slackwater: {masked(language.harmless(language.worded(said)))}", file=sys.stderr)
    return error.exit_code


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _say_no_more()


def _say_no_more() -> None:
    """The reader of our pipe went away (| head), or stdout's disk is full: nothing can be said there, also at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(words: list[str]) -> int:
    lang, words = _language(words)
    if not sys.platform.startswith("linux"):
        raise ConfigError(_("slackwater runs on Linux only for now; this is {platform}.").format(platform=sys.platform))
    try:
        with slackwater.make_context("slackwater", words, obj=lang) as context:
            return slackwater.invoke(context) or 0
    except Exit as end:
        return end.exit_code


def _language(words: list[str]) -> tuple[str | None, list[str]]:
    """What `lang=` asks for, and the other words; from here on that is spoken, else $SLACKWATER_LANG, else English."""
    asked = [word.partition("=")[2] for word in words if word.startswith("lang=")]
    language.speak(language.ENGLISH)  # whatever the last command of this process spoke
    if not asked and language.wished() not in language.languages():
        raise ConfigError(_("{variable}={name} is not known. Languages: {known}.").format(
            variable=language.VARIABLE, name=language.wished(), known=", ".join(language.languages())))
    language.speak(asked[-1] if asked else language.wished())
    return (asked[-1] if asked else None), [word for word in words if not word.startswith("lang=")]
