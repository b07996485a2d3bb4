"""Fetching a missing model as `ollama pull` does, into a folder of ours: a server that lives only for this.

Only when engine.pull=true asks for it. The registry is Ollama's own affair; no address of one stands here.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from pipeline.config import Engine
from pipeline.engine.answers import quoted
from pipeline.engine.ollama import model_store
from pipeline.engine.ollama.api import Api
from pipeline.engine.ollama.start import answering, start_serve
from pipeline.errors import ConfigError, EngineError
from pipeline.model.digest import Progress
from pipeline.scratch import scratch

_STALL_S = 120.0

# What a download may need and a measurement must not have.
_FOR_THE_REGISTRY = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy",
                     "SSL_CERT_FILE", "SSL_CERT_DIR")


def pull(binary: Path, name: str, config: Engine, progress: Progress) -> None:
    """Fetch a model into `model_store.own_store()`; an interrupted pull goes on where it was (Ollama does that).

    Raises ConfigError: no such model, no network, no space, nothing arrives for two minutes."""
    folder = model_store.own_store()
    folder.mkdir(parents=True, exist_ok=True)
    extra = {each: os.environ[each] for each in _FOR_THE_REGISTRY if each in os.environ}
    with scratch() as home:
        child = start_serve(binary, home, folder, home / "server.log", "127.0.0.1:0", extra)
        try:
            _pull(answering(child, config.start_limit_s), name, progress)
        except EngineError as error:
            raise ConfigError(f"model {name} could not be pulled: {error} Check the name (https://ollama.com/library), "
                              "the network and the proxy settings. Nothing was measured.") from error
        finally:
            child.end(config.stop_limit_s)


def _pull(api: Api, name: str, progress: Progress) -> None:
    last, moved = "nothing", time.monotonic()

    def look() -> float:
        if time.monotonic() - moved > _STALL_S:
            raise EngineError(f"nothing arrived for {_STALL_S:g} s.")
        return 1.0

    done = 0
    for line in api.pull(name, look):
        if line.status != last or line.completed > done:
            moved = time.monotonic()
        last, done = line.status, line.completed
        progress("fetching", line.completed, line.total)
    if last != "success":
        raise EngineError(f"the pull ended with {quoted(last)!r} instead of success.")
