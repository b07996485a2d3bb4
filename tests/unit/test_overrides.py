"""What the user writes, as Hydra takes it: literal text, sweeps where they have a meaning, YAML's lists too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.sweep.overrides import override_of, overrides_of, takes


def read(override: str) -> Any:
    """What Hydra makes of the value: one, or the list of those that it sweeps over."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString

    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return parsed.value()
    return [value.text if isinstance(value, QuotedString) else value for value in parsed.sweep_iterator()]


@pytest.mark.parametrize("text", [
    "潮", "潮はなぜ引く?", "Hi!", "Why (tides)?", "What is 2+2?", "Hello, world", "Hello,", "a\nb, c",
    "It's low, isn't it?", "{prompt}", "[INST] Hi [/INST]", "[a,b]", "{a:b}", "1e5", "007", "1.10", "true", "None",
    " hi ", "say \"hi\" & 'bye'",
    "x=1", "#1", "~x", "`ls`; rm <x> ^ € 😀", "print(1)", "\"unclosed", "'unclosed", "back\\", "a\\\"b!", "= ) ] }",
    "tab\there", "The moon, the sun, and 3 more", "\"Hello\", she said",
])
def test_a_text_is_taken_as_it_stands(text: str) -> None:
    assert read(override_of(f"prompt.text={text}")) == text


@pytest.mark.parametrize(("word", "value"), [
    ("prompt.text=why,how", ["why", "how"]),
    ("prompt.text=\"Why, then?\"", "Why, then?"),
    ("prompt.text='Why?','潮, 汐'", ["Why?", "潮, 汐"]),
    ("prompt.text=Why?,潮", ["Why?", "潮"]),
    ("prompt.text=choice(a,b)", ["a", "b"]),
    ("prompt.text=null", None),
    ("prompt.text=${seed} tides!", "${seed} tides!"),
    ("prompt.text=a\\,b", "a,b"),
    ("prompt.language=en, ja", ["en", "ja"]),
    ("model.version=1.10,1.20", ["1.10", "1.20"]),
    ("model.path=/home/Müller/a (1).gguf,/home/ü.gguf", ["/home/Müller/a (1).gguf", "/home/ü.gguf"]),
    ("question=Why, how?", "Why, how?"),
    ("tracking.uri=sqlite:////a,b.db", "sqlite:////a,b.db"),
    ("mode=oneshot, interactive", ["oneshot", "interactive"]),
    ("infer_os=[off,on]", ["off", "on"]),  # Hydra would merge the two files into one cell
    ("mode=[ oneshot ]", "oneshot"),
    ("num_ctx=[1024, 2048]", [1024, 2048]),
    ("knob.n_parallel=[1,2]", [1, 2]),
    ("infer_os=glob(o*)", None),
    ("num_ctx=1024,2048", [1024, 2048]),
    ("num_ctx=range(1,4)", [1, 2, 3]),
    ("design.factor=[num_ctx,seed]", ["num_ctx", "seed"]),
    ("engine.knobs.cache_type_k=q8_0!", "q8_0!"),
    ("stop.target=1 %", "1 %"),
])
def test_what_has_a_meaning_keeps_it(word: str, value: Any) -> None:
    if "glob" in word:
        assert override_of(word) == word
    else:
        assert read(override_of(word)) == value


def test_what_was_rewritten_once_is_not_rewritten_again() -> None:
    for word in ("prompt.text=Hello, world", "prompt.text=Why?,潮", "model.version=1.10,1.20", "prompt.text=a\\"):
        once = override_of(word)
        assert override_of(once) == once


def test_a_file_that_is_there_is_one_path_whatever_stands_in_it(tmp_path: Path) -> None:
    odd = tmp_path / "a, b,c (1).gguf"
    assert len(read(override_of(f"model.path={odd}"))) == 3
    odd.touch()
    assert read(override_of(f"model.path={odd}")) == str(odd)


@pytest.mark.parametrize(("word", "said"), [
    ("mode", "mode cannot be read as an override. Expected key=value"),
    ("oneshot", "Did you mean mode=oneshot?"),
    ("", "an empty word cannot be read"),
    ("prómpt.text=x", "'ó' cannot stand in a key"),
    ("mode=[]", "mode=[] holds no value"),
    ("mode=", "mode= names none of its files. Known: interactive, oneshot."),
    ("infer_os=off,null", "infer_os=null names none of its files"),
    ("design.factor=[num_ctx", "the [ at character 1 of the value is not closed"),
    ("design.factor=[a!]", "'!' needs quotes"),
    ("engine.knobs={n_batch=1}", "'=' needs quotes"),
    ("num_ctx=1024,2048,", "there is a comma with no value before or after it"),
])
def test_a_word_that_cannot_be_taken_is_told_which_character_it_is(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        override_of(word)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("key", "value", "overrides"), [
    ("infer_os", ["off", "quantization"], ["infer_os=off,quantization"]),
    ("infer_os", [False, True], ["infer_os=off,on"]),  # off and on without quotes
    ("infer_os", False, ["infer_os=off"]),
    ("num_ctx", [1024, 2048], ["num_ctx=1024,2048"]),
    ("num_ctx", [1024], ["num_ctx=1024"]),
    ("num_ctx", "1024,2048", ["num_ctx=1024,2048"]),
    ("mode.keep_alive_s", [0, None], ["mode.keep_alive_s=0,null"]),
    ("prompt.distinct", [True, False], ["prompt.distinct=true,false"]),
    ("prompt.text", ["Hello, world", "Why?"], ["prompt.text=\"Hello, world\",Why?"]),
    ("meter.sources", ["gpu"], ["meter.sources=[\"gpu\"]"]),
    ("meter.sources", [["gpu"], []], ["meter.sources=[\"gpu\"],[]"]),
    ("mode", {"turns": [1, 2]}, ["mode.turns=1,2"]),
    ("engine.knobs", {"n_batch": [256, 512]}, ["engine.knobs.n_batch=256,512"]),
    ("infer_os.environment", [{"A": "x y"}, {}], ["infer_os.environment={A:\"x y\"},{}"]),
])
def test_a_list_of_yaml_sweeps_wherever_a_key_takes_one_value(key: str, value: Any, overrides: list[str]) -> None:
    found = overrides_of(key, value)
    assert found == overrides
    # what stands in hydra.sweeper.params is read once more by the sweeper
    assert [again for one in found for again in overrides_of(*one.split("=", 1))] == found


@pytest.mark.parametrize(("key", "value", "said"), [
    ("num_ctx", [], "num_ctx: [] holds no value"),
    ("num_ctx", [1024, 1024], "num_ctx: 1024 is in the list twice"),
    ("num_ctx", [[1024]], "num_ctx: [1024] is a list in a list"),
    ("infer_os", [None], "infer_os: null is not the name of one of its files"),
    ("question", ["a", "b"], "question cannot be swept"),
])
def test_a_list_that_cannot_sweep_is_refused_by_name(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        overrides_of(key, value)


def test_the_schema_says_what_a_key_takes() -> None:
    assert [takes(key) for key in ("num_ctx", "prompt.text", "design.factor", "engine.knobs", "mode", "nothing")] == [
        int, str, list, dict, None, None]
    assert takes("engine.flags.quantization.on.cache_type_k") is object
    assert takes("prompt.texts.en") is list
