"""A terminal that a test can look at: a program on a pseudo-terminal, its screen kept by pyte. No test lives here."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import pyte

from tests.conftest import ROOT


class Terminal:
    """A program and the screen it draws on. `sent` is every byte that came from it.

    The screen does what xterm does when it is made narrower: lines are clipped, not wrapped anew."""

    def __init__(self, command: Sequence[str], columns: int, lines: int = 30, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000, ratio=0.5)
        self.stream = pyte.ByteStream(self.screen)
        self.sent = b""
        self.master, slave = pty.openpty()
        self._set_size(columns, lines)
        inherited = {key: value for key, value in os.environ.items()
                     if key not in ("CI", "NO_COLOR", "COLUMNS", "LINES", "XTERM_VERSION", "SLACKWATER_LANG")}
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=ROOT,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**inherited, "TERM": "linux", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment})
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
        os.close(self.master)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def resize(self, columns: int, lines: int = 30) -> None:
        """Another size, as if the user dragged the window; the program is told by SIGWINCH."""
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, timeout_s: float = 0.1) -> bool:
        """Take what came; False once nothing can come any more."""
        ready, _, _ = select.select([self.master], [], [], timeout_s)
        if not ready:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # Linux says EIO once the last program has closed its side
            return False
        self.sent += data
        self.stream.feed(data)
        return bool(data)

    def wait_for(self, seen: str | Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Read until the screen shows a text, or a condition holds."""
        holds = seen if callable(seen) else lambda: seen in self.text
        limit = time.monotonic() + timeout_s
        while not holds():
            alive = self.read()
            assert (alive or holds()) and time.monotonic() < limit, f"{seen} did not come; the screen:\n{self.text}"

    def end(self, timeout_s: float = 120.0) -> int:
        """Read to the end; the exit code."""
        limit = time.monotonic() + timeout_s
        while self.read():
            assert time.monotonic() < limit, f"it does not end; the screen:\n{self.text}"
        return self.child.wait(timeout_s)

    @property
    def rows(self) -> list[str]:
        """What stands on the screen, from its first row to the last that has something."""
        rows = [line.rstrip() for line in self.screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.rows)
