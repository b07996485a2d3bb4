"""What makes a trial count, not count, or fail: one rule per test, on records in which nothing else is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clear import clear_program
from pipeline.config import Clear, Config, Mode, Place
from pipeline.engine.base import Generation, LogCheck
from pipeline.errors import EngineError
from pipeline.meter.sampler import SamplerReport
from pipeline.meter.system import Disturbance
from pipeline.outcome import suspect_phases_of, verdict_of
from pipeline.phases import Peaks, Span
from pipeline.record.reason import Reason
from pipeline.record.trial import Verdict
from pipeline.trial import Record

CONFIG = Config(mode=Mode(name="oneshot"), max_tokens=64, place=Place(block=1))
ON_TIME = SamplerReport(samples=1000, lost_slots=0, lateness_p50_ms=0.1, lateness_p99_ms=0.5, cpu_pct=2, rss_mib=11,
                        rate_hz=100)
QUIET = Disturbance(10, 0, 0, 0, 0, 0.0, 0.0, 1.0, 0.1, 0.0, stolen_cpu_cores=0.0)
METRICS = {f"{phase}/samples": {0: 10.0, 1: 10.0} for phase in ("stabilized", "during_generation")}


def good() -> Record:
    said = Generation("text", 10, None, 64, "length", truncated=False)
    return Record(generations={1: said}, settled={1: (True, 2.0)}, disturbed=QUIET)


def judged(record: Record, report: SamplerReport | None = ON_TIME,
           metrics: dict[str, dict[int, float]] | None = None) -> tuple[Verdict, str, str]:
    verdict, reasons, notes = verdict_of(record, {**METRICS, **(metrics or {})}, report, CONFIG)
    return verdict, "; ".join(reasons), "; ".join(notes)


def test_a_trial_in_which_nothing_happened_is_valid_without_a_word() -> None:
    assert judged(good()) == ("valid", "", "")


def of_samples(phase: str, samples: float, lost: float, turn: int = 1) -> dict[str, dict[int, float]]:
    return {f"{phase}/samples": {turn: samples}, f"{phase}/lost_samples": {turn: lost}}


def suspects(metrics: dict[str, dict[int, float]], record: Record | None = None,
             config: Config = CONFIG) -> dict[str, list[Reason]]:
    return suspect_phases_of(record or good(), {**METRICS, **metrics}, config)


def test_lost_and_late_readings_where_nothing_needs_them_are_notes() -> None:
    record = good()
    record.disturbed = replace(QUIET, stolen_cpu_cores=0.124)
    late = replace(ON_TIME, samples=900, lost_slots=100, lateness_p99_ms=12.0)
    by_host = "; the host of this virtual machine took 0.12 of a core away meanwhile"
    assert judged(record, late) == (
        "valid", "", f"the sampler lost 10.0 % of its slots{by_host}; "
                     f"the sampler was up to 12 ms late (p99), more than its period{by_host}")
    assert judged(record) == ("valid", "", ""), "steal that made nothing late is not worth a word"
    assert suspects({}) == {}


@pytest.mark.parametrize(("samples", "lost", "why"), [
    (3, 17, None), (2, 18, "has 2 of 20 samples, 3 are needed"), (0, 20, "has 0 of 20 samples, 3 are needed")])
def test_a_moment_needs_three_readings(samples: float, lost: float, why: str | None) -> None:
    found = suspects(of_samples("pre_generation", samples, lost))
    assert found == ({"pre_generation": [f"pre_generation of turn 1 {why}"]} if why else {})


@pytest.mark.parametrize(("samples", "lost", "why"), [
    (10, 290, None), (9, 291, "has 9 of 300 samples, 10 are needed for its mean"),
    (3, 0, None)])  # 30 ms long: it could not have more, and has no mean to be wrong
def test_an_interval_needs_ten_readings_if_it_was_long_enough_to_have_them(samples: float, lost: float,
                                                                           why: str | None) -> None:
    found = suspects(of_samples("decode", samples, lost))
    assert found == ({"decode": [f"decode of turn 1 {why}"]} if why else {})


def test_a_phase_that_the_question_is_not_about_leaves_the_trial_valid_and_one_that_it_is_about_does_not() -> None:
    few = of_samples("post_generation", 2, 18)
    said = "post_generation of turn 1 has 2 of 20 samples, 3 are needed"
    assert judged(good(), metrics=few) == (
        "valid", "", f"{said}: post_generation enters no comparison")
    about = replace(CONFIG, question_metrics=["post_generation/tree_rss_mib"])
    assert verdict_of(good(), {**METRICS, **few}, ON_TIME, about)[:2] == ("suspect", [said])
    # stabilized is what is asked where a config asks nothing
    assert judged(good(), metrics=of_samples("stabilized", 2, 18))[0] == "suspect"


def test_a_question_whose_phase_was_not_measured_is_a_failed_trial() -> None:
    assert judged(good(), metrics=of_samples("stabilized", 0, 20)) == (
        "failed", "stabilized was not measured: not one of its 20 samples was taken", "")
    about = replace(CONFIG, question_metrics=["load/duration_s"])
    assert verdict_of(good(), METRICS, ON_TIME, about)[:2] == ("failed", ["load was not measured: it was not seen"])
    away = good()
    away.elsewhere = True
    assert verdict_of(away, METRICS, ON_TIME, about)[0] == "valid", "out of reach there is only what it says"


def test_what_is_computed_from_a_suspect_phase_is_suspect_too() -> None:
    idle = of_samples("initialization", 1, 19, turn=0)
    assert set(suspects(idle)) == {"initialization", "engine"}
    assert set(suspects(idle, config=replace(CONFIG, mode=Mode(name="interactive")))) == {
        "initialization", "engine", "as_found"}
    assert set(suspects(of_samples("stabilized", 1, 19))) == {"stabilized", "released", "engine"}


def test_swap_in_the_tree_and_memory_that_did_not_settle_do_not_count() -> None:
    record = good()
    record.settled[1] = (False, 60.0)
    verdict, reasons, _ = judged(record, metrics={"post_generation/tree_swap_mib": {1: 3.0}})
    assert verdict == "suspect"
    assert "memory had not settled 60 s after turn 1" in reasons
    assert "3.0 MiB of the server were swapped out" in reasons


@pytest.mark.parametrize(("pages", "verdict"), [(63, "valid"), (64, "suspect")])
def test_pages_that_were_taken_away_and_read_back_do_not_count(pages: int, verdict: str) -> None:
    found, reasons, _ = judged(good(), metrics={"stabilized/tree_read_back_faults": {1: pages}})
    assert found == verdict
    assert reasons == ("64 pages of the server were taken away and read back from the disk after the first token of "
                       "turn 1" if verdict == "suspect" else "")


def test_the_faults_of_a_cold_load_are_no_reason_for_a_doubt() -> None:
    record = good()
    record.disturbed = replace(QUIET, tree_major_faults=4000)
    assert judged(record)[0] == "valid"


def test_swap_between_the_moments_does_not_count_either() -> None:
    assert judged(good(), metrics={"decode/tree_swap_sampled_peak_mib": {1: 2.0}})[0] == "suspect"


def test_a_prompt_that_was_cut_does_not_count() -> None:
    record = good()
    record.generations[1] = replace(record.generations[1], truncated=True)
    verdict, reasons, _ = judged(record)
    assert verdict == "suspect"
    assert "cut the prompt of turn 1" in reasons


def test_a_peak_that_could_not_be_reset_says_so() -> None:
    record = good()
    record.peaks.append(Peaks(Span("decode", 1, 0, 1), {7: 1}, {7: 1}, [7]))
    verdict, reasons, notes = judged(record)
    said = "the peak could not be reset: the kernel's mark of process 7, another user's, counts from its start"
    assert (verdict, reasons) == ("valid", "")
    assert said in notes
    assert suspects({}, record) == {"during_generation": [said]}


def test_an_engine_whose_files_stay_in_the_cache_is_noted_and_never_fails_a_trial(tmp_path: Path) -> None:
    record = good()
    record.program_eviction = clear_program(Clear(name="unload", evict_model=True), [tmp_path / "gone.so"])
    verdict, _, notes = judged(record)
    assert verdict == "valid"
    assert notes.startswith("the engine's own files not verified as evicted")
    assert clear_program(Clear(name="none"), [tmp_path / "gone.so"]) is None


def test_clocks_that_disagree_and_a_pause_make_the_speeds_phase_suspect_and_leave_memory_valid() -> None:
    record = good()
    record.generations[1] = replace(record.generations[1], prefill_s=0.6, decode_s=4.9)
    durations = {"prefill/duration_s": {1: 20.4}, "decode/duration_s": {1: 5.0}}
    assert suspects(durations, record) == {"prefill": [
        "prefill of turn 1 took 20.4 s by our clock and 0.6 s by the server's: one of the two stood still, and its "
        "speed is not known"]}
    record.pauses[1] = 15.02
    assert suspects({}, record)["decode"] == [
        "decode of turn 1 stood still for 15.0 s between two tokens: its speed is not known"]
    assert judged(record, metrics=durations)[:2] == ("valid", "")
    about = replace(CONFIG, question_metrics=["decode/tokens_per_s"])
    seen = {**METRICS, "decode/samples": {1: 300.0}, **durations}
    assert verdict_of(record, seen, ON_TIME, about)[0] == "suspect"


def test_a_part_whose_edge_was_not_seen_is_not_measured() -> None:
    record = good()
    record.generations[1] = replace(record.generations[1], unseen=("load", "prefill"))
    said = "of turn 1 was not measured: no line of the server's log says when its model was loaded"
    assert suspects({}, record) == {"load": [f"load {said}"], "prefill": [f"prefill {said}"]}
    assert judged(record)[0] == "valid"
    about = replace(CONFIG, question_metrics=["load/duration_s"])
    assert verdict_of(record, METRICS, ON_TIME, about)[:2] == ("failed", ["load was not measured: it was not seen"])


def test_lines_of_the_servers_log_that_were_not_recognised_are_one_note_with_the_version() -> None:
    record = good()
    record.log_check = LogCheck("Ollama 0.34.0", 21, ("load_mode", "n_ctx"))
    assert judged(record) == ("valid", "", "2 of the 21 lines that are read of the log of Ollama 0.34.0 were not "
                              "recognised (load_mode, n_ctx): what they prove is not observable")
    record.log_check = LogCheck("Ollama 0.33.0", 21, ())
    assert judged(record) == ("valid", "", "")


def test_a_busy_neighbour_and_a_short_answer_are_notes() -> None:
    record = good()
    record.disturbed = replace(QUIET, other_cpu_cores=0.8, memory_some_pct=3.0)
    record.generations[1] = replace(record.generations[1], output_tokens=12)
    verdict, reasons, notes = judged(record)
    assert (verdict, reasons) == ("valid", "")
    assert "neighbours kept half a core or more busy" in notes
    assert "some task waited for memory 3 % of the time" in notes
    assert "turn 1: 12 tokens of the 64 asked for" in notes


def test_an_error_or_an_interruption_fails_whatever_else_was_measured() -> None:
    record = good()
    record.error = EngineError("the server ended")
    assert judged(record) == ("failed", "the server ended", "")
    record.interrupted = True
    assert judged(record) == ("interrupted", "interrupted", "")
