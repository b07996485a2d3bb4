"""Do the intervals hold their word? Simulated sweeps in six noise shapes, and in that of real trials: coverage, false
alarms, power.

`python -m tests.bench.stats_calibration [DOCUMENT.json…]`: documents of `slackwater show --json` add one more shape,
the residuals of their trials; those of tests/data/measured_noise.json are always there, at their own size. Arrays do
the counting; a sample of every point goes through pipeline.stats itself and must agree, so that what is measured is the
code that is used.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit
from scipy.stats import linregress

from pipeline.report import wording
from pipeline.stats import factorial, intervals
from pipeline.stats.comparison import Comparison, compare, level_of
from pipeline.stats.drift import trend
from pipeline.stats.measures import HEADLINE, PAGE_MIB
from pipeline.stats.stopping import LEAST_BLOCKS, standing

FloatArray = npt.NDArray[np.float64]
Shape = Callable[[np.random.Generator, int, int], FloatArray]

SWEEPS = 20_000
CHECKED = 40
BLOCKS = (3, 5, 10)
LEAST_COVERAGE = 93.5
MOST_FALSE_ALARMS = 6.0
SEED = 20_261_101


def normal(rng: np.random.Generator, sweeps: int, trials: int) -> FloatArray:
    return rng.normal(size=(sweeps, trials))


def discrete(rng: np.random.Generator, sweeps: int, trials: int) -> FloatArray:
    """Whole pages: 70 % of trials alike, the others one or two pages off; a page is 1.44 sd."""
    steps = rng.choice([0, 1, -1, 2, -2], p=[0.70, 0.12, 0.12, 0.03, 0.03], size=(sweeps, trials))
    return steps * 1.44


def outliers(rng: np.random.Generator, sweeps: int, trials: int) -> FloatArray:
    hit = rng.random((sweeps, trials)) < 0.02
    return rng.normal(size=(sweeps, trials)) + hit * rng.uniform(5, 30, (sweeps, trials))


def lognormal(rng: np.random.Generator, sweeps: int, trials: int) -> FloatArray:
    s = 0.5
    sd = np.sqrt((np.exp(s**2) - 1) * np.exp(s**2))
    return np.asarray(np.exp(s * rng.normal(size=(sweeps, trials))) / sd)


def block_drift(rng: np.random.Generator, sweeps: int, trials: int) -> FloatArray:
    """Half a standard deviation per trial, in the order they run."""
    return rng.normal(size=(sweeps, trials)) + 0.5 * np.arange(trials)


def autoregressive(rng: np.random.Generator, sweeps: int, trials: int) -> FloatArray:
    noise = rng.normal(size=(sweeps, trials))
    for t in range(1, trials):
        noise[:, t] = 0.6 * noise[:, t - 1] + np.sqrt(1 - 0.36) * noise[:, t]
    return noise


SHAPES: dict[str, Shape] = {"normal": normal, "discrete": discrete, "outliers": outliers, "lognormal": lognormal,
                            "block drift": block_drift, "AR(1) 0.6": autoregressive}


RECORDED = Path(__file__).parents[1] / "data" / "measured_noise.json"
SIGMA_MIB: dict[str, float] = {"discrete": PAGE_MIB / 1.44}
"""One trial's standard deviation by shape; 0.1 MiB where none is given."""


def add_measured(paths: Sequence[str]) -> None:
    """The recorded residuals, and those of the documents, as shapes."""
    pools = {f"measured, {engine}": found
             for engine, found in json.loads(RECORDED.read_text(encoding="utf-8"))["residuals_mib"].items()}
    pools["measured, documents"] = residuals_of(paths)
    for name, residuals in pools.items():
        if residuals and max(residuals) > min(residuals):
            SHAPES[name] = resampled(np.asarray(residuals) / np.std(residuals))
            SIGMA_MIB[name] = float(np.std(residuals))


def residuals_of(paths: Sequence[str]) -> list[float]:
    """Settled tree RSS of real trials less their cell's mean, MiB."""
    residuals: list[float] = []
    for path in paths:
        cells: dict[str, list[float]] = defaultdict(list)
        for trial in json.loads(Path(path).read_text(encoding="utf-8"))["trials"]:
            reading = trial["metrics"].get(HEADLINE)
            if trial["verdict"] == "valid" and reading is not None:
                cells[trial["cell"]].append(reading)
        for values in cells.values():
            residuals += [v - sum(values) / len(values) for v in values if len(values) > 1]
    return residuals


