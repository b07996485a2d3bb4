"""TAB in bash, zsh and fish: `slackwater completion SHELL` prints the script, which asks `candidates` about a line.

Verbs and flags come from the table, settings from the schema and the files of conf/, sweeps from the local store. Hydra
itself, whose completion fails behind a verb and takes a second and more, is asked for hydra.* alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cli.arguments import Given, Verb
from pipeline.cli.help import shipped
from pipeline.cli.verbs import VERBS
from pipeline.errors import ConfigError
from pipeline.language import _, languages

if TYPE_CHECKING:
    from dataclasses import Field

Candidate = tuple[str, str]
"""(the whole word, what it is)."""

CHOICES = {
    "design.unsupported": ("refuse", "skip"), "design.on_failure": ("continue", "stop", "retry:1"),
    "design.when_busy": ("wait", "fail"), "stop.of": ("effects", "gap"), "prompt.language": ("en", "ja"),
}
"""Settings of text that take only these; config.py checks them."""
_FILES = ("model.path", "engine.binary", "prompt.file")
_OF_THE_SWEEP = ("place", "knob")

SCRIPTS = {
    "bash": r"""# slackwater completion bash >> ~/.bashrc   (or: source <(slackwater completion bash))
_slackwater() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##*[[:space:]]}" prefix found
    COMPREPLY=()
    while IFS= read -r found; do
        COMPREPLY+=("${found%%$'\t'*}")
    done < <("${COMP_WORDS[0]}" completion query "$line" 2>/dev/null)
    # readline replaces only what stands behind the last of its word breaks
    if [[ $word == *[=:]* ]]; then
        prefix="${word%"${word##*[=:]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]]; then compopt -o nospace; fi
}
complete -F _slackwater slackwater
""",
    "zsh": r"""#compdef slackwater
# slackwater completion zsh > "${fpath[1]}/_slackwater"   (or: source <(slackwater completion zsh))
_slackwater() {
    local line="${(j: :)${words[1,CURRENT-1]}} $PREFIX" found word
    local -a open shut open_shown shut_shown
    for found in ${(f)"$(${words[1]} completion query "$line" 2>/dev/null)"}; do
        word="${found%%$'\t'*}"
        if [[ $word == *[=./] ]]; then
            open+=("$word"); open_shown+=("${found//$'\t'/  }")
        else
            shut+=("$word"); shut_shown+=("${found//$'\t'/  }")
        fi
    done
    (( $#open )) && compadd -Q -S '' -l -d open_shown -- $open
    (( $#shut )) && compadd -Q -l -d shut_shown -- $shut
    return 0
}
if [ "$funcstack[1]" = "_slackwater" ]; then _slackwater "$@"; else compdef _slackwater slackwater; fi
""",
    "fish": r"""# slackwater completion fish > ~/.config/fish/completions/slackwater.fish
function __slackwater_candidates
    set -l words (commandline -opc)
    $words[1] completion query (commandline -cp | string collect) 2>/dev/null
end
complete -c slackwater -f -a '(__slackwater_candidates)'
""",
}


def completion(given: Given) -> int:
    """`slackwater completion bash|zsh|fish`; `query LINE` is what the scripts ask."""
    shell = given.words[0]
    if shell == "query":
        line = given.words[1] if len(given.words) > 1 else ""
        for word, purpose in candidates(line):
            print(f"{word}\t{purpose}" if purpose else word)
        return 0
    if shell not in SCRIPTS or len(given.words) > 1:
        raise ConfigError(_("{shell} is not a known shell. Shells: {known}.").format(
            shell=" ".join(given.words), known=", ".join(SCRIPTS)))
    print(SCRIPTS[shell], end="")
    return 0


def candidates(line: str) -> list[Candidate]:
    """What may stand where the line ends: whole words, each with what it is (or "")."""
    words = line.split()
    word = words.pop() if words and not line[-1].isspace() else ""
    starts = [at for at, text in enumerate(words) if os.path.basename(text) == "slackwater"]
    words = words[starts[-1] + 1:] if starts else words[1:]
    if not words and "=" not in word and not word.startswith("-"):
        verbs = [(verb.name, _(verb.purpose)) for verb in VERBS.values()]
        return _beginning(word, [*verbs, ("--help", ""), ("--version", "")])
    verb = VERBS.get(words[0]) if words else None
    if verb is None:
        verb, words = VERBS["run"], ["run", *words]
    return _beginning(word, list(_of_verb(verb, words[1:], word)))


def _beginning(word: str, found: Sequence[Candidate]) -> list[Candidate]:
    return list(dict.fromkeys(candidate for candidate in found if candidate[0].startswith(word)))


def _of_verb(verb: Verb, words: Sequence[str], word: str) -> Iterator[Candidate]:
    flags = {flag.name: flag for flag in verb.flags}
    if words and words[-1] in flags and flags[words[-1]].value:
        if flags[words[-1]].value == "FILE":
            yield from _files("", word)
    elif word.startswith("lang=") or (word and "lang=".startswith(word) and verb.completes != "settings"):
        yield from ((f"lang={name}", "") for name in languages())
    elif word.startswith("-"):
        yield from ((flag.name, _(flag.purpose)) for flag in verb.flags if flag.name not in words)
        yield "--help", ""
    elif verb.completes == "settings":
        yield from _hydra(word, words) if word.lstrip("+~").startswith("hydra") else _settings(word, words)
    elif verb.completes == "sweep":
        place = sum(not text.startswith("-") for text in words)
        names = verb.words.split()
        if place < len(names) and "FILE" in names[place]:
            yield from _files("", word)
        if place >= len(names) or names[place] != "FILE":
            yield from _sweeps(words)
    elif verb.completes == "file":
        yield from _files("", word)
    else:
        yield from ((text, "") for text in verb.completes.split())


def _sweeps(words: Sequence[str]) -> Iterator[Candidate]:
    """The sweeps of a store that is a file on this machine, the newest first; nothing of any other."""
    from pipeline.track.location import locate, named
    from pipeline.track.source import SqlSource

    uri = words[words.index("--store") + 1] if "--store" in words[:-1] else None
    location = locate(named(uri))
    yield "last", ""
    if location.database is not None and location.database.is_file():
        found = SqlSource(location).runs({"kind": "sweep"}, values=False)
        sweeps = {run.tags["sweep_id"]: run for run in found if "sweep_id" in run.tags}
        yield from ((name, sweeps[name].tags.get("question", "")) for name in reversed(sweeps))


def _files(key: str, word: str) -> Iterator[Candidate]:
    """Files and folders, the latter with a slash."""
    folder, _slash, begun = word.rpartition("/")
    where = os.path.expanduser(folder) if folder else "/" if word.startswith("/") else "."
    if os.path.isdir(where):
        for name in sorted(os.listdir(where)):
            if name.startswith(begun) and not (name.startswith(".") and not begun):
                path = f"{word[:len(word) - len(begun)]}{name}"
                yield key + path + ("/" if os.path.isdir(os.path.join(where, name)) else ""), ""


def _settings(word: str, words: Sequence[str]) -> Iterator[Candidate]:
    """Groups, their files, settings and what they may be."""
    from pipeline.config import GROUPS

    sign = word[:1] if word[:1] in ("+", "~") else ""
    key, equals, value = word.removeprefix(sign).partition("=")
    if equals:
        before, comma, _last = value.rpartition(",")
        lead = f"{sign}{key}={before}{comma}"
        taken = before.split(",")
        if key in _FILES or (key == "model" and value):
            yield from _files(f"{sign}{key}=", value)
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
        yield from languages()
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
