"""Intervals and verdicts against answers known from elsewhere: scipy's own tests, textbook data, arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.stats import intervals
from pipeline.stats.comparison import compare, judged
from pipeline.stats.measures import HEADLINE, PAGE_MIB

# Student's sleep data (1908): extra hours of sleep of ten patients under two drugs; t = -4.0621, p = 0.002833.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_paired_interval_is_the_published_one_for_students_sleep_data() -> None:
    found = intervals.paired(DRUG_1, DRUG_2)
    assert found is not None
    assert (found.estimate, found.lo, found.hi) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=2e-6)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.n, found.df, found.scale) == (10, 9, "difference")


def test_ratio_interval_equals_scipy_on_logarithms() -> None:
    on, off = [20.1, 22.4, 19.7, 21.0], [17.9, 20.3, 18.0, 18.2]
    found = intervals.paired(on, off, ratio=True)
    known = stats.ttest_rel(np.log(on), np.log(off)).confidence_interval(0.95)
    assert found is not None
    assert found.scale == "ratio"
    assert (found.lo, found.hi) == pytest.approx((math.exp(known.low), math.exp(known.high)), rel=1e-9)


def test_a_ratio_of_something_not_positive_becomes_a_difference_and_says_so() -> None:
    found = intervals.paired([0.0, 1.0], [1.0, 2.0], ratio=True)
    assert found is not None
    assert found.scale == "difference"
    assert "ratio" not in found.method


def test_welch_equals_scipy() -> None:
    a, b = [194.1, 194.6, 193.9, 194.2], [173.2, 173.9, 172.0]
    found = intervals.welch(a, b)
    known = stats.ttest_ind(a, b, equal_var=False)
    assert found is not None
    assert (found.lo, found.hi) == pytest.approx(tuple(known.confidence_interval(0.95)), rel=1e-9)
    assert found.p == pytest.approx(known.pvalue, rel=1e-9)


def test_a_shared_reference_cell_takes_the_days_out() -> None:
    day_two = 7.0
    a, a_reference = [110.0, 111.0, 109.0], [100.0, 101.0, 100.0]
    b, b_reference = [v - 5 + day_two for v in a], [v + day_two for v in a_reference]
    found = intervals.welch_against_reference(a, a_reference, b, b_reference)
    assert found is not None
    assert found.estimate == pytest.approx(5.0)
    naive = intervals.welch(a, b)
    assert naive is not None
    assert naive.estimate == pytest.approx(-2.0)


def test_constant_differences_get_one_step_of_the_meter_and_no_zero_width() -> None:
    found = intervals.paired([120.3, 140.7, 99.9], [100.1, 120.5, 79.7], step=PAGE_MIB)
    assert found is not None
    assert found.identical
    assert (found.hi - found.lo) / 2 == pytest.approx(PAGE_MIB)
    assert found.estimate == pytest.approx(20.2, abs=1e-6)


def test_a_difference_of_one_step_is_not_a_finding() -> None:
    found = intervals.paired([1 + PAGE_MIB] * 5, [1.0] * 5, step=PAGE_MIB)
    assert found is not None
    assert found.p == pytest.approx(0.05)
    half_a_page = intervals.paired([1 + PAGE_MIB / 2] * 5, [1.0] * 5, step=PAGE_MIB)
    assert half_a_page is not None
    assert intervals.verdict(half_a_page, margin=1.0, unit="MiB").kind == "no difference"


def test_one_block_has_no_interval() -> None:
    assert intervals.paired([1.0], [2.0]) is None
    assert intervals.welch([1.0], [2.0, 3.0]) is None
    assert intervals.not_enough(1).text == "not enough trials: 1 more needed"


@pytest.mark.parametrize(("a", "b", "kind", "text"), [
    ([173.4, 173.5, 173.3], [194.3, 194.3, 194.4], "less", "less"),
    ([194.3, 194.3, 194.4], [173.4, 173.5, 173.3], "more", "more"),
    ([100.0, 100.0, 100.0], [100.0, 100.0, 100.0], "identical", "identical (3 of 3)"),
    ([100.0, 100.1, 99.9], [100.1, 99.9, 100.0], "no difference", "no difference larger than 0.44 MiB"),
])
def test_verdict_words(a: list[float], b: list[float], kind: str, text: str) -> None:
    found = intervals.paired(a, b, step=PAGE_MIB)
    assert found is not None
    words = intervals.verdict(found, margin=1.0, unit="MiB")
    assert (words.kind, words.text) == (kind, text)


def test_no_difference_larger_than_is_the_edge_of_the_interval_that_is_printed() -> None:
    a, b = [100.0, 100.3, 99.8, 100.1], [100.1, 100.0, 100.0, 99.9]
    known = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = intervals.paired(a, b)
    assert found is not None
    assert found.largest == pytest.approx(max(abs(known.low), abs(known.high)), abs=1e-6)


def test_undecided_says_how_many_more_trials_would_decide() -> None:
    found = intervals.paired([100.0, 108.0, 103.0], [100.0, 100.0, 101.0], step=PAGE_MIB)
    assert found is not None
    words = intervals.verdict(found, margin=0.1, unit="MiB")
    # mean 10/3, sd 4.16: zero leaves a 95 % t interval at n = 9 (2.306·4.16/3 = 3.20 < 3.33), not at 8 (3.48)
    assert words.kind == "undecided"
    assert words.more_trials == 6
    assert words.text == "undecided: about 6 more trials"


def test_required_n_is_the_smallest_that_fits() -> None:
    assert intervals.required_n(1.0, 1.0) == 7  # t(6) = 2.447: 0.925; t(5) = 2.571: 1.050
    assert intervals.required_n(1.0, 0.0) is None
    assert intervals.required_n(1.0, 1e-6) is None


def test_holm_is_the_textbook_example() -> None:
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([]) == []


def test_in_a_family_a_single_result_must_be_stronger() -> None:
    a, b = [97.0, 98.5, 97.2, 98.0, 97.0], [100.0, 98.4, 99.0, 98.9, 99.0]
    found = intervals.paired(a, b)
    assert found is not None
    assert 0.0125 < found.p < 0.05
    assert intervals.verdict(found, margin=0.1, unit="MiB").kind == "less"
    in_family = intervals.paired(a, b, level=1 - 0.05 / 4)
    assert in_family is not None
    assert intervals.verdict(in_family, margin=0.1, unit="MiB").kind == "undecided"


def test_the_words_follow_from_the_printed_interval_and_from_nothing_else() -> None:
    """Two of three arms beyond doubt: Holm's p would call the third one less, beside an interval that holds zero."""
    rng = np.random.default_rng(13)
    near = 0
    for _ in range(300):
        off = dict(enumerate(100 + rng.normal(0, 1, 5)))
        arms = [{block: base + shift + rng.normal(0, 1) for block, base in off.items()} for shift in (-30, 30, -2.5)]
        found = compare(arms, off, "stabilized/tree_rss_mib")
        p = stats.ttest_rel(list(arms[2].values()), list(off.values())).pvalue
        near += p <= 0.05 < 3 * p
        for one in found:
            assert one.lo is not None and one.hi is not None and one.p is not None
            assert (one.lo > 0 or one.hi < 0) == (one.kind in ("less", "more")) == (one.p <= 0.05)
            if one.no_larger_than is not None:
                assert -one.no_larger_than <= one.lo <= one.hi <= one.no_larger_than
    assert near > 20, "sweeps in which the old rule contradicted itself"


