"""The prompts of a cell as they are sent, turn by turn: its texts, its file, or seeded words cut to a number of tokens.

Words are cut once, before the first trial; where is kept in the cache, by tokenizer, so that every trial of every cell
gets the same bytes, in whatever process it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from pipeline.config import SPARE, Config
from pipeline.engine import load_engine, tokens
from pipeline.engine.base import EngineBase
from pipeline.errors import ConfigError, EngineError, PromptTooLongError
from pipeline.model import digest
from pipeline.prompts import Cut, Seeded, file_text, fit

TOLERANCE_PCT = 1.0
"""How far the server's count may be from the wanted one."""
_ROUNDS = 60
_REQUESTS = 4
"""Where only the server can count, each count is a request that computes the whole prompt."""
_VERSION = 1
"""Of what is kept: another one for other words or another way to cut."""


def prompts_of(config: Config) -> list[str]:
    """By turn, template applied. Raises ConfigError: no such file, or a length that cannot be had."""
    prompt, turns = config.prompt, range(1, config.mode.turns + 1)
    if prompt.file is not None:
        return [prompt.filled(file_text(prompt.file))] * len(turns)
    wanted = config.prompt_tokens
    if wanted is None:
        return [prompt.at(turn) if turn <= len(prompt.texts[prompt.language]) or prompt.text or not prompt.distinct
                else _one_more(config, turn) for turn in turns]
    words = [Seeded(prompt.texts[prompt.language], config.seed, turn if prompt.distinct else 1) for turn in turns]
    return [prompt.filled(each.upto(cut)) for each, cut in zip(words, _cuts(config, words, wanted), strict=True)]


def _one_more(config: Config, turn: int) -> str:
    """A prompt for a turn that has no text of its own: seeded words, as long as the text that would come again."""
    texts = config.prompt.texts[config.prompt.language]
    words = Seeded(texts, config.seed, turn)
    return config.prompt.filled(words.upto(Cut(len(texts[(turn - 1) % len(texts)]))))


def require_fit(config: Config) -> None:
    """Raises ConfigError for a text or a file of the user's that the context cannot hold, by the tokenizer's count.

    Costs nothing for a text with fewer bytes than the context has tokens, or where only the server can count."""
    room, path = config.num_ctx - config.max_tokens - SPARE, load_engine(config).tokenizer
    longest = max(prompts_of(config), key=lambda prompt: len(prompt.encode()))
    if path is None or config.prompt_tokens is not None or len(longest.encode()) <= room:
        return
    with contextlib.suppress(EngineError), tokens.by_file(path, config) as count:
        if (counted := count(longest)) > room:
            key = "prompt.file" if config.prompt.file is not None else "the prompt"
            raise ConfigError(f"{key} does not fit: it has {counted} tokens, and with an answer of max_tokens="
                              f"{config.max_tokens} a context of num_ctx={config.num_ctx} (of one slot) has room for "
                              f"{room}. Choose num_ctx={counted + config.max_tokens + SPARE} or more, or a shorter "
                              "prompt. Nothing was measured.")


def _cuts(config: Config, words: list[Seeded], wanted: int) -> list[Cut]:
    engine = load_engine(config)
    kept = _kept_at(config, engine, len(words), wanted)
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [Cut(*cut) for cut in json.loads(kept.read_text(encoding="utf-8"))]
    try:
        found = _cut(config, engine, words, wanted)
    except EngineError as error:
        raise ConfigError(f"{_asked(config, wanted)}: tokens could not be counted: {error}") from error
    with contextlib.suppress(OSError):  # then they are counted again
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([[cut.characters, cut.fillers] for cut in found]), encoding="utf-8")
    return found


def _cut(config: Config, engine: EngineBase, words: list[Seeded], wanted: int) -> list[Cut]:
    path = engine.tokenizer
    if path is not None:
        with contextlib.suppress(EngineError), tokens.by_file(path, config) as count:
            return _exactly(config, words, wanted, count)
    with tokens.by_server(engine) as count:
        return _about(config, words, wanted, count)


def _exactly(config: Config, words: list[Seeded], wanted: int, count: tokens.Count) -> list[Cut]:
    found: list[Cut] = []
    for each in words:
        def counted(cut: Cut, each: Seeded = each) -> int:
            return count(config.prompt.filled(each.upto(cut)))

        guess = found[-1].characters if found else each.guess(wanted)
        cut, has = fit(counted, wanted, guess, 0, _ROUNDS) or _too_short(config, wanted)
        for fillers in range(wanted - has, 0, -1):
            if counted(Cut(cut.characters, fillers)) <= wanted:
                cut = Cut(cut.characters, fillers)
                break
        found.append(cut)
    return found


def _about(config: Config, words: list[Seeded], wanted: int, count: tokens.Count) -> list[Cut]:
    """The first turn's cut holds for all: a round of the words has the same tokens in any order."""
    def counted(cut: Cut) -> int:
        try:
            return count(config.prompt.filled(words[0].upto(cut)))
        except PromptTooLongError:
            return 2 * config.num_ctx

    slack = max(1, int(wanted * TOLERANCE_PCT / 100 / 2))
    cut, has = fit(counted, wanted, words[0].guess(wanted), slack, _REQUESTS) or _too_short(config, wanted)
    if wanted - has > max(2 * slack, 2):
        raise ConfigError(f"{_asked(config, wanted)}: the nearest that {_REQUESTS} requests found has {has}. Choose "
                          "another number. Nothing was measured.")
    return [cut] * len(words)


def _asked(config: Config, wanted: int) -> str:
    return f"prompt.tokens={wanted}" if config.prompt.tokens is not None else (
        f"prompt.fill={config.prompt.fill:g} ({wanted} tokens)")


def _too_short(config: Config, wanted: int) -> tuple[Cut, int]:
    raise ConfigError(f"{_asked(config, wanted)} is too few: the template and the server's own tokens alone take more. "
                      "Choose more, or prompt=simple. Nothing was measured.")


def _kept_at(config: Config, engine: EngineBase, turns: int, wanted: int) -> Path:
    prompt, path = config.prompt, engine.tokenizer
    if path is not None:
        stat = path.stat()
        counter = digest.known_digest([path]) or f"{path} {stat.st_size} {stat.st_mtime_ns}"
    else:
        facts = engine.provenance()
        counter = json.dumps([facts.get(key) for key in ("engine_version", "model_digest", "model_name")])
    key = [_VERSION, counter, config.engine.raw, prompt.templates[prompt.language], prompt.texts[prompt.language],
           config.seed, prompt.distinct, turns, wanted]
    return digest.cache_folder() / "prompts" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"
