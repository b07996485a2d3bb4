"""What `ollama serve` itself writes to its log (slog lines). Pure functions over text.

The lines of its child, llama.cpp's, are read by llamacpp_log.py. Formats: server/routes.go, llm/llama_server.go
and, before 0.30, llm/server.go and ml/device.go in Ollama's repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.engine.base import Buffer

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_COMPONENTS = {"model weights": "weights", "kv cache": "kv", "compute graph": "compute"}

_LISTENING = re.compile(r'msg="Listening on (\S+) \(version ([^)]*)\)"')
_CONFIG = re.compile(r'msg="server config" env="map\[(.*)\]"')
_CONFIG_KEY = re.compile(r"(?:^| )([A-Z][A-Z0-9_]*|https?_proxy|no_proxy):")
_STARTED = re.compile(r'msg="(?:llama-server|llama runner) started in')
_CUT_PROMPT = re.compile(r'msg="truncating input prompt" limit=(\d+) prompt=(\d+)')
_CUT_CONTEXT = re.compile(r'msg="requested context size too large for model" .*?num_ctx=(\d+).*?n_ctx_train=(\d+)')
_REQUEST = re.compile(r'msg=load request="\{(.*)\}"')
_REQUEST_FIELD = re.compile(r"(\w+):((?:\d+)?\[[^\]]*\]|map\[[^\]]*\]|\S*)")
_OLD_BUFFER = re.compile(r'msg="(model weights|kv cache|compute graph)" device=("[^"]*"|\S+) size="?([\d.]+) (\w+)"?')
_COMPUTE = re.compile(r'msg="inference compute" id=(\S+) library=(\S+)')
_NO_GPU = re.compile(r"^.*no usable GPU found, --gpu-layers option will be ignored.*$", re.MULTILINE)
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_TOO_LONG = re.compile(r"request \((\d+) tokens\) exceeds the available context size \((\d+) tokens\)")
_CACHED = re.compile(r"cached n_tokens = (\d+), memory_seq_rm")
_MODEL_FILE = re.compile(r"loaded meta data with \d+ key-value pairs and \d+ tensors from (.+) \(version ")
_WRONG = re.compile(r"\b(error|failed|unsupported|require[sd]?|unable|cannot|out of memory|panic)\b", re.IGNORECASE)
_NOISE = re.compile(r"^(\[GIN\]|time=\S+ level=(INFO|DEBUG) )")


@dataclass(frozen=True)
class Cut:
    """A prompt that the server shortened: tokens it had, tokens it was cut to."""

    prompt: int
    limit: int


def listening(text: str) -> tuple[str, str] | None:
    """(address, version) of the line that a server writes before it answers; None: not there yet."""
    found = _LISTENING.findall(text)
    return found[-1] if found else None


def server_config(text: str) -> Mapping[str, str] | None:
    """The settings that the server says it has read from its environment; a name that is missing is not read."""
    lines = _CONFIG.findall(text)
    if not lines:
        return None
    keys = list(_CONFIG_KEY.finditer(lines[-1]))
    ends = [match.start() for match in keys[1:]] + [len(lines[-1])]
    return {match[1]: lines[-1][match.end():end].strip() for match, end in zip(keys, ends, strict=True)}


def model_file(text: str) -> str | None:
    """The file that the child says it loads; None: it does not say."""
    found = _MODEL_FILE.findall(text)
    return str(found[-1]) if found else None


def loaded(text: str) -> bool:
    """Does a line say that a model has been loaded?"""
    return _STARTED.search(text) is not None


def cut_prompt(text: str) -> Cut | None:
    """The last prompt that the server says it shortened."""
    found = _CUT_PROMPT.findall(text)
    return Cut(prompt=int(found[-1][1]), limit=int(found[-1][0])) if found else None


def too_long(text: str) -> tuple[int, int] | None:
    """(tokens of the prompt, tokens of the context) where llama.cpp refused a prompt."""
    found = _TOO_LONG.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def cached_tokens(text: str) -> int | None:
    """Prompt tokens that llama.cpp took from its slot for the last request; None: it does not say."""
    found = _CACHED.findall(text)
    return int(found[0]) if found else None


def cut_context(text: str) -> tuple[int, int] | None:
    """(asked, trained) where the server reduced the context to what the model was trained for."""
    found = _CUT_CONTEXT.findall(text)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def load_request(text: str) -> Mapping[str, str]:
    """Before 0.30: the fields of the last load request that was carried out (Operation commit, else the last)."""
    requests = [dict(_REQUEST_FIELD.findall(line)) for line in _REQUEST.findall(text)]
    done = [request for request in requests if request.get("Operation") == "commit"]
    return (done or requests or [{}])[-1]


def old_buffers(text: str) -> Sequence[Buffer]:
    """Before 0.30: what the server says the engine holds. A layout is searched in rounds, the last line counts."""
    sizes: dict[tuple[str, str], int] = {}
    for name, device, number, unit in _OLD_BUFFER.findall(text):
        sizes[_COMPONENTS[name], device.strip('"')] = round(float(number) * _UNITS[unit])
    return [Buffer(component, device, size) for (component, device), size in sizes.items()]


def gpus(text: str) -> Sequence[str] | None:
    """Libraries (cuda, rocm, metal, vulkan) of the GPUs the server found; None: it has not said yet."""
    found = _COMPUTE.findall(text)
    return [library for _, library in found if library != "cpu"] if found else None


def offloaded(text: str) -> tuple[int, int, str] | None:
    """(layers on the GPU, layers in all, the line) of the last load; None: no line speaks of it."""
    ignored = _NO_GPU.search(text)
    if ignored:
        return 0, 0, " ".join(ignored[0].split())
    found = list(_OFFLOADED.finditer(text))
    return (int(found[-1][1]), int(found[-1][2]), found[-1][0]) if found else None


def reasons(text: str, count: int = 6) -> str:
    """The lines that tell why a load failed: llama.cpp's errors, which the server leaves out of its answer."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    wrong = [line for line in lines if _WRONG.search(line)]
    return "\n".join(dict.fromkeys(wrong[:count]))
