"""Phase metrics of timelines whose truth is known because they were written by hand."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.phases import (
    MIB,
    Mark,
    Peaks,
    ProcessReading,
    ProcessRows,
    Span,
    Timeline,
    TreeReading,
    account,
    apart,
    as_found_metrics,
    interval_metrics,
    joint_peak,
    missed,
    missed_ns,
    moment_metrics,
    pause_s,
    read_back,
    reading_metrics,
    release_metrics,
    spans,
)

MS = 1_000_000


def timeline(anon_mib: list[float], file_mib: float = 0.0, period_ms: int = 10) -> Timeline:
    n = len(anon_mib)
    t = np.arange(n, dtype=np.int64) * period_ms * MS
    constant = {name: np.zeros(n, dtype=np.int64) for name in
                ("tree_shmem", "tree_swap", "tree_hwm", "system_free", "system_cached", "system_swap_used")}
    return Timeline(t, t, {
        **constant,
        "tree_anon": np.array([int(v * MIB) for v in anon_mib], dtype=np.int64),
        "tree_file": np.full(n, int(file_mib * MIB), dtype=np.int64),
        "tree_processes": np.ones(n, dtype=np.int64),
        "system_total": np.full(n, 1000 * MIB, dtype=np.int64),
        "system_available": np.full(n, 750 * MIB, dtype=np.int64),
    })


def test_a_moment_is_the_median_so_that_one_odd_reading_does_not_count() -> None:
    metrics = moment_metrics(timeline([100, 100, 900, 100, 100], file_mib=7), Span("stabilized", 1, 0, 40 * MS))
    assert metrics["stabilized/tree_anon_mib"] == 100
    assert metrics["stabilized/tree_rss_mib"] == 107
    assert metrics["stabilized/samples"] == 5
    assert metrics["stabilized/system_used_pct"] == pytest.approx(25.0)


def test_a_moment_without_a_sample_says_so_and_invents_nothing() -> None:
    assert moment_metrics(timeline([100]), Span("released", 0, 5 * MS, 6 * MS)) == {
        "released/samples": 0, "released/lost_samples": 0}


def test_readings_are_missed_by_the_deadlines_that_held_then() -> None:
    # 100 a second until 20 ms, then 20: nothing is due before 70 ms, and at 170 the reading of 120 is missing
    due = np.array([0, 10, 20, 70, 170, 180], dtype=np.int64) * MS
    rate = np.array([100, 100, 20, 20, 100, 100], dtype=np.int64)
    assert missed_ns(due, rate).tolist() == [120 * MS]
    seen = Timeline(due, due, {"rate_hz": rate})
    assert [missed(seen, Span("x", 0, begin * MS, end * MS)) for begin, end in ((0, 110), (110, 130), (130, 180))] == [
        0, 1, 0]
    assert len(missed_ns(due, 100.0)) == 4 + 9


def test_a_mean_counts_a_reading_for_as_long_as_it_stood_and_is_not_given_of_few() -> None:
    level = timeline([100.0] * 10 + [200.0] * 2)
    level.t_ns[:] = level.due_ns[:] = np.array([*range(10), 10, 15]) * 10 * MS    # twice 50 ms at 200
    metrics = interval_metrics(level, Span("decode", 1, 0, 200 * MS), [])
    assert metrics["decode/tree_rss_mean_mib"] == pytest.approx(150.0)
    few = interval_metrics(timeline([100.0] * 9), Span("prefill", 1, 0, 80 * MS), [])
    assert "prefill/tree_rss_mean_mib" not in few
    assert few["prefill/tree_rss_sampled_peak_mib"] == 100


def test_the_baseline_has_no_tree_to_report() -> None:
    metrics = moment_metrics(timeline([0, 0]), Span("baseline", 0, 0, 10 * MS), tree=False)
    assert "baseline/system_used_pct" in metrics
    assert not [name for name in metrics if "/tree_" in name]


def test_a_spike_between_two_samples_is_in_the_peak_because_the_kernel_saw_it() -> None:
    span = Span("during_generation", 1, 0, 30 * MS)
    metrics = interval_metrics(timeline([100, 100, 100, 100]), span, [Peaks(span, {7: 164 * MIB}, {7: 100 * MIB})])
    assert metrics["during_generation/tree_rss_peak_mib"] == 164
    assert metrics["during_generation/tree_rss_sampled_peak_mib"] == 100


def test_the_peak_is_the_samples_maximum_where_the_kernels_mark_falls_short() -> None:
    span = Span("decode", 1, 0, 10 * MS)
    metrics = interval_metrics(timeline([100, 164]), span, [Peaks(span, {7: 163 * MIB}, {7: 100 * MIB})])
    assert metrics["decode/tree_rss_peak_mib"] == 164


def test_processes_that_peak_in_turn_give_an_interval_and_not_a_sum() -> None:
    peaks = Peaks(Span("decode", 1, 0, 1), {1: 128 * MIB, 2: 128 * MIB}, {1: 2 * MIB, 2: 1 * MIB})
    lower, upper = joint_peak(peaks, sampled=130 * MIB, floor={1: 2 * MIB, 2: 1 * MIB})
    assert lower == 130 * MIB
    assert upper == 256 * MIB


def rows(**by_pid: list[float]) -> ProcessRows:
    """Samples every 10 ms of processes p1, p2, … with these sizes in MiB; nan: not there."""
    cells = [(i * 10 * MS, int(name[1:]), int(size * MIB)) for name, sizes in by_pid.items()
             for i, size in enumerate(sizes) if size == size]
    t, pid, anon = (np.array(column, dtype=np.int64) for column in zip(*sorted(cells), strict=True))
    none = np.zeros(len(t), dtype=np.int64)
    return ProcessRows(t, pid, anon, none, none, none, none)


def test_a_steady_parent_is_counted_under_its_childs_spike() -> None:
    span = Span("decode", 1, 0, 20 * MS)
    peaks = Peaks(span, {1: 50 * MIB, 2: 300 * MIB}, {1: 50 * MIB, 2: 100 * MIB})
    metrics = interval_metrics(timeline([150, 150, 150]), span, [peaks], rows(p1=[50] * 3, p2=[100] * 3))
    assert metrics["decode/tree_rss_peak_mib"] == metrics["decode/tree_rss_peak_bound_mib"] == 350


def test_the_lower_bound_of_a_peak_never_lies_above_the_truth() -> None:
    # the first process gives back 990 of its 1000 MiB before the second one takes 1000: never more than 1010 in all
    span = Span("decode", 1, 0, 30 * MS)
    peaks = Peaks(span, {1: 1000 * MIB, 2: 1000 * MIB}, {1: 1000 * MIB, 2: 10 * MIB})
    seen, split = timeline([1010, 20, 1010, 1010]), rows(p1=[1000, 10, 10, 10], p2=[10, 10, 1000, 1000])
    for known in (split, None):
        metrics = interval_metrics(seen, span, [peaks], known)
        assert metrics["decode/tree_rss_peak_mib"] == 1010
        assert metrics["decode/tree_rss_peak_bound_mib"] == 2000


def test_a_process_that_was_not_there_all_the_time_is_no_floor_for_the_others() -> None:
    nan = float("nan")
    span = Span("load", 1, 0, 20 * MS)
    peaks = Peaks(span, {1: 500 * MIB, 2: 300 * MIB}, {1: 100 * MIB})
    metrics = interval_metrics(timeline([500, 100, 400]), span, [peaks], rows(p1=[500, 100, 100], p2=[nan, nan, 300]))
    assert metrics["load/tree_rss_peak_mib"] == 500
    assert metrics["load/tree_rss_peak_bound_mib"] == 800


def test_the_mark_of_a_process_that_ended_is_lost_and_with_it_the_upper_bound() -> None:
    span = Span("decode", 1, 0, 10 * MS)
    metrics = interval_metrics(timeline([700, 100]), span, [Peaks(span, {1: 100 * MIB}, {1: 100 * MIB, 2: 5 * MIB})])
    assert metrics["decode/tree_rss_peak_mib"] == 700
    assert "decode/tree_rss_peak_bound_mib" not in metrics


def test_a_mark_that_could_not_be_reset_is_not_called_the_peak_of_the_phase() -> None:
    span = Span("decode", 1, 0, 10 * MS)
    metrics = interval_metrics(timeline([100, 110]), span, [Peaks(span, {1: 900 * MIB}, {1: 900 * MIB}, [1])])
    assert metrics["decode/tree_rss_sampled_peak_mib"] == 110
    assert not [name for name in metrics if "tree_rss_peak" in name]


def test_release_counts_what_came_back_and_when_half_of_it_had() -> None:
    levels = [200.0] * 10 + [100.0] * 2 + [50.0] * 10
    before, after = Span("stabilized", 1, 0, 80 * MS), Span("released", 0, 150 * MS, 210 * MS)
    metrics = release_metrics(timeline(levels), 90 * MS, before, after)
    assert metrics["released/returned_mib"] == 150
    assert metrics["released/returned_pct"] == 75
    assert metrics["released/residual_mib"] == 50
    assert metrics["released/half_life_s"] == pytest.approx(0.010)
    assert metrics["released/time_to_99pct_s"] == pytest.approx(0.030)


def test_nothing_released_has_no_half_life() -> None:
    before, after = Span("stabilized", 1, 0, 80 * MS), Span("released", 0, 150 * MS, 190 * MS)
    metrics = release_metrics(timeline([200.0] * 20), 90 * MS, before, after)
    assert metrics["released/returned_mib"] == 0
    assert "released/half_life_s" not in metrics


def test_as_found_reads_interactive_idle_and_oneshot_straight_after() -> None:
    metrics = {"initialization/tree_rss_mib": 32.0, "post_generation/tree_rss_mib": 194.0,
               "initialization/system_used_pct": 2.3}
    assert as_found_metrics("interactive", metrics) == {"as_found/tree_rss_mib": 32.0, "as_found/system_used_pct": 2.3}
    assert as_found_metrics("oneshot", metrics) == {"as_found/tree_rss_mib": 194.0}


def test_a_fault_by_which_the_tree_grows_took_nothing_from_it_before() -> None:
    seen = timeline([100.0] * 4)
    seen.columns["tree_file"][:] = np.array([10, 11, 12, 12]) * MIB
    assert read_back(seen, 0, 30 * MS, faults=512) == 0, "2 MiB of cold pages, each needed for the first time"
    assert read_back(seen, 0, 30 * MS, faults=600) == 88
    seen.columns["tree_file"][:] = np.array([12, 8, 12, 12]) * MIB
    assert read_back(seen, 0, 30 * MS, faults=1024) == 1024, "taken away and brought back"


def test_two_clocks_are_apart_by_more_than_a_tenth_and_half_a_second() -> None:
    assert not apart(10.0, 10.9)
    assert not apart(0.1, 0.59)
    assert apart(0.01, 4.0), "the orchestrator stood still, and all tokens lay there when it went on"
    assert apart(20.6, 0.6)
    assert not apart(None, 4.0)


def test_a_pause_is_long_beside_what_is_usual_between_two_tokens() -> None:
    def at(gaps_s: list[float]) -> list[int]:
        return [int(sum(gaps_s[:i]) * 1e9) for i in range(len(gaps_s) + 1)]

    assert pause_s(at([0.02] * 30 + [15.0] + [0.02] * 30)) == pytest.approx(15.0)
    assert pause_s(at([0.02] * 60)) is None
    assert pause_s(at([1.0, 1.4, 0.9, 1.2, 1.0])) is None, "a slow model is not a pause"
    assert pause_s(at([0.0, 0.0, 0.0, 0.4, 0.0])) is None
    assert pause_s([]) is None


def test_pss_is_reported_only_if_every_process_could_be_read() -> None:
    one = ProcessReading(1, "a", 10 * MIB, 0, 0, 0, 10 * MIB, 9 * MIB, 8 * MIB)
    hidden = ProcessReading(2, "b", 10 * MIB, 0, 0, 0, 10 * MIB, None, None)
    assert reading_metrics("released", TreeReading(0, [one, one], 5))["released/tree_pss_mib"] == 18
    assert "released/tree_pss_mib" not in reading_metrics("released", TreeReading(0, [one, hidden], 5))


def test_file_pages_are_the_models_and_the_rest_the_programs() -> None:
    mapping = ProcessReading(1, "a", 0, 112 * MIB, 0, 0, 0, 1, 1, 92 * MIB)
    other = ProcessReading(2, "b", 0, 10 * MIB, 0, 0, 0, 1, 1, 0)
    metrics = reading_metrics("stabilized", TreeReading(0, [mapping, other], 5))
    assert metrics["stabilized/tree_file_model_mib"] == 92
    assert metrics["stabilized/tree_file_program_mib"] == 30
    hidden = replace(other, file_model=None)
    assert "stabilized/tree_file_program_mib" not in reading_metrics("stabilized", TreeReading(0, [mapping, hidden], 5))


def test_phases_are_pairs_of_marks_of_the_same_turn() -> None:
    marks = [Mark("post_generation/start", 1, 1), Mark("first_token", 2, 1), Mark("post_generation/end", 3, 1),
             Mark("post_generation/start", 7, 2)]
    assert spans(marks) == [Span("post_generation", 1, 1, 3)]


def test_the_account_leaves_what_nobody_states_as_unexplained() -> None:
    stated = {"weights": 92 * MIB, "kv": 45 * MIB, "compute": 16 * MIB}
    metrics = account(stated, empty=23.0, settled=194.0)
    assert metrics["engine/kv_mib"] == 45
    assert metrics["engine/stated_mib"] == 153
    assert metrics["engine/unexplained_mib"] == pytest.approx(18.0)


def test_an_engine_that_states_nothing_leaves_no_account() -> None:
    assert account({}, empty=23.0, settled=194.0) == {}
