"""A conversation at the terminal (`mode.source=stdin`): a prompt, the answer as it comes, one line of memory per turn.

It is both a source of prompts and a listener. What a model writes is hostile: it is shown, never obeyed. Nothing is
measured here; a turn's figures come as an event.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import sys

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.interrupt import ended_by_ctrl_c
from pipeline.language import _, harmless, worded
from pipeline.progress import (
    Event,
    Notice,
    Reading,
    StageEntered,
    SweepStarted,
    TrialFinished,
    TrialStarted,
    TurnMeasured,
    Waiting,
    Words,
)
from pipeline.prompts import Meanwhile
from pipeline.report.live import STAGES, finished_line
from pipeline.report.region import can_redraw
from pipeline.report.terminal_lines import paragraph
from pipeline.report.wording import number

_MIB = 1024 * 1024
_LINE_OF_A_TERMINAL = 4095
"""Bytes of one line that Linux' line discipline keeps (N_TTY, termios(3)); it drops the rest without a word."""
_LONGEST_LINE = 1_000_000
"""Bytes of one prompt; a context would hold less."""
_WORD = re.compile(r"[^\s\u3000-\u9fff\uff00-\uffef]+")
_PARTS = re.compile(rf"\n|[^\S\n]+|[\u3000-\u9fff\uff00-\uffef]|{_WORD.pattern}")
"""Line ends, spaces, single wide characters, words."""
POLL_S = 0.2


