"""engine=ollama_attached: an Ollama that already runs, here or elsewhere. Its settings are read, never assumed.

It is asked to load and unload its model and is otherwise left as it was found; a server of ours is __init__.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import ports
from pipeline.config import Config
from pipeline.engine import checks, process
from pipeline.engine.base import EngineBase, Plan, Progress, Scalar
from pipeline.engine.knobs import NOTHING_STARTED, Resolved
from pipeline.engine.ollama import settings as ollama_settings
from pipeline.engine.ollama.api import Api, NoSuchModelError
from pipeline.engine.ollama.plan import model_name, resolved_settings
from pipeline.engine.ollama.processes import Host, gone, log_file, only_server
from pipeline.engine.ollama.server import OllamaServer
from pipeline.engine.ollama.start import DESKTOP, NEWEST_CHECKED, require_supported
from pipeline.errors import ConfigError, EngineError
from pipeline.language import N_, _, sentence
from pipeline.model.files import title

_DEFAULT_PORT = 11434

# What the server does where a variable is not set; None: what no arm of ours asks for.
_DEFAULTS: Mapping[str, Scalar | None] = {
    "max_loaded_models": None, "num_parallel": 1, "kv_cache_type": "f16", "flash_attention": None,
    "cache_ram_mib": 8192, "n_ctx_checkpoints": 32, "repack": True, "go_memory_limit_mib": 0,
}


def _other_host(url: str) -> list[str]:
    """A note where this shell's OLLAMA_HOST, which the ollama command follows, names another server than engine.url."""
    host = os.environ.get("OLLAMA_HOST", "").strip().removeprefix("http://").strip("/")
    return [f"OLLAMA_HOST={host} of this shell is not read: the server is the one of engine.url={url}"
            ] if host and host not in url else []