def resampled(pool: FloatArray) -> Shape:
    def draw(rng: np.random.Generator, sweeps: int, trials: int) -> FloatArray:
        return np.asarray(rng.choice(pool, size=(sweeps, trials)))

    return draw


def readings(shape: str, rng: np.random.Generator, blocks: int, arms: int,
             sweeps: int = SWEEPS) -> tuple[FloatArray, float]:
    """(sweeps, blocks, arms) in MiB, arms in random order inside each block, and the noise's sigma in MiB.

    Readings are whole pages, as the kernel gives them.
    """
    sigma = SIGMA_MIB.get(shape, 0.1)
    in_order = SHAPES[shape](rng, sweeps, blocks * arms).reshape(sweeps, blocks, arms)
    order = rng.random((sweeps, blocks, arms)).argsort(axis=2)
    by_arm = np.take_along_axis(in_order, order, axis=2) * sigma
    return 100 + by_arm, sigma


def pages(values: FloatArray) -> FloatArray:
    return np.asarray(np.rint(values / PAGE_MIB) * PAGE_MIB)


def t_intervals(d: FloatArray, level: float = 0.95) -> tuple[FloatArray, FloatArray, FloatArray]:
    """lo, hi, p over the last axis: what `intervals.of_differences` computes, for arrays."""
    n = d.shape[-1]
    mean, sd = d.mean(axis=-1), d.std(axis=-1, ddof=1)
    se = np.maximum(sd / np.sqrt(n), PAGE_MIB / stdtrit(n - 1, 0.975))
    half = stdtrit(n - 1, 0.5 + level / 2) * se
    return mean - half, mean + half, 2 * stdtr(n - 1, -np.abs(mean / se))


def agree(d: FloatArray, lo: FloatArray, hi: FloatArray) -> None:
    """A sample of the sweeps through the package itself; raises AssertionError where it says something else."""
    for i in range(CHECKED):
        own = intervals.of_differences(d[i], step=PAGE_MIB)
        assert own is not None
        assert abs(own.lo - lo[i]) < 1e-5, (own, lo[i])
        assert abs(own.hi - hi[i]) < 1e-5, (own, hi[i])


class Report:
    """Prints figures against their limits and remembers whether all were held."""

    def __init__(self) -> None:
        self.held = True

    def line(self, what: str, figures: Sequence[float], floor: float | None = None,
             ceiling: float | None = None) -> None:
        """One line; floor and ceiling hold for every figure."""
        missed = any((floor is not None and f < floor) or (ceiling is not None and f > ceiling) for f in figures)
        self.held &= not missed
        limit = "" if floor is None and ceiling is None else (
            f"   at least {floor:g}" if floor is not None else f"   at most {ceiling:g}")
        shown = "".join(f"{f:8.1f}" for f in figures)
        print(f"  {what:<34}{shown}{limit}{'  MISSED' if missed else ''}", flush=True)


def pairs_and_families(report: Report, rng: np.random.Generator) -> None:
    tables: dict[str, dict[str, list[float]]] = {name: {} for name in (
        "coverage", "question", "family", "power 2", "power 5", "bound")}
    for shape in SHAPES:
        for blocks in BLOCKS:
            values, sigma = readings(shape, rng, blocks, 2)
            true = PAGE_MIB * round(2 * sigma / PAGE_MIB)
            null = pages(values[..., 0]) - pages(values[..., 1])
            lo, hi, p = t_intervals(pages(values[..., 0] + true) - pages(values[..., 1]))
            agree(pages(values[..., 0] + true) - pages(values[..., 1]), lo, hi)
            bound = np.maximum(np.maximum(np.abs(lo), np.abs(hi)), PAGE_MIB)
            rates = {"coverage": (lo <= true) & (true <= hi), "bound": bound < true - 1e-9,
                     "question": t_intervals(null)[2] <= 0.05, "power 2": p <= 0.05,
                     "power 5": t_intervals(null + 5 * sigma)[2] <= 0.05}
            for name, hits in rates.items():
                tables[name].setdefault(shape, []).append(100 * float(np.mean(hits)))
            tables["family"].setdefault(shape, []).append(family(shape, rng, blocks))
    heads = "".join(f"{f'n={n}':>8}" for n in BLOCKS)
    for name, title, floor, ceiling in (
            ("coverage", "Coverage of the 95 % interval, %", LEAST_COVERAGE, None),
            ("question", "False alarms of A/A sweeps per question, %", None, MOST_FALSE_ALARMS),
            ("family", "False alarms of A/A sweeps per family of 4, %", None, MOST_FALSE_ALARMS),
            ("bound", "\"No difference larger than x\" wrong at a true 2 sd, %", None, MOST_FALSE_ALARMS),
            ("power 2", "Power at a true difference of 2 sd, %", None, None),
            ("power 5", "Power at a true difference of 5 sd, %", None, None)):
        print(f"\n{title}\n  {'':<34}{heads}")
        for shape in SHAPES:
            report.line(shape, tables[name][shape], floor, ceiling)


