"""Prompts that have a length, and prompts from a file: what is sent, what is refused, what a page says of the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from pipeline.config import Config
from pipeline.engine import tokens
from pipeline.engine.base import Generation
from pipeline.errors import ConfigError, EngineError
from pipeline.outcome import verdict_of
from pipeline.prompts import Cut, Recorded, Seeded, fit
from pipeline.record.trial import TrialRecord
from pipeline.stats.context import context_use
from pipeline.sweep import identity, lengths
from pipeline.sweep.cells import check_cells, refuse_other_work
from pipeline.trial import Record
from tests.unit import made_records
from tests.unit.test_rerun import composed

INSTRUCTION = "prompt.templates={en: 'Instruction: {prompt} Answer:'}"


@functools.cache
def base() -> Config:
    return composed()


def test_more_turns_than_texts_ask_something_new_each_time() -> None:
    config = made("mode.turns=20")
    sent, texts = lengths.prompts_of(config), config.prompt.texts["en"]
    assert sent[:len(texts)] == texts, "its own texts come first"
    assert len({text[:20] for text in sent}) == 20 and sent == lengths.prompts_of(made("mode.turns=20"))
    assert [len(text) for text in sent[6:12]] == [len(text) for text in texts], "as long as those before"
    assert set(lengths.prompts_of(made("mode.turns=8", "prompt.distinct=false"))) == {texts[0]}


def made(*overrides: str) -> Config:
    """The default config with these changed, checked as Hydra's; composing takes a quarter of a second each."""
    config, groups = base(), dict[str, dict[str, Any]]()
    top: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        group, _, name = key.rpartition(".")
        value = yaml.safe_load(text)
        if group:
            groups.setdefault(group, {})[name] = value
        else:
            top[key] = value
    return replace(config, **top, **{group: replace(getattr(config, group), **values)
                                     for group, values in groups.items()})


