"""A conversation as the user sees it: what is typed, what is shown, and what a model's answer must not do."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from omegaconf import OmegaConf
from rich.cells import cell_len

from pipeline import language
from pipeline.config import CONF_DIR, Config, Design, Mode, Prompt, Stop
from pipeline.errors import ConfigError
from pipeline.progress import Reading, StageEntered, TrialStarted, TurnMeasured, Words
from pipeline.prompts import Recorded
from pipeline.report.chat import Chat
from pipeline.sweep.conversation import check_repetitions, is_typed

MIB = 2**20
TURN = TurnMeasured(1, 190 * MIB, 198 * MIB, 194 * MIB, 193 * MIB, 2.0, True, 12, 0.5)


def config(**mode: object) -> Config:
    simple = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "prompt" / "conversation.yaml"))
    assert isinstance(simple, dict)
    texts = {"en": ["One?", "Two?"]}
    return Config(mode=Mode(name="interactive", source="stdin", **mode),  # type: ignore[arg-type]
                  prompt=Prompt(name="conversation", templates=simple["templates"], texts=texts),
                  design=Design(name="blocked"), stop=Stop(name="repetitions"))


class Server:
    """What a trial offers; counts what is asked of it."""

    def __init__(self) -> None:
        self.unloaded = self.idled = 0
        self.due_ns = 0

    def idle(self) -> None:
        self.idled += 1

    def unload(self) -> None:
        self.unloaded += 1

    def next_prompt_ns(self, turn: int) -> int:
        return self.due_ns


@contextmanager
def piped(text: bytes) -> Iterator[Chat]:
    read, write = os.pipe()
    os.write(write, text)
    os.close(write)
    try:
        yield Chat(config(), stdin=read)
    finally:
        os.close(read)


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    language.speak(language.ENGLISH)


def test_every_line_is_a_prompt_in_its_template_and_the_end_of_input_ends_it(
        capsys: pytest.CaptureFixture[str]) -> None:
    with piped("Why?\n\n   \n潮は?\nlast one".encode()) as chat:
        asked = [chat.next(turn, Server()) for turn in (1, 2, 3, 4)]
    assert asked == ["User: Why?\nAssistant:", "User: 潮は?\nAssistant:", "User: last one\nAssistant:", None]
    assert capsys.readouterr().out == "> Why?\n> 潮は?\n> last one\n"


def test_what_begins_with_a_slash_is_for_slackwater_and_not_for_the_model(
        capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    with piped(b"/stats\n/unload\n/frob now\n/quit\nnever asked\n") as chat:
        chat.on_event(Reading(150 * MIB, 20 * MIB, 0, 0, 198 * MIB, 0))
        assert chat.next(1, server) is None
    said = capsys.readouterr().out
    assert "now, MiB: anonymous 150.0   file 20.0   shared 0.0   swap 0.0" in said
    assert "No turn has been measured yet." in said
    assert server.unloaded == 1 and "The model is unloaded: 170.0 → 170.0 MiB." in said
    assert "/frob is not known here. Commands: /stats, /unload, /quit." in said
    assert "never asked" not in said


def test_a_line_that_the_terminal_cut_is_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    master, slave = pty.openpty()
    try:
        os.write(master, b"short\n")
        chat = Chat(config(), stdin=slave)
        assert chat.next(1, Server()) == "User: short\nAssistant:"
        os.write(master, b"x" * 5000 + b"\nand on\n")
        assert chat.next(2, Server()) == "User: and on\nAssistant:"
        assert "That line was cut: a terminal passes on 4095 bytes" in capsys.readouterr().out
    finally:
        os.close(master)
        os.close(slave)


def test_an_answer_is_shown_as_it_comes_and_its_memory_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with piped(b"x\n") as chat:
        chat.on_event(TrialStarted(1, "c", 1, 1))
        chat.on_event(StageEntered("generate", 1, 1))
        for piece in ("The ", "tide", "\n\nturns"):
            chat.on_event(Words(piece))
        chat.on_event(TURN)
    assert capsys.readouterr().out == (
        "The tide\n\nturns\n"
        "turn 1  before 190.0  peak 198.0  after 194.0  settled 193.0 MiB  22.0 tokens/s\n")


def test_a_hostile_answer_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 \x9b31m \r\b\x00 \u202egnp.exe \u2066x <script> [bold]b[/bold] \ud800"
    with piped(b"\x1b[31mred\n") as chat:
        chat.on_event(Words(hostile))
        chat.on_event(Words("\x1b"))
        chat.on_event(Words("[31m"))
        chat.next(1, Server())
        chat.refused("the log says \x1b[31m")
    said = capsys.readouterr().out
    assert not any((ord(sign) < 32 and sign != "\n") or 0x7F <= ord(sign) < 0xA0 for sign in said)
    assert not any(sign in said for sign in "\u202e\u2066\ud800")
    assert "␛[2J" in said and "<script> [bold]b[/bold]" in said


def test_nobody_there_is_an_error_before_anything_is_started() -> None:
    with pytest.raises(ConfigError, match="nobody types here"), piped(b" \n\n"):
        pass
    with pytest.raises(ConfigError, match="nobody types here"):
        Chat(config(), stdin=987)


def test_a_conversation_is_one_cell_and_one_trial() -> None:
    one = config()
    assert is_typed([one])
    assert not is_typed([Config(mode=Mode(name="interactive"), design=Design(), stop=Stop())])
    with pytest.raises(ConfigError, match="one cell, and this sweep has 2"):
        is_typed([one, one])
    one.design.warmup = 1
    with pytest.raises(ConfigError, match="no design"):
        is_typed([one])
    check_repetitions(["mode.source=stdin", "repetitions=1"])
    with pytest.raises(ConfigError, match="repetitions=3"):
        check_repetitions(["repetitions=3"])
    with pytest.raises(ConfigError, match="interactive"):
        Mode(name="oneshot", source="stdin")
    with pytest.raises(ConfigError, match="recorded or stdin"):
        Mode(name="interactive", source="keyboard")


def test_recorded_prompts_come_when_the_think_time_is_over() -> None:
    import time

    server, recorded = Server(), Recorded(config(turns=2))
    assert recorded.next(1, server) == "User: One?\nAssistant:"
    server.due_ns = time.monotonic_ns() + 120_000_000
    assert recorded.next(2, server) == "User: Two?\nAssistant:"
    assert time.monotonic_ns() >= server.due_ns
    assert server.idled >= 2
    assert recorded.next(3, server) is None
    assert not recorded.refused("too long")


def test_a_conversation_in_japanese(capsys: pytest.CaptureFixture[str]) -> None:
    language.speak("ja")
    with piped(b"/stats\n") as chat:
        chat.on_event(TURN)
        chat.next(2, Server())
    assert "ターン1  前 190.0" in capsys.readouterr().out


def test_an_answer_is_wrapped_at_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    answer = f"The moon pulls at the water of the sea, 潮の満ち引きは月の引力で起こります。 {'x' * 90} and on.\n\nEnd"
    for width in (20, 40, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
        monkeypatch.setenv("NO_COLOR", "1")
        with piped(b"x\n") as chat:
            chat.on_event(TrialStarted(1, "c", 1, 1))
            for size in (1, 2, 3, 5, 8):
                for at in range(0, len(answer), size):
                    chat.on_event(Words(answer[at:at + size]))
                chat.on_event(TURN)
                said = capsys.readouterr().out.partition("turn 1")[0].partition("\x1b[")[0]
                assert "".join(said.split()) == "".join(answer.split())
                assert all(cell_len(line) < width or "xx" in line for line in said.splitlines())
                assert "\n\nEnd" in said
                assert not any(line.startswith(" ") for line in said.splitlines())