def family(shape: str, rng: np.random.Generator, blocks: int, arms: int = 4) -> float:
    """Percent of A/A sweeps of `arms` flags against one off arm in which anything is called less or more."""
    values, _ = readings(shape, rng, blocks, arms + 1)
    values = pages(values)
    d = np.moveaxis(values[..., 1:] - values[..., :1], 1, 2)
    p = t_intervals(d)[2]
    alarms = p.min(axis=1) * arms <= 0.05  # exactly where an interval at 1 − 0.05/arms leaves zero out
    for i in range(CHECKED):
        off = dict(enumerate(values[i, :, 0]))
        found = compare([dict(enumerate(values[i, :, arm])) for arm in range(1, arms + 1)], off, HEADLINE)
        assert any(one.kind in ("less", "more") for one in found) == alarms[i]
    return float(100 * np.mean(alarms))


def sequential(report: Report, rng: np.random.Generator, limit: int = 30, sweeps: int = 5_000) -> None:
    print("\nThe 97 % rule: all arms covered, as 95 %, after looking at every block from the fifth, limit 30; mean n\n"
          f"  {'':<34}{'arms':>5}{'target':>8}{'covers':>8}{'mean n':>8}")
    for shape, (arms, target) in itertools.product(SHAPES, ((1, 0.35), (1, 0.5), (1, 1.0), (3, 0.5))):
        values, sigma = readings(shape, rng, limit, arms + 1, sweeps)
        values = pages(values)
        d = np.moveaxis(values[..., 1:] - values[..., :1], 1, 2)  # (sweeps, arms, blocks)
        width = target * sigma * np.sqrt(2)
        covered, n = np.zeros(sweeps, bool), np.full(sweeps, limit)
        running = np.ones(sweeps, bool)
        for blocks in range(LEAST_BLOCKS, limit + 1):
            lo, hi, _ = t_intervals(d[..., :blocks], level_of(arms, looked=True))
            stop = running & (np.all((hi - lo) / 2 <= width, axis=1) | (blocks == limit))
            covered[stop], n[stop] = np.all((lo <= 0) & (hi >= 0), axis=1)[stop], blocks
            running &= ~stop
        for i in range(5 if arms == 1 else 0):
            on, off = (dict(enumerate(values[i, :n[i], arm])) for arm in (1, 0))
            own = standing(compare([on], off, HEADLINE, looked=True)[0], 0.0, HEADLINE, float(width), None)
            assert own.reached or n[i] == limit or abs((own.half_width or 0) - width) < PAGE_MIB
        coverage = float(100 * covered.mean())
        report.held &= coverage >= LEAST_COVERAGE
        print(f"  {shape:<34}{arms:>5}{target:>5} sd{coverage:8.1f}{n.mean():8.1f}   at least {LEAST_COVERAGE:g}"
              f"{'' if coverage >= LEAST_COVERAGE else '  MISSED'}", flush=True)


def factorials(report: Report, rng: np.random.Generator, sweeps: int = 1_000) -> None:
    flags = ("a", "b", "c")
    x = np.array([[1.0 if i >> k & 1 else -1.0 for k in range(3)] for i in range(8)])
    print(f"\nFactorial 2^3: coverage of a term, and A/A sweeps with any term called less or more, %\n"
          f"  {'':<34}{'n=3 cov':>8}{'alarms':>8}")
    for shape in SHAPES:
        values, _ = readings(shape, rng, 3, 8, sweeps)
        values = pages(values)
        covers: list[bool] = []
        alarms: list[bool] = []
        for sweep in values:
            found = factorial.analyse(np.tile(x, (3, 1)), np.repeat(np.arange(3), 8), sweep.reshape(-1), flags,
                                      step=PAGE_MIB, ratio=False, level=0.95, margin=1.0, unit="MiB")
            assert found is not None
            covers += [(term.stats.lo or 0.0) <= 0 <= (term.stats.hi or 0.0) for term in found[0]]
            alarms.append(any(term.stats.kind in ("less", "more") for term in found[0]))
        report.line(shape, [100 * float(np.mean(covers)), 100 * float(np.mean(alarms))])
        report.held &= 100 * float(np.mean(covers)) >= LEAST_COVERAGE and 100 * float(np.mean(alarms)) <= 7.0


