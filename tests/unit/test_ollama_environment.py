"""What a variable of a running Ollama's start means: its own rules, not ours."""

from __future__ import annotations

import pytest

from pipeline.engine.base import Scalar
from pipeline.engine.ollama.environment import NOT_SET, as_read, in_force
from pipeline.engine.ollama.settings import ENVIRONMENT

AS_READ: list[tuple[str, str, Scalar]] = [
    *(("flash_attention", word, False) for word in ("0", "f", "F", "FALSE", "false", "False", " 'false' ")),
    *(("flash_attention", word, True) for word in ("1", "t", "True", "off", "OFF", "no", "fAlSe", "x", '"on"')),
    ("flash_attention", "", "auto"), ("flash_attention", ' "" ', "auto"),
    ("num_parallel", "0", 1), ("num_parallel", "4", 4), ("num_parallel", " 4 ", 4), ("num_parallel", "'4'", 4),
    ("num_parallel", "-4", 1), ("num_parallel", "+4", 1), ("num_parallel", "4.0", 1), ("num_parallel", "four", 1),
    ("max_loaded_models", "3", 3), ("max_loaded_models", "auto", 0), ("max_loaded_models", "0", 0),
    ("kv_cache_type", "Q8_0", "q8_0"), ("kv_cache_type", '"q4_0"', "q4_0"), ("kv_cache_type", "", "f16"),
    ("cache_ram_mib", "512MiB", 512), ("cache_ram_mib", "0", 0), ("cache_ram_mib", "-1", -1),
    ("repack", "off", False), ("repack", "enabled", True), ("repack", "no", "no"),
    ("go_memory_limit_mib", "8MiB", 8), ("go_memory_limit_mib", "8388608", 8), ("go_memory_limit_mib", "off", 0),
]


@pytest.mark.parametrize(("name", "text", "means"), AS_READ)
def test_a_variable_means_what_the_server_makes_of_it(name: str, text: str, means: Scalar) -> None:
    found = as_read(name, {ENVIRONMENT[name]: text}, old=False)
    assert (found, type(found)) == (means, type(means))


def test_what_is_not_set_is_in_force_all_the_same_and_each_version_has_its_own_rules() -> None:
    assert in_force({}, old=False) == NOT_SET
    assert "cache_ram_mib" not in in_force({}, old=True), "no prompt cache before 0.30"
    assert in_force({"OLLAMA_KV_CACHE_TYPE": "q5_0"}, old=True)["kv_cache_type"] == "f16", "0.24 ignores what it lacks"
    assert in_force({"LLAMA_ARG_NO_REPACK": "0"}, old=False)["repack"] is False, "that it is there is enough"
