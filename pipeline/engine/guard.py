"""A process that waits for our end, and then ends what our servers left behind: also when we were killed.

The kernel ends a server with us (process.start), but not what hangs below it: that is the server's to end, and one may
be deaf to that. Only processes that carry our mark, or share a session with one that does, are touched.
"""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.errors import EngineError

GRACE_S = 3.0
"""How long a server that the kernel has told of our end may take to end its own."""

_PROGRAM = """
import os, sys, time
mark, grace_s = sys.argv[1].encode(), float(sys.argv[2])
sys.stdin.buffer.read()  # ends with the last of those who could write: us
begun, sessions = time.monotonic(), set()
while time.monotonic() < begun + grace_s + 10:
    left = set()
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open(f'/proc/{pid}/environ', 'rb') as file:
                marked = any(pair.startswith(mark) for pair in file.read().split(b'\\0'))
            with open(f'/proc/{pid}/stat', 'rb') as file:
                state, _, _, session = file.read().rpartition(b')')[2].split()[:4]
        except OSError:
            continue
        if marked:
            sessions.add(session)
        if state not in (b'Z', b'X') and (marked or session in sessions):
            left.add(int(pid))
    if not left:
        break
    for pid in left if time.monotonic() > begun + grace_s else ():
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            pass
    time.sleep(0.1)
"""

_kept: dict[int, subprocess.Popen[bytes]] = {}
"""Process → its guard: one that was forked has none."""


def keep(variable: str) -> None:
    """Have a guard, from before the first measurement on: it is no part of a server's tree.

    `variable`: of the environment; a process is marked where its value begins with our pid and a dash."""
    if os.getpid() in _kept:
        return
    program = [sys.executable, "-I", "-S", "-c", _PROGRAM, f"{variable}={os.getpid()}-", str(GRACE_S)]
    try:
        _kept[os.getpid()] = subprocess.Popen(program, env={}, cwd="/", stdin=subprocess.PIPE, start_new_session=True,
                                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise EngineError(f"{program[0]} could not be started: {error.strerror} ({error.filename}).") from error
