"""The report: harmless whatever is in it, complete in every state, and the pictures show the numbers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.errors import StoreError
from pipeline.meter.timeline import write_parquet
from pipeline.phases import MIB, Mark, ProcessRows, Timeline
from pipeline.record.folder import SweepFolder
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.report import pages
from pipeline.report.document import Sweep, analyse
from pipeline.report.html import write
from pipeline.report.html.contents import CellMaterial, Material
from pipeline.report.html.elements import LONGEST, clean
from pipeline.report.html.gather import MOST_OVERLAID, gather
from pipeline.report.html.render import render
from pipeline.report.html.svg import Scale, columns_of, wrap
from pipeline.report.html.timelines import Drawn, drawn
from tests.unit.made_records import HEADLINE, cell, record, said, sweep, sweeps, trial
from tests.unit.test_stats_designs import plan

SECTIONS = ["answer", "phases", "where", "timelines", "costs", "validity", "method", "again"]
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "rect", "circle", "use"}
CELLS = ("oneshot-off", "oneshot-on", "interactive-off", "interactive-on")
HOSTILE = ('"><script>alert(1)</script><img src=x onerror=alert(2)></style></pre>{{ 7*7 }}'
           "\x1b[31m\x00\u202edaer\ud800\x85")


class Page(HTMLParser):
    """A report as a browser reads it: elements with their attributes, text by element, what does not fit."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.unfit: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unfit.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rendered(results: Sequence[TrialRecord], material: Material | None = None, **changes: Any) -> tuple[str, Page]:
    shown = Sweep(**{"sweep_id": "tide-1", "question": "Does the tide turn?", "name": "tide", **changes})
    text = render(shown, results, analyse(results), material)
    return text, Page(text)


def phases(level: float) -> dict[str, dict[int, float]]:
    """A trial's readings: 20 MiB empty, `level` settled, what the engine accounts for."""
    return {"initialization/tree_rss_mib": {0: 20.0}, "pre_generation/tree_rss_mib": {1: 20.0},
            "during_generation/tree_rss_peak_mib": {1: level + 2}, "post_generation/tree_rss_mib": {1: level},
            "released/tree_rss_mib": {0: 50.0}, "stabilized/system_used_pct": {1: level / 100},
            "as_found/tree_rss_mib": {0: level}, "engine/weights_mib": {0: level - 30}, "engine/kv_mib": {0: 8.0},
            "engine/unexplained_mib": {0: 2.0}, "sampler/samples": {0: 500.0}}


def four_cells(repetitions: int = 3) -> list[TrialRecord]:
    """Flags save 20 MiB in both modes; the modes need the same."""
    made: list[TrialRecord] = []
    for name in CELLS:
        level = 180.0 if name.endswith("on") else 200.0
        for block in range(1, repetitions + 1):
            one = trial(name, block, level + 0.01 * block, metrics=phases(level + 0.01 * block))
            if name.startswith("interactive"):
                one = replace(one, turns={**one.turns, "as_found/tree_rss_mib": {0: 20.0}})
            made.append(replace(one, order=len(made) + 1))
    return made


def curve(order: int, seconds: int = 4, level: float = 200.0) -> Drawn:
    at = np.linspace(0, seconds, 300)
    parts = {"anon": np.where(at > 1, level, 0.0), "file": np.where(at > 0.5, 20.0, 0.0), "shmem": 0 * at,
             "swap": 0 * at}
    phases_ = [("load", 1, 1.0, 1.5), ("during_generation", 1, 1.0, 3.0), ("stabilized", 1, 3.2, 3.3)]
    return Drawn(order, at, parts, phases_, [(2.0, level + 21.5)], float(seconds))


def test_the_report_says_the_answer_and_what_it_rests_on() -> None:
    _text, seen = rendered(four_cells())
    assert "The flags save 20.0 MiB" in seen.text
    effects = next(words for words in seen.words if words.startswith("settled, oneshot: less by 20.0 MiB"))
    assert "n = 3" in effects
    assert "slackwater rerun tide-1" in seen.text
    assert "t on paired block differences" in seen.text
    assert "12 of 12 trials are valid" in seen.text


