"""What was logged composes to the same settings again, whatever conf/ says by then; what differs now is said."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import provenance
from pipeline.config import Config
from pipeline.engine import load_engine
from pipeline.errors import ConfigError, SlackwaterError
from pipeline.outcome import flatten, infer_os_label
from pipeline.record.find import Subject
from pipeline.record.trial import METHOD
from pipeline.sweep.composed import RECORDED, ComposedOnce, filled, typed
from pipeline.sweep.design import load_design
from pipeline.sweep.hydra_app import compose
from pipeline.sweep.messages import explain
from pipeline.sweep.overrides import grammar
from pipeline.sweep.rerun import Again, prepare
from pipeline.text import to_json
from tests.unit.made_records import sweep, trial


@functools.cache
def composed(*overrides: str) -> Config:
    return typed(compose(overrides))


class Kept:
    """A trial's folder with one file; `text` None: without."""

    def __init__(self, text: bytes | None, name: str = "") -> None:
        self.text, self.name = text, name

    def __truediv__(self, name: str) -> Kept:
        return Kept(self.text, name)

    def is_file(self) -> bool:
        return self.text is not None and self.name == "config.yaml"

    def read_bytes(self) -> bytes | None:
        return self.text


def logged(configs: Mapping[str, Config], *, cell: str = "", run_id: str = "", planned: Sequence[Sequence[str]] = (),
           change: str = "", whole: bool = True, machine: Mapping[str, str] | None = None) -> Subject:
    """A sweep that ran these cells, as a store gives it; `change` is YAML that was in every config then."""
    trials = []
    for order, (name, config) in enumerate(configs.items(), start=1):
        made = trial(name, 1, 1.0, order=order)
        known = {key: text for key, text in load_engine(config).provenance().items() if key in made.tags}
        tree = OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config))),
                               OmegaConf.create(change))
        trials.append(replace(made, params=flatten(config), infer_os=infer_os_label(config.infer_os), tags=known,
                              method=METHOD, folder=Kept(OmegaConf.to_yaml(tree).encode() if whole else None)))
    measured = replace(sweep(), experiment="mode_gap", tags={**provenance.facts(), **(machine or {})})
    plan = {"cells": [{"cell": name, "overrides": list(each)}
                      for name, each in zip(configs, planned or [[]] * len(configs), strict=True)], "cwd": "/then"}
    chosen = [record for record in trials if cell in ("", record.cell)]
    return Subject("last", measured, chosen, trials, plan, cell, run_id, "a store")


def again(found: Again) -> dict[str, Config]:
    return {name: composed(*overrides) for name, overrides in found.cells}


def same(one: Config, other: Config, *but: str) -> bool:
    left, right = flatten(one), flatten(other)
    return all(left.get(key) == right.get(key) for key in left.keys() | right.keys()
               if not key.startswith(("tracking.", *but)))


NASTY = [
    "prompt.text='Why, then? \"Because\", he said: {a: [b]} = $5 \\\\ #\\'end\\''", "max_tokens=7", "seed=7",
    "num_ctx=512", "engine.knobs.n_batch=64", "++engine.knobs.extra='a b'", "~engine.knobs.warmup",
    "design.factor=[num_ctx,mode]", "settle.limit_s=2.5", "infer_os.quantization=true", "clear=none", "model.tag=null",
]


def test_a_sweep_composes_to_the_same_settings_order_and_names() -> None:
    configs = {"oneshot-off": composed("mode=oneshot", "infer_os=off", *NASTY[:8]),
               "interactive-on": composed("mode=interactive", "infer_os=on", "mode.turns=3", *NASTY)}
    found = prepare(logged(configs, planned=[["mode=oneshot", "infer_os=off"], ["mode=interactive", "infer_os=on"]]))
    assert [name for name, _ in found.cells] == list(configs)
    made = again(found)
    for name, config in configs.items():
        assert same(made[name], config)
    assert made["interactive-on"].prompt.text == configs["interactive-on"].prompt.text
    assert "warmup" not in made["interactive-on"].engine.knobs
    assert (found.of, found.experiment) == ("tide-1", "mode_gap")
    assert list(found.notes) == []


def test_it_is_what_was_logged_that_counts_and_not_what_conf_says_now() -> None:
    """The knobs behind a flag were others when it was measured."""
    then = "engine: {flags: {quantization: {'on': {cache_type_k: q4_0}}}, start_limit_s: 11}"
    made = again(prepare(logged({"oneshot-on": composed("mode=oneshot", "infer_os=on")}, change=then)))["oneshot-on"]
    assert made.engine.flags["quantization"].on == {"cache_type_k": "q4_0", "cache_type_v": "q8_0"}
    assert made.engine.start_limit_s == 11.0


