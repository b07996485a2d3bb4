"""The program `ollama`: where it is, which version, and how `ollama serve` is started until it answers.

What a cell asks of it is plan.py; what is asked of a running server is server.py.
"""

from __future__ import annotations

import functools
import mmap
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.config import Engine
from pipeline.engine import process
from pipeline.engine.http import BrokenError
from pipeline.engine.knobs import NOTHING_STARTED
from pipeline.engine.ollama import log
from pipeline.engine.ollama.api import Api
from pipeline.engine.waiting import NEVER, OuterLimit, Wait
from pipeline.errors import ConfigError, EngineError, EngineUnusableError

DESKTOP = "http://127.0.0.1:11434"
"""Where an Ollama that somebody else runs is to be expected."""

SUPPORTED = "0.24, and 0.30 or newer"
NEWEST_CHECKED = (0, 33)
"""Of this and what came before the log and the processes are known."""

_UNTOLD = "0.0.0"
_POLL_S = 0.005
_ANSWER_S = 2.0
"""A server that looks for GPUs takes a connection and is silent: it is asked again."""


def find_binary(config: Engine) -> Path:
    """engine.binary, else $OLLAMA_BIN, else `ollama` on the PATH. Raises ConfigError that says how to get it."""
    wanted = config.binary or os.environ.get("OLLAMA_BIN") or "ollama"
    found = shutil.which(Path(wanted).expanduser() if "/" in wanted else wanted)
    if found is not None:
        return Path(found).absolute()
    if "/" in wanted and Path(wanted).expanduser().exists():
        raise ConfigError(f"{wanted} is not an executable file. Expected the program `ollama`: check engine.binary, or "
                          f"its permissions (chmod +x). {NOTHING_STARTED}")
    where = f"{wanted} does not exist" if "/" in wanted else f"there is no `{wanted}` on the PATH"
    raise ConfigError(f"engine={config.name} needs Ollama, and {where}. Install it (https://ollama.com/download) or "
                      f"name it with engine.binary=FILE. engine=llamacpp needs nothing installed. {NOTHING_STARTED}")


def program_files(binary: Path) -> list[Path]:
    """The program and what its installation brings with it: the engines and libraries in ../lib/ollama
    (ml/path.go, LibOllamaPath)."""
    own = binary.resolve()
    library = own.parent.parent / "lib" / "ollama"
    return [own, *sorted(path for path in library.rglob("*") if path.is_file() and not path.is_symlink())]


def version_of(binary: Path) -> str:
    """What `ollama --version` says of the program. Raises ConfigError for a program that is not Ollama."""
    return _version(binary, binary.stat().st_mtime_ns)


def stated_version(binary: Path) -> str:
    """The version, as pages show it. A home-made build says 0.0.0 unless told (version/version.go); what Go has put
    into it may know the commit's tag (`go version -m`)."""
    return answered_version(version_of(binary), _built_from(binary, binary.stat().st_mtime_ns))


def answered_version(version: str, built_from: str | None = None) -> str:
    """The version that a server answers, as pages show it."""
    if version != _UNTOLD:
        return version
    return f"{built_from} (built from source)" if built_from else "(built from source; it says no version)"


def older(version: str) -> bool:
    """Is it a server before 0.30, whose engine and log are others? A home-made build (0.0.0) counts as new."""
    return (0, 0) < _numbers(version) < (0, 30)


def require_supported(version: str, what: str) -> None:
    """Raises ConfigError for a server whose log and child are not known."""
    if older(version) and _numbers(version) != (0, 24):
        raise ConfigError(f"{what} is Ollama {version}, whose settings cannot be proved: supported are {SUPPORTED}. "
                          f"Update it, or use engine=llamacpp. {NOTHING_STARTED}")


def desktop_note() -> str | None:
    """A warning if somebody else's Ollama runs at its usual address; it is asked, never told."""
    api = Api(DESKTOP)
    try:
        version, running = api.version(0.5), api.running()
    except EngineError:
        return None
    held = sum(entry.bytes or 0 for entry in running) / 2**20
    return (f"another Ollama {version} runs at {DESKTOP} and is left alone"
            + (f"; its loaded models hold {held:.0f} MiB, which is in every system-wide figure" if running else ""))


