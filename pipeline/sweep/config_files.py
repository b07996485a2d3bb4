"""A person's YAML file, read so that every fault of it is one error that names the file and the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's content, references (${…}) unresolved; {} for an empty file.

    Raises ConfigError: not there or not readable, not UTF-8, not YAML, a key twice, no mapping at the top."""
    from omegaconf import OmegaConf
    from omegaconf._utils import get_yaml_loader
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError, load  # type: ignore[import-untyped]

    try:
        # OmegaConf's own reading of YAML: 1e3 is a number, a key may not stand twice
        content = load(_text(path), Loader=get_yaml_loader())
        if isinstance(content, dict):
            content = OmegaConf.to_container(OmegaConf.create(content))
    except YAMLError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {_reason(error)}.") from error
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ConfigError(f"{path} cannot be read: {first.rstrip('.')}.") from error
    if content is None:  # nothing in it, or comments alone
        return {}
    if not isinstance(content, dict):
        what = "a list" if isinstance(content, list) else "text"
        raise ConfigError(f"{path} holds {what} where settings are expected: lines such as `repetitions: 3`.")
    return {_name(path, key): value for key, value in content.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start + 1}). Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def _reason(error: Exception) -> str:
    """"line 3: found character '\\t' that cannot start any token"."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return where + (str(problem) if problem else " ".join(str(error).split())).rstrip(".")


def _name(path: Path, key: Any) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{path}: {key} is not the name of a setting (YAML reads an unquoted off, on, yes, no or "
                          "number there as something else).")
    return key
