"""What `ollama serve` itself writes to its log (slog lines), in all supported versions. Pure functions over text.

Patterns of these lines stand here and nowhere else, those of its child's in llamacpp_log.py: where a version words its
log anew, `unrecognised` says so, and one of the two files is what changes. Formats: server/routes.go,
llm/llama_server.go and, before 0.30, llm/server.go and ml/device.go in Ollama's repository.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.engine import llamacpp_log
from pipeline.engine.base import Buffer, LogCheck

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_COMPONENTS = {"model weights": "weights", "kv cache": "kv", "compute graph": "compute"}

_LISTENING = re.compile(r'msg="Listening on (\S+) \(version ([^)]*)\)"')
_CONFIG = re.compile(r'msg="server config" env="map\[(.*)\]"')
_CONFIG_KEY = re.compile(r"(?:^| )([A-Z][A-Z0-9_]*|https?_proxy|no_proxy):")
_STARTED = re.compile(r'msg="(?:llama-server|llama runner) started in')
_CUT_PROMPT = re.compile(r'msg="truncating input prompt" limit=(\d{1,12}) prompt=(\d{1,12})')
_REQUEST = re.compile(r'msg=load request="\{(.*)\}"')
_REQUEST_FIELD = re.compile(r"(\w+):((?:\d+)?\[[^\]]*\]|map\[[^\]]*\]|\S*)")
_OLD_BUFFER = re.compile(r'msg="(model weights|kv cache|compute graph)" device=("[^"]*"|\S+) '
                         r'size="?(\d{1,15}(?:\.\d{1,9})?) (B|[KMGT]i?B)"?')
_COMPUTE = re.compile(r'msg="inference compute" id=(\S+) library=(\S+)')
_WRONG = re.compile(r"\b(error|failed|unsupported|require[sd]?|unable|cannot|out of memory|panic)\b", re.IGNORECASE)
_ASKED = re.compile(r'^\[GIN\] [^|\n]*\|\s*\d+ \|[^|\n]*\|\s*(\S+) \|\s*POST\s+"'
                    r'(/api/(?:generate|chat|embed|embeddings)|/v1/[\w/]+)"', re.MULTILINE)
_TASK = re.compile(r"^slot launch_slot_: id +\d+ \| task \d+ \| processing task", re.MULTILINE)
_NOISE = re.compile(r"^(\[GIN\]|time=\S+ level=(INFO|DEBUG) )")
_PORT_TAKEN = "address already in use"
# The lines that are relied on, by what they say: of a start, of a load since 0.30, of a load before.
_OF_START = {"server config": _CONFIG, "inference compute": _COMPUTE}
_OF_LOAD = {"load finished": _STARTED}
_OF_OLD_LOAD = {"load finished": _STARTED, "load request": _REQUEST, "buffers": _OLD_BUFFER}


@dataclass(frozen=True)
class Cut:
    """A prompt that the server shortened: tokens it had, tokens it was cut to."""

    prompt: int
    limit: int


def check(version: str, old: bool, from_start: str, since_load: str) -> LogCheck:
    """Are the lines of the last load there, and those of the start, if the log goes back so far?"""
    relied = {name: (pattern, from_start) for name, pattern in _OF_START.items() if _LISTENING.search(from_start)}
    relied |= {name: (pattern, since_load) for name, pattern in (_OF_OLD_LOAD if old else _OF_LOAD).items()}
    missing = [name for name, (pattern, text) in relied.items() if pattern.search(text) is None]
    if old:
        return LogCheck(f"Ollama {version}", len(relied), missing)
    return LogCheck(f"Ollama {version}", len(relied) + len(llamacpp_log.LINES),
                    [*missing, *llamacpp_log.parse(since_load).unrecognised])


def port_taken(text: str) -> bool:
    """Does a line say that another program has the port?"""
    return _PORT_TAKEN in text


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


def loaded(text: str) -> bool:
    """Does a line say that a model has been loaded?"""
    return _STARTED.search(text) is not None


def cut_prompt(text: str) -> Cut | None:
    """The last prompt that the server says it shortened."""
    found = _CUT_PROMPT.findall(text)
    return Cut(prompt=int(found[-1][1]), limit=int(found[-1][0])) if found else None


def others(text: str, calls: int, answers: int) -> str:
    """What clients besides us asked of the models, who and how much; "" nothing. Ours in this piece of the log: `calls`
    of /api/generate, of which `answers` had a prompt.

    A request has a line when it has ended, and its task in the engine one when it begins."""
    asked = Counter(_ASKED.findall(text))
    for one in sorted(asked, key=lambda one: (one[1] == "/api/generate", _is_near(one[0]), asked[one]), reverse=True):
        ours = min(calls, asked[one]) if one[1] == "/api/generate" else 0
        calls, asked[one] = calls - ours, asked[one] - ours
    ended = [f"POST {path} from {client}: {count}" for (client, path), count in asked.items() if count > 0]
    more = len(_TASK.findall(text)) - answers
    return "; ".join([*ended, *([f"{more} more tasks in its engine than ours"] if more > 0 else [])])


def _is_near(client: str) -> bool:
    return client.startswith("127.") or client == "::1"


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


def reasons(text: str, count: int = 6) -> str:
    """The lines that tell why a load failed: llama.cpp's errors, which the server leaves out of its answer."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    wrong = [line for line in lines if _WRONG.search(line)]
    return "\n".join(dict.fromkeys(wrong[:count]))
