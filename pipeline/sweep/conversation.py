"""A sweep whose prompts a person types (`mode.source=stdin`): what it may be, and who is brought to it.

One cell, one trial, as many turns as are typed. How typing looks is report/chat.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.progress import Listener
from pipeline.prompts import Prompts


class Conversation(Listener, Prompts, Protocol):
    """Both sides of a person: what is shown to them, and what they type."""


def is_typed(configs: Sequence[Config]) -> bool:
    """Does a person ask? Raises ConfigError where they could not: more than one cell, warm-ups."""
    if not any(config.mode.source == "stdin" for config in configs):
        return False
    if len(configs) > 1:
        raise ConfigError(_("mode.source=stdin is a conversation: one cell, and this sweep has {n}. Sweep with "
                            "recorded prompts, or choose one value of each setting.").format(n=len(configs)))
    first = configs[0]
    if first.design.warmup or first.stop.name != "repetitions":
        raise ConfigError(_("mode.source=stdin is a conversation of one trial: it takes no design.warmup and no "
                            "stop={stop}.").format(stop=first.stop.name))
    return True


def check_repetitions(arguments: Sequence[str]) -> None:
    """A person is asked once. Raises ConfigError where more was asked for; the config's default does not count."""
    for word in arguments:
        key, _equals, value = word.lstrip("+").partition("=")
        if key == "repetitions" and value != "1":
            raise ConfigError(_("repetitions={n}: typed prompts cannot be repeated. Leave it out; with "
                                "mode.source=recorded the same prompts can be repeated.").format(n=value))


def bring_person(config: Config, converse: Callable[[Config], Conversation] | None) -> Conversation:
    """Let a person ask and be shown the answers. Raises ConfigError: nobody is there, and nothing was piped."""
    if converse is None:
        raise ConfigError(_("mode.source=stdin needs a user who types: start it with `slackwater run`."))
    return converse(config)
