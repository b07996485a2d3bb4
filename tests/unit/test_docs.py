"""What README and docs/ tell users to type is there, and so is what they link to and list."""

from __future__ import annotations

import itertools
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline import language, metrics
from pipeline.cli import main
from pipeline.cli.commands import slackwater
from pipeline.config import CONF_DIR, EXPERIMENTS_DIR, GROUPS
from pipeline.sweep.composed import typed
from pipeline.sweep.experiments import chosen, load_experiment, register
from pipeline.sweep.hydra_app import expose_plugins, register_schema
from pipeline.sweep.model_words import with_files
from pipeline.sweep.overrides import override_of
from tests.conftest import ROOT

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^`(experiments/[^`\n]+)`:\n\n```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:slackwater|make) [^`\n]+)`(?!`)")
SHIPPED = "|".join(path.stem for path in EXPERIMENTS_DIR.glob("*.yaml"))
ONE_THAT_SHIPS = re.compile(rf"experiment=(?:{SHIPPED})(?: --?[a-z-]+)?")
"""Composed by tests/end_to_end/test_experiments.py."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
RUN_ELSEWHERE = "docs/structure.md"
"""Its examples are run, not only composed, by tests/end_to_end/test_structure.py."""


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every shell block and every inline `slackwater …` or `make …`."""
    for page, text in PAGES.items():
        for kind, block in FENCE.findall(text):
            if kind == "sh":
                for line in block.replace("\\\n", " ").splitlines():
                    if line.strip():
                        yield page, line
        yield from ((page, command) for command in INLINE.findall(FENCE.sub("", text)))


def words(command: str) -> list[str]:
    return shlex.split(command.removeprefix(".venv/bin/"), comments=True)


TYPED = list(dict.fromkeys(commands()))
RUNS = sorted({shlex.join(words(command)) for page, command in TYPED
               if words(command)[:2] == ["slackwater", "run"] and page != RUN_ELSEWHERE
               and not ONE_THAT_SHIPS.fullmatch(" ".join(words(command)[2:]))})


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    language.speak(language.ENGLISH)


def test_every_command_is_one_that_there_is() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = set()
    for page, command in TYPED:
        program, *rest = words(command)
        if program == "make":
            assert {word for word in rest if "=" not in word} <= targets, f"{page}: {command}"
        elif program == "slackwater":
            verb = "run" if "=" in rest[0] else rest[0]
            assert verb in slackwater.commands or verb == "--help", f"{page}: {command}"
            if verb in slackwater.commands and "--help" not in rest:
                slackwater.commands[verb].make_context(verb, rest[1:], resilient_parsing=not rest[1:])
            seen.add(verb)
        else:
            assert program in (".ci/run", "pip"), f"{page}: {command}"
    assert set(slackwater.commands) <= seen | {"completion"}, "a verb that no page shows"


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder with the experiments of the pages, and Hydra ready to compose."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folder = tmp_path_factory.mktemp("reader")
    for text in PAGES.values():
        for name, content in FILE.findall(text):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)
    expose_plugins()
    register_schema()
    GlobalHydra.instance().clear()
    with chdir(folder), initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize("command", RUNS)
def test_every_run_composes(command: str) -> None:
    """With the first of every value that it sweeps, and with the last. Nothing is planned: no server, no model."""
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = slackwater.commands["run"].make_context("run", words(command)[2:])
    arguments = [word for word in given.params["overrides"] if word not in ("--cfg", "job")]
    name = chosen(arguments)
    params = load_experiment(name).get("hydra", {}).get("sweeper", {}).get("params", {}) if name else {}
    register(arguments)
    swept = OverridesParser.create().parse_overrides(
        [*(f"{key}={text}" for key, text in params.items()), *map(override_of, with_files(arguments))])
    choices = [list(one.sweep_string_iterator()) if one.is_sweep_override() else [str(one.input_line).partition("=")[2]]
               for one in swept]
    cells = {tuple(f"{one.get_key_element()}={values[at]}" for one, values in zip(swept, choices, strict=True))
             for at in (0, -1)}
    assert len(cells) == (1 if all(len(values) == 1 for values in choices) else 2)
    for cell in cells:
        config = typed(compose("config", overrides=["hydra/sweeper=basic", *cell]))
        assert config.engine.name and config.repetitions >= 1


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)}


def test_every_link_leads_somewhere_in_the_project() -> None:
    checked = 0
    for page, text in PAGES.items():
        for target in LINK.findall(FENCE.sub("", text)):
            assert "://" not in target, f"{page}: {target}: pages link to nothing outside"
            name, _hash, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.is_file(), f"{page}: {target}"
            if anchor:
                assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: {target}"
            if page.startswith("docs/"):
                assert path.resolve().is_relative_to(ROOT / "docs"), f"{page}: {target} is not part of the site"
            checked += 1
    assert checked > 20


def test_every_page_stands_in_the_index_and_in_the_readme() -> None:
    listed = re.search(r"```\{toctree\}\n(?::.*\n)*\n(.*?)```", PAGES["docs/index.md"], re.DOTALL)
    assert listed is not None
    pages = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if page.startswith("docs/")} - {"index"}
    assert set(listed[1].split()) == pages
    assert all(f"docs/{page}.md" in PAGES["README.md"] for page in pages - {"metrics", "commands"})


def test_what_ships_is_listed() -> None:
    page = PAGES["docs/write-an-experiment.md"]
    for path in (ROOT / "experiments").glob("*.yaml"):
        assert f"| `{path.stem}` |" in page, path
        question = str(OmegaConf.load(path).question).split("?")[0]
        row = next(line for line in page.splitlines() if line.startswith(f"| `{path.stem}`"))
        assert question.replace("infer-OS ", "") in row.replace("infer-OS ", ""), path
    for group in GROUPS:
        answers = next((line for line in page.splitlines() if line.startswith(f"| `conf/{group}/`")), "")
        assert answers, group
        named = set(re.findall(r"`([\w.-]+)`", answers.split("|")[3]))
        assert named <= {path.stem for path in (CONF_DIR / group).glob("*.yaml")}, group


def test_the_generated_pages_say_what_the_code_says() -> None:
    conf: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    dictionary, pages = conf["metric_dictionary"](), conf["command_pages"]()
    assert all(f"`{metric.name}` · {metric.unit}" in dictionary for metric in metrics.entries())
    assert all(f"## `slackwater {verb}`" in pages for verb in slackwater.commands)
    assert str(ROOT) not in pages, "a path of the machine that built it"
    for page in conf["GENERATED"]:
        assert PAGES[f"docs/{page}.md"].rstrip().endswith("<!-- generated -->")


def test_what_a_page_shows_of_the_dictionary_is_what_is_printed(capsys: pytest.CaptureFixture[str],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    blocks = FENCE.findall(PAGES["docs/metrics.md"])
    (_sh, command), (_text, shown) = next(pair for pair in itertools.pairwise(blocks) if pair[0][0] == "sh")
    assert main(words(command)[1:]) == 0
    assert capsys.readouterr().out == shown


def test_the_picture_is_small_and_the_make_target_that_remakes_it_is_there() -> None:
    assert (ROOT / "docs/static/report.png").stat().st_size < 200_000
    assert "docs/static/report.png" in (ROOT / "Makefile").read_text()
    assert shutil.which("make") is not None