class Counter:
    """Stands in for both ways to count: a token per four bytes and nine for what a server adds; no server, no file."""

    def __init__(self, file: bool) -> None:
        self.file, self.asked = file, list[str]()

    def __call__(self, prompt: str) -> int:
        self.asked.append(prompt)
        return 9 + -(-len(prompt.encode()) // 4)

    @contextmanager
    def by_file(self, path: Path, config: Config) -> Iterator[tokens.Count]:
        if not self.file:
            raise EngineError("no tokenizer that is known")
        yield self

    @contextmanager
    def by_server(self, engine: object) -> Iterator[tokens.Count]:
        assert not self.file, "the file's tokenizer can count"
        yield self


@pytest.fixture(params=["file", "server"])
def counter(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    made = Counter(request.param == "file")
    monkeypatch.setattr(tokens, "by_file", made.by_file)
    monkeypatch.setattr(tokens, "by_server", made.by_server)
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    monkeypatch.setattr("pipeline.engine.llamacpp.Engine.tokenizer", model)
    return made


@pytest.mark.parametrize("overrides", [
    ["prompt.tokens=1900"], ["prompt.tokens=300", INSTRUCTION], ["prompt.fill=0.9"],
    ["prompt.tokens=1500", "prompt.language=ja"], ["prompt.tokens=60", "mode.turns=2"],
])
def test_a_prompt_has_the_length_that_was_asked_for_and_is_counted_once(overrides: list[str], counter: Counter) -> None:
    config = made(*overrides)
    wanted = config.prompt_tokens
    assert wanted is not None
    sent = lengths.prompts_of(config)
    counts = [9 + -(-len(prompt.encode()) // 4) for prompt in sent]
    if counter.file:
        assert all(wanted - 3 <= count <= wanted for count in counts)  # what fills up has two bytes, half a token
    else:
        assert all(abs(count - wanted) <= max(2, 0.01 * wanted) for count in counts)
        assert len(counter.asked) <= 4
    asked = len(counter.asked)
    again = made(*overrides, "infer_os.quantization=true")
    assert lengths.prompts_of(again) == sent, "byte for byte the same in every cell"
    assert len(counter.asked) == asked


def test_no_two_turns_begin_alike_unless_the_same_prompt_is_wanted(counter: Counter) -> None:
    sent = lengths.prompts_of(made("prompt.tokens=500", "mode.turns=6"))
    assert len({prompt.split()[0] for prompt in sent}) == 6
    assert len(set(lengths.prompts_of(made("prompt.tokens=500", "mode.turns=6", "prompt.distinct=false")))) == 1
    assert lengths.prompts_of(made("prompt.tokens=500", "seed=7"))[0] != sent[0]


def test_words_are_of_the_prompts_language_and_each_comes_equally_often() -> None:
    prompt = made("prompt.language=ja").prompt
    for language in ("en", "ja"):
        texts = prompt.texts[language]
        said = Seeded(texts, 42, 1).upto(Cut(5000))
        assert set(said) <= {" ", *"".join(texts)}
    words = Seeded(prompt.texts["en"], 42, 1).upto(Cut(20_000)).split()
    counts = [words.count(word) for word in set(words[:200])]
    assert max(counts) - min(counts) <= 2


def test_a_cut_is_found_in_a_few_counts_and_none_where_nothing_fits() -> None:
    asked = []

    def count(cut: Cut) -> int:
        asked.append(cut)
        return 12 + cut.characters // 5

    assert fit(count, 7000, 10_000, 0, 60) == (Cut(34_940), 7000)
    assert len(asked) <= 6
    assert fit(count, 11, 20, 0, 60) is None


def test_too_few_tokens_for_the_template_are_refused_with_the_number(counter: Counter) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.tokens=9 is too few: the template"):
        lengths.prompts_of(made("prompt.tokens=9"))


@pytest.mark.parametrize(("overrides", "words"), [
    (["prompt.tokens=7000"], r"prompt.tokens=7000 does not fit: with an answer of max_tokens=64 it takes 7065 tokens "
                             r"of a context of num_ctx=2048 .*num_ctx=7065 or more, or prompt.tokens=1983 or fewer"),
    (["prompt.tokens=1000", "mode.history=true"], "3 turns with mode.history=true.* it takes 3197 tokens"),
    (["prompt.tokens=10", "prompt.text=a"], "prompt.text and prompt.tokens are given together"),
    (["prompt.file=a", "prompt.text=a"], "prompt.text and prompt.file are given together"),
    (["prompt.tokens=0"], "prompt.tokens=0 is not allowed"),
    (["prompt.fill=1.1"], "prompt.fill=1.1 is not allowed"),
    (["prompt.fill=0.1", "num_ctx=512"], "prompt.fill=0.1 of num_ctx=512 leaves no room"),
    (["prompt.tokens=10", "mode.source=stdin"], "prompt.tokens=10 is not allowed: .*the user types"),
])
def test_a_length_that_cannot_be_is_refused_before_anything_starts(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made(*overrides)


def test_a_share_of_the_context_holds_prompt_and_answer_of_every_turn_in_it() -> None:
    assert made("prompt.fill=0.9", "num_ctx=8192").prompt_tokens == 7372 - 64
    assert made("prompt.fill=0.9", "num_ctx=8192", "mode.history=true").prompt_tokens == 7368 // 3 - 64
    assert made("prompt.fill=1").prompt_tokens == 2047 - 64
    for own in ("prompt.text=a", "prompt.file=a"):
        assert made("prompt.fill=0.9", own).prompt_tokens is None
    assert made("prompt.fill=0.9", "prompt.tokens=100").prompt_tokens == 100
    assert made("prompt.fill=0.9", "mode.source=stdin", "num_ctx=64").prompt_tokens


@pytest.mark.parametrize(("content", "words"), [
    (None, "cannot be read: No such file"), (b"", "is empty"), (b" \n", "is empty"), (b"a\0b", "zero bytes"),
    ("海".encode("euc_jp"), r"not text in UTF-8 \(byte 0 is 0x"),
])
def test_a_file_that_is_no_text_is_refused_in_a_line_before_anything_starts(content: bytes | None, words: str,
                                                                            tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    config = made(f"prompt.file={path}")
    with pytest.raises(ConfigError, match=f"prompt.file=.*{words}") as refused:
        check_cells([config], [[]])
    assert "\n" not in str(refused.value)


def test_a_file_is_sent_as_it_is_and_a_sweep_whose_file_has_changed_is_told(tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_bytes("\ufeff潮の満ち引き\r\n".encode())
    config = made("prompt.file=prompt.txt", "prompt.templates={en: 'User: {prompt}'}")
    assert lengths.prompts_of(config) == ["User: 潮の満ち引き\r\n"] * 3
    cells, _skipped = check_cells([config], [[]])
    before = identity.environment(cells)
    Path("prompt.txt").write_text("another text", encoding="utf-8")
    changed = {key for key, value in identity.environment(cells).items() if before[key] != value}
    assert changed == {"prompt.file prompt.txt"}


def test_a_file_that_the_context_cannot_hold_is_refused_with_its_tokens(counter: Counter, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("tide " * 2000, encoding="utf-8")
    config = made(f"prompt.file={tmp_path}/long.txt")
    if counter.file:
        with pytest.raises(ConfigError, match=r"prompt\.file does not fit: it has 2509 tokens.*num_ctx=2574 or more"):
            lengths.require_fit(config)
    else:
        lengths.require_fit(config)  # the server will tell
    lengths.require_fit(made())


def test_lengths_can_be_swept_where_they_are_the_question() -> None:
    arms = [made("prompt.tokens=100"), made("prompt.tokens=200")]
    with pytest.raises(ConfigError, match=r"prompt\.tokens is 100 and 200.*design\.factor=\[prompt\.tokens"):
        refuse_other_work(arms)
    refuse_other_work([made(f"prompt.tokens={n}", "design.factor=[prompt.tokens]") for n in (100, 200)])
    refuse_other_work([made("prompt.fill=0.9", f"num_ctx={n}", "design.factor=[num_ctx]") for n in (512, 2048)])


def test_prompts_are_asked_turn_by_turn() -> None:
    class Now:
        def next_prompt_ns(self, turn: int) -> int:
            return 0

    recorded: Any = Recorded(made("mode.turns=2"), ["first", "second"])
    assert [recorded.next(turn, Now()) for turn in (1, 2, 3)] == ["first", "second", None]


def test_a_trial_whose_server_counts_another_length_is_suspect() -> None:
    def verdict(counted: int, *overrides: str) -> Sequence[str]:
        record = Record(generations={1: Generation("", counted, None, 64, "limit", False),
                                     2: Generation("", counted, None, 64, "limit", False)})
        return verdict_of(record, {}, None, made("prompt.tokens=500", *overrides))[1]

    assert verdict(500) == verdict(495) == verdict(505) == []
    assert verdict(506) == [f"the server counts 506 tokens in the prompt of turn {turn}, which was cut to 500"
                            for turn in (1, 2)]
    assert len(verdict(600, "mode.history=true")) == 1, "the second turn carries the first"


def test_a_page_says_when_too_little_of_the_context_was_used_for_a_question_about_the_cache() -> None:
    def trial(num_ctx: int, prompt: float) -> TrialRecord:
        return made_records.trial(f"oneshot-{num_ctx}", 1, 200.0, num_ctx=num_ctx, metrics={
            "during_generation/prompt_tokens": {1: prompt}, "during_generation/output_tokens": {1: 3.0}})

    little = context_use([trial(2048, 1800), trial(8192, 14)])
    assert little is not None and little.note.startswith("17 of 8192 tokens of the context were used: what a filled")
    filled = context_use([trial(2048, 1800), trial(8192, 7000)])
    assert filled is not None and filled.note == ""
    assert context_use([]) is None
