"""A reason is a code with values: kept as such, written as its sentence, said in the reader's language."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import language
from pipeline.config import PACKAGE
from pipeline.errors import EngineError
from pipeline.language import _, worded
from pipeline.record.reason import ERROR, SAID, SENTENCES, Reason, as_reason, codes_of, of_error, places, with_codes_of
from pipeline.record.trial import TrialRecord
from pipeline.text import to_json
from tests.unit.made_records import trial

NESTED = Reason("phase_left_out", {"why": Reason("not_settled", {"turn": 1, "seconds": 60.4}), "phase": "stabilized"})
JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠]")


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    language.speak(language.ENGLISH)


def made_in_the_code() -> dict[str, set[str] | None]:
    """Code → the names of the values that it is made with; None where they are not written out beside it."""
    found: dict[str, set[str] | None] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Reason"):
                continue
            for code in (part for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)):
                values = node.args[1] if len(node.args) > 1 else ast.Dict([], [])
                keys = values.keys if isinstance(values, ast.Dict) else [None]
                names = {str(key.value) for key in keys if isinstance(key, ast.Constant)}
                found[str(code.value)] = names if len(names) == len(keys) else None
    return found


COMPOSED = {  # made by name or in parts: outcome.suspect_phases_of, outcome._late, here
    "few_samples", "few_samples_of_turn", "few_samples_for_mean", "few_samples_for_mean_of_turn", "slots_lost",
    "slots_lost_to_host", "sampler_late", "sampler_late_by_host", "said", "error", "interrupted"}


def test_every_code_is_made_somewhere_with_all_the_values_of_its_sentence() -> None:
    made = made_in_the_code()
    assert made.keys() | COMPOSED == set(SENTENCES)
    assert {code: names for code, names in made.items()
            if names is not None and not places(SENTENCES[code]) <= names} == {}


@pytest.mark.parametrize("lang", [name for name in language.languages() if name != language.ENGLISH])
def test_every_code_has_a_sentence_in_every_language_and_nothing_is_left_to_fill(lang: str) -> None:
    language.speak(lang)
    for code, sentence in SENTENCES.items():
        made = Reason(code, dict.fromkeys(places(sentence), 7))
        assert code in (SAID, ERROR) or _(sentence) != sentence, code
        assert not re.search(r"[{}]", made.text + worded(made)), code


def test_a_sentence_is_in_english_and_worded_in_the_language_in_use_with_what_is_in_it() -> None:
    language.speak("ja")
    assert NESTED == NESTED.text == "memory had not settled 60 s after turn 1: stabilized enters no comparison"
    assert worded(NESTED) == f"{worded(NESTED.values['why'])}: {worded('stabilized')}は比較に入らない"
    assert worded(Reason("slots_lost_to_host", {"pct": 2.13, "cores": 0.118})) == \
        "サンプラーが2.1 %を取りこぼした（その間、仮想マシンのホストが0.12コア分を奪った）"
    assert worded(as_reason("died {of} [red]signal[/red] 9")) == "died {of} [red]signal[/red] 9"
    language.speak("en")
    assert worded(NESTED) == NESTED.text


@pytest.mark.parametrize(("code", "values"), [("no_such", {}), ("swapped", {}), ("swapped", {"size": 3.0})])
def test_an_unknown_code_or_a_missing_value_is_a_bug_that_shows(code: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=code):
        Reason(code, values)


@pytest.mark.parametrize("reason", [NESTED, Reason("out_of_reach"), Reason(SAID, {"text": "the tide {is} out"})])
def test_a_reason_comes_back_from_json_from_another_process_and_from_a_copy(reason: Reason) -> None:
    for again in (Reason.from_dict(json.loads(to_json(reason.to_dict()))), pickle.loads(pickle.dumps(reason)),
                  copy.deepcopy(reason)):
        assert (again.code, again.values, again.text) == (reason.code, reason.values, reason.text)


def test_what_an_error_says_is_the_reason_it_was_raised_with_or_its_message() -> None:
    assert of_error(EngineError(NESTED)) is NESTED
    plain = of_error(EngineError("killed by signal 9"))
    assert (plain.code, plain.text, plain.values["kind"]) == (ERROR, "killed by signal 9", "EngineError")


def test_a_trials_reasons_keep_their_codes_in_its_record() -> None:
    trial_of = replace(trial("oneshot-off", 1, 200.0), reasons=[Reason("swapped", {"mib": 3.0})],
                       notes=[NESTED, as_reason("warm")], suspect_phases={"decode": [
                           Reason("stood_still", {"phase": "decode", "turn": 1, "seconds": 9.0})]})
    assert json.loads(trial_of.to_json())["reasons"] == [{"code": "swapped", "values": {"mib": 3.0}}]
    again = TrialRecord.from_json(trial_of.to_json())
    assert codes_of(again) == codes_of(trial_of)
    assert again.notes[0] == NESTED and again.notes[1].code == SAID


@pytest.mark.parametrize("codes", [None, [], {"reasons": [7]}, {"reasons": [{"code": "of_later", "values": {}}]},
                                   {"reasons": [{"code": "swapped", "values": {"mib": None}}]}])
def test_a_text_whose_code_is_missing_or_not_understood_is_said_as_it_stands(codes: object) -> None:
    said = with_codes_of({"reasons": ["3.0 MiB were swapped"], "notes": ["interrupted"]}, codes)
    assert [(one.code, one.text) for one in said["reasons"]] == [(SAID, "3.0 MiB were swapped")]
    assert said["notes"][0].code == "interrupted", "a sentence that needs no value is known by itself"
    assert codes_of(SimpleNamespace(**said))["suspect_phases"] == {}


def test_a_record_of_a_later_version_shows_its_code_and_values() -> None:
    assert Reason.from_dict({"code": "of_later", "values": {"mib": 3}}).text == "of_later (mib=3)"
    with pytest.raises(ValueError, match="is not a reason"):
        Reason.from_dict({"mib": 3})
