"""Every knob of an engine can be set and swept by its own name, over the flags, in whichever engine's words."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from click import Context

from pipeline.cli.commands import slackwater
from pipeline.cli.help import KNOBS
from pipeline.config import CONF_DIR, Config, InferOs
from pipeline.engine import all_knobs
from pipeline.engine.all_knobs import in_common_words, with_common_names
from pipeline.engine.knobs import Resolved, resolve
from pipeline.errors import ConfigError
from pipeline.sweep.cells import cell_names, check_cells, swept_knobs
from pipeline.sweep.messages import unknown_setting
from tests.conftest import ROOT
from tests.unit.test_rerun import composed


def config(*words: str, engine: str = "llamacpp", mode: str = "oneshot") -> Config:
    """What the words compose to, but that Hydra is asked once an engine."""
    base = composed(f"engine={engine}", f"mode={mode}")
    infer_os = InferOs()
    for flag in (word.removeprefix("infer_os=") for word in words if word.startswith("infer_os=")):
        if flag != "off":
            setattr(infer_os, flag, True)
    given = [word.partition("=")[::2] for word in words if not word.startswith("infer_os=")]
    by_place: dict[str, dict[str, Any]] = {"knob": {}, "engine.knobs": {}}
    for key, text in given:
        place, _, name = key.rpartition(".")
        by_place[place][name] = yaml.safe_load(text)
    return with_common_names(replace(
        base, knob=by_place["knob"], infer_os=infer_os,
        engine=replace(base.engine, knobs={**base.engine.knobs, **by_place["engine.knobs"]})))


def test_hydra_takes_a_knob_without_a_sign_and_under_any_name() -> None:
    found = composed("knob.np=2", "knob.OLLAMA_KV_CACHE_TYPE=q8_0", "engine.knobs.cache_ram_mib=0", "+knob.fa=on",
                     "knob.cache-ram=64", "engine.knobs.ctk=f32", "engine.knobs.num_thread=1")
    assert found.knob == {"n_parallel": 2, "cache_type": "q8_0", "flash_attn": "on", "cache_ram_mib": 64}
    assert found.engine.knobs["cache_ram_mib"] == 0
    assert (found.engine.knobs["cache_type_k"], found.engine.knobs["num_thread"]) == ("f32", 1)
    assert [in_common_words(word) for word in ("+knob.np=1,2", "engine.knobs.ub=64", "engine.knobs.num_thread=1",
                                               "knob.use_mmap=true", "mode=oneshot", "~knob.fa", "knobs.np=1")] == [
        "+knob.n_parallel=1,2", "engine.knobs.n_ubatch=64", "engine.knobs.num_thread=1", "knob.use_mmap=true",
        "mode=oneshot", "~knob.flash_attn", "knobs.np=1"]


def resolved(*words: str, engine: str = "llamacpp", cores: int = 8) -> Resolved:
    asked = config(*words, engine=engine)
    knobs, table = all_knobs.TABLES[engine]
    return resolve(asked.engine, asked.infer_os, knobs, cores, asked.knob, table)


def settings(*words: str, engine: str = "llamacpp") -> dict[str, Any]:
    return dict(resolved(*words, engine=engine).settings)


def said(*words: str, engine: str = "llamacpp") -> list[str]:
    return [line for lines in resolved(*words, engine=engine).knobs.values() for line in lines]


@pytest.mark.parametrize(("words", "engine", "changed"), [
    ("knob.cache_type=q4_0", "llamacpp", {"cache_type_k": "q4_0", "cache_type_v": "q4_0"}),
    ("knob.cache_type_k=q4_0", "llamacpp", {"cache_type_k": "q4_0"}),
    ("knob.ctk=Q4_0", "llamacpp", {"cache_type_k": "q4_0"}),
    ("knob.kv_cache_type=q8_0", "llamacpp", {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
    ("knob.np=3", "llamacpp", {"n_parallel": 3}),
    ("knob.LLAMA_ARG_N_PARALLEL=3", "llamacpp", {"n_parallel": 3}),
    ("knob.fa=off", "llamacpp", {"flash_attn": False}),
    ("knob.use_mmap=true", "llamacpp", {"load_mode": "mmap"}),
    ("knob.n_threads=half", "llamacpp", {"n_threads": 4}),
    ("engine.knobs.cache_ram_mib=512", "llamacpp", {"cache_ram_mib": 512}),
    ("engine.knobs.cache_type=q5_1", "llamacpp", {"cache_type_k": "q5_1", "cache_type_v": "q5_1"}),
    ("engine.knobs.np=2", "llamacpp", {"n_parallel": 2}),
    ("knob.cache_type=q8_0", "ollama", {"kv_cache_type": "q8_0"}),
    ("knob.OLLAMA_KV_CACHE_TYPE=q8_0", "ollama", {"kv_cache_type": "q8_0"}),
    ("knob.n_parallel=2", "ollama", {"num_parallel": 2}),
    ("knob.num_batch=128", "ollama", {"num_batch": 128}),
    ("engine.knobs.num_thread=2", "ollama", {"num_thread": 2}),
    ("knob.load_mode=mmap", "ollama", {"use_mmap": True}),
    ("knob.use_mmap=on", "ollama", {"use_mmap": True}),
])
def test_a_knob_is_taken_without_a_sign_under_every_name_it_has(
        words: str, engine: str, changed: dict[str, Any]) -> None:
    before, after = settings(engine=engine), settings(words, engine=engine)
    assert {name: value for name, value in after.items() if value != before[name]} == changed


def test_every_allowed_word_of_every_knob_is_taken() -> None:
    for engine, (knobs, table) in all_knobs.TABLES.items():
        for name, (expected, words, behind) in all_knobs.of_engine(engine).items():
            for word in words or ["1", "7"]:
                cell = settings(f"knob.{name}={word}", *(["knob.load_mode=mmap"] if name == "lazy_mode" else []),
                                engine=engine)
                assert all(cell[own] is not None for own in behind), (engine, name, expected)
        assert set(knobs) == {own for name in table.names(knobs) for own in
                              all_knobs.of_engine(engine)[name][2]}, "a setting that no name reaches"


def test_a_knob_wins_over_flags_on_and_off_and_the_plan_says_which() -> None:
    assert settings("infer_os=quantization", "knob.cache_type=q4_0")["cache_type_v"] == "q4_0"
    assert said("infer_os=quantization", "knob.cache_type=q4_0") == [
        "cache_type=q4_0 (cache_type_k, cache_type_v) overrides infer_os.quantization, which would set q8_0"]
    assert said("knob.n_parallel=1") == [
        "n_parallel=1 overrides infer_os.parallel_processing, which would set the same"]
    assert said("knob.n_ubatch=256") == []
    assert said("knob.cache_type=q8_0", engine="ollama") == [
        "cache_type=q8_0 (kv_cache_type) overrides infer_os.quantization, which would set f16"]


def test_a_flag_that_a_knob_has_overridden_is_not_said_to_change_nothing() -> None:
    assert resolved("infer_os=cpu_optimization", cores=2).notes
    assert resolved("infer_os=cpu_optimization", "knob.n_threads=2", cores=2).notes == []


def test_a_half_of_the_cache_wins_over_the_whole_wherever_it_stands() -> None:
    for words in (("knob.cache_type_v=q8_0", "knob.cache_type=f16"), ("knob.cache_type=f16", "knob.cache_type_v=q8_0")):
        cell = settings(*words)
        assert (cell["cache_type_k"], cell["cache_type_v"]) == ("f16", "q8_0")


@pytest.mark.parametrize(("words", "decided", "line"), [
    (["knob.cache_ram_mib=0"], {"cache_idle_slots": False}, "cache_ram_mib sets cache_idle_slots=false too"),
    (["infer_os=memory_optimization", "knob.cache_ram_mib=64"], {"cache_idle_slots": True},
     "cache_ram_mib sets cache_idle_slots=true too"),
    (["knob.load_mode=none", "engine.knobs.lazy_mode=true"], {"lazy_mode": False},
     "load_mode sets lazy_mode=false too"),
    (["knob.n_batch=128"], {"n_ubatch": 128}, "n_batch sets n_ubatch=128 too"),
    (["knob.n_ubatch=1024"], {"n_batch": 1024}, "n_ubatch sets n_batch=1024 too"),
])
def test_a_knob_that_leaves_another_no_choice_sets_it_and_says_so(
        words: list[str], decided: dict[str, Any], line: str) -> None:
    cell = settings(*words)
    assert {name: cell[name] for name in decided} == decided
    assert any(one.startswith(line) for one in said(*words))


@pytest.mark.parametrize(("words", "engine", "message"), [
    (["knob.cache_typ=f16"], "llamacpp", r"no knob cache_typ\. Knobs: .*n_parallel.* Did you mean cache_type\?"),
    (["knob.n_ctx=512"], "llamacpp", r"n_ctx is a setting of its own: num_ctx="),
    (["knob.cache_type=q9"], "llamacpp", r"knob\.cache_type='q9' is not allowed: expected one of f32, f16, .*q5_1"),
    (["knob.n_parallel=0"], "llamacpp", r"knob\.n_parallel=0 is not allowed: expected a whole number from 1 to 256"),
    (["knob.n_threads=1.5"], "llamacpp", r"from 1 to 512, half or all_but_one"),
    (["knob.flash_attn=auto"], "llamacpp", r"expected true or false"),
    (["knob.n_parallel=[1,2]"], "llamacpp", r"Several are swept on the command line"),
    (["knob.cache_type=null"], "llamacpp", r"knob\.cache_type=None is not allowed"),
    (["knob.cache_ram_mib=0", "knob.cache_idle_slots=true"], "llamacpp", r"needs a prompt cache"),
    (["knob.load_mode=none", "knob.lazy_mode=true"], "llamacpp", r"needs a mapped file"),
    (["knob.n_batch=128", "knob.n_ubatch=256"], "llamacpp", r"n_ubatch=256 needs a batch that holds it"),
    (["knob.max_loaded_models=2"], "llamacpp", r"nothing behind max_loaded_models"),
    (["knob.n_ubatch=128"], "ollama", r"engine ollama has nothing behind n_ubatch: .*num_batch"),
    (["knob.cache_type_k=q8_0"], "ollama", r"nothing behind cache_type_k: .*knob\.cache_type"),
    (["knob.load_mode=mlock"], "ollama", r"knob\.load_mode='mlock' is not allowed: expected one of mmap, none"),
])
def test_what_cannot_be_is_refused_by_name_with_what_there_is(words: list[str], engine: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(*words, engine=engine)


def test_a_knob_typed_without_its_place_is_told_where_it_belongs() -> None:
    assert unknown_setting("cache_type") == "cache_type is not a setting. It is a knob of the server: knob.cache_type=…"
    assert "knob.n_parallel=" in unknown_setting("np")
    assert "knob" not in unknown_setting("repetition")


def cells(*each: tuple[str, ...], **design: Any) -> list[Any]:
    configs = [config(*words) for words in each]
    if design:
        configs = [replace(one, design=replace(one.design, **design)) for one in configs]
    return check_cells(configs, [["mode=oneshot", *words] for words in each])[0]


def test_cells_are_named_by_the_common_name_and_the_first_one_is_the_reference() -> None:
    found = cells(("knob.cache_type=f16",), ("knob.cache_type=q8_0",))
    assert [cell.name for cell in found] == ["oneshot-off-cache_type=f16", "oneshot-off-cache_type=q8_0"]
    assert swept_knobs(found) == {"knob.cache_type": ["f16", "q8_0"]}
    assert swept_knobs(found[:1]) == swept_knobs([]) == {}
    configs = [config("knob.use_mmap=true", mode="interactive"), config("knob.use_mmap=false", mode="interactive")]
    assert cell_names(configs, [["knob.use_mmap=true"], ["knob.use_mmap=false"]]) == [
        "interactive-off-load_mode=mmap", "interactive-off-load_mode=none"]


@pytest.mark.parametrize(("one", "other"), [
    (("knob.cache_type=q8_0",), ("knob.cache_type=Q8_0",)),
    (("knob.cache_type=q8_0",), ("knob.cache_type_k=q8_0", "knob.cache_type_v=q8_0")),
    (("infer_os=quantization",), ("knob.cache_type=q8_0",)),
    (("knob.n_batch=256", "knob.n_ubatch=256"), ("engine.knobs.n_batch=256", "engine.knobs.n_ubatch=256")),
    (("knob.flash_attn='on'",), ("knob.flash_attn=true",)),
    (("infer_os=quantization", "knob.cache_type=f16"), ("infer_os=off", "knob.cache_type=f16")),
])
def test_two_cells_that_come_to_the_same_server_are_refused_whatever_word_differs(
        one: tuple[str, ...], other: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="run the same server"):
        cells(one, other)
    assert len(cells(one, other, allow_identical=True)) == 2


def test_the_documented_table_has_every_knob_with_its_words() -> None:
    page = (ROOT / "docs" / "write-an-experiment.md").read_text(encoding="utf-8")
    rows = {name: row for row in re.findall(r"^\| `.*$", page, re.MULTILINE)
            for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    for engine in ("llamacpp", "ollama"):
        for name, (_expected, words, behind) in all_knobs.of_engine(engine).items():
            assert name in rows, name
            takes = rows["cache_type" if name.startswith("cache_type_") else name]
            assert [word for word in words if word not in takes] == [], name
            if engine == "ollama":
                assert f"`{behind[0]}`" in takes.split("|")[4], name
    for name in set(all_knobs.of_engine("llamacpp")) - set(all_knobs.of_engine("ollama")):
        assert rows[name].split("|")[4].strip() == "–", name


def test_the_help_of_run_lists_every_knob() -> None:
    assert set(KNOBS) == set(all_knobs.of_engine("llamacpp"))
    page = slackwater.commands["run"].get_help(Context(slackwater))
    assert all(f" {name}" in page for name in KNOBS)


def test_the_files_of_conf_use_the_settings_own_names_only() -> None:
    for engine in ("llamacpp", "ollama", "ollama_attached"):
        assert (CONF_DIR / "engine" / f"{engine}.yaml").is_file()
        assert set(composed(f"engine={engine}").engine.knobs) <= set(all_knobs.TABLES[engine][0])