class Chat:
    """The user (or piped lines instead), both ways: `Prompts` and `Listener`.

    Raises ConfigError if stdin is closed, or a pipe without a line in it."""

    def __init__(self, config: Config, *, to_stderr: bool = False, quiet: bool = False, stdin: int = 0) -> None:
        self._config, self._quiet, self._stdin = config, quiet, stdin
        self._console = Console(stderr=to_stderr, highlight=False)
        # as the terminal writes; ASCII means that nobody has said how
        typed = codecs.lookup(getattr(sys.stdin, "encoding", None) or "utf-8").name
        self._decoder = codecs.getincrementaldecoder("utf-8" if typed == "ascii" else typed)("replace")
        self._waiting: list[str] = []
        self._begun = ""
        self._ended = False
        self._reading: Reading | None = None
        self._turns: list[TurnMeasured] = []
        self._column = 0
        """Where in its line the answer stands, in columns."""
        self._word = ""
        """The end of the answer so far that may go on: it waits for the space behind it, to be wrapped whole."""
        self._answering = False
        self._status = ""
        try:
            self._person = os.isatty(stdin)
            while not self._person and not self._waiting and not self._ended:
                self._take()
        except OSError:
            self._ended, self._person = True, False
        if self._ended and not self._waiting:
            raise ConfigError(_("mode.source=stdin: nobody types here, and no line was piped. Run it in a terminal, or "
                                "pipe one prompt per line. Nothing was started."))

    # Prompts

    def next(self, turn: int, meanwhile: Meanwhile) -> str | None:
        """See pipeline/prompts.py."""
        while True:
            line = self._line(meanwhile)
            word = line.strip() if line is not None else "/quit"
            if word == "/quit":
                return None
            if word == "/stats":
                self._stats()
            elif word == "/unload":
                self._unload(meanwhile)
            elif word.startswith("/"):
                self._say(_("{word} is not known here. Commands: /stats, /unload, /quit.").format(
                    word=word.split()[0]))
            elif self._person and line is not None and len(line.encode()) >= _LINE_OF_A_TERMINAL:
                self._say(_("That line was cut: a terminal passes on {n} bytes of one. Pipe longer prompts, one per "
                            "line.").format(n=_LINE_OF_A_TERMINAL))
            elif word:
                return self._config.prompt.filled(word)

    def refused(self, reason: str) -> bool:
        """Say why, and ask again."""
        self._say(worded(reason), "red")
        return True

    # Listener

    def on_event(self, event: Event) -> None:
        """Take one event; see pipeline/progress.py."""
        match event:
            case Notice(text) | Waiting(text):
                self._note(text)
            case SweepStarted():
                self._introduce()
            case TrialStarted():
                self._reading = None
            case StageEntered(stage):
                # an answer speaks for itself; what takes seconds without a word says what it is
                self._show_status("" if stage in ("generate", "measure") else f"{_(STAGES[stage])} …")
            case Reading():
                self._reading = event
            case Words(text):
                self._show_words(text)
            case TurnMeasured():
                self._turns.append(event)
                if not self._quiet:
                    self._say(_turn_line(event), "dim")
            case TrialFinished(result):
                self._show_status("")
                self._end_line()
                if not self._quiet:
                    paragraph(self._console, finished_line(result))

    # What both are made of

    def _introduce(self) -> None:
        if self._quiet:
            return
        self._note(_("Type a prompt and Enter. Each answer has up to max_tokens={n} tokens; memory is read when it has "
                     "settled.").format(n=self._config.max_tokens))
        if self._config.engine.raw and self._config.prompt.name == "simple":
            self._note(_("The prompt is sent as it is and the model goes on with it; engine.raw=false lets the model's "
                         "own chat template make it a question."))
        self._note(_("/stats memory so far   /unload the model   /quit (or Ctrl-D)"))

    def _line(self, meanwhile: Meanwhile) -> str | None:
        """The next line; None at the end of input, or after Ctrl-C at the prompt."""
        self._show_status("")
        self._end_line()
        self._write("> " if self._person else "")
        ahead = not self._person or bool(self._waiting or select.select([self._stdin], [], [], 0)[0])
        with ended_by_ctrl_c():
            while not self._waiting and not self._ended:
                if select.select([self._stdin], [], [], POLL_S)[0]:
                    self._take()
                meanwhile.idle()
        if not self._waiting:
            self._write("\n" if self._person else "")
            return None
        line = self._waiting.pop(0)
        if ahead:  # piped, or typed before it was asked for: a conversation reads well all the same
            self._write(("" if self._person else "> ") + harmless(line) + "\n")
        return line

    def _take(self) -> None:
        """What lies in stdin; complete lines are kept until they are asked for."""
        data = os.read(self._stdin, 65536)
        self._begun += self._decoder.decode(data, final=not data)
        *lines, self._begun = self._begun.split("\n")
        if not data or len(self._begun) > _LONGEST_LINE:
            lines, self._begun = [*lines, self._begun], ""
        self._ended = self._ended or not data
        self._waiting += [line for line in lines if line.strip()] if not self._person else lines
        if self._ended and self._waiting and not self._waiting[-1].strip():
            self._waiting.pop()

    def _stats(self) -> None:
        reading = self._reading
        if reading is not None:
            parts = ((_("anonymous {n}"), reading.anon), (_("file {n}"), reading.file),
                     (_("shared {n}"), reading.shmem), (_("swap {n}"), reading.swap))
            self._say(_("now, MiB:") + " " + "   ".join(text.format(n=f"{size / _MIB:.1f}") for text, size in parts))
        for turn in self._turns:
            self._say(_turn_line(turn))
        if not self._turns:
            self._say(_("No turn has been measured yet."))

    def _unload(self, meanwhile: Meanwhile) -> None:
        before = self._now()
        meanwhile.unload()
        for _poll in range(5):  # the sampler's readings follow a moment later
            select.select([], [], [], POLL_S)
            meanwhile.idle()
        self._say(_("The model is unloaded: {before} → {after} MiB. The next prompt loads it again.").format(
            before=f"{before / _MIB:.1f}", after=f"{self._now() / _MIB:.1f}"))

    def _now(self) -> int:
        reading = self._reading
        return 0 if reading is None else reading.anon + reading.file + reading.shmem

    def _show_words(self, text: str) -> None:
        """A piece of the answer, wrapped at words on a terminal; without the empty lines that it may begin with."""
        self._show_status("")
        text = harmless(text)
        if not self._answering:
            text = text.lstrip()
            self._answering = bool(text)
        *whole, last = _PARTS.findall(self._word + text) or [""]
        for part in whole:
            self._put(part)
        # the next piece may go on with a word; one that fills a line will not be wrapped anyway
        self._word = last if _WORD.fullmatch(last) and cell_len(last) < self._console.width else ""
        if not self._word:
            self._put(last)

    def _put(self, part: str) -> None:
        """One word, or what stands between two."""
        width = self._console.width - 1 if self._console.is_terminal else sys.maxsize
        if part == "\n":
            self._column = 0
        elif self._column and self._column + cell_len(part) > width:
            self._column = 0
            self._write("\n")
            part = part.lstrip()
        self._write(part)
        self._column += cell_len(part) if part != "\n" else 0

    def _show_status(self, text: str) -> None:
        """A word about what goes on, on a terminal, taken away by whatever comes next."""
        if not can_redraw(self._console) or self._quiet:
            return
        if self._status:
            self._write("\r\x1b[K")
        elif text:
            self._end_line()
        self._status = text
        if text:
            self._write(text)

    def _end_line(self) -> None:
        self._put(self._word)
        self._word, self._answering = "", False
        if self._column:
            self._write("\n")
            self._column = 0

    def _say(self, text: str, style: str = "") -> None:
        status = self._status
        self._show_status("")
        self._end_line()
        paragraph(self._console, Text(text, style))
        self._show_status(status)

    def _note(self, text: str) -> None:
        if not self._quiet:
            self._say(text, "dim")

    def _write(self, text: str) -> None:
        file = self._console.file
        encoding = getattr(file, "encoding", None) or sys.getdefaultencoding()
        file.write(text.encode(encoding, "replace").decode(encoding))
        file.flush()


def _turn_line(turn: TurnMeasured) -> str:
    """"turn 2  before 190.7  peak 198.0  after 194.3  settled 194.3 MiB  31.0 tokens/s": one line of 80 columns."""
    said = _("turn {turn}  before {before}  peak {peak}  after {after}  settled {settled} MiB") if turn.stable else _(
        "turn {turn}  before {before}  peak {peak}  after {after}  not settled after {seconds} s: {settled} MiB")
    line = said.format(turn=turn.turn, before=number(turn.before / _MIB), peak=number(turn.peak / _MIB),
                       after=number(turn.after / _MIB), settled=number(turn.settled / _MIB),
                       seconds=f"{turn.settle_s:.0f}")
    if turn.decode_s > 0 and turn.output_tokens > 1:
        line += "  " + _("{rate} tokens/s").format(rate=f"{(turn.output_tokens - 1) / turn.decode_s:.1f}")
    return line
