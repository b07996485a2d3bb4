"""engine=ollama: an `ollama serve` of ours, with the cell's flags in its own environment, and gone when the trial is.

It gets an environment, a port, a session and a model folder of its own; nothing of the user's Ollama is touched.
What a running server is asked is ollama_server.py; a server that is already there is ollama_attached.py.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.config import Engine as EngineConfig
from pipeline.engine import checks, model_checks, ollama_log, ollama_models, ollama_settings, process
from pipeline.engine.base import EngineBase, Plan, Scalar
from pipeline.engine.knobs import NOTHING_STARTED, Resolved, refuse, resolve
from pipeline.engine.machine import usable_cores
from pipeline.engine.ollama_process import Host
from pipeline.engine.ollama_server import OllamaServer
from pipeline.engine.ollama_start import (
    answering,
    desktop_note,
    find_binary,
    listen_address,
    newer_note,
    older,
    program_files,
    require_supported,
    start_serve,
    version_of,
)
from pipeline.errors import ConfigError, EngineError
from pipeline.model import weights
from pipeline.model.digest import Progress, digest, known_digest
from pipeline.model.files import files_of, read_model, title
from pipeline.model.gguf import Header

_GPU_FILES = ("nvidia[0-9]*", "kfd", "dri/renderD*", "dxg")


class Engine(EngineBase):
    """A managed Ollama."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._name = model_name(config)
        self._server: OllamaServer | None = None

    @property
    def model_path(self) -> Path | None:
        """The file with the weights, the first if there are several; None while it has not been fetched."""
        if self.config.model.kind == "ollama":
            stored = ollama_models.find(self._name)
            return stored.weights.resolve() if stored else None
        located = weights.located(self.config.model)
        return files_of(located)[0] if located and located.exists() else None

    @property
    def program_files(self) -> Sequence[Path]:
        """See EngineBase."""
        return program_files(find_binary(self.config.engine))

    @classmethod
    def here(cls) -> tuple[bool, str]:
        """See EngineBase."""
        try:
            return True, f"ollama {version_of(find_binary(EngineConfig(name='ollama')))}"
        except ConfigError:
            return False, "not found (llamacpp needs nothing)"

    @property
    def tokenizer(self) -> Path | None:
        """See EngineBase; the server's own template (engine.raw=false) is not in the file."""
        return self.model_path if self.config.engine.raw else None

    def plan(self) -> Plan:
        """See EngineBase. A model that has not been fetched yet is planned without its header, noted."""
        config = self.config
        binary = find_binary(config.engine)
        version = version_of(binary)
        require_supported(version, str(binary))
        listen_address(config.engine.url)
        resolved = resolved_settings(config, version)
        settings, notes = resolved.settings, [*resolved.notes, *newer_note(version), *process.left_out()]
        header = self._header(notes)
        if header is not None:
            if len(header.files) > 1:
                raise ConfigError(f"{header.path.name} is one of {len(header.files)} files, and Ollama takes one file. "
                                  "Use engine=llamacpp, or make one file of them (llama-gguf-split --merge). "
                                  f"{NOTHING_STARTED}")
            notes += model_checks.check_model(header, header.path, config, settings)
        num_ctx, rounded = model_checks.context_in_force(config.num_ctx)
        more, memory = check_cell(config, resolved, header)
        notes += [*rounded, *more]
        if config.model.kind != "ollama" and not config.engine.raw and header and not ollama_models.template(header):
            notes.append("engine.raw=false: Ollama has no template for this GGUF file; the prompt is sent as it is")
        if seen := desktop_note():
            notes.append(seen)
        path = self.model_path or weights.located(config.model)
        model = str(path.resolve() if path else self._name)  # as the server will log it, a link to it followed
        return Plan({"model": model, "num_ctx": num_ctx, **settings}, tuple(notes), memory,
                    checks.asks(settings.get("num_thread")), resolved.knobs)

    def fetch(self, progress: Progress) -> None:
        """Get a missing model: a file as weights.py does, an Ollama name by a pull, if engine.pull says so.

        Raises ConfigError: not to be had."""
        if self.config.model.kind != "ollama":
            weights.resolve(self.config.model, progress)
        elif self.model_path is None and self.config.engine.pull:
            from pipeline.engine.ollama_pull import pull

            pull(find_binary(self.config.engine), str(self._name), self.config.engine, progress)

    def start(self, log_path: Path) -> OllamaServer:
        """See EngineBase."""
        plan, path = self.plan(), self.model_path
        if path is None:
            raise EngineError(f"the model {self._name} is not there. It is fetched before the first trial; was it "
                              "removed meanwhile?")
        folder = log_path.absolute().with_suffix(".ollama")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            self._offer(path, folder / "models")
            self._server = self._serve(plan.settings, folder, log_path, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if int(plan.settings.get("num_gpu", 0)) > 0 and ollama_log.gpus(self._server.host.log_since(0)) == []:
            self._server.stop()
            raise EngineError(f"num_gpu={plan.settings['num_gpu']} was asked for, but this Ollama found no GPU that it "
                              'can use (its log: "inference compute" library=cpu). Leave infer_os.gpu_acceleration off '
                              "and knob.n_gpu_layers out.")
        return self._server

    def provenance(self) -> Mapping[str, str]:
        """See EngineBase; after a trial with what /api/ps claimed."""
        binary = find_binary(self.config.engine)
        facts = {"engine_version": f"ollama {version_of(binary)}", "engine_binary": str(binary)}
        if self._server is not None and self._server.claim is not None:
            facts["engine_claim_bytes"] = str(self._server.claim)
        path = self.model_path
        if path is None:
            return facts
        header = read_model(path)
        return facts | header.facts() | {"model_name": str(self._name), "model_digest": self._digest(path)}

    def _header(self, notes: list[str]) -> Header | None:
        path, model = self.model_path, self.config.model
        if path is not None:
            return read_model(path)
        if model.kind == "ollama" and not self.config.engine.pull:
            have = ", ".join(ollama_models.known())
            raise ConfigError(f"model {self._name} is not on this machine. Get it with `ollama pull {self._name}`, or "
                              f"let slackwater: engine.pull=true. Models here: {have or 'none'}. {NOTHING_STARTED}")
        if model.kind == "file" and (located := weights.located(model)):
            return read_model(located)  # says what is wrong with the path
        notes.append(f"model={model.name} is fetched first; its file could not be checked yet")
        return None

    def _digest(self, path: Path) -> str:
        stored = ollama_models.find(self._name) if self.config.model.kind == "ollama" else None
        known = stored.digest if stored else known_digest([path])
        return f"sha256:{known}" if known else "not known"

    def _offer(self, path: Path, models: Path) -> None:
        """Make a model folder of ours in which the model stands under its name."""
        stored = ollama_models.find(self._name) if self.config.model.kind == "ollama" else None
        if stored is not None:
            ollama_models.link(stored, models)
        else:
            ollama_models.adopt(path, read_model(path), digest([path]), self._name, models)

    def _serve(self, settings: Mapping[str, Scalar], folder: Path, log_path: Path, path: Path) -> OllamaServer:
        config = self.config
        ours = {"OLLAMA_NO_CLOUD": "1"}
        if config.infer_os.environment is None:
            ours |= {"OLLAMA_KEEP_ALIVE": str(ollama_settings.FOR_EVER),
                     "OLLAMA_CONTEXT_LENGTH": str(settings["num_ctx"]),
                     # never: our own rule (waiting.py) says what did not move, and knows a load that computes
                     "OLLAMA_LOAD_TIMEOUT": "24h"}
        child = start_serve(find_binary(config.engine), folder, folder / "models", log_path,
                            listen_address(config.engine.url), ours | ollama_settings.environment(settings))

        def end() -> None:
            child.end(config.engine.stop_limit_s)
            shutil.rmtree(folder, ignore_errors=True)

        try:
            api = answering(child, config.engine.start_limit_s, self.outer)
        except BaseException:
            end()
            raise
        return OllamaServer(api, Host(child.pid, log_path, child.ended), str(self._name), path, settings, config.engine,
                            end, older(api.version()), self.outer)


def resolved_settings(config: Config, version: str) -> Resolved:
    """Settings behind the cell's flags and knobs, or its published environment. Raises ConfigError: see knobs.resolve;
    a server of this version has nothing behind a flag or knob; a knob that the published environment leaves out."""
    published = config.infer_os.environment
    flags = dataclasses.replace(config.infer_os, environment=None)
    resolved = resolve(config.engine, flags, ollama_settings.KNOBS, usable_cores(), config.knob, ollama_settings.WORDS)
    settings, notes = dict(resolved.settings), list(resolved.notes)
    if published is not None:
        # The flags as they were published: these variables, and no knob of ours, in the server's environment; but
        # Go's collector is held as steady as in every cell.
        dropped = ollama_settings.ENVIRONMENT.keys() - {"go_memory_limit_mib"}
        for name in sorted(dropped & resolved.chosen.keys()):
            raise ConfigError(f"{resolved.chosen[name]} is a variable of the server, and infer_os.environment says "
                              f"exactly which it has. Put {ollama_settings.ENVIRONMENT[name]} there, or leave one of "
                              f"them out. {NOTHING_STARTED}")
        settings = {name: value for name, value in settings.items() if name not in dropped}
        settings |= {f"env.{name}": value for name, value in published.items()}
    if older(version):
        for name in ollama_settings.CHILD_ONLY:
            if name in resolved.chosen:
                raise ConfigError(f"{resolved.chosen[name]}: Ollama {version} has nothing behind {name}, which came "
                                  f"with 0.30. {NOTHING_STARTED}")
        settings = {name: value for name, value in settings.items() if name not in ollama_settings.CHILD_ONLY}
        if config.infer_os.memory_optimization:
            notes.append(f"Ollama {version} has no prompt cache, no checkpoints, no switch for repacking (these came "
                         "with 0.30): infer_os.memory_optimization changes use_mmap and max_loaded_models only")
        kv_type = settings.get("kv_cache_type", "f16")
        if kv_type not in ("f16", "q8_0", "q4_0"):
            raise ConfigError(f"kv_cache_type={kv_type}: Ollama {version} knows f16, q8_0 and q4_0, and ignores "
                              f"others. {NOTHING_STARTED}")
    return dataclasses.replace(resolved, settings=settings | {"keep_alive": ollama_settings.FOR_EVER}, notes=notes)


def check_cell(config: Config, resolved: Resolved,
               header: Header | None) -> tuple[list[str], Mapping[str, int]]:
    """Checks of a cell against model and machine that need no server: notes, and bytes by component (Plan.memory).

    Raises ConfigError."""
    settings = resolved.settings
    ollama_settings.check(settings, config.num_ctx)
    checks.check_context(header, config.num_ctx, config.max_tokens)
    if int(settings.get("num_gpu", 0)) > 0 and not _has_gpu():
        raise refuse(resolved.chosen.get("num_gpu", "infer_os.gpu_acceleration=true"), config.engine.name,
                     "this machine has no GPU (nothing in /dev/nvidia*, /dev/kfd, /dev/dri); Ollama would take the "
                     "number of layers and ignore it")
    if header is None:
        return [], {}
    slots, batch = int(settings.get("num_parallel", 1)), int(settings["num_batch"])
    kv_type = str(settings.get("kv_cache_type", "f16"))
    num_ctx, _ = model_checks.context_in_force(config.num_ctx)
    need = checks.memory_need(header, num_ctx, slots, batch, kv_type, kv_type)
    note = checks.check_memory(need, f"{title(config.model)} with num_ctx={num_ctx} in {slots} slots",
                               mapped=settings.get("use_mmap") is True)
    return [note] if note else [], need


def model_name(config: Config) -> ollama_models.Name:
    """The name under which the server is asked for the model. Raises ConfigError: no name, or none that can be."""
    if config.model.kind != "ollama":
        called = re.sub(r"[^A-Za-z0-9_.-]", "-", title(config.model)).lstrip(".-")[:60]
        return ollama_models.Name.parse(called or "model")
    if not config.model.tag:
        raise ConfigError(f"model={config.model.name} needs model.tag: the name as `ollama pull` takes it, such as "
                          f"gpt-oss:20b. {NOTHING_STARTED}")
    return ollama_models.Name.parse(config.model.tag)


def _has_gpu() -> bool:
    return any(True for pattern in _GPU_FILES for _ in Path("/dev").glob(pattern))