@pytest.mark.thorough
def test_a_run_is_one_cell_measured_once() -> None:
    configs = {"oneshot-off": composed("mode=oneshot", "repetitions=9", "design=paired", "infer_os=off"),
               "oneshot-on": composed("mode=oneshot", "repetitions=9", "design=paired", "infer_os=on")}
    found = prepare(logged(configs, cell="oneshot-on", run_id="f" * 32))
    made = again(found)
    assert list(made) == ["oneshot-on"] and found.of == "f" * 32
    assert made["oneshot-on"].repetitions == 1 and made["oneshot-on"].design.name == "blocked"
    assert same(made["oneshot-on"], configs["oneshot-on"], "design.", "repetitions", "stop.")
    of_cell = again(prepare(logged(configs, cell="oneshot-on")))
    assert of_cell["oneshot-on"].repetitions == 9


def test_a_relative_model_path_is_taken_from_where_the_sweep_was_started() -> None:
    configs = {"oneshot-off": composed("mode=oneshot", "model=gguf", "model.path=models/m.gguf")}
    assert again(prepare(logged(configs)))["oneshot-off"].model.path == "/then/models/m.gguf"


def test_what_differs_now_is_said() -> None:
    subject = logged({"oneshot-off": composed("mode=oneshot")}, machine={"kernel": "2.6.32", "host": "harbour"})
    notes = prepare(replace(subject, trials=[
        replace(one, tags={**one.tags, "engine_version": "0.1"}, method=1) for one in subject.trials])).notes
    here = provenance.facts()
    assert f"kernel: 2.6.32 → {here['kernel']}" in notes
    assert f"host: harbour → {here['host']}" in notes
    now = subject.trials[0].tags["engine_version"]
    assert f"engine version of llamacpp: 0.1 → {now}" in notes
    assert f"method of measuring: 1 → {METHOD}" in notes
    assert len(notes) == 4


def test_what_cannot_be_made_again_is_one_error() -> None:
    config = {"oneshot-off": composed("mode=oneshot")}
    with pytest.raises(ConfigError, match=r"has gone_since, which this version(?s:.*)revision"):
        prepare(logged(config, change="gone_since: 1"))
    subject = logged({**config, "oneshot-on": composed("mode=oneshot", "infer_os=on")})
    with pytest.raises(ConfigError, match=r"interrupted before oneshot-on had a trial(?s:.*)slackwater resume"):
        prepare(replace(subject, trials=subject.trials[:1]))


def test_params_alone_are_enough_where_no_file_was_kept() -> None:
    config = composed("mode=oneshot", "infer_os=on", "max_tokens=9", "engine.knobs.n_batch=64")
    assert same(again(prepare(logged({"oneshot-on": config}, whole=False)))["oneshot-on"], config)


def foreign(configs: Mapping[str, Config], **params: Any) -> Subject:
    """The same as a file of others has it."""
    subject = logged(configs)
    trials = [replace(one, params={**one.params, **params}) for one in subject.trials]
    return replace(subject, sweep=replace(subject.sweep, origin="imported"), trials=trials, whole_sweep=trials)


def filled_again(found: Again) -> dict[str, Config]:
    return {name: typed(filled(compose([word for word in words if not word.startswith(RECORDED)]), words))
            for name, words in found.cells}


POISON = {"engine.binary": "/tmp/evil", "engine.url": "http://evil:1", "engine.allow_remote": True, "engine.pull": True,
          "infer_os.environment": {"LD_PRELOAD": "/tmp/evil.so"}, "model.package": "evil", "model.version": "6",
          "model.member": "evil.gguf", "tracking.uri": "http://evil", "tracking.experiment": "evil"}


def test_what_others_recorded_is_values_and_no_program_address_package_or_path_of_theirs_is_taken() -> None:
    configs = {"oneshot-off": composed("mode=oneshot", "infer_os=off", *NASTY[:5], NASTY[6], *NASTY[7:11]),
               "interactive-on": composed("mode=interactive", "infer_os=on", "mode.turns=3", "max_tokens=7")}
    found = prepare(foreign(configs, **POISON))
    made = filled_again(found)
    assert found.is_foreign and found.shown[0].startswith("oneshot-off: model=smollm2-135m, engine.name=llamacpp, ")
    for name, config in configs.items():
        assert same(made[name], config)
    assert not [word for _name, words in found.cells for word in words if "evil" in word]
    assert [note for note in found.notes if note.startswith("not taken from what others recorded: engine.allow_remote, "
                                                            "engine.binary, engine.pull, engine.url, infer_os.env")]


