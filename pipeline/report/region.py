"""A few lines at the foot of a terminal that are drawn again and again, while other lines scroll past above them.

rich's Live, but for where the lines stand: it counts what it drew, not what a terminal made of that which was made
narrower since, and leaves torn lines behind; and it erases before it draws, which flickers. Knows no text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from pipeline.language import harmless

EVERY_S = 0.25
"""Four redraws a second: enough to see movement, little enough not to disturb what is measured."""

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""The terminal shows what lies between at once (synchronized output); those that do not know it ignore it."""


def can_redraw(console: Console) -> bool:
    """The user looks on, at a terminal that can move its cursor; a CI job with a terminal is still a log."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


class Region(Live):
    """Draws `lines(width)` until `close`; what is printed meanwhile, also by others, stays above them."""

    def __init__(self, console: Console, lines: Callable[[int], Sequence[Text]],
                 every_s: float | None = EVERY_S) -> None:
        super().__init__(console=console, auto_refresh=every_s is not None, refresh_per_second=1 / (every_s or EVERY_S))
        self._lines = lines
        self._drawn: list[int] = []
        """Columns of the lines that stand there now."""
        self._width = 0
        self.start(refresh=True)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What rich prints, and the lines below it, over what they were."""
        # one column stays free: a terminal would wrap after the last one
        width, height = max(1, self.console.width - 1), max(1, self.console.height - 1)
        # a terminal remembers which rows it wrapped, and joins them again once it is wider, unless they are erased
        anew = width != self._width or any(not isinstance(one, Control) for one in renderables)
        up, lines = self._up(), list(self._lines(width))[:height]
        frame: list[Segment] = []
        for line in lines:
            line.plain, line.end = harmless(line.plain).replace("\n", " ").replace("\t", " "), ""
            line.truncate(width, overflow="ellipsis")
            frame += [*([Segment.line()] if frame else []), *self.console.render(line), _sequence("\x1b[K")]
        self._drawn, self._width = [cell_len(line.plain) for line in lines], width
        return [Segments([_sequence(_BEGIN + up + "\x1b[J" * anew)]), *renderables,
                Segments([*frame, _sequence("\x1b[J" + _END)])]

    def close(self) -> None:
        """Take the lines away and give the cursor back. May be called twice."""
        if self.is_started:
            self.stop()
            self.console.file.write(f"{self._up()}\x1b[J")
            self.console.file.flush()

    def _up(self) -> str:
        """To the region's first column: the rows its lines take now, more if the terminal was made narrower."""
        width = max(1, self.console.width)
        rows = sum(max(1, -(-columns // width)) if _reflows() else 1 for columns in self._drawn)
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "")


def _sequence(text: str) -> Segment:
    return Segment(text, None, [(ControlType.BELL,)])  # of any kind: what it is goes out as it stands


def _reflows() -> bool:
    """Does the terminal wrap lines anew when it is made narrower? All but the oldest do."""
    return not (os.environ.get("XTERM_VERSION") or os.environ.get("TERM", "") in ("linux", "vt100", "vt220", "ansi"))
