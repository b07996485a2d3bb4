"""What a shell offers for a word that is begun: sweeps, files, metrics, settings and what they may be.

Settings come from the schema and the files of conf/, sweeps from the local store. Hydra itself, whose completion fails
behind a verb and takes a second and more, is asked for hydra.* alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import language
from pipeline.cli.help import shipped

if TYPE_CHECKING:
    from dataclasses import Field

    from click import Context, Parameter
    from click.shell_completion import CompletionItem

Candidate = tuple[str, str]
"""(the whole word, what it is)."""

CHOICES = {
    "design.unsupported": ("refuse", "skip"), "design.on_failure": ("continue", "stop", "retry:1"),
    "design.when_busy": ("wait", "fail"), "stop.of": ("effects", "gap"), "prompt.language": ("en", "ja"),
}
"""Settings of text that take only these; config.py checks them."""
_FILES = ("model.path", "engine.binary", "prompt.file")
_OF_THE_SWEEP = ("place", "knob")


def offer(*sources: Callable[[Context, str], Iterable[Candidate]]) -> Callable[..., list[CompletionItem[str]]]:
    """What these know for the word, as click asks for it."""
    def asked(ctx: Context, parameter: Parameter, word: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name, help=purpose) for source in sources for name, purpose in source(ctx, word)
                if name.startswith(word)]

    return asked


def sweep_names(ctx: Context, word: str) -> Iterator[Candidate]:
    """The sweeps whose records are on this machine, the newest first, by the names of their folders alone."""
    from pipeline.record.find import Sweeps
    from pipeline.track.location import locate, named

    location = locate(named(ctx.params.get("store")))
    yield "last", ""
    yield from ((name, "") for name in Sweeps(location.records, location.shown).ids())


def metric_names(ctx: Context, word: str) -> Iterator[Candidate]:
    """Those of the metric dictionary."""
    from pipeline.metrics import entries

    yield from ((name, "") for metric in entries() for name in metric.names() if "<" not in name)


def files(ctx: Context, word: str, key: str = "") -> Iterator[Candidate]:
    """Files and folders, the latter with a slash."""
    folder, _slash, begun = word.rpartition("/")
    where = os.path.expanduser(folder) if folder else "/" if word.startswith("/") else "."
    if os.path.isdir(where):
        for name in sorted(os.listdir(where)):
            if name.startswith(begun) and not (name.startswith(".") and not begun):
                path = f"{word[:len(word) - len(begun)]}{name}"
                yield key + path + ("/" if os.path.isdir(os.path.join(where, name)) else ""), ""


def settings(ctx: Context, word: str) -> Iterator[Candidate]:
    """Groups, their files, settings and what they may be; hydra.* and hydra/*, which Hydra knows."""
    from pipeline.config import GROUPS

    words = ctx.params.get("overrides") or ()
    if word.lstrip("+~").startswith("hydra"):
        yield from _hydra(word, words)
        return
    sign = word[:1] if word[:1] in ("+", "~") else ""
    key, equals, value = word.removeprefix(sign).partition("=")
    if equals:
        before, comma, _last = value.rpartition(",")
        lead = f"{sign}{key}={before}{comma}"
        taken = before.split(",")
        if key in _FILES or (key == "model" and value):
            yield from files(ctx, value, f"{sign}{key}=")
        yield from ((f"{lead}{option}", "") for option in _values(key, words) if option not in taken)
        return
    group, dot, _rest = key.partition(".")
    if dot and group == "knob":
        for name, (expected, _words, _behind) in _knobs(words).items():
            yield f"{sign}knob.{name}=", expected
        return
    if dot and group in GROUPS:
        for name, described in _keys(group, words):
            yield f"{sign}{name}", described
        return
    for name in (*_folders(), "experiment"):
        if name in GROUPS or name == "experiment":
            yield f"{sign}{name}=", ""
        if name in GROUPS:
            yield f"{sign}{name}.", ""
    from dataclasses import fields

    from pipeline.config import Config

    yield f"{sign}knob.", ""
    yield from ((f"{sign}{field.name}=", "") for field in fields(Config)
                if field.name not in GROUPS and field.name not in _OF_THE_SWEEP)


def _knobs(words: Sequence[str]) -> Mapping[str, tuple[str, Sequence[str], Sequence[str]]]:
    """The knobs of the engine that the line names: what each takes, and its words."""
    from pipeline.engine.all_knobs import of_engine

    return of_engine(str(_chosen("engine", words).get("name", "")))


def _folders() -> list[str]:
    conf = shipped("conf")
    return sorted(name for name in os.listdir(conf) if os.path.isdir(os.path.join(conf, name)))


def _options(*folders: str) -> list[str]:
    return sorted({name.removesuffix(".yaml") for folder in folders if os.path.isdir(folder)
                   for name in os.listdir(folder) if name.endswith(".yaml")})


def _values(key: str, words: Sequence[str]) -> Iterator[str]:
    """What a setting may be: the files of a group, true and false, the words it takes, else what it is now."""
    from pipeline.config import GROUPS, options

    if key == "experiment":
        yield from _options("experiments", shipped("experiments"))
    elif key in GROUPS:
        yield from sorted(options(key))
    elif key == "lang":
        yield from language.languages()
    elif key in CHOICES:
        yield from CHOICES[key]
    elif key.startswith("knob."):
        yield from _knobs(words).get(key.removeprefix("knob."), ("", (), ()))[1]
    else:
        group, _dot, rest = key.partition(".")
        field = _field(key)
        if field is not None and str(field.type).startswith("bool"):
            yield from ("true", "false")
            return
        now: Any = _chosen(group, words) if rest else _read(os.path.join(shipped("conf"), "config.yaml"))
        for part in (rest or key).split("."):
            now = now.get(part) if isinstance(now, dict) else None
        if isinstance(now, bool):
            yield from ("true", "false")
        elif isinstance(now, str | int | float) and str(now) and " " not in str(now):
            yield str(now)


def _field(key: str) -> Field[Any] | None:
    from dataclasses import fields

    from pipeline.config import GROUPS, Config

    group, _dot, rest = key.partition(".")
    schema, name = (GROUPS.get(group), rest) if rest else (Config, key)
    return None if schema is None else next((field for field in fields(schema) if field.name == name), None)


def _keys(group: str, words: Sequence[str]) -> Iterator[Candidate]:
    """The settings of a group: those of the schema, and what stands in the open ones of the chosen file."""
    from dataclasses import fields

    from pipeline.config import GROUPS

    chosen = _chosen(group, words)
    for field in fields(GROUPS[group]):
        if field.name == "name":
            continue
        name, now = f"{group}.{field.name}", chosen.get(field.name)
        if isinstance(now, dict) and str(field.type).startswith("dict"):
            yield from _leaves(name, now)
        else:
            yield f"{name}=", "" if now is None or isinstance(now, dict | list) else str(now)


def _leaves(name: str, tree: dict[str, Any]) -> Iterator[Candidate]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(f"{name}.{key}", value)
        else:
            yield f"{name}.{key}=", "" if isinstance(value, list) else str(value)


def _chosen(group: str, words: Sequence[str]) -> dict[str, Any]:
    """What the group's file says that the line names, else the one of conf/config.yaml."""
    named = [word.partition("=")[2].split(",")[0] for word in words if word.startswith(f"{group}=")]
    menu = _read(os.path.join(shipped("conf"), "config.yaml")).get("defaults", [])
    usual = next((entry[group] for entry in menu if isinstance(entry, dict) and group in entry), "")
    return _merged(group, str(named[-1] if named else usual))


def _merged(group: str, option: str) -> dict[str, Any]:
    """A file of a group with the files it builds on."""
    tree = _read(os.path.join(shipped("conf"), group, f"{option}.yaml"))
    found: dict[str, Any] = {}
    for entry in tree.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_" and not entry.startswith("base_"):
            found.update(_merged(group, entry))
    return {**found, **tree}


def _read(path: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        tree = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return tree if isinstance(tree, dict) else {}


def _hydra(word: str, words: Sequence[str]) -> Iterator[Candidate]:
    """hydra.* and hydra/*: Hydra's own answer."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra._internal.utils import create_config_search_path
    from hydra.core.plugins import Plugins

    from pipeline.config import CONF_DIR
    from pipeline.sweep.hydra_app import expose_plugins, register_schema

    expose_plugins()
    register_schema()
    Plugins.instance()
    loader = ConfigLoaderImpl(config_search_path=create_config_search_path(str(CONF_DIR)))
    settings = [text for text in words if "=" in text]
    sys.argv = ["slackwater"]
    found = BashCompletion(loader)._query(config_name="config", line=" ".join([*settings, word]))
    yield from ((str(text), "") for text in found)
