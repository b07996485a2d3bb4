"""llama.cpp's log, as the embedded engine and Ollama's child write it."""

from __future__ import annotations

import pytest

from pipeline.engine.llamacpp_log import complaints, parse

MIB = 1024 * 1024

BOOT = """\
srv          init: using 8 threads for HTTP server
srv    load_model: loading model '/models/a.gguf'
llama_model_loader: loaded meta data with 33 key-value pairs and 272 tensors from /models/a.gguf (version GGUF V3)
"""
LOAD = """\
load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
load_tensors:   CPU_Mapped model buffer size =  3459.25 MiB
load_tensors:   CPU_REPACK model buffer size =  9682.03 MiB
llama_context: n_seq_max             = 4
llama_context: n_ctx                 = 16384
llama_context: n_ctx_seq             = 4096
llama_context: n_batch               = 512
llama_context: n_ubatch              = 256
llama_context: flash_attn            = enabled
llama_context: kv_unified            = false
llama_context:        CPU  output buffer size =     0.75 MiB
llama_kv_cache_iswa: creating non-SWA KV cache, size = 4096 cells
llama_kv_cache:        CPU KV buffer size =    96.00 MiB
llama_kv_cache: size =   96.00 MiB (  4096 cells,  12 layers,  1/1 seqs), K (q8_0):   48.00 MiB, V (f16):   48.00 MiB
llama_kv_cache_iswa: creating     SWA KV cache, size = 768 cells
llama_kv_cache:        CPU KV buffer size =    18.00 MiB
llama_kv_cache: size =   18.00 MiB (   768 cells,  12 layers,  1/1 seqs), K (q8_0):    9.00 MiB, V (f16):    9.00 MiB
sched_reserve:        CPU compute buffer size =    97.14 MiB
cmn          init: llama threadpool init, n_threads = 3
srv    load_model: prompt cache is disabled - use `--cache-ram N` to enable it
srv    load_model: context checkpoints enabled, max = 32, min spacing = 8192
srv          init: model loaded
"""
PROBE = LOAD.replace("97.14", "11.00").replace("n_batch               = 512", "n_batch               = 2048")


def prefixed(text: str) -> str:
    return "".join(f"0.00.391.{i:03d} I {line}\n" for i, line in enumerate(text.splitlines()))


@pytest.mark.parametrize("text", [BOOT + LOAD, prefixed(BOOT + LOAD), prefixed(BOOT + PROBE + LOAD)],
                         ids=["plain", "prefixed", "behind a probe"])
def test_settings_and_buffers_of_the_last_load(text: str) -> None:
    seen = parse(text)
    assert {name: finding.value for name, finding in seen.settings.items()} == {
        "n_threads_http": "8", "load_mode": "mmap", "n_parallel": "4", "n_ctx": "16384", "n_batch": "512",
        "n_ubatch": "256", "flash_attn": "true", "kv_unified": "false", "cache_type_k": "q8_0", "cache_type_v": "f16",
        "n_threads": "3", "cache_ram_mib": "0", "n_ctx_checkpoints": "32", "fit": "false", "warmup": "false",
        "cache_idle_slots": "false",
    }
    assert seen.settings["n_threads"].line == "cmn init: llama threadpool init, n_threads = 3"
    mib = {(buffer.component, buffer.device): round(buffer.bytes / MIB, 2) for buffer in seen.buffers}
    assert mib == {
        ("weights", "CPU_Mapped"): 3459.25, ("repacked", "CPU_REPACK"): 9682.03, ("output", "CPU"): 0.75,
        ("kv", "CPU"): 114.0, ("compute", "CPU"): 97.14,
    }


def test_a_second_load_in_the_same_log_replaces_the_first() -> None:
    second = LOAD.replace("load_mode = mmap", "load_mode = none").replace("96.00 MiB\n", "192.00 MiB\n")
    seen = parse(BOOT + LOAD + BOOT + second)
    assert seen.settings["load_mode"].value == "none"
    assert sum(buffer.bytes for buffer in seen.buffers if buffer.component == "kv") == (192 + 18) * MIB


def test_lines_that_would_say_yes_are_yes_and_an_unfinished_load_says_neither() -> None:
    yes = "common_init_: warming up the model with an empty run - please wait ...\n"
    assert parse(BOOT + LOAD.replace("cmn  ", yes + "cmn  ")).settings["warmup"].value == "true"
    assert "warmup" not in parse(BOOT + LOAD.replace("model loaded", "")).settings


def test_the_prompt_cache_is_a_buffer_that_grows() -> None:
    grown = "srv update:  - cache state: {} prompts, {} MiB (limits: 8192.000 MiB, 2048 tokens, 371287 est)\n"
    seen = parse(BOOT + LOAD + grown.format(1, "21.500") + grown.format(2, "43.000"))
    assert [buffer.bytes for buffer in seen.buffers if buffer.component == "prompt_cache"] == [43 * MIB]


def test_a_log_without_a_load_shows_nothing() -> None:
    assert parse(BOOT).settings == {}
    assert parse("").buffers == ()


def test_complaints_are_what_went_wrong_and_nothing_else() -> None:
    calm = BOOT + LOAD + "W srv  init: security: no API key is set and CORS allows all origins\n"
    assert complaints(prefixed(calm)) == ""
    wrong = prefixed(calm + "llama_model_load: error loading model:   unknown type\nsrv  init: cleaning up\n")
    assert complaints(wrong) == "llama_model_load: error loading model: unknown type"
    text = "0.00.000.002 I a\n0.01.000.003 E b\nno prefix\n0.02.000.003 E b\n1.00.000.004 W c\nValueError: d\n"
    assert complaints(text) == "b | c | ValueError: d"
