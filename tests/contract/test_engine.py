"""What every engine owes the runner (pipeline/testing/engine.py), asked of those that ship, and more of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.config import Config
from pipeline.engine import load_engine, process
from pipeline.engine.base import EngineBase, Server
from pipeline.errors import ConfigError, PromptTooLongError
from pipeline.model.files import read_model
from pipeline.testing import EngineContract, Events, config_of
from pipeline.testing.engine import TOKENS, Start, ask, tree

OLLAMA_DOUBLE = Path(__file__).parents[1] / "doubles/ollama/ollama"


class OnTheDefaultModel(EngineContract):
    """llama.cpp inside, with the default model's weights in a file of this machine."""

    switched = ("infer_os=on",)
    says: ClassVar[Mapping[str, str]] = {
        "killed": "ended during generation: killed by signal 9",
        "frozen": r"made no progress during generation: no token for 1 s|was stopped \(SIGSTOP\) during generation",
        "frozen at load": r"made no progress during load|was stopped \(SIGSTOP\) during load",
        "dead": "ended during load: killed by signal 9"}

    def test_a_started_server_has_not_mapped_the_weights(self, engine: EngineBase, start: Start) -> None:
        assert engine.model_path is not None
        assert all(process.maps_file(each.pid, engine.model_path) is False for each in tree(start(self.config())))

    def look_closer(self, server: Server, config: Config) -> None:
        """The buffers that the engine admits to are the bytes that the model's header implies."""
        path = load_engine(config).model_path
        assert path is not None
        header = read_model(path)
        held = {part: sum(buffer.bytes for buffer in server.buffers() if buffer.component == part)
                for part in ("weights", "kv", "compute")}
        kv_type = "q8_0" if config.infer_os.quantization else "f16"
        slots = 4 if config.infer_os.parallel_processing else 1
        assert held["weights"] == pytest.approx(sum(tensor.bytes or 0 for tensor in header.tensors), rel=0.01)
        assert held["kv"] == pytest.approx(slots * header.kv_bytes(config.num_ctx, 0, kv_type, kv_type), rel=0.01)
        assert held["compute"] > 0

    def test_parallel_slots_are_proved_and_each_has_a_cache(self, start: Start) -> None:
        server = start(config := self.config("infer_os.parallel_processing=true"))
        server.load(Events())
        assert [proof for proof in server.proofs() if proof.state == "contradicted"] == []
        self.look_closer(server, config)

    def test_the_servers_own_template_may_be_used(self, start: Start) -> None:
        server = start(self.config())
        bare, wrapped = (server.generate(ask(raw=raw), Events()) for raw in (True, False))
        assert bare.prompt_tokens == 4
        assert wrapped.prompt_tokens > bare.prompt_tokens

    def test_a_prompt_longer_than_the_context_is_named_with_the_servers_counts(self, start: Start) -> None:
        server = start(self.config())
        with pytest.raises(PromptTooLongError, match=r"counts \d{4} tokens.*2048.*Raise num_ctx"):
            server.generate(ask("tide " * 3000), Events())
        assert server.generate(ask(), Events()).output_tokens == TOKENS

    def test_provenance_names_the_model(self, engine: EngineBase) -> None:
        assert engine.provenance()["model_digest"] == f"sha256:{self.config().model.sha256}"


class TestLlamacpp(OnTheDefaultModel):
    overrides = ("engine=llamacpp",)


class TestOllamaDouble(OnTheDefaultModel):
    overrides = ("engine=ollama", f"engine.binary={OLLAMA_DOUBLE}")


@pytest.mark.ollama
class TestOllama(OnTheDefaultModel):
    overrides = ("engine=ollama",)

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        if not (os.environ.get("OLLAMA_BIN") or shutil.which("ollama")):
            pytest.skip("no Ollama here: neither OLLAMA_BIN nor `ollama` on the PATH")


def test_an_unknown_engine_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"engine\.name=lamacpp is not a known engine: expected one of .*llamacpp"):
        load_engine(config_of("engine.name=lamacpp"))
