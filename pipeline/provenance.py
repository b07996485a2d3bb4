"""Where a number comes from: versions, machine, revision, command. Facts only, collected once per process."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline import machine
from pipeline.plugins import packages
from pipeline.text import masked

PACKAGES = ("slackwater", "hydra-core", "omegaconf", "mlflow", "xllamacpp", "psutil", "numpy", "pyarrow")


def package_versions() -> dict[str, str]:
    """Version by package: those that decide what is measured, and every one that brings a plug-in."""
    found = {}
    for package in (*PACKAGES, *packages()):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _revision() -> str:
    """Git revision of the checkout this runs from, with a + if it was changed; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
                              capture_output=True, encoding="utf-8", timeout=5, check=True)
        status = subprocess.run(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
                                capture_output=True, encoding="utf-8", timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


@functools.cache
def facts() -> Mapping[str, str]:
    """This machine and this program, as strings; the same for every trial of a process."""
    versions = {f"package.{name}": found for name, found in package_versions().items()}
    return {**machine.facts(), "revision": _revision(), **versions}


_COMMAND = "SLACKWATER_COMMAND"
_LONGEST = 100_000
"""Linux takes no variable above 128 KiB (MAX_ARG_STRLEN, execve(2)): no server could be started with it."""
_here: list[str] = []
"""The command in this process."""


def started_as(words: Sequence[str]) -> None:
    """Keep the command's words: Hydra gets others, and a launcher's workers have none of their own."""
    text = "slackwater " + shlex.join(map(masked, words))
    # escaped: an argument may hold what the locale's encoding cannot give back
    kept = json.dumps(text)
    os.environ[_COMMAND] = kept if len(kept) <= _LONGEST else json.dumps(text[:1000] + " …")
    _here[:] = [text]


def command() -> str:
    """The command line that runs this again, quoted for a shell."""
    if _here:
        return _here[0]
    kept = os.environ.get(_COMMAND)
    return json.loads(kept) if kept else "slackwater " + shlex.join(sys.argv[1:])
