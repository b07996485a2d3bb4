"""engine=ollama_attached: an Ollama that already runs, here or elsewhere. Its settings are read, never assumed.

It is asked to load and unload its model and is otherwise left as it was found; a server of ours is __init__.py.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import ports
from pipeline.config import Config
from pipeline.engine import checks, process, server_log
from pipeline.engine.answers import quoted
from pipeline.engine.base import EngineBase, Plan, Progress, Scalar
from pipeline.engine.knobs import NOTHING_STARTED, Resolved, as_text
from pipeline.engine.ollama import settings as ollama_settings
from pipeline.engine.ollama.api import Api, NoSuchModelError, Shown
from pipeline.engine.ollama.environment import in_force
from pipeline.engine.ollama.model_store import near_names
from pipeline.engine.ollama.plan import model_name, resolved_settings
from pipeline.engine.ollama.processes import Host, called, gone, log_file, not_the_one, servers
from pipeline.engine.ollama.server import OllamaServer
from pipeline.engine.ollama.settings import ENVIRONMENT
from pipeline.engine.ollama.start import DESKTOP, NEWEST_CHECKED, answered_version, older, require_supported
from pipeline.errors import ConfigError, EngineError
from pipeline.language import N_, _, sentence
from pipeline.model.files import title

_DEFAULT_PORT = 11434
_LEAVING_S = 2.0
_POLL_S = 0.01


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
        self._url, self._local, self._host, self._port = _address(config)
        if config.engine.pid is not None and (not self._local or gone(config.engine.pid)):
            raise ConfigError(f"engine.pid={config.engine.pid}: there is no such process on "
                              f"{'this machine' if self._local else 'the machine of engine.url'} that could be read. "
                              f"Expected the id of the Ollama that answers at {self._url}. {NOTHING_STARTED}")
        self._shown: Shown | None = None
        self._version: str | None = None
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
        said = self._show().modelfile if self._local else ""
        match = re.search(r"^FROM (/.+)$", said, re.MULTILINE)
        try:
            return Path(match[1]).resolve() if match and Path(match[1]).is_file() else None
        except (OSError, ValueError):  # not ours to look into, or nothing that could be a path
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
        resolved = resolved_settings(replace(config, infer_os=replace(config.infer_os, as_started=None)), version)
        found, more = self._as_found(resolved, self._environment(), version)
        num_ctx, rounded = checks.context_in_force(config.num_ctx)
        ollama_settings.check(found, num_ctx)
        checks.check_context(self._show().trained, config.num_ctx, config.max_tokens)
        asked = {"model": str(self.model_path or self._name), "num_ctx": num_ctx, **found,
                 "keep_alive": ollama_settings.FOR_EVER}
        wants = _("the server at {url}: its model is loaded and unloaded, and nobody else should use it")
        newer = checks.newer_note("Ollama", version, NEWEST_CHECKED)
        return Plan(asked, (*resolved.notes, *newer, *rounded, *more, *_other_host(self._url)),
                    asks=(wants.format(url=self._url),), knobs=resolved.knobs)

    def start(self, log_path: Path) -> OllamaServer:
        """See EngineBase: nothing is started; the model is unloaded if it is loaded, so that the trial begins empty."""
        try:
            plan, pid = self.plan(), self._pid()
        except ConfigError as error:  # it was right when the sweep began
            raise EngineError(str(error).removesuffix(f" {NOTHING_STARTED}")) from error
        self._refuse_other_start(plan.settings)
        if self._local and not pid:
            seen = "; ".join(map(called, servers())) or "no `ollama serve` can be seen"
            raise EngineError(f"not measured: which process of this machine answers at {self._url} cannot be told from "
                              f"here, so none of its memory would be read. There is: {seen}. Name the right one, "
                              "engine.pid=PID, or run slackwater as its user or root.")
        api = Api(self._url)
        ours = model_name(self.config)
        others = [quoted(entry.names[0]) for entry in api.running() if not ours.is_called(entry.names[0])]
        if others and pid:
            raise EngineError(f"the server at {self._url} holds other models ({', '.join(others)}), which would be "
                              f"measured too. Unload them first: ollama stop {others[0]}.")
        source = log_file(pid) if pid else None
        host = Host(pid, source, lambda: "its process is gone" if pid and gone(pid) else None, self._url)
        if not api.running() and not _empties(host):
            raise EngineError(not_the_one(host, "it says that it holds no model, and this process holds one"))
        begin = host.log_bytes()

        def end() -> None:
            if host.ended() is None:
                _let_go(server)
            if source is not None and host.log_bytes() > begin:
                server_log.copy(source, begin, log_path)
            else:
                log_path.write_text(f"The log of the Ollama at {self._url} cannot be read from here.\n", "utf-8")

        server = OllamaServer(api, host, self._name, self.model_path, plan.settings, self.config.engine, end,
                              self._ask_version(), self.outer)
        server.unload()
        self._server = server
        return server

    def _refuse_other_start(self, now: Mapping[str, Scalar]) -> None:
        """Raises EngineError for a server that was started anew, with other settings than the cell has."""
        changed = [f"{name} was {as_text(self.planned[name])} and is {as_text(now.get(name))}"
                   for name in ENVIRONMENT if name in self.planned and self.planned[name] != now.get(name)]
        if changed:
            raise EngineError(f"the Ollama at {self._url} was started anew with other settings within the sweep: "
                              f"{'; '.join(changed)}. The cell ends here, since these are two servers. Start it as it "
                              "was and go on, or measure this one in a sweep of its own.")

    def provenance(self) -> Mapping[str, str]:
        """See EngineBase; after a trial with what /api/ps claimed."""
        shown, path = self._show(), self.model_path
        facts = {"engine_version": f"ollama {answered_version(self._ask_version())}", "engine_url": self._url,
                 "model_name": self._name, "model_quantisation": shown.quantisation,
                 "model_architecture": shown.architecture}
        blob = re.search(r"^FROM \S*sha256-([0-9a-f]{64})", shown.modelfile, re.MULTILINE)
        facts["model_digest"] = f"sha256:{blob[1]}" if blob else "not known"
        if path is not None:
            facts["model_file"], facts["model_bytes"] = str(path), str(path.stat().st_size)
        if self._server is not None and self._server.claim is not None:
            facts["engine_claim_bytes"] = str(self._server.claim)
        return facts

    def _ask_version(self) -> str:
        if self._version is None:
            try:
                self._version = Api(self._url).version()
            except EngineError as error:
                raise ConfigError(f"engine.url={self._url}: {error} {NOTHING_STARTED}") from error
        return self._version

    def _show(self) -> Shown:
        if self._shown is None:
            try:
                self._shown = Api(self._url).show(self._name)
            except NoSuchModelError as error:
                near = near_names(self._name, Api(self._url).models())
                raise ConfigError(f"{error} {near} {NOTHING_STARTED}") from error
            except EngineError as error:
                raise ConfigError(f"engine.url={self._url}: {error} {NOTHING_STARTED}") from error
        return self._shown

    def _pid(self) -> int:
        """The serving process; 0: elsewhere, or not ours to see."""
        if not self._local:
            return 0
        if (pid := self.config.engine.pid) is not None:
            return pid
        found = ports.listener(self._port, self._host)
        if found is not None and (forwarder := ports.passes_on(found)):
            raise ConfigError(f"engine.url={self._url}: {forwarder}. Name the process of the server itself, "
                              "engine.pid=PID; of one on another machine its own address, with "
                              f"engine.allow_remote=true. {NOTHING_STARTED}")
        if found is not None:
            return found
        users = {each.uid for each in ports.listening(self._port, self._host)}
        candidates = servers(users)  # another user's, whose open files are not ours to see; or in a container
        return candidates[0] if len(candidates) == 1 else 0

    def _environment(self) -> Mapping[str, str] | None:
        pid = self._pid()
        return (process.environment_of(pid) or None) if pid else None

    def _as_found(self, resolved: Resolved, environment: Mapping[str, str] | None,
                  version: str) -> tuple[dict[str, Scalar], list[str]]:
        """Settings with those that a start decides as the server has them. Raises ConfigError where infer_os was named,
        or a knob, and they are not as it asks: only a restart could bring that."""
        settings, old = resolved.settings, older(version)
        decided = [name for name in ENVIRONMENT if name in settings]
        asked = {name: settings[name] for name in self._asked_for(resolved) if name in decided}
        there = in_force(environment, old) if environment is not None else {}
        wrong = [name for name, value in asked.items() if there.get(name) != value]
        if wrong:
            raise self._needs_restart(wrong, resolved, there, environment)
        found = {name: value for name, value in settings.items() if name not in decided}
        if environment is None:
            elsewhere = "" if self._local else "; there are no process meters for another machine"
            return found, [f"the settings of the Ollama at {self._url} that only its start decides cannot be read from "
                           f"here and are not proved{elsewhere}"]
        shown = ", ".join(f"{name}={as_text(value)}" + ("" if ENVIRONMENT[name] in environment else " (not set)")
                          for name, value in there.items())
        return {**there, **found}, [f"the Ollama at {self._url} is taken as it was started: {shown}"]

    def _asked_for(self, resolved: Resolved) -> Mapping[str, str]:
        """Setting → the key that asks for it. Nothing but what was set by name where the server is taken as it is."""
        config = self.config
        if config.infer_os.nothing_asked:
            return resolved.chosen
        on = {name: f"infer_os.{flag}={as_text(flag in config.infer_os.switched_on)}"
              for flag, arms in config.engine.flags.items() for name in arms.on}
        return {**{name: f"engine.knobs.{name}" for name in config.engine.knobs}, **on, **resolved.chosen}

    def _needs_restart(self, wrong: Sequence[str], resolved: Resolved, there: Mapping[str, Scalar],
                       environment: Mapping[str, str] | None) -> ConfigError:
        settings, by = resolved.settings, self._asked_for(resolved)
        keys = ", ".join(dict.fromkeys(by[name] for name in wrong))
        why = "cannot be asked from here whether it has them" if environment is None else "was started otherwise: " + (
            "; ".join(f"{name} is {as_text(there.get(name))}, not {as_text(settings[name])}" for name in wrong))
        line = " ".join(f"{variable}={ollama_settings.variable(name, settings[name])}"
                        for name, variable in ENVIRONMENT.items() if name in settings)
        return ConfigError(f"{keys} needs settings that Ollama reads at its start only, and the server at {self._url} "
                           f"{why}. One start is one arm: start yours with exactly: {line} ollama serve. Measure each "
                           "arm in a sweep of its own and set them side by side with `slackwater compare`, or use "
                           f"engine=ollama, which starts a server for each cell. {NOTHING_STARTED}")


def _address(config: Config) -> tuple[str, bool, str, int]:
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
    return f"{parts.scheme}://{shown}:{port}", local, host, port


def _empties(host: Host) -> bool:
    """Has it no process with a model, or will have none in a moment (one that is being unloaded)?"""
    deadline = time.monotonic() + _LEAVING_S
    while host.child(thorough=True) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _let_go(server: OllamaServer) -> None:
    try:
        server.unload()
    except EngineError:
        return  # it is not ours: that it can no longer be reached does not fail the trial