class Engine(EngineBase):
    """An attached Ollama."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.model.kind != "ollama":
            raise ConfigError(f"model={title(config.model)} is a file, and a server that slackwater did not start gets "
                              "no files. Use engine=ollama, which links it without a copy, or a model that the server "
                              f"has. {NOTHING_STARTED}")
        self._name = str(model_name(config))
        self._url, self._local, self._port = _address(config)
        if config.engine.pid is not None and (not self._local or gone(config.engine.pid)):
            raise ConfigError(f"engine.pid={config.engine.pid}: there is no such process on "
                              f"{'this machine' if self._local else 'the machine of engine.url'} that could be read. "
                              f"Expected the id of the Ollama that answers at {self._url}. {NOTHING_STARTED}")
        self._shown: Mapping[str, Any] | None = None
        self._server: OllamaServer | None = None

    @classmethod
    def here(cls) -> tuple[bool, str]:
        """See EngineBase: is there a server at the usual address?"""
        try:
            return True, f"ollama {Api(DESKTOP).version(0.5)} at {DESKTOP}"
        except EngineError:
            return False, sentence(N_("no server answers at {url}"), url=DESKTOP)

    def fetch(self, progress: Progress) -> None:
        """See EngineBase: what the server has not, `plan` names with the pull command; nothing is put on it."""

    @property
    def model_path(self) -> Path | None:
        """The server's blob, if it lies on this machine and may be read."""
        said = str(self._show().get("modelfile", "")) if self._local else ""
        match = re.search(r"^FROM (/.+)$", said, re.MULTILINE)
        try:
            return Path(match[1]).resolve() if match and Path(match[1]).is_file() else None
        except PermissionError:
            return None

    @property
    def tokenizer(self) -> Path | None:
        """See EngineBase; the server's own template (engine.raw=false) is not in the file."""
        return self.model_path if self.config.engine.raw else None

    def plan(self) -> Plan:
        """See EngineBase; asks the server, changes nothing on it."""
        config = self.config
        version = self._ask_version()
        require_supported(version, f"the server at {self._url}")
        if config.infer_os.environment is not None:
            raise ConfigError("infer_os.environment is read by a server at its start, and this one runs already: use "
                              f"engine=ollama. {NOTHING_STARTED}")
        resolved = resolved_settings(config, version)
        found, more = self._as_found(resolved, self._environment())
        num_ctx, rounded = checks.context_in_force(config.num_ctx)
        ollama_settings.check(found, num_ctx)
        checks.check_context(self._trained(), config.num_ctx, config.max_tokens)
        asked = {"model": str(self.model_path or self._name), "num_ctx": num_ctx, **found,
                 "keep_alive": ollama_settings.FOR_EVER}
        wants = _("the server at {url}: its model is loaded and unloaded, and nobody else should use it")
        newer = checks.newer_note("Ollama", version, NEWEST_CHECKED)
        return Plan(asked, (*resolved.notes, *newer, *rounded, *more, *_other_host(self._url)),
                    asks=(wants.format(url=self._url),), knobs=resolved.knobs)

    def start(self, log_path: Path) -> OllamaServer:
        """See EngineBase: nothing is started; the model is unloaded if it is loaded, so that the trial begins empty."""
        plan, pid = self.plan(), self._pid()
        api = Api(self._url)
        others = [str(entry.get("name")) for entry in api.running() if entry.get("name") != self._name]
        if others and pid:
            raise EngineError(f"the server at {self._url} holds other models ({', '.join(others)}), which would be "
                              f"measured too. Unload them first: ollama stop {others[0]}.")
        source = log_file(pid) if pid else None
        host = Host(pid, source, lambda: "its process is gone" if pid and gone(pid) else None)
        begin = host.log_bytes()

        def end() -> None:
            if host.ended() is None:
                _let_go(server)
            said = host.log_since(begin)
            log_path.write_text(said or f"The log of the Ollama at {self._url} cannot be read from here.\n",
                                encoding="utf-8")

        server = OllamaServer(api, host, self._name, self.model_path, plan.settings, self.config.engine, end,
                              self._ask_version(), self.outer)
        server.unload()
        self._server = server
        return server

    def provenance(self) -> Mapping[str, str]:
        """See EngineBase; after a trial with what /api/ps claimed."""
        details, path = self._show().get("details", {}), self.model_path
        facts = {"engine_version": f"ollama {self._ask_version()}", "engine_url": self._url, "model_name": self._name,
                 "model_quantisation": str(details.get("quantization_level", "unknown")),
                 "model_architecture": str(details.get("family", "unknown"))}
        blob = re.search(r"^FROM \S*sha256-([0-9a-f]{64})", str(self._show().get("modelfile", "")), re.MULTILINE)
        facts["model_digest"] = f"sha256:{blob[1]}" if blob else "not known"
        if path is not None:
            facts["model_file"], facts["model_bytes"] = str(path), str(path.stat().st_size)
        if self._server is not None and self._server.claim is not None:
            facts["engine_claim_bytes"] = str(self._server.claim)
        return facts

    def _ask_version(self) -> str:
        try:
            return Api(self._url).version()
        except EngineError as error:
            raise ConfigError(f"engine.url={self._url}: {error} {NOTHING_STARTED}") from error

    def _show(self) -> Mapping[str, Any]:
        if self._shown is None:
            try:
                self._shown = Api(self._url).show(self._name)
            except NoSuchModelError as error:
                raise ConfigError(f"{error} {NOTHING_STARTED}") from error
            except EngineError as error:
                raise ConfigError(f"engine.url={self._url}: {error} {NOTHING_STARTED}") from error
        return self._shown

    def _pid(self) -> int:
        """The serving process; 0: elsewhere, or not ours to see."""
        if not self._local:
            return 0
        if (pid := self.config.engine.pid) is not None:
            return pid
        found = ports.listener(self._port)
        if found is not None and (forwarder := ports.passes_on(found)):
            raise ConfigError(f"engine.url={self._url}: {forwarder}. Name the process of the server itself, "
                              "engine.pid=PID; of one on another machine its own address, with "
                              f"engine.allow_remote=true. {NOTHING_STARTED}")
        return found or only_server() or 0

    def _environment(self) -> Mapping[str, str] | None:
        pid = self._pid()
        return (process.environment_of(pid) or None) if pid else None

    def _trained(self) -> int | None:
        info = self._show().get("model_info", {})
        return next((value for key, value in info.items() if key.endswith(".context_length") and type(value) is int),
                    None)

    def _as_found(self, resolved: Resolved,
                  environment: Mapping[str, str] | None) -> tuple[dict[str, Scalar], list[str]]:
        """Settings with those that a start decides as the server has them. Raises ConfigError where a flag that is on,
        or a knob, needs others: only a restart could bring them."""
        settings, only_a_start = resolved.settings, ollama_settings.ENVIRONMENT.keys()
        by = {name: f"infer_os.{flag}=true" for flag in self.config.infer_os.switched_on
              for name in self.config.engine.flags[flag].on} | dict(resolved.chosen)
        asked = {name: settings[name] for name in by if name in only_a_start & settings.keys()}
        wrong = [name for name, value in asked.items() if not _has(environment, name, value)]
        if wrong:
            raise self._needs_restart(list(dict.fromkeys(by[name] for name in wrong)), settings, environment)
        found = {name: value for name, value in settings.items() if name not in only_a_start}
        if environment is None:
            elsewhere = "" if self._local else "; there are no process meters for another machine"
            return found, [f"the settings of the Ollama at {self._url} that only its start decides cannot be read from "
                           f"here and are not proved{elsewhere}"]
        given = {name: _value(name, environment[variable]) for name, variable in ollama_settings.ENVIRONMENT.items()
                 if variable in environment}
        unset = [variable for name, variable in ollama_settings.ENVIRONMENT.items() if name not in given]
        note = f"the Ollama at {self._url} is taken as it was started: {_line(given) or 'no variable of ours set'}"
        return {**asked, **given, **found}, [note + (f"; not set: {', '.join(unset)}" if unset else "")]

    def _needs_restart(self, keys: Sequence[str], settings: Mapping[str, Scalar],
                       environment: Mapping[str, str] | None) -> ConfigError:
        why = "cannot be asked from here whether it has them" if environment is None else "was started otherwise"
        exactly = _line({name: settings[name] for name in ollama_settings.ENVIRONMENT if name in settings})
        return ConfigError(f"{', '.join(keys)} needs settings that Ollama reads at its start only, and the server at "
                           f"{self._url} {why}. Use engine=ollama, which starts one for each cell, or start yours with "
                           f"exactly: {exactly} ollama serve. {NOTHING_STARTED}")


