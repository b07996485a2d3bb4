"""A model is a list of files: which they are, found from one of them, and what users call it.

Parts of a split model are named as llama.cpp names and finds them (src/llama.cpp, llama_split_path):
NAME-00001-of-00003.gguf; their headers say which part they are (split.no, split.count).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.config import Model
from pipeline.errors import ConfigError
from pipeline.language import N_, sentence
from pipeline.model.gguf import Header
from pipeline.model.gguf_file import read_file

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z", re.DOTALL)
_MOST_PARTS = 99_999
_BLOB = re.compile(r"(sha256-[0-9a-f]{12})[0-9a-f]{52}\Z")  # as Ollama names its files


def as_path(text: str) -> Path:
    """The absolute path of what the user typed: ~ and file:// are followed, links are not.

    Raises ConfigError for what cannot be a path."""
    if text.startswith("file:"):
        text = unquote(urlsplit(text).path)
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # ~somebody
        raise ConfigError(f"model.path={text} names an unknown home folder ({error}). Give the whole path.") from error


def title(model: Model) -> str:
    """What a model is called: a file by its own name, unless it was given another; all else by its name."""
    if model.kind != "file" or model.path is None or model.name != "gguf":
        return model.name
    return stem(as_path(model.path))


def stem(path: Path) -> str:
    """A file's name without what says that it is a GGUF, or which part of a model it is."""
    if part := _PART.match(path.name):
        return part["name"]
    if blob := _BLOB.match(path.name):
        return blob[1]
    return path.name[:-5] if path.name.lower().endswith(".gguf") and len(path.name) > 5 else path.name


def titles(paths: Sequence[Path], taken: Collection[str] = ()) -> list[str]:
    """A title for each file, none of those `taken` by others; where two differ only in their folders, with as much of
    the folder as tells them apart."""
    found = [stem(path) for path in paths]
    for at, path in enumerate(paths):
        depth = 0
        rivals = {other for other in paths if other != path and stem(other) == stem(path)}
        while (rivals or found[at] in taken) and depth < len(path.parts) - 1:
            depth += 1
            folders = path.parts[-1 - depth:-1]
            rivals = {other for other in rivals if other.parts[-1 - depth:-1] == folders}
            found[at] = "/".join([*folders, stem(path)])
        if rivals or not found[at]:
            found[at] = path.name
    return found


def read_model(path: Path) -> Header:
    """The header of the model that this file belongs to: any part stands for the whole.

    Raises ConfigError: a file that cannot be read or is not a model, a part that is missing, or of another model."""
    header = read_file(path)
    count = _split(header, "split.count", 1)
    if count <= 1:
        return _named(header)
    part = _PART.match(path.name)
    if part is None or int(part["count"]) != count:
        own = _split(header, "split.no", 0) + 1
        raise ConfigError(f"model file {path} is part {own} of {count}, as its header says, and its name does not say "
                          f"so: the others cannot be found. Name the parts NAME-{own:05}-of-{count:05}.gguf.")
    paths = [path.with_name(f"{part['name']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [each.name for each in paths if not each.exists()]
    if missing:
        raise ConfigError(sentence(
            N_("model file {path} is one of {n} parts, and {m} are missing: {names}. Put all of them into {folder}."),
            path=path, n=count, m=len(missing), names=", ".join(missing[:3]) + (", …" if missing[3:] else ""),
            folder=path.parent))
    parts = [read_file(each) for each in paths]
    for number, each in enumerate(parts):
        says = _split(each, "split.no", 0), _split(each, "split.count", 1)
        if says != (number, count):
            raise ConfigError(f"model file {each.path} is called part {number + 1} of {count}, and its header says "
                              f"part {says[0] + 1} of {says[1]}. Fetch the parts again.")
    tensors = tuple(tensor for each in parts for tensor in each.tensors)
    expected = _split(parts[0], "split.tensors.count", len(tensors))
    if len({tensor.name for tensor in tensors}) != expected:
        raise ConfigError(f"the {count} parts of {part['name']} in {path.parent} do not belong together: they hold "
                          f"{len(tensors)} tensors, and the model has {expected}. Fetch the parts again.")
    return _named(dataclasses.replace(
        parts[0], files=tuple(paths), tensors=tensors, file_bytes=sum(each.file_bytes for each in parts),
        expected_bytes=sum(each.expected_bytes for each in parts)))


def files_of(path: Path) -> Sequence[Path]:
    """All files of the model that `path` belongs to; `path` alone, if it is not a readable model."""
    try:
        return read_model(path).files
    except ConfigError:
        return (path,)


def _named(header: Header) -> Header:
    if "general.architecture" not in header.metadata:
        raise ConfigError(f"model file {header.path} names no architecture (general.architecture): it is not a model.")
    return header


def _split(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or not 0 <= value <= (_MOST_PARTS if key != "split.tensors.count" else 1 << 20):
        raise ConfigError(f"model file {header.path} is damaged: {key}={value!r:.40}. Fetch it again.")
    return value