@pytest.mark.parametrize("state", ["none", "one", "failed", "one cell", "running", "no shared metric", "many", "four"])
def test_every_state_has_all_sections_one_heading_and_whole_elements(state: str) -> None:
    long = [trial(f"oneshot-off-{'a very long name of a cell ' * 6}{n}", 1, 200.0 + n, order=n + 1,
                  metrics=phases(200.0 + n), num_ctx=512 * n) for n in range(40)]
    results = {"none": [], "one": [trial("oneshot-off", 1, 200.0)], "many": long, "four": four_cells(),
               "failed": [trial("oneshot-off", n, 1.0, verdict="failed", metrics={HEADLINE: {}}) for n in (1, 2)],
               "one cell": cell("oneshot-off", [200.0, 201.0, 202.0]), "running": cell("oneshot-off", [200.0]),
               "no shared metric": [replace(one, turns={}) for one in four_cells()]}[state]
    changes: dict[str, Any] = {"status": "interrupted", "trials_planned": 6} if state == "running" else {}
    _text, seen = rendered(results, **changes)
    assert [one["id"] for one in seen.named("section") if one.get("id") in SECTIONS] == SECTIONS
    assert len(seen.named("h1")) == 1
    assert seen.unfit == [] and seen.open == []
    assert "None" not in seen.text and "nan" not in seen.text.split()
    ids = Counter(attributes["id"] for _tag, attributes in seen.elements if "id" in attributes)
    assert {name: n for name, n in ids.items() if n > 1} == {}
    assert {"none": "No valid trial", "failed": "it was made so", "one": "oneshot", "many": "in the table",
            "running": "trials here 1, planned 6", "one cell": "oneshot", "no shared metric": "not measured",
            "four": "oneshot"}[state] in seen.text


def of_trials(trials: Sequence[TrialRecord]) -> Page:
    return Page(render(Sweep("tide-1"), trials, analyse(trials)))


def test_a_factorial_plan_is_ranked_and_each_effect_has_its_interval() -> None:
    rng = np.random.default_rng(1)
    seen = of_trials(plan(lambda b, c, m, q: 200 - 12 * m - 9 * q + 4 * m * q + float(rng.normal(0, 0.05))))
    described = next(words for words in seen.words if words.startswith("memory_optimization: less by 10.0 MiB"))
    assert described.index("memory_optimization:") < described.index("quantization:") < described.index(" × ")
    assert "8 cells, 3 blocks" in seen.text


def test_memory_against_the_context_has_its_line_and_its_levels() -> None:
    results = [replace(trial("oneshot-off", block, 100 + context / 1024 * 12, order=block * 10 + context // 512,
                             num_ctx=context), cell=f"oneshot-off-{context}")
               for block in (1, 2) for context in (512, 1024, 2048, 4096)]
    _text, seen = rendered(results)
    assert "Settled tree RSS against num_ctx" in seen.text
    assert re.search(r"Memory grows by 12\.0+ KiB per token", seen.text)
    assert "148.00" in seen.text


def test_a_server_that_grows_has_its_growth_on_the_first_screen() -> None:
    results = [replace(one, turns={**one.turns, HEADLINE: {1: 200.0, 2: 203.5, 3: 207.0, 4: 210.5}})
               for one in cell("interactive-off", [200.0, 200.0, 200.0])]
    _text, seen = rendered(results)
    assert "Nothing is compared" not in seen.text
    assert any(words.startswith("interactive · off: 3.500 MiB per turn") for words in seen.words)


