"""What `slackwater --help` and `slackwater VERB --help` print. Quick: reads names of files, imports no other room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from pipeline.language import N_, _

EXAMPLES = (
    ("slackwater run experiment=mode_gap", N_("one-shot against interactive")),
    ("slackwater run mode=oneshot infer_os=off,on", N_("a sweep over one question")),
    ("slackwater run infer_os.quantization=true,false", N_("a sweep over one flag")),
    ("slackwater run knob.cache_type=f16,q8_0,q4_0", N_("a sweep over one knob")),
    ("slackwater run model=FILE.gguf", N_("your own model")),
    ("slackwater run mode.source=stdin", N_("type the prompts yourself")),
)
KNOBS = ("cache_type", "cache_type_k", "cache_type_v", "cache_ram_mib", "cache_idle_slots", "cache_prompt",
         "n_ctx_checkpoints", "n_parallel", "n_batch", "n_ubatch", "n_threads", "n_threads_http", "n_gpu_layers",
         "flash_attn", "load_mode", "lazy_mode", "repack", "kv_unified", "swa_full", "warmup", "fit")
"""The knobs of the default engine. Its table (engine/llamacpp_settings.py) costs an import that --help is too quick
for; tests/unit/test_knobs_by_name.py holds the two together."""
WAYS = (
    ("slackwater run [OVERRIDES…]", N_("measure: a cell, a sweep, an experiment")),
    ("slackwater show [SWEEP]", N_("read again what was measured")),
    ("slackwater ui", N_("every trial side by side, in MLflow")),
)


def shipped(name: str) -> str:
    """conf/ or experiments/, inside the package once installed, else beside it (config.py knows the same, and more)."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inside = os.path.join(package, name)
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), name)


def page(verbs: Sequence[tuple[str, str, str]]) -> str:
    """The whole program on one page of 80 columns; `verbs` as (name, words, purpose)."""
    width = max(len(name) for name, _words, _purpose in verbs)
    return "\n".join((
        _("slackwater: honest memory experiments for language models on your own machine"),
        "",
        _("Three ways to use it"), *_beside(WAYS),
        "",
        _("Examples (with --dry-run they say what would run, and stop)"), *_beside(EXAMPLES),
        "",
        _("Commands (`slackwater COMMAND --help` says more of each)"),
        *_beside([(f"{name:<{width}} {words}".rstrip(), purpose) for name, words, purpose in verbs]),
        "",
        _("Settings are files, one folder per question (mode, infer_os, engine, …), in\n"
          "  {folder}\n"
          "Any of them is given as key=value; `slackwater run --cfg job` prints them all.\n"
          "Experiments are files too: your ./experiments/NAME.yaml, then the shipped ones.").format(
              folder=shipped("conf")),
        "",
        _("lang=ja behind any command speaks Japanese, and so does SLACKWATER_LANG=ja (or\n"
          "lang: in a config file, for its sweep); lang=en goes back. --json never changes."),
        "",
        _("Exit codes: 0 as asked; 1 something failed while measuring, or a --fail-if limit\n"
          "was broken; 2 wrong input, nothing was measured; 3 a limit is undecided;\n"
          "130 interrupted (143 by SIGTERM)."),
        ""))


def verb_page(usage: str, purpose: str, more: str, flags: Sequence[tuple[str, str]], settings: bool) -> str:
    """The few lines of one verb; `settings`: and what there is to choose from."""
    lines = [usage, f"  {_(purpose)}", *(["", _(more)] if more else []), *(_choices() if settings else [])]
    if flags:
        lines += ["", *_beside(flags)]
    if settings:
        lines += ["", _("Hydra's own flags work too: --cfg job prints the config, --info its making.")]
    return "\n".join([*lines, ""])


def version() -> str:
    """"slackwater 1.2": of the installed package, else of the checkout this runs from."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"slackwater {version('slackwater')}\n"
    except PackageNotFoundError:
        import tomllib

        with open(os.path.join(os.path.dirname(shipped("conf")), "pyproject.toml"), "rb") as file:
            return f"slackwater {tomllib.load(file)['project']['version']} " + _("(not installed)") + "\n"


def _beside(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max(len(left) for left, _right in rows)
    return (f"  {left:<{width}}  {_(right)}" for left, right in rows)


def _choices() -> list[str]:
    """The groups of conf/ with their files, and the experiments."""
    conf = shipped("conf")
    groups = {group: os.path.join(conf, group) for group in sorted(os.listdir(conf))}
    folders = {group: [path] for group, path in groups.items() if os.path.isdir(path)}
    folders = {"experiment": [shipped("experiments"), "experiments"], **folders}
    width = max(map(len, folders))
    listed = {group: sorted({name.removesuffix(".yaml") for path in paths if os.path.isdir(path)
                             for name in os.listdir(path) if name.endswith(".yaml")})
              for group, paths in folders.items()}
    return [*_columns(listed, width), "", _("One setting of the server by its name, over the flags, is knob.NAME=a,b:"),
            *_columns({"knob.": KNOBS}, width)]


def _columns(listed: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """Names behind what they are for, over as many lines of 80 columns as they need."""
    lines = []
    for group, names in listed.items():
        line = f"  {group:<{width}} "
        for name in names:
            if len(line) + len(name) + 2 > 80:
                lines.append(line)
                line = " " * (width + 3)
            line += f" {name}"
        lines.append(line)
    return lines