def _address(config: Config) -> tuple[str, bool, int]:
    url = config.engine.url or ""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError(f"engine.url={url} is not the address of a server: expected one like http://127.0.0.1:11434. "
                          f"{NOTHING_STARTED}")
    local = ports.is_here(host)
    if not local and not config.engine.allow_remote:
        raise ConfigError(f"engine.url={url} is another machine: prompts would go there, and its memory cannot be read "
                          f"from here. engine.allow_remote=true permits it. {NOTHING_STARTED}")
    port = port or (443 if parts.scheme == "https" else _DEFAULT_PORT)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}", local, port


def _has(environment: Mapping[str, str] | None, name: str, value: Scalar) -> bool:
    if environment is None:
        return False
    text = environment.get(ollama_settings.ENVIRONMENT[name])
    return _DEFAULTS[name] == value if text is None else _value(name, text) == value


def _value(name: str, text: str) -> Scalar:
    knob, text = ollama_settings.KNOBS[name], text.strip().strip("\"'").removesuffix("MiB")
    if knob.kind is bool:
        return text.lower() not in ("0", "f", "false", "off", "")
    return int(text) if knob.kind is int and text.isdigit() else text.lower()


def _line(settings: Mapping[str, Scalar]) -> str:
    return " ".join(f"{ollama_settings.ENVIRONMENT[name]}={ollama_settings.variable(name, value)}"
                    for name, value in settings.items())


def _let_go(server: OllamaServer) -> None:
    try:
        server.unload()
    except EngineError:
        return  # it is not ours: that it can no longer be reached does not fail the trial