def test_what_others_wrote_is_shown_and_never_obeyed() -> None:
    results = [replace(one, cell=f"{one.cell} {HOSTILE}", reasons=[said(HOSTILE)], notes=[said(HOSTILE)],
                       verdict="suspect" if one.order == 1 else "valid", tags={**one.tags, "model": HOSTILE})
               for one in four_cells()]
    proof = dict.fromkeys(("knob", "asked", "effective", "source"), HOSTILE) | {"arrived": None, "state": "confirmed"}
    meter = {"meter": HOSTILE, "absent": HOSTILE}
    kept = {one.cell: CellMaterial(one.order, [curve(one.order)], 1, "", [proof], [meter], {"cpu": HOSTILE},
                                   HOSTILE * 10)
            for one in results}
    material = Material(kept, [(HOSTILE, HOSTILE)], {"design": HOSTILE}, {"kernel": HOSTILE}, HOSTILE, [HOSTILE])
    text, seen = rendered(results, material, question=HOSTILE, command=HOSTILE, name=HOSTILE)
    assert "<script>alert(1)</script>" in "".join(seen.words)
    assert not {tag for tag, _attributes in seen.elements} & {"script", "img", "iframe", "object", "base", "form"}
    assert [name for _tag, attributes in seen.elements for name in attributes if name.startswith("on")] == []
    assert seen.unfit == [] and seen.open == []
    assert "49" not in {word.strip() for word in seen.words}
    assert not set(text) & {"\x1b", "\x00", "\u202e", "\ud800", "\x85"}
    assert "‹U+001B›[31m‹U+0000›‹U+202E›daer‹U+D800›‹U+0085›" in text
    text.encode()


def test_a_megabyte_of_an_answer_is_cut_with_a_word() -> None:
    results = four_cells()
    material = Material({CELLS[0]: CellMaterial(1, response="tide " * 200_000)}, notes=["x" * 1_000_000])
    results = [replace(one, notes=[said("y" * 1_000_000)]) for one in results]
    text, seen = rendered(results, material, question="z" * 1_000_000)
    assert "(cut: 1,000,000 characters in all)" in seen.text
    assert len(text) < 400_000 + 8 * LONGEST


