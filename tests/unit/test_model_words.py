"""A path given means that file, in every spelling, and the file's own name is what it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from pipeline.config import Config, Model
from pipeline.errors import ConfigError
from pipeline.model import weights
from pipeline.model.files import as_path, title
from pipeline.sweep import identity
from pipeline.sweep.cells import cell_names, check_cells, named_as_before, refuse_other_work
from pipeline.sweep.job import same_work
from pipeline.sweep.model_words import told_apart, with_files, with_files_in
from tests.ggufs import SMOLLM, write_model
from tests.unit.made_records import trial
from tests.unit.test_rerun import composed

ODD = ("m.gguf", "x y/モデル (1).gguf", "a,b=c.gguf", "O'Neill \"q\" [1] {2} $x.gguf", "sha256-" + "ab" * 32, "plain")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "cache"))
    for name in (*ODD, "a/m.gguf", "b/m.gguf", "smollm2-135m.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_model(tmp_path / name)
    return tmp_path


def models(*words: str) -> list[Model]:
    """What each choice of `model=` is in Hydra's group."""
    found = next(word for word in with_files(words) if word.startswith("model="))
    return [chosen(choice) for choice in found.removeprefix("model=").split(",")]


def chosen(choice: str) -> Model:
    if not choice.startswith(("file-", "ollama-")):
        return Model(name=choice, kind="pypi")
    found = OmegaConf.to_object(ConfigStore.instance().load(f"model/{choice}.yaml").node)
    assert isinstance(found, Model)
    return found


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("lead", ["", "./", "~/", "{folder}/", "file://{folder}/"])
def test_a_file_is_the_model_in_every_spelling(folder: Path, name: str, lead: str) -> None:
    (found,) = models(f"model={lead.format(folder=folder)}{name}")
    assert found.kind == "file"
    assert weights.located(found) == folder / name


@pytest.mark.parametrize("brackets", ["{}", "[{}]"])
def test_files_and_names_stand_in_one_list(brackets: str, folder: Path) -> None:
    found = models("model=" + brackets.format("smollm2-135m,a,b=c.gguf,./m.gguf,\"x y/モデル (1).gguf\""))
    assert [title(each) for each in found] == ["smollm2-135m", "a,b=c", "m", "モデル (1)"]
    assert [each.kind for each in found] == ["pypi", "file", "file", "file"]


@pytest.mark.parametrize(("word", "tags"), [
    ("model=my-model:tag", ["my-model:tag"]), ("model=my-model", ["my-model:latest"]),
    ("model=[Me/Tide:1b,smollm2-135m]", ["Me/Tide:1b", None]), ("model=hf.co/me/tide:Q4_K_M", ["hf.co/me/tide:Q4_K_M"]),
])
def test_a_name_of_ollamas_is_that_model_on_ollama(folder: Path, word: str, tags: list[str | None]) -> None:
    assert [each.tag for each in models(word, "engine=ollama")] == tags
    (found,) = [entry["override /model"] for entry in with_files_in({"defaults": [
        {"override /engine": "ollama_attached"}, {"override /model": word.partition("=")[2]}]})["defaults"][1:]]
    assert [chosen(each).tag for each in found.split(",")] == tags


def test_a_name_of_ollamas_without_ollama_says_which_engine_has_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model=tide:1b is a name of Ollama's: choose engine=ollama"):
        with_files(["model=tide:1b"])


@pytest.mark.parametrize("word", ["model=smollm2-135m", "model=qwen3-4b,smollm2-135m", "model=unheard-of",
                                  "num_ctx=512", "model=choice(smollm2-135m,gguf)"])
def test_a_name_is_left_to_hydra(folder: Path, word: str) -> None:
    assert with_files([word]) == [word]


