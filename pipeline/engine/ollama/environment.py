"""Variables of a running Ollama's start, as the server itself reads them, not set ones included.

Pure functions. The rules are those of envconfig/config.go (Var, BoolWithDefault, Uint; the same in 0.24 and 0.33), of
common/arg.cpp for what llama.cpp reads (LLAMA_ARG_*, since 0.30), and of Go's runtime for GOMEMLIMIT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.engine.base import Scalar
from pipeline.engine.ollama.settings import CHILD_ONLY, ENVIRONMENT

AUTO = "auto"
"""Of flash_attention, whose variable is not set: llama.cpp decides at the load."""

NOT_SET: Mapping[str, Scalar] = {
    "max_loaded_models": 0,  # as many as the server thinks right: 3 for each GPU, or for the CPU
    "num_parallel": 1, "kv_cache_type": "f16", "flash_attention": AUTO, "cache_ram_mib": 8192,
    "n_ctx_checkpoints": 32, "repack": True, "go_memory_limit_mib": 0,
}
"""What is in force where a variable is not set."""

_FALSE = ("0", "f", "F", "FALSE", "false", "False")
"""What strconv.ParseBool takes for false; any other word that is not empty is true."""
_ON, _OFF = ("on", "enabled", "true", "1"), ("off", "disabled", "false", "0")
_OLD_KV_TYPES = ("f16", "q8_0", "q4_0")
_UINT = 2**64
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def in_force(environment: Mapping[str, str], old: bool) -> dict[str, Scalar]:
    """Setting → what a server with this environment has, for every one that a start decides. `old`: before 0.30."""
    names = [name for name in ENVIRONMENT if not (old and name in CHILD_ONLY)]
    return {name: as_read(name, environment, old) for name in names}


def as_read(name: str, environment: Mapping[str, str], old: bool) -> Scalar:
    """One setting as the server reads it; a word of which llama.cpp makes nothing is returned as it stands, since a
    load then fails."""
    text = environment.get(ENVIRONMENT[name])
    if name in CHILD_ONLY:
        return _of_llamacpp(name, text, environment)
    if name == "go_memory_limit_mib":
        return _mib(text)
    word = (text or "").strip().strip("\"'")
    if not word:
        return NOT_SET[name]
    if name == "flash_attention":
        return word not in _FALSE
    if name == "kv_cache_type":
        return NOT_SET[name] if old and word.lower() not in _OLD_KV_TYPES else word.lower()
    number = int(word) if re.fullmatch(r"[0-9]+", word) and int(word) < _UINT else int(NOT_SET[name])
    return max(number, 1) if name == "num_parallel" else number


def _of_llamacpp(name: str, text: str | None, environment: Mapping[str, str]) -> Scalar:
    if name == "repack":
        if "LLAMA_ARG_NO_REPACK" in environment:
            return False
        return NOT_SET[name] if text is None else True if text in _ON else False if text in _OFF else text
    if text is None:
        return NOT_SET[name]
    number = re.match(r"\s*([+-]?[0-9]+)", text)  # std::stoi: what follows the digits is left
    return int(number[1]) if number else text


def _mib(text: str | None) -> Scalar:
    if text is None or text in ("", "off"):
        return 0
    found = re.fullmatch(r"([0-9]+)((?:[KMGT]i)?B?)", text)
    if found is None or found[2] not in _UNITS:
        return text
    size = int(found[1]) * _UNITS[found[2]] / 2**20
    return int(size) if size.is_integer() else size
