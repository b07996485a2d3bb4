"""engine=ollama: an `ollama serve` of ours, with the cell's flags in its own environment, and gone when the trial is.

It gets an environment, a port, a session and a model folder of its own; nothing of the user's Ollama is touched.
What a running server is asked is server.py; a server that is already there is attached.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import Config
from pipeline.config import Engine as EngineConfig
from pipeline.engine import checks, process
from pipeline.engine.base import EngineBase, Plan, Scalar
from pipeline.engine.knobs import NOTHING_STARTED
from pipeline.engine.ollama import log, model_store
from pipeline.engine.ollama import settings as ollama_settings
from pipeline.engine.ollama.plan import check_cell, model_name, resolved_settings
from pipeline.engine.ollama.processes import Host
from pipeline.engine.ollama.server import OllamaServer
from pipeline.engine.ollama.start import (
    NEWEST_CHECKED,
    answering,
    desktop_note,
    find_binary,
    listen_address,
    program_files,
    require_supported,
    start_serve,
    stated_version,
    version_of,
)
from pipeline.errors import ConfigError, EngineError
from pipeline.language import N_
from pipeline.model import weights
from pipeline.model.digest import Progress, digest, known_digest
from pipeline.model.files import files_of, read_model
from pipeline.model.gguf import Header


class Engine(EngineBase):
    """A managed Ollama."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        asked = model_name(config)
        stored = model_store.find(asked) if config.model.kind == "ollama" else None
        self._name = stored.name if stored else asked
        self._server: OllamaServer | None = None

    @property
    def model_path(self) -> Path | None:
        """The file with the weights, the first if there are several; None while it has not been fetched."""
        if self.config.model.kind == "ollama":
            stored = model_store.find(self._name)
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
            return True, f"ollama {stated_version(find_binary(EngineConfig(name='ollama')))}"
        except ConfigError:
            return False, N_("not found (llamacpp needs nothing)")

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
        newer = checks.newer_note("Ollama", version, NEWEST_CHECKED)
        settings, notes = resolved.settings, [*resolved.notes, *newer, *process.left_out()]
        header = self._header(notes)
        if header is not None:
            if len(header.files) > 1:
                raise ConfigError(f"{header.path.name} is one of {len(header.files)} files, and Ollama takes one file. "
                                  "Use engine=llamacpp, or make one file of them (llama-gguf-split --merge). "
                                  f"{NOTHING_STARTED}")
            notes += checks.check_model(header, header.path, config, settings)
        num_ctx, rounded = checks.context_in_force(config.num_ctx)
        more, memory = check_cell(config, resolved, header)
        notes += [*rounded, *more]
        if config.model.kind != "ollama" and not config.engine.raw and header and not model_store.template(header):
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
            from pipeline.engine.ollama.pull import pull

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
        if int(plan.settings.get("num_gpu", 0)) > 0 and log.gpus(self._server.host.log_since(0)) == []:
            self._server.stop()
            raise EngineError(f"num_gpu={plan.settings['num_gpu']} was asked for, but this Ollama found no GPU that it "
                              'can use (its log: "inference compute" library=cpu). Leave infer_os.gpu_acceleration off '
                              "and knob.n_gpu_layers out.")
        return self._server

    def provenance(self) -> Mapping[str, str]:
        """See EngineBase; after a trial with what /api/ps claimed."""
        binary = find_binary(self.config.engine)
        facts = {"engine_version": f"ollama {stated_version(binary)}", "engine_binary": str(binary)}
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
            raise ConfigError(f"model {self._name} is not on this machine. Get it with `ollama pull {self._name}`, or "
                              f"let slackwater: engine.pull=true. {model_store.near(self._name)} {NOTHING_STARTED}")
        if model.kind == "file" and (located := weights.located(model)):
            return read_model(located)  # says what is wrong with the path
        notes.append(f"model={model.name} is fetched first; its file could not be checked yet")
        return None

    def _digest(self, path: Path) -> str:
        stored = model_store.find(self._name) if self.config.model.kind == "ollama" else None
        known = stored.digest if stored else known_digest([path])
        return f"sha256:{known}" if known else "not known"

    def _offer(self, path: Path, models: Path) -> None:
        """Make a model folder of ours in which the model stands under its name."""
        stored = model_store.find(self._name) if self.config.model.kind == "ollama" else None
        if stored is not None:
            model_store.link(stored, models)
        else:
            model_store.adopt(path, read_model(path), digest([path]), self._name, models)

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
                            end, api.version(), self.outer)
