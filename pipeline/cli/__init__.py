"""Commands: one verb each. Parses words, calls the rooms, prints what report/ renders, maps errors to exit codes.

Here is the program's outermost line alone, light enough that a signal is taken from the first moment on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline import interrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        with interrupt.listening(is_program=arguments is None):
            from pipeline.cli.program import run

            code = run(list(sys.argv[1:] if arguments is None else arguments))
            return interrupt.exit_code() if interrupt.came() else code
    except KeyboardInterrupt:
        return interrupt.exit_code()