def listen_address(url: str | None) -> str:
    """What OLLAMA_HOST gets: a free port of this machine, or the one of engine.url. Raises ConfigError: not ours."""
    if url is None:
        return "127.0.0.1:0"  # the server takes a free port and logs which
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"engine.url={url} is not an address ({error}). Expected something like "
                          f"http://127.0.0.1:11500. {NOTHING_STARTED}") from error
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"engine.url={url}: a server of ours listens on this machine only. Use an address like "
                          "http://127.0.0.1:11500, or engine=ollama_attached for a server elsewhere. "
                          f"{NOTHING_STARTED}")
    return f"[{host}]:{port or 0}" if host == "::1" else f"{host}:{port or 0}"


def start_serve(binary: Path, folder: Path, models: Path, log_path: Path, address: str,
                extra: Mapping[str, str]) -> process.Child:
    """Start `ollama serve` with a clean environment, `extra` on top. `folder` becomes its home. Does not wait."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    environment = process.clean_environment({
        "HOME": str(home), "OLLAMA_HOST": address, "OLLAMA_MODELS": str(models), "OLLAMA_NOPRUNE": "1", **extra})
    # SIGTERM and not SIGKILL when we die: `serve` then ends its children, which it would otherwise leave behind.
    return process.start([str(binary), "serve"], environment=environment, log_path=log_path, cwd=folder,
                         death_signal=signal.SIGTERM)


def answering(child: process.Child, limit_s: float, outer: OuterLimit = NEVER) -> Api:
    """The API of a server just started, once GET /api/version is answered with 200: "Listening on" is logged while
    the server still looks for GPUs. Raises EngineError: it ended, or made no progress for `limit_s` (waiting.py)."""
    api: Api | None = None
    wait = Wait("start", limit_s, "engine.start_limit_s", child.pid, outer,
                lambda: process.resident_bytes(child.pid), child.log_path)
    while not (reason := wait.overdue("no answer to GET /api/version")):
        said = child.log()
        if (ended := child.ended()) is not None:
            if log.port_taken(said):
                raise EngineError("the port of engine.url is taken by another program. Choose another, or leave "
                                  "engine.url out: then a free port is used.")
            if (never := child.cannot_run()) is not None:
                raise EngineUnusableError(f"`ollama serve` cannot run on this machine: {never}. Expected the program "
                                          "`ollama` for this processor: check engine.binary, or install it again.")
            why = log.reasons(said) or said.strip()[-300:]
            raise EngineError(f"`ollama serve` ended at its start: {ended}. It said:\n{why}")
        listening = log.listening(said)
        if listening is not None:
            api = api or Api(f"http://{listening[0]}")
            try:
                require_supported(api.version(min(_ANSWER_S, limit_s)), api.url)
            except BrokenError:
                time.sleep(_POLL_S)
                continue
            return api
        time.sleep(_POLL_S)
    why = log.reasons(child.log()) or child.log().strip()[-300:]
    raise EngineError(f"`ollama serve` {reason}. It said:\n{why or 'nothing'}")


def _numbers(version: str) -> tuple[int, int]:
    match = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


@functools.lru_cache(maxsize=8)
def _built_from(binary: Path, _mtime_ns: int) -> str | None:
    """The version of its main module in Go's build information (runtime/debug, BuildInfo)."""
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"\nmod\tgithub\.com/ollama/ollama\tv(\d[0-9A-Za-z.+-]*)[\t\n]", content)
        return found[1].decode() if found else None


@functools.lru_cache(maxsize=8)
def _version(binary: Path, _mtime_ns: int) -> str:
    try:
        # Port 1 refuses, so that the program speaks for itself and not for a server that happens to run.
        said = subprocess.run([str(binary), "--version"], capture_output=True, encoding="utf-8", errors="replace",
                              check=False, timeout=20, stdin=subprocess.DEVNULL,
                              env=process.clean_environment({"OLLAMA_HOST": "127.0.0.1:1"}))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{binary} cannot be run ({error}). Expected the program `ollama`: check engine.binary. "
                          f"{NOTHING_STARTED}") from error
    text = said.stdout + said.stderr
    match = re.search(r"version is (\S+)", text)
    if match is None:
        raise ConfigError(f"{binary} is not Ollama: `--version` said {text.strip()[:100]!r}. Check engine.binary. "
                          f"{NOTHING_STARTED}")
    return match[1]
