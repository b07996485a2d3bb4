"""Reads the header of one GGUF file, in milliseconds; tokenizers and tensor data are never decoded.

Nothing that a file says is trusted: lengths are held against its size, types, depth and ranges are checked, so that a
damaged file is an error of ours, at once and in little memory. The format: docs/gguf.md in the ggml repository, and
what llama.cpp takes of it: ggml/src/gguf.cpp.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import ConfigError
from pipeline.language import N_, sentence
from pipeline.model.gguf import TYPE_SIZES, Header, Length, Tensor

_SCALARS = {code: struct.Struct("<" + letter) for code, letter in (
    (0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (6, "f"), (7, "B"), (10, "Q"), (11, "q"), (12, "d"))}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_BUFFER_BYTES = 1 << 20

_LONGEST_ARRAY = 4096  # per-layer numbers are shorter; vocabularies are longer and skipped
_KEPT_NUMBERS = 1 << 18  # of all arrays together; what comes after is kept as its length
_KEPT_TEXT = 1 << 20  # bytes of a text that are kept; chat templates have up to 20,000
_LONGEST_NAME = 1 << 16  # docs/gguf.md: a key has at most 2^16-1 bytes
_MOST_STRINGS = 1 << 20  # the largest vocabularies have 262,144 tokens and 450,000 merges
_MOST_ENTRIES = 1 << 17  # keys, and tensors; the most seen are 44,544 tensors, one for each expert of a model
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_MOST_LAYERS = 4096  # LLAMA_MAX_LAYERS is 512
_LARGEST = (1 << 31) - 1

_NUMBERS = ("context_length", "embedding_length", "attention.key_length", "attention.value_length",
            "attention.key_length_mla", "attention.value_length_mla", "attention.key_length_swa",
            "attention.value_length_swa", "attention.shared_kv_layers", "attention.sliding_window",
            "full_attention_interval", "pooling_type")
_PER_LAYER = ("attention.head_count", "attention.head_count_kv", "attention.sliding_window_pattern")

_NOT_GGUF = ((b"PK\x03\x04", "a zip archive"), (b"\x1f\x8b", "a gzip archive"), (b"lmgg", "llama.cpp's old format"),
             (b"tjgg", "llama.cpp's old format"), (b"algg", "a LoRA in llama.cpp's old format"),
             (b"\x80\x02", "a PyTorch file"), (b"<!DO", "a web page"), (b"<htm", "a web page"),
             (b"vers", "perhaps the pointer that Git LFS leaves (`git lfs pull` fetches the file itself)"))


class _DamagedError(Exception):
    """What is wrong with a header, for the message."""


def read_file(path: Path) -> Header:
    """The header of one file, whatever part of a model it holds; a file that has not changed is read once.

    Raises ConfigError if it cannot be read, is not GGUF, is truncated or damaged, or is of a version we do not know."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise ConfigError(sentence(
                N_("model file {path} cannot be read: Is a directory. {inside}. Give the path of a GGUF file."),
                path=path, inside=_inside(path)))
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"model file {path} is not a file but a device, a pipe or a socket. Give the path of a "
                              "GGUF file.")
        return _read(path, found.st_size, found.st_mtime_ns, found.st_ino)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(sentence(N_("model file {path} cannot be read: {why}. Check model.path."),
                                   path=path, why=reason)) from error


@lru_cache(maxsize=64)
def _read(path: Path, size: int, mtime_ns: int, inode: int) -> Header:
    with path.open("rb", buffering=_BUFFER_BYTES) as stream:
        magic = stream.read(4)
        if magic != b"GGUF":
            raise ConfigError(sentence(
                N_("model file {path} is not GGUF: it begins with {begin}. Give a GGUF file, such as those that "
                   "llama.cpp's convert_hf_to_gguf.py writes."),
                path=path, begin=f"{magic!r}, a GGUF with b'GGUF'{_guess(magic, stream.read(8))}"))
        try:
            return _Reader(stream, size).header(path)
        except _DamagedError as error:
            raise ConfigError(sentence(
                N_("model file {path} is truncated or damaged: it has {n} bytes and ends or breaks inside its header "
                   "({why}). Fetch it again."), path=path, n=f"{size:,}", why=error)) from error


