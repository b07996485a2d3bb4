"""What the machine refuses, in one line: a full disk, a missing permission, a program that does not answer.

Any other exception that reaches the command line is a bug and keeps its trace.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess

from pipeline.errors import MachineError
from pipeline.language import _

TRACE = "SLACKWATER_TRACE"
"""Set to anything, it shows the trace of these as well."""


def refused(error: Exception) -> MachineError | None:
    """The same in one line that names the thing and says what to do; None for a bug."""
    if os.environ.get(TRACE):
        return None
    if isinstance(error, subprocess.TimeoutExpired):
        command = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
        return MachineError(_("`{command}` did not answer within {seconds} s. Run it by hand to see what it waits for, "
                              "or try again when the machine is less busy.").format(
                                  command=command, seconds=f"{error.timeout:.0f}"))
    if isinstance(error, sqlite3.Error):
        return MachineError(_("A database failed: {error}. End other programs that use it, or free space on its "
                              "disk.").format(error=error))
    if isinstance(error, OSError) and error.errno is not None:
        named = " → ".join(os.fsdecode(name) for name in (error.filename, error.filename2)
                           if isinstance(name, str | bytes))
        if not named and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) and _stdout_refuses(error.errno):
            named = _("standard output")
        remedy = _remedy(error.errno) or (_("Check that this path is what you meant.") if named else "")
        if error.errno == errno.ENOENT and not named:
            remedy = _no_folder()
        if named or remedy:
            what = f"{named}: {error.strerror or error}" if named else str(error.strerror or error)
            return MachineError(f"{what}. {remedy}")
    return None


def _stdout_refuses(number: int) -> bool:
    """Is it stdout that cannot be written for this reason? Tested by printing a line end; there is no other way."""
    try:
        print(flush=True)
    except OSError as error:
        return error.errno == number
    return False


def _no_folder() -> str:
    """What lacks a folder without naming one: os.getcwd, and tempfile."""
    try:
        os.getcwd()
    except OSError:
        return _("The folder you are in was removed: change to another.")
    return _("TMPDIR must name a folder that can be written.")


def _remedy(number: int) -> str:
    """What to do about it; "" where only the path can tell."""
    return {
        errno.ENOSPC: _("Free space on that disk; what was measured before is kept."),
        errno.EDQUOT: _("Free space on that disk; what was measured before is kept."),
        errno.EROFS: _("That file system is read-only: give another path, or mount it writable."),
        errno.EACCES: _("This user has no permission: change the permissions of that path, or give another."),
        errno.EPERM: _("This user has no permission: change the permissions of that path, or give another."),
        errno.EIO: _("The device failed: see `dmesg`."),
        errno.EMFILE: _("Too few open files are allowed: `ulimit -n 1024` raises that."),
        errno.ENFILE: _("The machine has too many files open: end other programs."),
        errno.ENOMEM: _("The machine has too little memory free: end other programs."),
        errno.EAGAIN: _("The machine allows no further process or lock now: end other programs, or try again."),
    }.get(number, "")
