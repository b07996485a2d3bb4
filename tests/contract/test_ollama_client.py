"""An independent witness: the official Python client understands the double as it understands a real server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, InferOs, Model
from pipeline.engine import load_engine
from pipeline.engine.base import Server
from tests.contract.test_ollama import DOUBLE, engine_config

ollama = pytest.importorskip("ollama", reason="the client `ollama` is not installed")


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.ollama)])
def client(request: pytest.FixtureRequest, tmp_path: Path, model_file: Path) -> Iterator[Any]:
    binary = str(DOUBLE) if request.param == "double" else os.environ.get("OLLAMA_BIN") or shutil.which("ollama")
    if binary is None:
        pytest.skip("no Ollama here: neither OLLAMA_BIN nor `ollama` on the PATH")
    engine = engine_config(binary=binary, start_limit_s=60.0)
    config = Config(model=Model(name="smollm2", kind="file", path=str(model_file)), engine=engine, infer_os=InferOs())
    server: Server = load_engine(config).start(tmp_path / "server.log")
    try:
        yield ollama.Client(host=server.api.url, trust_env=False)  # type: ignore[attr-defined]
    finally:
        server.stop()


def test_the_official_client_reads_every_answer(client: Any) -> None:
    options = {"num_ctx": 512, "num_predict": 4, "temperature": 0, "seed": 1}
    assert [model.model for model in client.list().models] == ["smollm2:latest"]
    assert client.ps().models == []
    shown = client.show("smollm2")
    assert (shown.details.family, shown.capabilities) == ("llama", ["completion"])
    whole = client.generate("smollm2", "Slack water is", raw=True, options=options)
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "length", 4)
    assert whole.total_duration > whole.eval_duration > 0
    pieces = list(client.generate("smollm2", "Slack water is", raw=True, stream=True, options=options))
    assert "".join(piece.response for piece in pieces).strip()
    assert pieces[-1].eval_count == whole.eval_count  # the texts may part ways: the second time the prompt is cached
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    said = client.chat("smollm2", [{"role": "user", "content": "Hello"}], options=options)
    assert said.message.role == "assistant"
    (loaded,) = client.ps().models
    assert (loaded.model, loaded.context_length, loaded.size_vram) == ("smollm2:latest", 512, 0)
    assert client.generate("smollm2", "", keep_alive=0).done_reason == "unload"


def test_the_official_client_reads_every_refusal(client: Any) -> None:
    with pytest.raises(ollama.ResponseError) as missing:
        client.generate("nope", "x")
    assert (missing.value.status_code, missing.value.error) == (404, "model 'nope' not found")
    with pytest.raises(ollama.ResponseError) as thinking:
        client.generate("smollm2", "x", think=True)
    assert thinking.value.status_code == 400
    with pytest.raises(ollama.ResponseError) as wrong:
        client.generate("smollm2", "x", keep_alive="300")
    assert (wrong.value.status_code, wrong.value.error) == (400, 'time: missing unit in duration "300"')
