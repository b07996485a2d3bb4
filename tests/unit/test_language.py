"""The catalogue and the code say the same; what is shown in Japanese is whole; what a machine reads never changes."""

from __future__ import annotations

import ast
import copy
import io
import json
import pickle
import re
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline import language
from pipeline.config import PACKAGE
from pipeline.errors import ConfigError
from pipeline.language import worded
from pipeline.record.reason import Reason
from pipeline.report.answer import answer
from pipeline.report.document import Sweep, analyse, document
from pipeline.report.runs_page import print_runs
from pipeline.report.sweep_page import print_sweep
from pipeline.report.terminal_lines import wrap
from pipeline.stats.comparison import method_of
from pipeline.stats.intervals import not_enough, paired, verdict
from tests import untranslated
from tests.unit.test_report_sweep_page import SWEEP
from tests.unit.test_stats_summary import two_by_two
from tests.untranslated import CATALOGUES, messages, read

JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠]")


@pytest.fixture(autouse=True)
def english_afterwards() -> Iterator[None]:
    yield
    language.speak(language.ENGLISH)


def places(text: str) -> list[str]:
    return sorted({name for _text, name, _spec, _conversion in string.Formatter().parse(text) if name is not None})


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_a_catalogue_has_no_text_but_those_of_the_code(path: Path) -> None:
    texts, catalogue = messages(), read(path)
    known = {str(message.id): message for message in catalogue if message.id}
    assert [text for text in known if text not in texts] == []
    assert [text for text, message in known.items() if message.fuzzy] == []
    assert list(catalogue.obsolete) == []
    written = re.findall(r'^msgid "', path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(written) == len(known) + 1, "a text stands twice in the catalogue"


def test_a_text_that_a_catalogue_lacks_is_noted_with_its_place_and_shown_in_english(
        monkeypatch: pytest.MonkeyPatch) -> None:
    before = untranslated.notes()
    monkeypatch.setattr(untranslated, "messages", lambda: {**messages(), "High tide.": "pipeline/meter/tide.py:7"})
    assert sorted(set(untranslated.notes()) - set(before)) == [
        "note: pipeline/meter/tide.py:7: no ja text yet, English stands in for it: 'High tide.'"]
    language.speak("ja")
    assert language._("High tide.") == "High tide."


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_a_translation_fills_the_same_places_and_keeps_its_edges(path: Path) -> None:
    for message in read(path):
        if not message.id or not message.string:
            continue
        text, translated = str(message.id), str(message.string)
        assert places(text) == places(translated), text
        assert text.endswith("\n") == translated.endswith("\n"), text
        for word in re.findall(r"`[^`]+`|--[a-z-]+", text):
            assert word in translated, text  # what is typed is the same in every language


def test_a_text_in_use_is_translated_and_an_unknown_one_stays() -> None:
    language.speak("ja")
    assert (language._("empty"), language._("no such text"), language._("")) == ("初期化時", "no such text", "")
    assert language.spoken() == "ja"
    with pytest.raises(ConfigError, match="klingon"):
        language.speak("klingon")


def page(lang: str, width: int) -> str:
    language.speak(lang)
    out = io.StringIO()
    trials = two_by_two()
    first = trials[0]
    lost = replace(first, verdict="suspect", order=7, reasons=(Reason("swapped", {"mib": 1.5}),))
    print_sweep(Console(file=out, width=width), SWEEP, analyse([*trials, lost]), [("slackwater ui", "this page again")],
                [("oneshot-npu", "no engine has an NPU path")])
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_japanese_page_fits_in_columns_and_stands_in_columns(width: int) -> None:
    lines = page("ja", width).splitlines()
    assert max(map(cell_len, lines)) <= width
    heads = next(line for line in lines if "生成中最大" in line)
    numbers = next(line for line in lines[lines.index(heads):] if re.search(r"\d\.\d .*\d\.\d", line))
    if width < 110:  # there MiB and percent share a column
        assert cell_len(heads) == cell_len(numbers)
    assert not any(re.match(r"[、。）]", line.strip()) for line in lines)


def test_the_japanese_page_has_the_layout_of_the_original_and_no_english_sentence() -> None:
    text = page("ja", 100)
    for words in ("📊 詳細メモリ使用率分析:", "初期化時", "生成前", "生成中最大", "生成直後", "安定化後",
                  "infer-OS最適化効果:", "削減"):
        assert words in text
    left = [line for line in text.splitlines() if len(re.findall(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", line)) > 0]
    data = (SWEEP.question, "no engine has an NPU path")  # what users and engines wrote stays as it is
    assert [line for line in left if not any(part in line for part in data)] == []


def test_an_answer_in_japanese_is_sentences() -> None:
    language.speak("ja")
    said = answer(analyse(two_by_two()))
    assert said.startswith("ワンショットが対話より多く必要とすることはありません。")
    assert "+162.1 MiB" in said and "フラグを有効にすると20.0 MiB減ります。" in said
    assert "。 " not in said


def test_the_list_of_sweeps_stands_in_columns() -> None:
    language.speak("ja")
    out = io.StringIO()
    print_runs(Console(file=out, width=80), [
        Sweep("a-1", question="何", trials_planned=4, trials_finished=4, trials_valid=3),
        Sweep("b-longer-1", question="何", trials_planned=4, trials_finished=1, status="interrupted")])
    head, *rows = out.getvalue().splitlines()
    assert {cell_len(line[:line.index("何")]) for line in rows} == {cell_len(head[:head.index("問い")])}
    assert "有効 3" in rows[0] and "中断" in rows[1]


def test_what_a_program_reads_is_the_same_in_every_language() -> None:
    trials = two_by_two()
    said = []
    for lang in language.languages():
        language.speak(lang)
        said.append(json.dumps(document(SWEEP, trials, analyse(trials)), ensure_ascii=False))
    assert set(said) == {said[0]}
    assert not JAPANESE.search(said[0])


def test_every_verdict_of_the_statistics_is_said_in_the_language_in_use() -> None:
    language.speak("ja")
    texts = [not_enough(0).text]
    for values in ([1.0, 1.0, 1.0], [10.0, 11.0, 9.0], [1.0, 2.0, -0.5], [5.0, -50.0, 48.0], [0.0, 0.0, 0.0]):
        for margin in (0.01, 100.0):
            found = paired(values, [0.0] * 3, step=0.01)
            assert found is not None
            texts.append(verdict(found, margin=margin, unit="MiB").text)
    kinds = {text.partition(" ")[0] for text in texts}
    assert {"identical", "no", "undecided:", "not"} <= kinds
    assert [text for text in texts if text not in ("less", "more") and not JAPANESE.search(worded(text))] == []


@pytest.mark.parametrize("module", ["meter/doctor.py", "stats/drift.py", "stats/intervals.py", "stats/comparison.py"])
def test_what_these_rooms_say_in_english_can_be_said_in_the_language_in_use(module: str) -> None:
    """A sentence that is put together by an f-string, or not marked, could not."""
    tree = ast.parse((PACKAGE / module).read_text())
    marked = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
              and node.func.id in ("N_", "_") for part in ast.walk(node)}
    stands_alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)
             if part is not node}
    texts = ["7".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
             if isinstance(node, ast.JoinedStr) else str(node.value) for node in ast.walk(tree)
             if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in marked | stands_alone | inner]
    typed, known = ("echo ", "sudo sysctl", "Yuen's t"), messages()
    assert [text for text in texts if re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", text)
            and text not in known and not text.startswith(typed)] == []


def test_a_sentence_is_english_for_programs_and_worded_for_a_reader_with_what_fills_it() -> None:
    language.speak("ja")
    made = language.sentence("{key} is not allowed: expected {expected}.", key="repetitions=0",
                             expected="a whole number from 1")
    assert made == "repetitions=0 is not allowed: expected a whole number from 1."
    assert worded(made) == "repetitions=0 は使えません。指定できるもの: 1以上の整数。"
    assert copy.deepcopy(made).values == pickle.loads(pickle.dumps(made)).values == made.values
    assert worded(method_of("t on paired block differences", 0.99, 5, looked=False)).startswith(
        worded("t on paired block differences") + "; 5件")
    assert worded("died {of} [red]signal[/red] 9") == "died {of} [red]signal[/red] 9"
    language.speak("en")
    assert worded(made) == made


def test_a_japanese_line_breaks_between_characters_and_never_before_a_full_stop() -> None:
    from rich.text import Text

    text = "メモリは安定しました。20.9 MiB減ります（95 %）。" * 3
    for width in range(12, 60):
        lines = [line.plain for line in wrap(Text(text), width)]
        assert "".join(line.replace(" ", "") for line in lines) == text.replace(" ", "")
        assert max(map(cell_len, lines)) <= width
        assert not any(line[0] in "。）" for line in lines)
        assert not any(line.endswith("20.9") for line in lines)