def _inside(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if not found:
        return N_("There is no GGUF in it")
    names = ", ".join(found[:3])
    return sentence(N_("In it: {names} and {n} more"), names=names, n=len(found) - 3) if found[3:] else sentence(
        N_("In it: {names}"), names=names)


def _guess(magic: bytes, rest: bytes) -> str:
    if rest[4:5] == b"{":
        return "; this looks like a safetensors file"
    return next((f"; this is {what}" for begin, what in _NOT_GGUF if magic.startswith(begin)), "")


def raw_entries(path: Path, prefix: str) -> list[bytes]:
    """The file's metadata below a prefix, entry by entry as its bytes stand in the file (key, type, value).

    Raises ConfigError: see `read_file`."""
    read_file(path)
    found = []
    with path.open("rb", buffering=_BUFFER_BYTES) as stream:
        reader = _Reader(stream, path.stat().st_size)
        stream.seek(len(b"GGUF") + _U32.size + _U64.size)  # version and number of tensors
        for _ in range(int(reader.number(_U64))):
            begin = stream.tell()
            key = reader.name("a key")
            reader.value(int(reader.number(_U32)))
            if key.startswith(prefix):
                end = stream.tell()
                stream.seek(begin)
                found.append(reader.take(end - begin, "an entry"))
    return found


class _Reader:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size, self.kept = stream, size, 0

    @property
    def left(self) -> int:
        return self.size - self.stream.tell()

    def need(self, count: int, what: str) -> None:
        """The rest of the file can hold so many bytes, or it is damaged; nothing is allocated before that is known."""
        if count > self.left:
            raise _DamagedError(f"{what} of {count:,} bytes, {self.left:,} left")

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        data = self.stream.read(count)
        if len(data) != count:
            raise _DamagedError(f"{what} of {count:,} bytes is cut")
        return data

    def number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self.take(kind.size, "a number"))[0]

    def count(self, what: str, each: int, most: int) -> int:
        """So many entries, each of at least `each` bytes."""
        count = int(self.number(_U64))
        if count > most or count * each > self.left:
            raise _DamagedError(f"{count:,} {what} in {self.left:,} bytes")
        return count

    def name(self, what: str) -> str:
        length = int(self.number(_U64))
        if not 0 < length < _LONGEST_NAME:
            raise _DamagedError(f"{what} of {length:,} bytes")
        return self.take(length, what).decode(errors="replace")

    def string(self) -> str:
        length = int(self.number(_U64))
        self.need(length, "a text")
        text = self.take(min(length, _KEPT_TEXT), "a text").decode(errors="replace")
        if length > _KEPT_TEXT:
            self.stream.seek(length - _KEPT_TEXT, 1)
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise _DamagedError(f"a value of the unknown type {kind}")
        value = self.number(_SCALARS[kind])
        return bool(value) if kind == _BOOL else value

    def array(self) -> list[Any] | Length:
        kind = int(self.number(_U32))
        if kind == _STRING:
            count = self.count("texts", 8, _MOST_STRINGS)
            self.skip_strings(count)
            return Length(count)
        if kind not in _SCALARS:  # the format allows an array of arrays; no reader accepts one
            raise _DamagedError(f"an array of the unknown type {kind}")
        form = _SCALARS[kind]
        count = self.count("numbers", form.size, self.size)
        if count > _LONGEST_ARRAY or self.kept + count > _KEPT_NUMBERS:
            self.stream.seek(form.size * count, 1)
            return Length(count)
        self.kept += count
        values = [value for value, in form.iter_unpack(self.take(form.size * count, "an array"))]
        return [bool(value) for value in values] if kind == _BOOL else values

    def skip_strings(self, count: int) -> None:
        # A vocabulary has 100,000 of them: walk over blocks of the file instead of two reads per string.
        unpack = _U64.unpack_from
        data, at, left, seen = b"", 0, count, self.stream.tell()
        while left:
            seen += at
            if seen > self.size:
                raise _DamagedError("an array of texts reaches beyond the end")
            self.stream.seek(seen)
            data, at = self.stream.read(_BUFFER_BYTES), 0
            if len(data) < 8:
                raise _DamagedError("an array of texts is cut")
            walked = 0
            try:
                for walked in range(left):  # noqa: B007
                    at += 8 + unpack(data, at)[0]
                left = 0
            except (struct.error, OverflowError):  # the next length lies behind this block, or nowhere
                left -= walked
        if seen + at > self.size:
            raise _DamagedError("an array of texts reaches beyond the end")
        self.stream.seek(seen + at)

    def header(self, path: Path) -> Header:
        version = int(self.number(_U32))
        if version not in (2, 3):
            turned = " (big endian)" if version in (2 << 24, 3 << 24) else ""
            raise ConfigError(f"model file {path} is GGUF version {version}{turned}; versions 2 and 3 (little endian) "
                              "are understood. Convert it with a current llama.cpp.")
        tensor_count = self.count("tensors", 24, _MOST_ENTRIES)
        key_count = self.count("keys", 13, _MOST_ENTRIES)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.name("a key")
            if key in metadata:
                raise _DamagedError(f"the key {_shown(key)} is there twice")
            metadata[key] = self.value(int(self.number(_U32)))
        tensors = tuple(self.tensor() for _ in range(tensor_count))
        alignment = metadata.get("general.alignment", 32)
        if not _is_number(alignment, 1 << 30) or alignment < 1 or alignment & (alignment - 1):
            raise _DamagedError(f"general.alignment={_shown(alignment)}, expected a power of two")
        _check(metadata)
        start = -(-self.stream.tell() // alignment) * alignment
        expected = max((start + t.offset + (t.bytes or 0) for t in tensors), default=self.stream.tell())
        if expected > self.size:
            raise ConfigError(sentence(
                N_("model file {path} is truncated: it has {n} bytes, its header asks for {size}. Fetch it again."),
                path=path, n=f"{self.size:,}", size=f"{expected:,}"))
        return Header((path,), version, metadata, tensors, self.size, expected)

    def tensor(self) -> Tensor:
        name = self.name("a tensor's name")
        dimensions = int(self.number(_U32))
        if dimensions > _MOST_DIMENSIONS:
            raise _DamagedError(f"tensor {_shown(name)} has {dimensions:,} dimensions, {_MOST_DIMENSIONS} at most")
        shape = [int(self.number(_U64)) for _ in range(dimensions)]
        kind, offset, elements = int(self.number(_U32)), int(self.number(_U64)), prod(shape)
        if elements >= 1 << 63:
            raise _DamagedError(f"tensor {_shown(name)} has the shape {shape}")
        if kind not in TYPE_SIZES:
            return Tensor(name, f"type {kind}", elements, offset, None)
        type_name, block, size = TYPE_SIZES[kind]
        return Tensor(name, type_name, elements, offset, elements // block * size)


def _check(metadata: Mapping[str, Any]) -> None:
    """The keys that planning reads have the types and ranges that llama.cpp takes (src/llama-model.cpp)."""
    architecture = metadata.get("general.architecture")
    if architecture is None:
        return
    if not isinstance(architecture, str) or not architecture:
        raise _DamagedError(f"general.architecture={_shown(architecture)}, expected a name")
    layers = metadata.get(f"{architecture}.block_count", 0)
    if not _is_number(layers, _MOST_LAYERS):
        raise _DamagedError(f"{architecture}.block_count={_shown(layers)}, expected a number of layers")
    for name in _NUMBERS:
        value = metadata.get(f"{architecture}.{name}", 0)
        if not _is_number(value, _LARGEST):
            raise _DamagedError(f"{architecture}.{name}={_shown(value)}, expected a whole number")
    for name in _PER_LAYER:
        value = metadata.get(f"{architecture}.{name}", 0)
        if isinstance(value, list):
            if len(value) < layers or not all(_is_number(each, _LARGEST) for each in value):
                raise _DamagedError(f"{architecture}.{name} has {len(value):,} values for {layers:,} layers")
        elif not _is_number(value, _LARGEST):
            raise _DamagedError(f"{architecture}.{name}={_shown(value)}, expected a whole number, or one per layer")


def _is_number(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, Length) and 0 <= value <= most


def _shown(value: Any) -> str:
    return repr(value)[:60]
