"""Does the embedded engine run on this machine, with which devices, and if not: what is missing, in one line?

It is asked in a process of its own, the program of llamacpp_server.py: its library must not get into ours.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engine import llamacpp_server, process
from pipeline.engine.knobs import NOTHING_STARTED
from pipeline.errors import ConfigError, EngineUnusableError
from pipeline.model.digest import cache_folder

_ASK_LIMIT_S = 60.0
NEWEST_CHECKED = (2026, 10, 11549)
"""Of this and what came before the log is known."""

_CANNOT = "engine=llamacpp cannot run on this machine: "
_ELSEWHERE = "use engine=ollama, which brings builds for older processors"
_REINSTALL = "Reinstall it: `make clean setup` in a checkout, else pip install --force-reinstall xllamacpp"

_PACKAGES = {
    "libgomp.so.1": "Debian, Ubuntu: apt install libgomp1; Fedora: dnf install libgomp; Arch: pacman -S gcc-libs",
    "libstdc++.so.6": "Debian, Ubuntu: apt install libstdc++6; Fedora: dnf install libstdc++; Arch: pacman -S gcc-libs",
}

# What the wheel for x86-64 is compiled for (get_system_info() of 2026.10.11549) → the kernel's word in /proc/cpuinfo.
# Tried under QEMU: it ends with SIGILL when loaded on Nehalem, Westmere and Ivy Bridge, and runs on Haswell.
_BUILT_FOR = {"AVX": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2"}


def program() -> list[str]:
    """The command of the engine's program, up to its own words."""
    return [sys.executable, "-P", str(Path(llamacpp_server.__file__)), str(cache_folder() / "libraries")]


def version() -> str:
    """Of the installed xllamacpp. Raises ConfigError: it is not installed."""
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError("engine=llamacpp needs the package xllamacpp, which is not installed: pip install "
                          f"xllamacpp. {NOTHING_STARTED}") from error


def libraries() -> list[Path]:
    """The shared libraries of the installed xllamacpp; nothing of it is loaded for that."""
    spec = importlib.util.find_spec("xllamacpp")
    places = [Path(place) for place in (spec.submodule_search_locations or ()) if spec] if spec else []
    return sorted(path for place in places for folder in (place, place.with_name(f"{place.name}.libs"))
                  for path in folder.rglob("*.so*") if path.is_file())


@functools.cache
def devices() -> Sequence[Mapping[str, Any]]:
    """What llama.cpp can compute on: name, description, type, memory_total.

    Raises EngineUnusableError: it cannot be loaded, or this processor lacks an instruction that it uses."""
    try:
        answer = subprocess.run([*program(), "devices"], capture_output=True, encoding="utf-8", errors="replace",
                                check=False, env=process.clean_environment(), stdin=subprocess.DEVNULL,
                                timeout=_ASK_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnusableError(f"llama.cpp could not be asked for its devices: {error}.") from error
    if answer.returncode != 0:
        why = lacking(answer.returncode, answer.stderr)
        raise EngineUnusableError(why or f"llama.cpp could not be asked for its devices (exit status "
                                  f"{answer.returncode}): {answer.stderr.strip()[-300:]}. Reinstall xllamacpp.")
    found: list[Mapping[str, Any]] = json.loads(answer.stdout.splitlines()[-1])["devices"]
    return found


def require() -> None:
    """Raises ConfigError if no server of this engine can run here: costs a start of its program, once per process."""
    version()
    try:
        devices()
    except EngineUnusableError as error:
        raise ConfigError(f"{error} {NOTHING_STARTED}") from error


def lacking(status: int | None, said: str, root: Path = Path("/")) -> str | None:
    """Why no server of this engine can run here, from its program's exit status (negative: a signal) and its words.

    None: it runs, or ended for another reason."""
    if status == -signal.SIGILL:
        return (f"{_CANNOT}llama.cpp was stopped at an instruction that this processor does not have"
                f"{_missing_instructions(root)}. Build xllamacpp here (pip install --force-reinstall --no-binary "
                f"xllamacpp xllamacpp), or {_ELSEWHERE}.")
    if status != llamacpp_server.UNUSABLE:
        return None
    found = re.search(r"^cannot load xllamacpp: (.*)$", said, re.MULTILINE)
    error = found[1].strip().rstrip(".") if found else said.strip()[-300:]
    return f"{_CANNOT}{_explained(error)}."


def _explained(error: str) -> str:
    """The loader's words (glibc's or musl's) as what is missing, and how to get it."""
    if (missing := re.search(r"(lib[\w+.-]+\.so\.\d+)", error)) and re.search("cannot open|Error loading", error):
        get = f"nstall it ({_PACKAGES.get(missing[1], 'with the package of your system that has it')})"
        _, _, refused = error.partition("; no link to a copy: ")
        if refused:
            return (f"llama.cpp needs {missing[1]}, which this system does not have; this environment has a copy, and "
                    f"no link to it could be made ({refused}). Choose a folder that can be written with "
                    f"SLACKWATER_CACHE=FOLDER, or i{get}")
        return f"llama.cpp needs {missing[1]}, which this system does not have. I{get}"
    if old := re.search(r"(\S+): version [`'](\S+)' not found", error):
        return (f"llama.cpp needs {old[2]}, and {old[1]} is older. Use a newer release of the system, or a container "
                "of one")
    if "failed to map segment" in error and "Cannot allocate" not in error:
        return (f"llama.cpp's library may not be executed where it lies ({error}). A file system mounted noexec is the "
                "usual reason: make the environment on another")
    return f"llama.cpp's library cannot be loaded ({error}). {_REINSTALL}"


def _missing_instructions(root: Path) -> str:
    with contextlib.suppress(OSError):
        lines = (root / "proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
        lacks = [name for name, flag in _BUILT_FOR.items() if flags and flag not in flags]
        if lacks:
            return f" (SIGILL; it is built for {', '.join(_BUILT_FOR)}, and {', '.join(lacks)} are not here)"
    return " (SIGILL)"


if __name__ == "__main__":  # the last step of set-up (Makefile)
    try:
        require()
    except ConfigError as stop:
        sys.exit(str(stop))