def test_a_file_that_is_not_there_and_two_that_claim_to_be_the_model_are_one_line(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model=nowhere\.gguf: there is no such file .*or a name: gemma3-1b"):
        with_files(["model=nowhere.gguf"])
    for chosen in ("smollm2-135m", "b/m.gguf", "gguf,smollm2-135m"):
        with pytest.raises(ConfigError, match=rf"model={chosen} and model\.path=a/m\.gguf both say which weights"):
            with_files([f"model={chosen}", "model.path=a/m.gguf"])
    assert with_files(["model=gguf", "model.path=a/m.gguf"]) == ["model=gguf", "model.path=a/m.gguf"]


def test_a_path_alone_means_that_file_whatever_model_was_chosen_before(folder: Path) -> None:
    for before in (Model("smollm2-135m", "pypi", sha256="1"), Model("qwen3-4b", "ollama", tag="x"),
                   Model("gguf", "file")):
        found = replace(before, path="a/m.gguf")
        assert (found.kind, found.tag, found.sha256, title(found)) == ("file", None, None, "m")
        assert weights.located(found) == folder / "a/m.gguf"
    assert composed("model.path=a/m.gguf") == composed("model=gguf", "model.path=a/m.gguf")
    assert title(Model("mine", "pypi", path="a/m.gguf")) == title(Model("mine", "file", path="a/m.gguf")) == "mine"
    assert title(composed().model) == "smollm2-135m"


def test_an_experiment_may_name_files(folder: Path) -> None:
    content = with_files_in({"defaults": [{"override /mode": "oneshot"}, {"override /model": "a/m.gguf"}],
                             "hydra": {"sweeper": {"params": {"model": "smollm2-135m,b/m.gguf", "num_ctx": "1,2"}}}})
    assert weights.located(chosen(content["defaults"][1]["override /model"])) == folder / "a/m.gguf"
    name, file = content["hydra"]["sweeper"]["params"]["model"].split(",")
    assert name == "smollm2-135m"
    assert weights.located(chosen(file)) == folder / "b/m.gguf"
    assert content["hydra"]["sweeper"]["params"]["num_ctx"] == "1,2"
    assert OmegaConf.create(content)


def sweep(*words: str) -> tuple[list[Config], list[list[str]]]:
    words = tuple(with_files(words))
    return [composed(word, "mode=oneshot") for word in words], [[word, "mode=oneshot"] for word in words]


def test_cells_are_called_by_the_files_own_names(folder: Path) -> None:
    assert cell_names(*sweep("model=m.gguf", "model=smollm2-135m")) == [
        "oneshot-off-model=m", "oneshot-off-model=smollm2-135m"]
    assert cell_names(*sweep("model.path=a/m.gguf")) == ["oneshot-off"]


def test_files_of_one_name_are_told_apart_also_from_a_name(folder: Path) -> None:
    apart = told_apart([Model(name="gguf", kind="file", path=path) for path in ("a/m.gguf", "b/m.gguf", "./a/m.gguf")])
    assert apart == {"a/m.gguf": "a/m", "b/m.gguf": "b/m", "./a/m.gguf": "a/m"}
    assert told_apart([composed().model, Model(name="gguf", kind="file", path="smollm2-135m.gguf")]) == {
        "smollm2-135m.gguf": f"{folder.name}/smollm2-135m"}
    assert told_apart([Model(name="gguf", kind="file", path="a/m.gguf"), composed().model]) == {}


def test_the_path_is_covered_where_the_model_is_the_question(folder: Path) -> None:
    configs = [composed(f"model.path={path}", f"model.name={path[:3]}", f"design.factor=[{factor}]")
               for path in ("a/m.gguf", "b/m.gguf") for factor in ("model.path",)]
    refuse_other_work(configs)


def test_every_file_of_a_sweep_is_held(folder: Path) -> None:
    """Two files of one name: one replaced is a change, whichever it is."""
    configs, overrides = sweep("model.path=a/m.gguf", "model.path=b/m.gguf")
    cells, _ = check_cells(configs, overrides)
    for each in configs:
        weights.resolve(each.model)
    was = identity.environment(cells)
    keys = [f"model_digest of {folder}/{name}/m.gguf" for name in ("a", "b")]
    assert {key for key in was if key.startswith("model_digest")} == set(keys)
    for name, key in zip(("a", "b"), keys, strict=True):
        write_model(folder / name / "m.gguf", SMOLLM | {"general.name": f"another {name}"})
        weights.resolve(Model(name="gguf", kind="file", path=f"{name}/m.gguf"))
        now = identity.environment(cells)
        assert now[key] != was[key]
        was = now


def test_a_digest_that_an_older_sweep_kept_by_name_is_still_held(folder: Path) -> None:
    configs, overrides = sweep("model.path=a/m.gguf", "model.path=b/m.gguf")
    write_model(folder / "b/m.gguf", SMOLLM | {"general.name": "another"})
    cells, _ = check_cells(configs, overrides)
    for each in configs:
        weights.resolve(each.model)
    now = identity.environment(cells)
    for path in ("a/m.gguf", "b/m.gguf"):
        kept = {"model_digest of gguf": now[f"model_digest of {as_path(path)}"]}
        assert identity._as_before(cells, now, kept)["model_digest of gguf"] == kept["model_digest of gguf"]
    gone = identity._as_before(cells, now, {"model_digest of gguf": "sha256:other"})
    assert gone["model_digest of gguf"] != "sha256:other"


def test_cells_of_an_older_sweep_keep_their_names(folder: Path) -> None:
    cells, _ = check_cells(*sweep("model.path=a/m.gguf", "model.path=b/m.gguf"))
    cells = [replace(cell, name=f"oneshot-off-model={name}/m", overrides=[*cell.overrides, f'model.name="{name}/m"'])
             for cell, name in zip(cells, "ab", strict=True)]  # as they are told apart today
    older = ["oneshot-off-path=a/m.gguf", "oneshot-off-path=b/m.gguf"]
    assert [cell.name for cell in named_as_before(cells, older)] == older
    assert named_as_before(cells, ["another", "plan"]) == cells


def test_a_file_replaced_between_two_trials_of_a_cell_makes_the_later_one_suspect() -> None:
    first, second, third = (replace(trial("oneshot-off", block, 1.0), tags={"model_digest": f"sha256:{digest}"})
                            for block, digest in ((1, "a"), (2, "a"), (3, "b")))
    assert same_work(second, first) is second
    judged = same_work(third, first)
    assert judged.verdict == "suspect"
    assert list(judged.reasons) == ["the model's file was changed: digest sha256:b, the cell's other trials sha256:a"]
