"""A few lines at the foot of a terminal that are drawn again and again, while other lines scroll past above them.

Knows cursors and widths, not what the lines say. rich draws the colours; its own Live leaves torn lines behind when a
terminal is made narrower, since it does not count what the terminal wraps.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from pipeline.language import harmless

EVERY_S = 0.25
"""Four redraws a second: enough to see movement, little enough not to disturb what is measured."""

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""The terminal shows what lies between at once (synchronized output); those that do not know it ignore it."""


def can_redraw(console: Console) -> bool:
    """A user watches, at a terminal that can move its cursor; a CI job with a terminal counts as a log."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


class Region:
    """Draws `lines(width)` until `close`; `above` prints something that stays. Safe to use from several threads."""

    def __init__(self, console: Console, lines: Callable[[int], Sequence[Text]],
                 every_s: float | None = EVERY_S) -> None:
        self._console, self._lines = console, lines
        self._lock = threading.RLock()
        self._widths: list[int] = []
        """Columns of the lines that stand there now."""
        self._width = 0
        self._ended = threading.Event()
        self._write(_HIDE)
        self.draw()
        self._thread = None if every_s is None else threading.Thread(target=self._run, args=(every_s,), daemon=True)
        if self._thread is not None:
            self._thread.start()

    def _run(self, every_s: float) -> None:
        while not self._ended.wait(every_s):
            self.draw()

    def draw(self) -> None:
        """Draw what the lines are now over what they were."""
        with self._lock:
            if self._ended.is_set():
                return
            # one column stays free: a terminal would wrap after the last one
            width, height = max(1, self._console.width - 1), max(1, self._console.height - 1)
            lines = list(self._lines(width))[:height]
            for line in lines:
                line.plain = harmless(line.plain).replace("\n", " ").replace("\t", " ")
                line.truncate(width, overflow="ellipsis")
            drawn = "\x1b[K\r\n".join(map(self._ansi, lines))
            # a terminal remembers which rows it wrapped, and joins them again once it is wider, unless they are erased
            erased = "\x1b[J" if width != self._width else ""
            self._write(f"{_BEGIN}{self._up()}{erased}{drawn}\x1b[J{_END}")
            self._widths, self._width = [cell_len(line.plain) for line in lines], width

    def above(self, *texts: Text) -> None:
        """Print lines that stay, wrapped by the terminal's own rules, and draw the region below them."""
        with self._lock:
            self._write(f"{self._up()}\x1b[J")
            self._widths = []
            for text in texts:
                self._console.print(text, highlight=False)
            self.draw()

    def close(self) -> None:
        """Take the region away and give the cursor back."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            self._write(f"{self._up()}\x1b[J{_SHOW}")
            self._widths = []
        if self._thread is not None:
            self._thread.join()

    def _up(self) -> str:
        """To the region's first column: the rows its lines take now, more if the terminal was made narrower."""
        width = max(1, self._console.width)
        rows = sum(max(1, -(-columns // width)) if _reflows() else 1 for columns in self._widths)
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "")

    def _ansi(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", highlight=False, no_wrap=True, crop=False)
        return captured.get()

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def _reflows() -> bool:
    """Does the terminal wrap lines anew when it is made narrower? All but the oldest do."""
    return not (os.environ.get("XTERM_VERSION") or os.environ.get("TERM", "") in ("linux", "vt100", "vt220", "ansi"))
