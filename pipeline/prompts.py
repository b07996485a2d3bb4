"""Where a trial's prompts come from: the config's own texts, turn by turn, a file, seeded words of a wanted length, or
a user who types them.

The contract and the recorded source; the user's side is report/chat.py. Nothing is measured or sent here, and no token
is counted: who can is engine/tokens.py.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import Config
from pipeline.errors import ConfigError


class Meanwhile(Protocol):
    """What a trial offers while a prompt is waited for."""

    def idle(self) -> None:
        """To be called a few times a second: watches the server, shows its memory. Raises EngineError if it ended."""

    def unload(self) -> None:
        """Drop the model now; the next prompt loads it again. Raises EngineError."""

    def next_prompt_ns(self, turn: int) -> int:
        """When the think time before this turn is over, `time.monotonic_ns()`; in the past for the first."""


class Prompts(Protocol):
    """A source of prompts, asked once per turn, after the turn before has settled."""

    def next(self, turn: int, meanwhile: Meanwhile) -> str | None:
        """The prompt of turn 1, 2, …, template applied; None: there is no further turn.

        Waits as long as its think time asks, or its user takes. What raises is raised by `meanwhile`."""

    def refused(self, reason: str) -> bool:
        """The server will not take the last prompt. True: ask again for the same turn; False: the trial has failed."""


class Recorded:
    """Prompts that are known beforehand: as many turns as `mode.turns`, `mode.think_time_s` apart."""

    def __init__(self, config: Config, prompts: Sequence[str] | None = None) -> None:
        """`prompts` by turn, as they are sent; None: the texts of the config."""
        self.config, self.prompts = config, prompts

    def next(self, turn: int, meanwhile: Meanwhile) -> str | None:
        """See Prompts."""
        if turn > self.config.mode.turns:
            return None
        while (left_s := (meanwhile.next_prompt_ns(turn) - time.monotonic_ns()) / 1e9) > 0:
            time.sleep(min(left_s, 0.05))
            meanwhile.idle()
        return self.config.prompt.at(turn) if self.prompts is None else self.prompts[turn - 1]

    def refused(self, reason: str) -> bool:
        """Another text would be another trial."""
        return False


def file_text(path: str) -> str:
    """What prompt.file holds. Raises ConfigError, in a line, for what is not text in UTF-8."""
    name = f"prompt.file={path}"
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}). "
                          "Expected a text file; `iconv -t UTF-8` converts one. Nothing was started.") from error
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}. Expected a text file; the path is relative to "
                          f"{Path.cwd()}. Nothing was started.") from error
    if "\0" in text:
        raise ConfigError(f"{name} is not text: it holds zero bytes. Expected text in UTF-8. Nothing was started.")
    if not text.strip():
        raise ConfigError(f"{name} is empty. Expected a text file in UTF-8. Nothing was started.")
    return text


def file_digest(path: str) -> str:
    """SHA-256 of prompt.file. Raises ConfigError."""
    return hashlib.sha256(file_text(path).encode()).hexdigest()


@dataclass(frozen=True)
class Cut:
    """Where seeded words end: after so many characters, and then so many times FILLER."""

    characters: int
    fillers: int = 0


FILLER = " a"
"""One token in almost every vocabulary, and in a row too."""

_PIECES = re.compile(r"[ァ-ヶー]+|[一-龯々]{1,3}[ぁ-ん]*[、。]?|[ぁ-ん]+[、。]?|.", re.DOTALL)


class Seeded:
    """Words without an end, made of given texts in an order that seed and turn decide.

    Every round has each word once, so that a piece of it has as many tokens as any other of its length; no two turns
    begin alike, so that no cache of prompts can share them."""

    def __init__(self, texts: Sequence[str], seed: int, turn: int) -> None:
        whole = " ".join(texts)
        spaced = len(whole.split()) > len(whole) / 20
        self._join = " " if spaced else ""
        self._words: list[str] = list(dict.fromkeys(whole.split() if spaced else _PIECES.findall("".join(texts))))
        self._random = random.Random(f"{seed} {turn}")
        self._text: str = self._words[(seed + turn - 1) % len(self._words)]

    def guess(self, tokens: int) -> int:
        """About how many characters have so many tokens: rather too few."""
        return tokens * (3 if self._join else 1) // 2 + 1

    def upto(self, cut: Cut) -> str:
        """The words to the cut."""
        while len(self._text) < cut.characters:
            self._random.shuffle(self._words)
            self._text += self._join + self._join.join(self._words)
        return self._text[:cut.characters] + FILLER * cut.fillers


def fit(count: Callable[[Cut], int], wanted: int, guess: int, slack: int, most: int) -> tuple[Cut, int] | None:
    """Where to cut so that at most `wanted` tokens are counted, and if it can be not more than `slack` fewer; with the
    count. None: not even one character fits.

    `count` is asked at most `most` times; `guess` is the first number of characters that is tried."""
    low: tuple[int, int] = (0, 0)
    high: tuple[int, int] | None = None
    at = guess
    for _ in range(most):
        counted = count(Cut(at))
        if counted <= wanted:
            low = (at, counted)
        else:
            high = (at, counted)
        if wanted - low[1] <= slack or (high is not None and high[0] - low[0] <= 1):
            break
        if high is None:
            at = max(low[0] + 1, low[0] * wanted // max(low[1], 1))
        else:
            share = (wanted - low[1]) / (high[1] - low[1])
            at = min(low[0] + max(1, int(share * (high[0] - low[0]))), high[0] - 1)
    return (Cut(low[0]), low[1]) if low[0] else None


def text_source(params: Mapping[str, Any], tags: Mapping[str, str]) -> tuple[str, str, int] | None:
    """What a trial was asked, from its params and tags: name, digest (sha256, 12 digits) and number of the texts that
    its prompts come from, template included.

    Of a file, and of words cut to a length, the digest is of the prompts as they were sent; they stand whole in
    response.txt, as do those that a person typed, which are no dataset (None)."""
    language, typed = params.get("prompt.language"), params.get("mode.source") == "stdin"
    given, sent = params.get("prompt.text"), tags.get("prompt_digest", "")[:12]
    if sent and not typed and not given:
        turns = int(params.get("mode.turns") or 1) if params.get("prompt.distinct") else 1
        if params.get("prompt.file"):
            return f"{Path(str(params['prompt.file'])).name} ({language})", sent, 1
        if params.get("prompt.tokens"):
            return f"{params['prompt.tokens']} tokens ({language})", sent, turns
        if params.get("prompt.fill"):
            share = f"{100 * float(params['prompt.fill']):g} % of {params.get('num_ctx')}"
            return f"{share} tokens ({language})", sent, turns
    texts = [given] if given else params.get(f"prompt.texts.{language}")
    if typed or not texts:
        return None
    name = "one text" if given else str(params.get("prompt.name"))
    whole = json.dumps([texts, params.get(f"prompt.templates.{language}")], ensure_ascii=False)
    return f"{name} ({language})", hashlib.sha256(whole.encode()).hexdigest()[:12], len(texts)
