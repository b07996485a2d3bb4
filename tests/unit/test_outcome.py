"""What makes a trial count, not count, or fail: one rule per test, on records in which nothing else is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config import Config, Mode, Place
from pipeline.engine.base import Generation
from pipeline.errors import EngineError
from pipeline.meter.sampler import SamplerReport
from pipeline.meter.system import Disturbance
from pipeline.outcome import verdict_of
from pipeline.phases import Peaks, Span
from pipeline.result import Verdict
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


@pytest.mark.parametrize(("lost", "verdict"), [(10, "valid"), (11, "suspect")])
def test_more_than_one_percent_of_slots_lost_does_not_count(lost: int, verdict: str) -> None:
    found, reasons, _ = judged(good(), replace(ON_TIME, samples=1000 - lost, lost_slots=lost))
    assert found == verdict
    assert reasons == ("the sampler lost 1.1 % of its slots" if verdict == "suspect" else "")


@pytest.mark.parametrize(("late_ms", "verdict"), [(10.0, "valid"), (10.1, "suspect")])
def test_a_sampler_later_than_its_period_does_not_count(late_ms: float, verdict: str) -> None:
    assert judged(good(), replace(ON_TIME, lateness_p99_ms=late_ms))[0] == verdict


def test_where_the_host_took_the_cpu_away_the_reason_says_so() -> None:
    record = good()
    record.disturbed = replace(QUIET, stolen_cpu_cores=0.124)
    late = replace(ON_TIME, samples=900, lost_slots=100)
    assert judged(record, late) == ("suspect", "the sampler lost 10.0 % of its slots; the host of this virtual machine "
                                               "took 0.12 of a core away meanwhile", "")
    assert judged(record) == ("valid", "", ""), "steal that made nothing late is no reason"


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


def test_a_phase_without_samples_and_a_prompt_that_was_cut_do_not_count() -> None:
    record = good()
    record.generations[1] = replace(record.generations[1], truncated=True)
    verdict, reasons, _ = judged(record, metrics={"stabilized/samples": {1: 0.0}})
    assert verdict == "suspect"
    assert "no sample in stabilized of turn 1" in reasons
    assert "cut the prompt of turn 1" in reasons


def test_a_peak_that_could_not_be_reset_says_so() -> None:
    record = good()
    record.peaks.append(Peaks(Span("decode", 1, 0, 1), {7: 1}, {7: 1}, [7]))
    verdict, reasons, _ = judged(record)
    assert verdict == "suspect"
    assert reasons == ("the peak could not be reset: the kernel's mark of process 7, another user's, counts from its "
                       "start")


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
    assert judged(record) == ("failed", "interrupted", "")
