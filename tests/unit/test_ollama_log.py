"""Lines of `ollama serve` itself, from recordings of 0.33.0 and from the formats of 0.24."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engine import llamacpp_log
from pipeline.engine.ollama import log

LOGS = Path(__file__).parents[1] / "data/ollama/0.33.0/log"


def text(name: str) -> str:
    return (LOGS / f"{name}.stderr.log").read_text()


def test_the_server_config_line_is_read_name_by_name() -> None:
    config = log.server_config(text("as-published"))
    assert config is not None
    assert config["OLLAMA_HOST"] == "http://127.0.0.1:11555"
    assert config["OLLAMA_LOAD_TIMEOUT"] == "1m0s"
    assert config["OLLAMA_KV_CACHE_TYPE"] == ""
    assert config["OLLAMA_ORIGINS"].startswith("[http://localhost https://localhost")
    assert config["OLLAMA_ORIGINS"].endswith("]")
    assert "OLLAMA_NUM_THREADS" not in config
    assert len(config) > 30


def test_address_and_version_come_from_the_listening_line() -> None:
    assert log.listening(text("as-published")) == ("127.0.0.1:11555", "0.33.0")
    assert log.listening("") is None


def test_a_load_is_over_when_the_server_says_so() -> None:
    whole = text("as-published")
    assert log.loaded(whole)
    assert not log.loaded(whole.partition("llama-server started in")[0])
    assert log.loaded('time=x level=INFO source=server.go:1384 msg="llama runner started in 0.45 seconds"')


@pytest.mark.parametrize(("name", "words"), [
    ("kv-bogus", "Unsupported cache type: q9_9"),
    ("kv-q8-fa0", "quantized V cache requires flash_attn to be enabled"),
])
def test_why_a_load_failed_stands_in_the_log(name: str, words: str) -> None:
    assert words in log.reasons(text(name))


def test_a_healthy_log_gives_no_reason() -> None:
    healthy = log.reasons(text("kv-q8-fa1"))
    assert healthy == "", healthy


def test_a_cut_prompt_and_a_cut_context_are_found() -> None:
    line = 'level=WARN source=llama_server.go:317 msg="truncating input prompt" limit=1026 prompt=13899 keep=4 new=1026'
    assert log.cut_prompt(line) == log.Cut(prompt=13899, limit=1026)
    assert log.cut_prompt(text("as-published")) is None


def test_layers_that_were_ignored_or_offloaded() -> None:
    ignored = llamacpp_log.offloaded(text("gpu-layers-20-on-cpu"))
    assert ignored is not None
    assert ignored[:2] == (0, 0)
    line = "offloaded 20/31 layers to GPU"
    assert llamacpp_log.offloaded(f"load_tensors: {line}") == (20, 31, line)
    assert llamacpp_log.offloaded(text("as-published")) is None


def test_gpus_of_the_server() -> None:
    assert log.gpus(text("as-published")) == []
    assert log.gpus('msg="inference compute" id=GPU-1 library=CUDA') == ["CUDA"]
    assert log.gpus("") is None


def test_buffers_before_030_the_last_round_counts() -> None:
    said = [("model weights", "10.0 MiB"), ("model weights", "11.8 GiB"), ("kv cache", "300.5 MiB"),
            ("compute graph", "97 MiB"), ("total memory", "12.2 GiB")]
    lines = "\n".join(f'level=INFO source=device.go:240 msg="{name}" device=CPU size="{size}"' for name, size in said)
    assert {(buffer.component, buffer.bytes) for buffer in log.old_buffers(lines)} == {
        ("weights", round(11.8 * 2**30)), ("kv", round(300.5 * 2**20)), ("compute", 97 * 2**20)}


def test_cached_tokens_of_the_last_request() -> None:
    assert llamacpp_log.cached_tokens(text("as-published")) == 0
    assert llamacpp_log.cached_tokens("") is None


def test_what_others_asked_is_told_from_our_own() -> None:
    gin = '[GIN] 2026/11/26 - 13:59:46 | 200 |  9.007729269s | {client:>15} | POST     "{path}"\n'
    task = "slot launch_slot_: id  0 | task {n} | processing task, is_child = 0\n"
    ours = gin.format(client="127.0.0.1", path="/api/generate") * 3 + task.format(n=0)
    assert log.others(ours + gin.format(client="127.0.0.1", path="/api/show"), calls=3, answers=1) == ""
    theirs = gin.format(client="192.168.1.7", path="/v1/chat/completions") + gin.format(
        client="192.168.1.7", path="/api/generate") + task.format(n=5) + task.format(n=9)
    assert log.others(ours + theirs, calls=3, answers=1) == (
        "POST /v1/chat/completions from 192.168.1.7: 1; POST /api/generate from 192.168.1.7: 1; "
        "2 more tasks in its engine than ours")
    assert log.others(ours + task.format(n=5), calls=4, answers=1) == "1 more tasks in its engine than ours"
