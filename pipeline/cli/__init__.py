"""Commands: one verb each. Parses words, calls the rooms, prints what report/ renders, maps errors to exit codes.

A verb is an entry in `verbs` and a function that takes a Given. Nothing heavy is imported before a verb is known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pipeline import language
from pipeline.cli.arguments import Given, Verb, parse
from pipeline.cli.verbs import VERBS
from pipeline.errors import ConfigError, SlackwaterError
from pipeline.language import _
from pipeline.text import open_terminal

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_terminal()
    try:
        code = _command(words)
        sys.stdout.flush()
        return code
    except SlackwaterError as error:
        return _complain(error)
    except KeyboardInterrupt:
        _flush()
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # rich makes an exit of a broken pipe
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _say_no_more()
        return 0
    except Exception as error:
        from pipeline.cli.system_errors import refused

        told = refused(error)
        if told is None:
            raise
        return _complain(told)


def _complain(error: SlackwaterError) -> int:
    _flush()
    said = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    print(f"slackwater: {language.harmless(language.worded(said))}", file=sys.stderr)
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
    if not words or words[0] in ("-h", "--help", "help"):
        return _help(words[1:])
    if words[0] == "--version":
        print(f"slackwater {_version()}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None and ("=" in words[0] or words[0].startswith(("+", "-"))):
        verb, words = VERBS["run"], ["run", *words]
    if verb is None:
        raise ConfigError(_no_verb(words[0]))
    if any(word in ("-h", "--help") for word in words[1:]):
        return _help([verb.name])
    given = parse(verb, words[1:], lang)
    if given.has("--json"):
        given = given._replace(lang=language.ENGLISH)  # a program reads it: the same document whoever asks for it
        language.speak(language.ENGLISH)
    return _act(verb, given)


def _language(words: list[str]) -> tuple[str | None, list[str]]:
    """What `lang=` asks for, and the other words; from here on that is spoken, else $SLACKWATER_LANG, else English."""
    asked = [word.partition("=")[2] for word in words if word.startswith("lang=")]
    language.speak(language.ENGLISH)  # whatever the last command of this process spoke
    if not asked and language.wished() not in language.languages():
        raise ConfigError(_("{variable}={name} is not known. Languages: {known}.").format(
            variable=language.VARIABLE, name=language.wished(), known=", ".join(language.languages())))
    language.speak(asked[-1] if asked else language.wished())
    return (asked[-1] if asked else None), [word for word in words if not word.startswith("lang=")]


def _version() -> str:
    """Of the installed package, else of the checkout this runs from."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("slackwater")
    except PackageNotFoundError:
        import tomllib

        project = os.path.join(os.path.dirname(__file__), os.pardir, os.pardir, "pyproject.toml")
        if not os.path.isfile(project):
            return _("(not installed)")
        with open(project, "rb") as file:
            return str(tomllib.load(file)["project"]["version"]) + " " + _("(not installed)")


def _help(names: list[str]) -> int:
    from pipeline.cli import help as pages

    if names and names[0] not in VERBS:
        raise ConfigError(_no_verb(names[0]))
    print(pages.verb_page(VERBS[names[0]]) if names else pages.page(), end="")
    return 0


def _no_verb(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, VERBS, n=1)
    if close:
        return _("{word} is not a command. Did you mean {close}?").format(word=word, close=close[0])
    return _("{word} is not a command. Commands: {known}.").format(word=word, known=", ".join(VERBS))


def _act(verb: Verb, given: Given) -> int:
    from importlib import import_module

    module, _colon, function = verb.act.partition(":")
    code: int = getattr(import_module(f"pipeline.cli.{module}"), function)(given)
    return code
