"""A model's weights: found on this machine, or fetched once into the cache and checked.

Where a package's wheel lies is asked from pip, so no host stands here; pip's index, proxy and certificate
settings count. Names that only Ollama knows are not resolved here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import zipfile
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from pipeline import lock
from pipeline.config import Model
from pipeline.errors import ConfigError, innermost
from pipeline.model.digest import Progress, cache_folder, digest, remember
from pipeline.model.files import as_path, files_of

if TYPE_CHECKING:
    import requests

_CHUNK = 1 << 20
_STALL_S = 60.0
_PIP_LIMIT_S = 120.0
_OTHER_LIMIT_S = 6 * 3600.0
"""How long a process that fetches the same model is awaited."""
_WAY_OUT = "Or use a GGUF that you have: model=gguf model.path=FILE."


def located(model: Model) -> Path | None:
    """Where the file is, or will be once `resolve` has fetched it; None: a model that has no file of ours (ollama).

    Touches no network. Raises ConfigError for a model config that lacks what its kind needs."""
    if model.kind == "file":
        if not model.path:
            raise ConfigError(f"model={model.name} needs model.path: a GGUF file, such as model.path=~/some.gguf.")
        return as_path(model.path)
    if model.kind == "pypi":
        for key in ("package", "version", "member"):
            if not getattr(model, key):
                raise ConfigError(f"model.{key} is missing: model.kind=pypi needs package, version and member (the "
                                  "GGUF's path inside the wheel).")
        assert model.member is not None
        return cache_folder() / "models" / f"{model.package}-{model.version}" / Path(model.member).name
    return None


def resolve(model: Model, progress: Progress | None = None) -> Path:
    """The model's file on this machine, the first if it has several; kind=pypi fetches it first, once.

    A fetched file is checked against model.sha256 and then trusted while it has not changed. Digests are kept for
    `known_digest`. Raises ConfigError: no such file, not readable, no network, no pip, no space, checksum."""
    report = progress or (lambda what, done, total: None)
    path = located(model)
    if path is None:
        raise ConfigError(f"model={model.name} is a name that only Ollama knows: use engine=ollama. {_WAY_OUT}")
    if model.kind == "file":
        files = files_of(path)
        for each in files:
            _check_readable(each)
        try:
            digest(files, report)
        except OSError as error:
            raise ConfigError(f"model.path={path} cannot be read: {error.strerror}.") from error
        return files[0]
    try:
        if not _is_right(path, model, report):
            path.parent.mkdir(parents=True, exist_ok=True)
            with lock.on_file(path.parent / "lock", ConfigError, _OTHER_LIMIT_S):
                if not _is_right(path, model, report):  # another process may have fetched it while we waited
                    _fetch(model, path, report)
    except OSError as error:
        raise _os_error(error, path.parent) from error
    return path


def _is_right(path: Path, model: Model, report: Progress) -> bool:
    return path.is_file() and (model.sha256 is None or digest([path], report) == model.sha256)


def _check_readable(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"model.path={path} does not exist. Give the path of a GGUF file.")
    if not path.is_file():
        raise ConfigError(f"model.path={path} is not a file. Give the path of one GGUF file.")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"model.path={path} cannot be read by this user. Permit it, or give another file.")


def _fetch(model: Model, path: Path, report: Progress) -> None:
    assert model.member is not None
    url, wheel_sha256 = _ask_pip(model)
    parts = urlsplit(url)
    if parts.scheme == "file":
        wheel = Path(unquote(parts.path))
    else:
        wheel = path.with_name(f"{wheel_sha256 or 'wheel'}.whl.part")
        _download(url, wheel, report)
        if wheel_sha256 and _hash_of(wheel, report) != wheel_sha256:
            wheel.unlink()
            raise ConfigError(f"checksum mismatch: {url} is not the file that the index announced (sha256 "
                              f"{wheel_sha256}). It was deleted; run again to fetch it once more. {_WAY_OUT}")
    try:
        _unpack(wheel, model, path, report)
    except ConfigError:
        if parts.scheme != "file":
            wheel.unlink()  # else a bad file would be taken up again for ever
        raise
    if parts.scheme != "file":
        wheel.unlink()


def _ask_pip(model: Model) -> tuple[str, str | None]:
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary",
               ":all:", "--no-input", "--disable-pip-version-check", "--retries", "2", "--quiet", "--report", "-",
               wanted]
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False,
                                stdin=subprocess.DEVNULL, timeout=_PIP_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"the weights of model={model.name} cannot be fetched: pip was asked where {wanted} lies, "
                          f"and has not answered in {_PIP_LIMIT_S:g} s. Check the network, and pip's index and proxy "
                          f"settings (python -m pip config list). {_WAY_OUT}") from error
    if answer.returncode != 0:
        said = [line for line in answer.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise ConfigError(f"the weights of model={model.name} cannot be fetched: pip does not find {wanted} "
                          f"({said[-1].strip() if said else f'exit status {answer.returncode}'}). Check the network, "
                          f"and pip's index and proxy settings (python -m pip config list). {_WAY_OUT}")
    try:
        info = json.loads(answer.stdout)["install"][0]["download_info"]
        return str(info["url"]), info.get("archive_info", {}).get("hashes", {}).get("sha256")
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"pip's report on {wanted} is not understood ({error!r}). Update pip (23.0 or newer: "
                          f"python -m pip install --upgrade pip). {_WAY_OUT}") from error


def _download(url: str, part: Path, report: Progress) -> None:
    """Into `part`, from where an earlier attempt ended if the server can (RFC 9110, section 14)."""
    import requests
    import urllib3

    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with (
            _session() as session,
            session.get(url, headers=headers, stream=True, timeout=_STALL_S) as answer,
        ):
            if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # all of it is here; the checksum decides
            answer.raise_for_status()
            if answer.status_code != HTTPStatus.PARTIAL_CONTENT:
                have = 0
            total = have + int(answer.headers.get("Content-Length", 0))
            _need_space(part.parent, total - have)
            with part.open("r+b" if have else "wb") as target:
                target.seek(have)
                while block := answer.raw.read1(_CHUNK):  # as it arrives, so that an interruption loses nothing
                    target.write(block)
                    have += len(block)
                    report("fetching", have, total)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        refused = error.response if isinstance(error, requests.HTTPError) else None
        why = innermost(error) if refused is None else f"HTTP {refused.status_code}"
        kept = f" {have:,} bytes are kept and the next run goes on from there." if have else ""
        raise ConfigError(f"fetching {url} failed: {why}.{kept} Check the network, the proxy "
                          f"(HTTPS_PROXY) and the certificates (PIP_CERT, SSL_CERT_FILE). {_WAY_OUT}") from error


def _session() -> requests.Session:
    """Trusts whom pip trusts: the system's certificates, certifi's, and the file that pip was told to use."""
    import requests
    from requests.adapters import HTTPAdapter

    context = ssl.create_default_context()
    if os.environ.get("PIP_CERT"):
        context.load_verify_locations(os.environ["PIP_CERT"])

    adapter = HTTPAdapter()
    adapter.init_poolmanager(connections=1, maxsize=1, ssl_context=context)  # to which certifi's are added
    session = requests.Session()
    session.mount("https://", adapter)
    return session


def _unpack(wheel: Path, model: Model, path: Path, report: Progress) -> None:
    assert model.member is not None
    part = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as target:
            size = archive.getinfo(model.member).file_size
            _need_space(part.parent, size)
            found = _copy(source, target, size, report)
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(f"{wheel} does not hold {model.member} ({error}). Check model.package, model.version and "
                          f"model.member. {_WAY_OUT}") from error
    if (model.sha256 and found != model.sha256) or (model.size_bytes and size != model.size_bytes):
        part.unlink()
        raise ConfigError(f"checksum mismatch: {model.member} of {model.package} {model.version} has {size:,} bytes "
                          f"and sha256 {found}, expected {model.size_bytes or size:,} bytes and {model.sha256}. It was "
                          f"deleted. {_WAY_OUT}")
    part.replace(path)
    remember(path, found)


def _copy(source: Any, target: BinaryIO, size: int, report: Progress) -> str:
    sha, done = hashlib.sha256(), 0
    while block := source.read(_CHUNK):
        target.write(block)
        sha.update(block)
        done += len(block)
        report("unpacking", done, size)
    return sha.hexdigest()


def _hash_of(path: Path, report: Progress) -> str:
    report("checking", 0, path.stat().st_size)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _need_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(errno.ENOSPC, f"{need:,} bytes are needed and {free:,} are free", str(folder))


def _os_error(error: OSError, folder: Path) -> ConfigError:
    if error.errno == errno.ENOSPC:
        return ConfigError(f"the disk of {folder} is full: {error.strerror}. Make room, or choose another folder with "
                           f"SLACKWATER_CACHE=FOLDER. {_WAY_OUT}")
    return ConfigError(f"the model cache {folder} cannot be used: {error.strerror} ({error.filename}). Choose another "
                       f"folder with SLACKWATER_CACHE=FOLDER. {_WAY_OUT}")
