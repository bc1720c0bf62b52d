"""How often 95% intervals contain the truth: simulated prompts with several rows each and a known truth.

    python -m benchmarks.coverage --out benchmarks/results/coverage/coverage.json

Rows of one prompt are dependent through a shared normal variable (a Gaussian copula with correlation ``dependence``).
Writes the figures as JSON and, next to it, as a table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from afzal.stats.calibration import calibration, trend
from afzal.stats.intervals import Interval, clustered, mean, share, wilson
from afzal.stats.policy_comparison import bootstrap, over_seeds_and_prompts

Rng = np.random.Generator
Row = dict[str, Any]

SIZES: dict[str, Callable[[Rng, int], np.ndarray]] = {
    "1": lambda rng, n: np.ones(n, int),
    "4": lambda rng, n: np.full(n, 4),
    "1 to 10": lambda rng, n: rng.integers(1, 11, n),
    "28": lambda rng, n: np.full(n, 28),
}


def shared_normals(rng: Rng, sizes: np.ndarray, dependence: float) -> np.ndarray:
    """A standard normal number for each row, correlated within its prompt."""
    common = np.repeat(rng.normal(size=len(sizes)), sizes)
    return math.sqrt(dependence) * common + math.sqrt(1 - dependence) * rng.normal(size=len(common))


def accuracies(rng: Rng, runs: int, prompts: int, size: str, dependence: float, truth: float) -> Row:
    """Coverage for the share of correct rows: interval over prompts, and Wilson's interval over rows."""
    hit = naive = 0
    for _ in range(runs):
        sizes = SIZES[size](rng, prompts)
        right = shared_normals(rng, sizes, dependence) < ndtri(truth)
        low, high = share(clustered(np.repeat(np.arange(prompts), sizes).tolist(), right.tolist())).ends
        hit += low - 1e-12 <= truth <= high + 1e-12
        low, high = wilson(int(right.sum()), len(right))
        naive += low - 1e-12 <= truth <= high + 1e-12
    about = {"prompts": prompts, "rows per prompt": size, "dependence": dependence, "accuracy": truth}
    return about | {"coverage": hit / runs, "by rows": naive / runs}


def means(rng: Rng, runs: int, prompts: int, size: str, shape: str) -> Row:
    """Coverage for means of normal or skewed rows (such as KLs): Student's t and bootstrap over prompts."""
    covered, resampled = 0, 0
    truth = 0.0 if shape == "normal" else 1.0
    for _ in range(runs):
        sizes = SIZES[size](rng, prompts)
        z = shared_normals(rng, sizes, 0.5)
        values = z if shape == "normal" else -np.log1p(-ndtr(z))
        keys = np.repeat(np.arange(prompts), sizes)
        low, high = mean(clustered(keys.tolist(), values.tolist())).ends
        covered += low <= truth <= high
        by_prompt = np.bincount(keys, values) / sizes
        low, high = bootstrap(by_prompt, resamples=400, seed=int(rng.integers(1 << 30))).ends
        resampled += low <= truth <= high
    return {
        "prompts": prompts, "rows per prompt": size, "shape": shape, "coverage": covered / runs,
        "bootstrap": resampled / runs,
    }  # fmt: skip


def paired(rng: Rng, runs: int, seeds: int, prompts: int, ratio: float) -> Row:
    """Coverage for paired differences of S seeds on X prompts: two-way intervals, and intervals over seeds alone.

    The variance is 1 over prompts, ``ratio`` over seeds, and 1 in each cell."""
    covered = alone = 0
    for _ in range(runs):
        cells = rng.normal(size=(seeds, prompts)) + rng.normal(size=prompts)
        cells += math.sqrt(ratio) * rng.normal(size=(seeds, 1))
        low, high = over_seeds_and_prompts(cells).ends
        covered += low <= 0 <= high
        by_seed: Interval = over_seeds_and_prompts(cells.mean(1)[None, :]) if seeds > 1 else Interval(0, 0, 0, 1)
        alone += by_seed.ends[0] <= 0 <= by_seed.ends[1]
    about = {"seeds": seeds, "prompts": prompts, "variance over seeds": ratio, "coverage": covered / runs}
    return about | {"over seeds alone": alone / runs if seeds > 1 else None}


def slopes(rng: Rng, runs: int, prompts: int, size: str) -> Row:
    """Coverage for the slope of y on x when prompts share both: over prompts, and as if rows were independent."""
    covered = naive = 0
    for _ in range(runs):
        sizes = SIZES[size](rng, prompts)
        keys = np.repeat(np.arange(prompts), sizes)
        x, y = shared_normals(rng, sizes, 0.5), shared_normals(rng, sizes, 0.5)
        for k, slope in enumerate((trend(x, y, keys.tolist()), trend(x, y))):
            assert slope is not None
            inside = slope.low <= 0 <= slope.high
            covered, naive = covered + inside * (k == 0), naive + inside * (k == 1)
    return {"prompts": prompts, "rows per prompt": size, "coverage": covered / runs, "by rows": naive / runs}