def test_nothing_is_loaded_nothing_runs_and_the_one_style_sheet_is_the_one_that_is_let_in() -> None:
    text, seen = rendered(four_cells(), Material({name: CellMaterial(1, [curve(1)]) for name in CELLS}))
    policy = next(one["content"] for one in seen.named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert text.index("Content-Security-Policy") < text.index("<style>")
    addresses = [value for _tag, attributes in seen.elements for name, value in attributes.items()
                 if name in ("href", "src", "xlink:href", "action", "data", "srcset")]
    assert addresses and all(value.startswith("#") for value in addresses)
    assert [value for _tag, attributes in seen.elements for name, value in attributes.items() if name == "style"] == []
    assert "@import" not in text and "url(" not in text and "<script" not in text
    ids = {attributes["id"] for _tag, attributes in seen.elements if "id" in attributes}
    assert {value[1:] for value in addresses} <= ids


def test_every_colour_that_is_drawn_with_is_known_on_light_and_on_dark_ground() -> None:
    text, _seen = rendered(four_cells(), Material({name: CellMaterial(1, [curve(1)]) for name in CELLS}))
    light, dark = (set(re.findall(r"--([a-z-]+):", part)) for part in (
        text.partition("@media (prefers-color-scheme")[0],
        text.partition("@media (prefers-color-scheme")[2].partition("* {")[0]))
    used = set(re.findall(r"var\(--([a-z-]+)\)", text))
    assert used >= {"ink", "blue", "line"}
    assert used <= light
    assert used <= dark


def test_every_picture_has_a_name_and_words_and_says_its_numbers() -> None:
    _text, seen = rendered(four_cells(), Material({name: CellMaterial(1, [curve(1), curve(2)], 3) for name in CELLS}))
    pictures = [one for one in seen.named("svg") if one.get("role") == "img"]
    assert len(pictures) >= 10
    named = {one["id"] for tag in ("title", "desc") for one in seen.named(tag) if "id" in one}
    assert all(set(one["aria-labelledby"].split()) <= named for one in pictures)
    assert "221.5" in seen.text  # the kernel's peak of the made timeline, above it and in its description
    assert "trial 1 in colour; 1 others as lines, of 3 valid" in seen.text
    assert all(one.get("tabindex") == "0" and one.get("aria-label") for one in seen.named("div")
               if one.get("class") == "scroll")


def test_a_hundred_trials_with_their_timelines_stay_far_below_six_megabytes() -> None:
    rng = np.random.default_rng(1)
    noisy = [replace(curve(n), parts={**curve(n).parts, "anon": 200 + rng.normal(0, 20, 300)}) for n in range(10)]
    results = [trial(f"oneshot-off-{n % 25}", n // 25 + 1, 200.0 + n, order=n + 1, num_ctx=512 + n % 25,
                     metrics=phases(200.0 + n)) for n in range(100)]
    text, _seen = rendered(results, Material({one.cell: CellMaterial(1, noisy, 100) for one in results}))
    assert len(text.encode()) < 3_000_000


def test_control_characters_become_visible_and_letters_stay() -> None:
    assert clean("a\tb\nc") == "a\tb\nc"
    assert clean("\x07\x7f\u2066\ufeff") == "‹U+0007›‹U+007F›‹U+2066›‹U+FEFF›"
    assert clean("潮 🌊 नमस्ते क्‍ष") == "潮 🌊 नमस्ते क्‍ष"
    assert clean("x" * 11, 10) == "xxxxxxxxxx … (cut: 11 characters in all)"


@pytest.mark.parametrize(("low", "high", "ticks"), [
    (0, 200, [0, 50, 100, 150, 200]), (-24.6, 0, [-20, -15, -10, -5, 0][:5]), (-0.66, 0, [-0.6, -0.4, -0.2, 0]),
    (0, 14.5, [0, 5, 10]), (-26, 36, [-20, 0, 20]), (0, 0.07, [0, 0.02, 0.04, 0.06])])
def test_ticks_are_round_and_lie_within_the_scale(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high, 0, 100).ticks(5) == pytest.approx(ticks)


def test_a_curve_of_steps_holds_each_value_until_the_next() -> None:
    assert columns_of([0, 1, 2, 3], [5, 5, 7, 6], [0, 0, 0, 0]) == "M0 5H2V7H3V6H3V0H0z"


def test_names_are_wrapped_by_width_and_cut_with_a_sign() -> None:
    assert wrap("settled, interactive", 200) == ["settled, interactive"]
    lines = wrap("one two three four five six seven", 63, 2)
    assert len(lines) == 2 and lines[1].endswith("…")
    assert all(len(line) <= 6 for line in wrap("潮汐の待ち時間とメモリ", 75, 9))


def write_timeline(folder: Path, peak: float = 300.0) -> None:
    """Four seconds at 100 Hz: 100 MiB anonymous, one sample of `peak` MiB inside the generation."""
    t_ns = np.arange(400, dtype=np.int64) * 10_000_000
    anon = np.full(400, 100 * MIB, dtype=np.int64)
    anon[217] = int(peak * MIB)
    zero = np.zeros(400, dtype=np.int64)
    columns = dict.fromkeys(("tree_file", "tree_shmem", "tree_swap", "system_cached"), zero)
    columns |= {"tree_anon": anon, "tree_hwm": np.maximum.accumulate(anon), "tree_processes": zero + 1,
                "system_total": zero + 1000 * MIB, "system_available": zero + 500 * MIB}
    marks = [Mark("during_generation/start", 10**9, 1), Mark("during_generation/end", 3 * 10**9, 1)]
    none = np.zeros(0, dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder / "timeline.parquet", Timeline(t_ns, t_ns, columns), marks, ProcessRows(*[none] * 7))


def test_a_spike_of_one_sample_survives_and_the_kernels_peak_stands_where_it_was_reached(tmp_path: Path) -> None:
    from pipeline.meter.timeline import read_parquet

    write_timeline(tmp_path)
    timeline, marks, _rows = read_parquet(io.BytesIO((tmp_path / "timeline.parquet").read_bytes()))
    one = drawn(3, timeline, marks)
    assert float(one.total.max()) == 300.0
    assert one.peaks == [(2.17, 300.0)]
    assert one.phases == [("during_generation", 1, 1.0, 3.0)]
    with pytest.raises(ValueError, match="without samples"):
        drawn(3, replace(timeline, t_ns=timeline.t_ns[:0]), marks)


def test_timelines_come_from_the_folder_of_a_trial_and_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    write_timeline(tmp_path / "files")
    drawn_of = {"timeline.parquet": (tmp_path / "files" / "timeline.parquet").read_bytes(),
                "provenance.json": b"[not json"}
    made = four_cells(repetitions=20)
    folder = record(tmp_path, made[:20], files=drawn_of)
    for one in made[20:]:
        folder.put(one)
    found = gather(sweeps(tmp_path), folder.trials(), CELLS, {}, {})
    first, second = found.cells[CELLS[0]], found.cells[CELLS[1]]
    assert len(first.timelines) == MOST_OVERLAID
    assert first.trials_with_timeline == 20
    assert all(one.peaks for one in first.timelines)
    assert second.timelines == [] and second.missing == "the timeline of this trial is not in the store"
    damaged = folder.trials()[1]
    (damaged.folder / "timeline.parquet").chmod(0o644)
    (damaged.folder / "timeline.parquet").write_bytes(b"cut off")
    again = gather(sweeps(tmp_path), [damaged], CELLS[:1], {}, {})
    assert again.cells[CELLS[0]].timelines == []
    assert "trial 2" in again.notes[0]


def finished(home: Path, notes: Sequence[str] = ()) -> tuple[SweepFolder, list[SweepRecord]]:
    """A sweep as it stands when its last trial has ended, and what was pushed when its page was made."""
    folder = record(home, four_cells(), replace(sweep(), status="running", ended_ms=None))
    pushed: list[SweepRecord] = []
    pages.finish(sweeps(home), sweep(), lambda one: pushed.append(one), False, notes)
    return folder, pushed


@pytest.mark.parametrize("fault", ["disk", "drawing"])
def test_a_report_that_cannot_be_made_costs_a_note_and_not_the_sweep(
        fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_given: object) -> str:
        raise ZeroDivisionError("a picture of nothing")

    def full(self: SweepFolder, name: str, text: str) -> None:
        if name == "report.html":
            raise StoreError("no space left on the device")
        written(self, name, text)

    written = SweepFolder.write_text
    if fault == "drawing":
        monkeypatch.setattr(write, "render", broken)
    else:
        monkeypatch.setattr(SweepFolder, "write_text", full)
    folder, _pushed = finished(tmp_path)
    assert folder.text("report.html") is None and folder.text("summary.json") is not None
    told = " ".join(capsys.readouterr().out.split())
    assert ("no space left" if fault == "disk" else "a picture of nothing") in told
    assert "The flags save 20.0 MiB" in told


def test_a_sweep_that_ends_leaves_its_page_and_report_beside_its_records_and_then_goes_to_mlflow(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, [pushed] = finished(tmp_path, ["a note of the run"])
    assert "The flags save 20.0 MiB" in Page(folder.text("report.html") or "").text
    assert "The flags save 20.0 MiB" in " ".join((folder.text("summary.txt") or "").split())
    assert len(json.loads(folder.text("summary.json") or "")["trials"]) == 12
    kept = folder.sweep()
    assert (kept.status, kept.trials) == ("finished", {"valid": 12})
    assert kept.answer == pushed.answer and "The flags save 20.0 MiB" in kept.answer
    told = " ".join(capsys.readouterr().out.split())
    assert "note: a note of the run" in told and f"report:{folder.path}/report.html" in "".join(told.split())


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store with a sweep whose timelines cannot be read."""
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "store", four_cells(), files={"timeline.parquet": b"cut off"})
    return f"sqlite:///{tmp_path}/store/mlflow.db"


def test_the_verb_writes_a_file_and_says_which(stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "tide", "--store", stored]) == 0
    assert "tide-1.html" in capsys.readouterr().out
    seen = Page((tmp_path / "tide-1.html").read_text(encoding="utf-8"))
    assert "The flags save 20.0 MiB" in seen.text
    assert "trial 1:" in seen.text.partition("Not readable for this report")[2]
    assert main(["report", "--store", stored, "-o", "again.html", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["sweep_id"], said["path"], said["trials"]) == ("tide-1", "again.html", 12)
    assert said["bytes"] == (tmp_path / "again.html").stat().st_size


def test_a_file_that_cannot_be_written_is_said_and_leaves_nothing_behind(
        stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("nowhere/report.html", "store"):
        assert main(["report", "--store", stored, "-o", target]) == 2
        said = capsys.readouterr().err
        assert target in said and "report -o FILE" in said
    assert main(["report", "ebb", "--store", stored]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
