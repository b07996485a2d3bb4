"""Models as Ollama stores them: names, manifests and blobs; and a model folder of ours that copies no weights.

A folder of ours holds manifests and links to blobs or GGUF files, so that nothing is ever written into the user's
folder. Layout: manifest/ and types/model/name.go in Ollama's repository.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.knobs import NOTHING_STARTED
from pipeline.errors import ConfigError
from pipeline.machine import in_home
from pipeline.model.digest import cache_folder
from pipeline.model.gguf import Header

_MODEL_LAYER = "application/vnd.ollama.image.model"
_TEMPLATE_LAYER = "application/vnd.ollama.image.template"
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
# What stands in a model's own (Jinja) template → the same in Ollama's language (template/ in its repository).
_TEMPLATES = {
    "<|im_start|>": "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
                    "<|im_start|>assistant\n",
    "<|start_header_id|>": "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}"
                           "<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
}
_DEFAULTS = ("registry.ollama.ai", "library")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


@dataclass(frozen=True)
class Name:
    """A model's full name, as in registry.ollama.ai/library/gemma3:1b."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name:
        """From what `ollama pull` takes, with its defaults. Raises ConfigError for what can be no name."""
        path, colon, tag = text.rpartition(":")
        if not colon or "/" in tag:
            path, tag = text, "latest"
        parts = path.split("/")
        if len(parts) > 3 or not all(_PART.match(part) for part in (*parts[1:], parts[0].replace(":", "_"), tag)):
            raise ConfigError(f"model.tag={text!r} is not the name of an Ollama model: expected something like "
                              f"gpt-oss:20b. {NOTHING_STARTED}")
        host, namespace, model = [*_DEFAULTS[: 3 - len(parts)], *parts]
        return cls(host, namespace, model, tag)

    def is_called(self, text: object) -> bool:
        """Is this what a server calls the same model? It takes names in any case (getExistingName,
        server/routes.go)."""
        try:
            return str(Name.parse(str(text))).lower() == str(self).lower()
        except ConfigError:
            return False

    @property
    def path(self) -> Path:
        """Where its manifest lies below a model folder."""
        return Path("manifests", self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        parts = [self.host, self.namespace, self.model]
        for default in _DEFAULTS:  # left out from the front, as `ollama list` does
            if parts[0] != default:
                break
            del parts[0]
        return "/".join(parts) + f":{self.tag}"


@dataclass(frozen=True)
class Stored:
    """A model in somebody's folder."""

    name: Name
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of its weights, as the manifest names them. Raises ConfigError: a model without a GGUF."""
        layers = self.manifest.get("layers", ())
        layer = next((each for each in layers if each.get("mediaType") == _MODEL_LAYER), None)
        if layer is None:
            kinds = ", ".join(sorted({str(each.get("mediaType")) for each in layers})) or "none"
            raise ConfigError(f"model {self.name} holds no GGUF (its layers: {kinds}): only models that run in "
                              "Ollama's llama.cpp engine on this machine can be measured. Choose another. "
                              f"{NOTHING_STARTED}")
        return str(layer["digest"]).removeprefix("sha256:")

    @property
    def weights(self) -> Path:
        """The file with its weights."""
        return blob(self.folder, self.digest)


def blob(folder: Path, digest: str) -> Path:
    """Where a blob lies below a model folder."""
    return folder / "blobs" / f"sha256-{digest.removeprefix('sha256:')}"


def own_store() -> Path:
    """The folder that engine.pull=true fills; never one of the user's."""
    return cache_folder() / "ollama"


def stores() -> list[Path]:
    """Folders in which models may lie: the one this user's Ollama is told to use, or its defaults, and ours."""
    told = os.environ.get("OLLAMA_MODELS")
    users = [in_home(told, "OLLAMA_MODELS")] if told else [
        in_home("~/.ollama/models", "OLLAMA_MODELS"), Path("/usr/share/ollama/.ollama/models"),
        Path("/var/lib/ollama/.ollama/models"), Path("/var/lib/ollama")]
    return [*users, own_store()]


def find(name: Name) -> Stored | None:
    """The model in the first folder that has it, in whatever case its name is written.

    Raises ConfigError where permissions forbid to look."""
    for folder in stores():
        spelt = next((each for each in _names(folder) if name.is_called(each)), name)
        path = folder / spelt.path
        try:
            text = path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            raise ConfigError(f"the model folder {folder} may not be read by this user ({error.filename}). Give "
                              "permission (it often belongs to the group ollama), or point OLLAMA_MODELS to another "
                              f"folder. {NOTHING_STARTED}") from error
        try:
            stored = Stored(spelt, folder, json.loads(text))
            found = stored.weights
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"the manifest {path} is not understood ({error!r}). `ollama pull {name}` writes it "
                              f"again. {NOTHING_STARTED}") from error
        if not found.exists():
            raise ConfigError(f"model {name} is incomplete: its manifest names {found.name}, which is not in "
                              f"{found.parent}. `ollama pull {name}` fetches it. {NOTHING_STARTED}")
        if not os.access(found, os.R_OK):
            raise ConfigError(f"the weights of model {name}, {found}, may not be read by this user. Give permission "
                              f"(they often belong to the group ollama). {NOTHING_STARTED}")
        return stored
    return None