@pytest.mark.parametrize(("a", "b", "ratio", "kind", "informative"), [
    ([100.0, 3.0], [50.0, 40.0], True, "undecided", False),  # ×0 … ×28274378045190 was printed once
    ([20.0, 21.0, 23.0], [20.0, 22.0, 19.0], True, "undecided", True),
    ([194.0, 230.0], [194.0, 170.0], False, "undecided", False),
    ([194.0, 196.0, 193.0], [194.0, 191.0, 194.0], False, "undecided", True),
    ([900.0, 901.0], [1.0, 1.1], True, "more", True),
    ([0.2, 0.1], [0.1, 0.2], False, "no difference", True),
])
def test_an_interval_that_says_nothing_is_marked_as_such(
        a: list[float], b: list[float], ratio: bool, kind: str, informative: bool) -> None:
    metric = "decode/tokens_per_s" if ratio else "stabilized/system_used_pct" if max(a) < 1 else HEADLINE
    found = compare([dict(enumerate(a))], dict(enumerate(b)), metric)[0]
    if kind == "no difference":  # a bound below the margin is information, however small what it is a bound of
        found = judged(intervals.paired(a, b), unit="points", margin=1.5, n_blocks=2, size=0.2)
    assert (found.kind, found.informative) == (kind, informative)


def test_a_ratio_beyond_all_numbers_is_no_crash() -> None:
    found = intervals.paired([1e-3, 1e9], [1e9, 1e-3], ratio=True, level=1 - 0.05 / 40)
    assert found is not None and math.isfinite(found.hi)


def test_identical_trials_still_permit_deviating_ones() -> None:
    assert [round(intervals.may_deviate_pct(n), 1) for n in (3, 5, 10, 30)] == [63.2, 45.1, 25.9, 9.5]


@pytest.mark.parametrize(("x", "text"), [(0.2, "0.2"), (0.201, "0.21"), (3.35, "3.4"), (17.1, "18"), (123.4, "130"),
                                         (0.00390625, "0.004"), (0.0, "0")])
def test_a_bound_is_never_rounded_down(x: float, text: str) -> None:
    assert intervals.rounded_up(x) == text