def drifts(report: Report, rng: np.random.Generator, sweeps: int = 1_500) -> None:
    print(f"\nDrift found where there is none (block means, 4 cells), %\n  {'':<34}"
          + "".join(f"{f'n={n}':>8}" for n in BLOCKS))
    for shape in SHAPES:
        figures = []
        for blocks in BLOCKS:
            values, _ = readings(shape, rng, blocks, 4, sweeps)
            means = pages(values).mean(axis=2)
            figures.append(100 * float(np.mean([trend(list(m), PAGE_MIB)[1] <= 0.05 for m in means])))
            if np.ptp(means[0]) > PAGE_MIB / 8:  # below it there is rounding only, and its p is anything
                assert abs(trend(list(means[0]))[1] - linregress(np.arange(blocks), means[0]).pvalue) < 1e-9
        # AR(1) is slow noise and block drift is drift: finding them is right
        report.line(shape, figures, None, None if shape in ("AR(1) 0.6", "block drift") else 7.0)


NUMBER = re.compile(r"[−+]?\d+(?:\.\d+)?")


def contradicts(one: Comparison) -> bool:
    """Do the words say other things than the interval, in numbers or as both are printed side by side?"""
    if one.lo is None or one.hi is None:
        return False
    none = 1.0 if one.scale == "ratio" else 0.0
    said, out = wording.comparison(one), one.lo > none or one.hi < none
    if one.kind in ("less", "more"):
        low, high = NUMBER.findall(said.partition("(")[2].partition(")")[0])
        wrong = one.hi >= none if one.kind == "less" else one.lo <= none
        return wrong or low[0] in "−+" or float(low) == 0 or float(high) < float(low)
    if one.no_larger_than is not None:
        bound, unit = float(NUMBER.findall(said)[0]), 100.0 if one.scale == "ratio" else 1.0
        ends = unit * (one.lo - none), unit * (one.hi - none)
        return out or max(ends) > bound + 1e-9 or -min(ends) > bound + 1e-9
    return out


def contradictions(report: Report, rng: np.random.Generator, sweeps: int = 500) -> None:
    """Sweeps of three arms and factorial ones, near the threshold: two effects beyond doubt and one that is not."""
    print(f"\nWords that contradict the interval beside them, of {sweeps} sweeps each\n"
          f"  {'':<34}{'3 arms':>8}{'ratio':>8}{'2^3':>8}")
    flags, x = ("a", "b", "c"), np.array([[1.0 if i >> k & 1 else -1.0 for k in range(3)] for i in range(8)])
    for shape in SHAPES:
        found = []
        for metric in (HEADLINE, "decode/tokens_per_s"):
            values, sigma = readings(shape, rng, 5, 4, sweeps)
            values[..., 1:] += np.array([-20.0, 20.0, 2.5]) * sigma
            found.append(sum(contradicts(one) for sweep in pages(values) for one in compare(
                [dict(enumerate(sweep[:, arm])) for arm in (1, 2, 3)], dict(enumerate(sweep[:, 0])), metric)))
        values, sigma = readings(shape, rng, 3, 8, sweeps)
        values += (x @ np.array([-10.0, 10.0, 0.7])) * sigma
        for sweep in pages(values):
            terms = factorial.analyse(np.tile(x, (3, 1)), np.repeat(np.arange(3), 8), sweep.reshape(-1), flags,
                                      step=PAGE_MIB, ratio=False, level=0.95, margin=1.0, unit="MiB")
            assert terms is not None
            found.append(sum(contradicts(term.stats) for term in terms[0]))
        report.line(shape, [float(found[0]), float(found[1]), float(sum(found[2:]))], None, 0.0)


def main(documents: Sequence[str]) -> int:
    began = time.perf_counter()
    add_measured(documents)
    rng = np.random.default_rng(SEED)
    report = Report()
    print(f"{SWEEPS} simulated sweeps per point, seed {SEED}; n = blocks, sd = one trial's standard deviation")
    pairs_and_families(report, rng)
    sequential(report, rng)
    factorials(report, rng)
    drifts(report, rng)
    contradictions(report, rng)
    print(f"\n{'All limits held' if report.held else 'A limit was MISSED'}, {time.perf_counter() - began:.0f} s")
    return 0 if report.held else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
