"""A file as a model: `model=FILE` on the command line or in an experiment becomes an option of Hydra's group.

Files stand beside the names of conf/model in one list: model=smollm2-135m,my.gguf. How a word is quoted for Hydra is
not decided here; an option of ours needs no quotes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Model, options
from pipeline.engine.ollama.model_store import Name
from pipeline.errors import ConfigError
from pipeline.language import _
from pipeline.model.files import as_path, stem, titles

_BLOB = re.compile(r"sha256-[0-9a-f]{64}\Z")


def with_files(words: Sequence[str], engine: str = "") -> list[str]:
    """The words of a command line, files in `model=…` as options that Hydra has been told of; names of Ollama's too,
    where they or the experiment (`engine`) choose it.

    Raises ConfigError for a file that is not there, and for a name and a file that both claim to be the model."""
    chosen, path = None, None
    found = []
    engines = [word.partition("=")[2] for word in words if word.startswith("engine=")] or [engine]
    for word in words:
        key, equals, value = word.partition("=")
        if key == "model" and equals:
            chosen, word = value, f"model={_options(value, _is_ollama(engines[-1]))}"
        elif key == "model.path" and value not in ("", "null"):
            path = value
        found.append(word)
    if chosen is not None and path is not None and any(_unquoted(each) != "gguf" for each in _pieces(chosen)):
        raise ConfigError(_("model={name} and model.path={path} both say which weights: leave one of them out. Several "
                            "models are a list: {example}.").format(
                                name=chosen, path=path, example="model=smollm2-135m,FILE.gguf"))
    return found


def with_files_in(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """The same for an experiment's `defaults` and `hydra.sweeper.params`."""
    content, ollama = dict(experiment), _is_ollama(engine_of(experiment))
    if isinstance(entries := content.get("defaults"), list):
        content["defaults"] = [
            {key: _in_yaml(value, ollama) if str(key).removeprefix("override ").lstrip("/") == "model" else value
             for key, value in entry.items()} if isinstance(entry, Mapping) else entry for entry in entries]
    hydra = _mapping(content.get("hydra"))
    sweeper = _mapping(hydra.get("sweeper"))
    params = _mapping(sweeper.get("params"))
    if "model" in params:
        params = {**params, "model": _in_yaml(params["model"], ollama)}
        content["hydra"] = {**hydra, "sweeper": {**sweeper, "params": params}}
    return content


def told_apart(models: Sequence[Model]) -> dict[str, str]:
    """model.path → a title of its own, for files of one sweep that would be called the same."""
    paths = {model.path: as_path(model.path) for model in models
             if model.kind == "file" and model.path and model.name == "gguf"}
    names = {model.name for model in models if model.kind != "file"}
    called = dict(zip(paths, titles(list(paths.values()), names), strict=True))
    return {path: own for path, own in called.items() if own != stem(paths[path])}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def engine_of(experiment: Mapping[str, Any]) -> str:
    """What an experiment chooses of conf/engine; "" if nothing."""
    defaults = experiment.get("defaults")
    chosen = [value for entry in defaults if isinstance(entry, Mapping) for key, value in entry.items()
              if str(key).removeprefix("override ").lstrip("/") == "engine"] if isinstance(defaults, list) else []
    params = _mapping(_mapping(_mapping(experiment.get("hydra")).get("sweeper")).get("params"))
    return str(params.get("engine") or (chosen[-1] if chosen else ""))


def _is_ollama(engine: str) -> bool:
    return "ollama" in engine


def _in_yaml(value: Any, ollama: bool) -> Any:
    if isinstance(value, list):
        return [_in_yaml(each, ollama) if isinstance(each, str) else each for each in value]
    return _options(value, ollama) if isinstance(value, str) else value


def _options(value: str, ollama: bool) -> str:
    """The value of `model=`, each file in it as an option; a value without one as it stands."""
    if listed := re.fullmatch(r"\s*\[(.+)\]\s*", value, re.DOTALL):  # a list sweeps, as everywhere
        return _options(listed[1], ollama)
    whole = _unquoted(value)
    if "," in whole and _is_file(whole) and as_path(whole).exists():
        return _option(whole)
    pieces = _pieces(value)
    return ",".join(map(partial(_piece, ollama=ollama), pieces)) if any(
        _is_file(_unquoted(piece)) or _is_name(_unquoted(piece)) for piece in pieces) else value


def _piece(piece: str, ollama: bool) -> str:
    """One model as Hydra's option."""
    text = _unquoted(piece)
    if _is_file(text):
        return _option(text)
    if not _is_name(text) or (not ollama and ":" not in text):
        return piece
    if not ollama:
        raise ConfigError(f"model={text} is a name of Ollama's: choose engine=ollama (or engine=ollama_attached) "
                          f"beside it. Known to every engine: {', '.join(sorted(options('model')))}.")
    return _named(text)


def _pieces(value: str) -> list[str]:
    """The values between commas; what is quoted, or is together a file that is there, stays together."""
    parts = re.findall(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,])+""", value)
    pieces, at = [], 0
    while at < len(parts):
        end = next((end for end in range(len(parts), at + 1, -1) if _is_there(",".join(parts[at:end]))), at + 1)
        pieces.append(",".join(parts[at:end]).strip())
        at = end
    return pieces


def _is_there(text: str) -> bool:
    return _is_file(text) and as_path(text).exists()


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return re.sub(rf"\\({text[0]})", r"\1", text[1:-1])
    return text


def _is_file(text: str) -> bool:
    """Does a person mean a file by this? A name of conf/model is one; what looks like a path is a path."""
    if not text or text in options("model") or re.match(r"(choice|glob|\[|\$\{)", text):
        return False
    looks = text.startswith(("/", "./", "../", "~", "file:")) or text.lower().endswith(".gguf") or _BLOB.search(text)
    return bool(looks) or Path(text).exists()


def _is_name(text: str) -> bool:
    """Can it be what `ollama list` shows? Those of conf/model come first, and Hydra's own words are none."""
    if not text or text in options("model") or re.search(r"[(\[{$]", text) or text == "???":
        return False
    try:
        Name.parse(text)
    except ConfigError:
        return False
    return True


def _named(text: str) -> str:
    """Make a name of Ollama's known to Hydra as an option of the group `model`; the option."""
    from hydra.core.config_store import ConfigStore

    tag = str(Name.parse(text))
    name = f"ollama-{re.sub(r'[^A-Za-z0-9_.-]+', '_', tag)[:60]}-{hashlib.sha256(tag.encode()).hexdigest()[:8]}"
    ConfigStore.instance().store(group="model", name=name, provider="slackwater",
                                 node=Model(name=tag, kind="ollama", tag=tag))
    return name


def _option(text: str) -> str:
    """Make a file known to Hydra as an option of the group `model`; its name. Raises ConfigError: not there."""
    from hydra.core.config_store import ConfigStore

    path = as_path(text)
    if not path.exists():
        said = _("model={file}: there is no such file ({path}). Give a GGUF file, or a name: {known}.")
        raise ConfigError(said.format(file=text, path=path, known=", ".join(sorted(options("model")))))
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem(path)).strip("_.-")[:60]
    name = f"file-{readable}-{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:8]}"
    ConfigStore.instance().store(group="model", name=name, provider="slackwater",
                                 node=Model(name="gguf", kind="file", path=str(path)))
    return name