def calibrations(rng: Rng, runs: int, prompts: int, size: str, dependence: float, factor: float) -> Row:
    """Expected calibration error of a perfectly calibrated model (factor 1) or an overconfident one: coverage of the
    interval, mean estimated error, and mean error attributed to chance alone."""
    truth = _true_error(factor)
    covered, above, errors, nulls = 0, 0, [], []
    for _ in range(runs):
        sizes = SIZES[size](rng, prompts)
        gaps = rng.normal(0, 1.5, int(sizes.sum()))
        p = ndtr(shared_normals(rng, sizes, dependence)) < 1 / (1 + np.exp(-gaps / factor))
        estimate = calibration(gaps, p.astype(float), np.repeat(np.arange(prompts), sizes).tolist())
        assert estimate.ece_low is not None
        assert estimate.ece_high is not None
        covered += estimate.ece_low <= truth <= estimate.ece_high
        above += estimate.ece > estimate.null_high
        errors.append(estimate.ece)
        nulls.append(estimate.null)
    return {
        "prompts": prompts, "rows per prompt": size, "dependence": dependence, "true error": round(truth, 4),
        "coverage": covered / runs, "mean error found": round(float(np.mean(errors)), 4),
        "mean of chance alone": round(float(np.mean(nulls)), 4), "called more than chance": above / runs,
    }  # fmt: skip


def _true_error(factor: float) -> float:
    gaps = np.abs(1.5 * ndtri((np.arange(1_000_000) + 0.5) / 1_000_000))
    confidence, right = 1 / (1 + np.exp(-gaps)), 1 / (1 + np.exp(-gaps / factor))
    place = np.clip(((confidence - 0.5) * 20).astype(int), 0, 9)
    return float(np.abs(np.bincount(place, confidence - right, 10)).sum() / len(gaps))


def _accuracies(rng: Rng, runs: int) -> Iterator[Row]:
    for n in (10, 20, 50, 200):
        for size in SIZES:
            for dependence in (0.0,) if size == "1" else (0.0, 0.3, 0.8):
                if (n, size) != (200, "28"):
                    yield from (accuracies(rng, runs, n, size, dependence, t) for t in (0.5, 0.7, 0.9, 0.97))


def _means(rng: Rng, runs: int) -> Iterator[Row]:
    for n in (10, 20, 50, 200):
        for size in ("1", "4"):
            yield from (means(rng, runs, n, size, shape) for shape in ("normal", "skewed"))


def _paired(rng: Rng, runs: int) -> Iterator[Row]:
    for seeds in (1, 2, 3, 5):
        for n in (12, 64):
            yield from (paired(rng, runs, seeds, n, v) for v in ((0.0,) if seeds == 1 else (0.0, 0.2, 1.0)))


def _slopes(rng: Rng, runs: int) -> Iterator[Row]:
    for n in (10, 20, 50, 200):
        yield from (slopes(rng, runs, n, size) for size in ("4", "1 to 10"))


def _calibrations(rng: Rng, runs: int) -> Iterator[Row]:
    for n, size in ((20, "1"), (100, "1"), (20, "4"), (100, "4"), (500, "1")):
        for dependence in (0.0,) if size == "1" else (0.0, 0.5):
            yield from (calibrations(rng, max(100, runs // 10), n, size, dependence, f) for f in (1.0, 2.0))


TABLES: dict[str, Callable[[Rng, int], Iterator[Row]]] = {
    "accuracy": _accuracies,
    "mean": _means,
    "paired difference": _paired,
    "slope": _slopes,
    "calibration error": _calibrations,
}


def simulate(runs: int) -> dict[str, list[Row]]:
    """All tables, each with independent random numbers."""
    return {name: list(rows(np.random.default_rng([0, k]), runs)) for k, (name, rows) in enumerate(TABLES.items())}


def table(figures: dict[str, Any]) -> Iterator[str]:
    """The figures as Markdown."""
    yield "# Coverage of 95% intervals"
    yield ""
    yield f"`python -m benchmarks.coverage --runs {figures['runs']}`: this many simulated data sets per row, a tenth"
    yield "of them (at least 100) for the calibration error. Coverage is the percentage of intervals that contain the"
    yield "truth. `dependence` is the dependence between rows of one prompt: 0 is independent, 1 identical."
    yield ""
    yield _clustered(figures["tables"]["accuracy"])
    yield from tables(figures["tables"], _PERCENT)


def _clustered(rows: Sequence[Row]) -> str:
    """A paragraph that summarizes the accuracies with dependent rows."""
    cover = [r["coverage"] for r in rows if r["dependence"] > 0]
    inside, above = sum(0.93 <= c <= 0.97 for c in cover), sum(c > 0.97 for c in cover)
    below = len(cover) - inside - above
    least, most = (f"{100 * end(cover):.1f}" for end in (min, max))
    return (
        f"Accuracies with dependent rows: {inside} of {len(cover)} are covered in 93 to 97% of the data sets,\n"
        f"{above} in more (at most {most}) and {below} in fewer (at least {least}). Those above are near 1, with few\n"
        "prompts that contain an error: the interval contains the truth even if every row is right, so only\n"
        "one end can miss, and it rarely does."
    )


_PERCENT = {"coverage", "by rows", "bootstrap", "over seeds alone", "called more than chance"}


def tables(named: Mapping[str, Sequence[Mapping[str, Any]]], percent: AbstractSet[str]) -> Iterator[str]:
    """Markdown tables of the rows, each under its name; columns in ``percent`` are shares, shown in percent."""
    for name, rows in named.items():
        yield from ("", f"## {name[:1].upper()}{name[1:]}", "")
        columns = list(rows[0])
        yield f"| {' | '.join(columns)} |"
        yield f"|{'---|' * len(columns)}"
        for row in rows:
            yield f"| {' | '.join(_cell(v, shares=k in percent) for k, v in row.items())} |"


def _cell(value: Any, *, shares: bool) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" if shares else str(value)


def main() -> None:
    """Run the simulations, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000, help="simulated data sets for each row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage/coverage.json"))
    options = parser.parse_args()
    figures = {"runs": options.runs, "tables": simulate(options.runs)}
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    options.out.with_suffix(".md").write_text("\n".join(table(figures)) + "\n")


if __name__ == "__main__":
    main()