def known() -> list[str]:
    """Names of all models that can be found, for an error that lists them."""
    return sorted({str(name) for folder in stores() for name in _names(folder)})


def near(name: Name) -> str:
    """What to say of a name that no folder has: those that are like it, else all that are here."""
    return near_names(str(name), known())


def near_names(name: str, have: Sequence[str]) -> str:
    """"Did you mean gemma3:1b? Models here: …"."""
    close = difflib.get_close_matches(name.lower(), [each.lower() for each in have], n=3, cutoff=0.5)
    close += [each.lower() for each in have if each.lower().split(":")[0] == name.lower().split(":")[0]]
    alike = [each for each in have if each.lower() in close]
    return (f"Did you mean {' or '.join(alike)}? " if alike else "") + f"Models here: {', '.join(have) or 'none'}."


def link(stored: Stored, folder: Path) -> None:
    """Make `folder` a model folder with this model in it: its manifest, and links to its blobs."""
    target = folder / stored.name.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(stored.manifest), encoding="utf-8")
    (folder / "blobs").mkdir(exist_ok=True)
    for layer in (stored.manifest.get("config", {}), *stored.manifest.get("layers", ())):
        if "digest" in layer:
            source = blob(stored.folder, layer["digest"])
            _symlink(blob(folder, layer["digest"]), source)


def adopt(gguf: Path, header: Header, digest: str, name: Name, folder: Path) -> None:
    """Make `folder` a model folder that offers a GGUF file under `name`: a manifest of ours, and a link to the file."""
    billions = sum(tensor.elements for tensor in header.tensors)
    described = json.dumps({
        "model_format": "gguf", "model_family": header.architecture, "model_families": [header.architecture],
        "model_type": f"{billions / 1e6:.2f}M" if billions < 1e9 else f"{billions / 1e9:.1f}B",
        "file_type": header.quantisation.upper(), "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }).encode()
    config = hashlib.sha256(described).hexdigest()
    layers = [{"mediaType": _MODEL_LAYER, "digest": f"sha256:{digest}", "size": header.file_bytes}]
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "layers": layers,
                "config": {"mediaType": _CONFIG_TYPE, "digest": f"sha256:{config}", "size": len(described)}}
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    if text := template(header):
        written = text.encode()
        found = hashlib.sha256(written).hexdigest()
        layers.append({"mediaType": _TEMPLATE_LAYER, "digest": f"sha256:{found}", "size": len(written)})
        blob(folder, found).write_bytes(written)
    target = folder / name.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(manifest), encoding="utf-8")
    blob(folder, config).write_bytes(described)
    _symlink(blob(folder, digest), gguf)


def template(header: Header) -> str | None:
    """Ollama's form of the chat template in a GGUF file, as `ollama create` detects it; None: one we do not know."""
    own = str(header.metadata.get("tokenizer.chat_template", ""))
    return next((text for sign, text in _TEMPLATES.items() if sign in own), None)


def _symlink(link_path: Path, source: Path) -> None:
    if not link_path.is_symlink():
        link_path.symlink_to(source.resolve())


def _names(folder: Path) -> Iterator[Name]:
    try:
        found = sorted((folder / "manifests").glob("*/*/*/*"))
    except OSError:
        return
    for path in found:
        yield Name(*path.relative_to(folder / "manifests").parts)
