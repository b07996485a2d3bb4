"""click as slackwater speaks: a wrong word is one line, in the language in use; words without a verb may mean `run`.

What commands there are stands in commands.py; nothing is done with what was given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from pipeline.cli import help as pages
from pipeline.errors import ConfigError
from pipeline.language import ENGLISH, _, speak

HELP = ("-h", "--help")


class Words(click.Argument):
    """What stands behind a command without a flag; `metavar` is how the help writes it."""

    def __init__(self, name: str, metavar: str, **attributes: Any) -> None:
        super().__init__([name], metavar=metavar, **attributes)


class Flag(click.Option):
    """An option: what it is for (`help`) and, where it takes a value (`metavar`), what is expected there."""

    def __init__(self, *names: str, expected: str = "", **attributes: Any) -> None:
        super().__init__(names, is_flag=None if "metavar" in attributes else True, **attributes)
        self.expected = expected

    @property
    def usage(self) -> str:
        """"--store URI"."""
        return f"{', '.join(self.opts)} {self.metavar or ''}".rstrip()

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As click does. Raises ConfigError for a value that is not what was expected."""
        try:
            return super().type_cast_value(ctx, value)
        except click.BadParameter as error:
            raise ConfigError(_("{flag} {value} is not allowed: expected {expected}.").format(
                flag=self.opts[0], value=value, expected=_(self.expected))) from error


class Verb(click.Command):
    """One command. `more`: further lines of its help; `passes_on`: words it does not know are Hydra's."""

    def __init__(self, name: str | None, more: str = "", passes_on: bool = False, **attributes: Any) -> None:
        super().__init__(name, add_help_option=False, short_help=attributes["help"], **attributes)
        self.context_settings = {"allow_extra_args": True, "ignore_unknown_options": passes_on}
        self.more, self.passes_on = more, passes_on
        self.usage = " ".join(["slackwater", str(self.name), *(str(one.metavar) for one in self.params
                                                               if isinstance(one, Words) and one.metavar)])
        self.flags = [one for one in self.params if isinstance(one, Flag)]
        self.params = [*self.params, _asking(*HELP)]

    def get_help(self, ctx: click.Context) -> str:
        """Its own page."""
        flags = [(flag.usage, str(flag.help)) for flag in self.flags]
        return pages.verb_page(self.usage, str(self.help), self.more, flags, settings=self.passes_on)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does. Raises ConfigError: an unknown flag, a missing value, too few words or too many."""
        try:  # who asks for help gets it, whatever else is wrong
            rest = super().parse_args(ctx, ["--help"] if {*HELP} & {*args} and not ctx.resilient_parsing else args)
        except click.NoSuchOption as error:
            raise self.unknown_flag(error.option_name) from error
        except click.BadOptionUsage as error:
            flag = next(one for one in self.flags if error.option_name in one.opts)
            said = _("{flag} needs {expected}.") if flag.metavar else _("{flag} takes no value.")
            raise ConfigError(said.format(flag=error.option_name, expected=_(flag.expected))) from error
        except click.MissingParameter as error:
            raise ConfigError(_("{verb} needs more than that: {usage}").format(
                verb=self.name, usage=self.usage)) from error
        if rest and not ctx.resilient_parsing:
            raise ConfigError(_("{extra} is too much for {verb}: {usage}").format(
                extra=" ".join(rest), verb=self.name, usage=self.usage))
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Do it; a document is the same whoever asks for it."""
        if ctx.params.get("as_json"):
            ctx.obj = ENGLISH
            speak(ENGLISH)
        return super().invoke(ctx)

    def unknown_flag(self, word: str) -> ConfigError:
        """What to say of a flag that it does not have."""
        names = [name for flag in self.flags for name in flag.opts]
        close = _close(word.partition("=")[0], names)
        said = _("{flag} is not a flag of {verb}. Did you mean {close}?") if close else \
            _("{flag} is not a flag of {verb}. Flags: {known}.") if names else \
            _("{flag} is not understood: {verb} has no flags.")
        return ConfigError(said.format(flag=word, verb=self.name, close="".join(close),
                                       known=", ".join(flag.usage for flag in self.flags)))


class Verbs(click.Group):
    """The whole program. What looks like an override, or like a flag it does not have, means `run`."""

    command_class = Verb
    commands: dict[str, Verb]  # type: ignore[assignment]

    def __init__(self, *given: Any, **attributes: Any) -> None:
        super().__init__(*given, **attributes, add_help_option=False)
        self.params = [_asking(*HELP), _asking("--version")]

    def get_help(self, ctx: click.Context) -> str:
        """The whole program on one page."""
        return pages.page([(name, " ".join(verb.usage.split()[2:]), str(verb.help))
                           for name, verb in self.commands.items()])

    def meant(self, words: list[str]) -> list[str]:
        """The words with the verb that they leave out."""
        left_out = words and words[0] not in (*self.commands, *HELP, "--version") and (
            "=" in words[0] or words[0].startswith(("+", "-")))
        return ["run", *words] if left_out else words

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; `help VERB` is `VERB --help`, and nothing asks for help."""
        if not ctx.resilient_parsing:
            args = [*args[1:2], "--help"] if not args or args[0] in ("help", *HELP) else self.meant(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does. Raises ConfigError for a command that there is not."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            close = _close(args[0], self.commands)
            said = _("{word} is not a command. Did you mean {close}?") if close else \
                _("{word} is not a command. Commands: {known}.")
            raise ConfigError(said.format(word=args[0], close="".join(close), known=", ".join(self.commands)))
        return super().resolve_command(ctx, args)


def _asking(*names: str) -> Flag:
    return Flag(*names, is_eager=True, expose_value=False, callback=_answer)


def _answer(ctx: click.Context, flag: click.Parameter, given: bool) -> None:
    if given and not ctx.resilient_parsing:
        print(ctx.get_help() if flag.name == "help" else pages.version(), end="")
        ctx.exit()


def _close(word: str, known: Iterable[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(word, list(known), n=1)