WORDS = ["${oc.env:HOME}", "\\${oc.env:HOME}", "${model.name}", "x\n+hydra.callbacks.x._target_=os.system", "pkg://evil",
         "'\"", "_target_", "a,b", "???x", *(each for each in (" x ", "$5", "a\\", "{a: [b]}"))]


def test_no_word_that_others_recorded_is_resolved_or_parsed() -> None:
    config = composed("mode=oneshot")
    for word in WORDS:
        knobs = {"_target_": "os.system", "xa": word, "xb": [word, {"c": word}]}
        values = {"prompt.text": word, "question": word, "engine.knobs": knobs}
        made = typed(filled(compose(["mode=oneshot"]), [RECORDED + to_json(values)]))
        assert (made.prompt.text, made.question) == (word, word)
        assert {key: made.engine.knobs[key] for key in knobs} == knobs
    taken = filled_again(prepare(foreign({"oneshot-off": config}, **{"prompt.text": WORDS[0], "question": WORDS[3]})))
    assert (taken["oneshot-off"].prompt.text, taken["oneshot-off"].question) == (WORDS[0], WORDS[3])


class OnlyWords:
    """Hydra's loader, which has to be given words alone."""

    def load_sweep_config(self, _master: Any, overrides: Sequence[str]) -> Any:
        assert not [word for word in overrides if "{" in word]
        config = compose(overrides)
        config._set_flag("struct", False)
        config.hydra = {"overrides": {"task": []}}
        return config


def test_hydra_is_not_given_what_others_recorded() -> None:
    values = {"prompt.text": "${oc.env:HOME}", "seed": 5}
    words = [RECORDED + to_json(values), "mode=oneshot", "place.order=3"]
    made = typed(ComposedOnce(OnlyWords()).load_sweep_config(None, words))  # type: ignore[arg-type]
    assert (made.prompt.text, made.seed, made.place.order) == ("${oc.env:HOME}", 5, 3)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("hydra.callbacks.x._target_", "os.system", "recorded with hydra.callbacks.x._target_, which this version"),
    ("engine", {"binary": "x"}, "recorded with engine, which"), ("place", {"cell": "x"}, "recorded with place, which"),
    ("num_ctx", "${oc.env:HOME}", "num_ctx"), ("seed", "x", "seed"), ("model.kind", "file", "model.path=FILE.gguf"),
    ("prompt.file", "/etc/passwd", "prompt.file=FILE"), ("num_ctx", -1, "num_ctx=-1 is not allowed"),
    ("prompt.text", "???", "prompt.text"), ("design.name", "../x", "design.name"),
])
def test_what_others_recorded_wrongly_or_cannot_be_taken_is_one_error(key: str, value: Any, said: str) -> None:
    subject = foreign({"oneshot-off": composed("mode=oneshot")}, **{key: value})
    with pytest.raises((SlackwaterError, OmegaConfBaseException)) as raised:
        load_design(filled_again(prepare(subject))["oneshot-off"].design.name)
    assert said in str(explain(raised.value))


def test_what_a_user_gives_behind_rerun_wins_over_what_was_recorded() -> None:
    config = {"oneshot-off": composed("mode=oneshot", "infer_os=off", "seed=9")}
    for subject in (logged(config), foreign(config, **{"model.kind": "file", "model.path": "/theirs.gguf"})):
        given = ["model.path=/mine.gguf", "num_ctx=512"]
        [(_name, words)] = prepare(subject, given).cells
        made = typed(filled(compose([*(each for each in words if not each.startswith(RECORDED)), *given]), words))
        assert (made.model.path, made.num_ctx, made.seed) == ("/mine.gguf", 512, 9)


TEXTS = ["", "off", "null", "1e3", "a'b", 'a"b', "a\\", "a\\\\", 'a\\"b', "${env}", "日本 語", " x ", "a\nb", "$5",
         "a\\b ${x} \\", "\\${x}", "tab\there", "{a: [b]}, c", "潮\n" * 10_000, "n\udce9e", "a\0b"]
VALUES: list[Any] = [[1, 2.5, None, True, "off"], {"c": "x,y"}, {}, [], [{"d": [1]}], -0.5, False]


def test_values_of_every_kind_survive_the_override_grammar() -> None:
    given = {f"k{i}": value for i, value in enumerate([*TEXTS, *VALUES])}
    knobs = composed(*(f"++engine.knobs.{key}={grammar(value)}" for key, value in given.items())).engine.knobs
    assert {key: knobs[key] for key in given} == given
