"""Percentile intervals over resamples of whole prompts: rows of one prompt are drawn together.

Shapes: N rows, P prompts, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from afzal.stats.intervals import LEVEL, Interval


def numbered(prompts: Sequence[Hashable]) -> np.ndarray:
    """``[N]`` int: the number of each row's prompt, from 0 in sorted order, so that the order of rows has no effect."""
    number = {prompt: k for k, prompt in enumerate(sorted(set(prompts), key=lambda p: (type(p).__name__, p)))}
    return np.array([number[prompt] for prompt in prompts], np.int64)


def draws(n_prompts: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each prompt ``[P]`` counts when P prompts are drawn with replacement."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(n_prompts, size=n_prompts), minlength=n_prompts).astype(np.float64)


def prompt_resamples(prompts: Sequence[Hashable], *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each row ``[N]`` counts when all prompts are resampled with replacement."""
    place = numbered(prompts)
    for times in draws(int(place.max()) + 1 if len(place) else 0, resamples=resamples, seed=seed):
        yield times[place]


def percentiles(value: float, samples: np.ndarray, n: int) -> Interval:
    """A figure with the percentile interval of its finite resamples among ``[S]``.

    Args:
        n: prompts. With fewer than two, or fewer than two finite resamples, the ends are None.
    """
    samples = samples[np.isfinite(samples)]
    if n < 2 or len(samples) < 2:
        return Interval(value, None, None, n)
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), n)


def resampled(
    figure: Callable[[np.ndarray], float], prompts: Sequence[Hashable], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """A figure of rows with the percentile interval over resamples of whole prompts.

    Args:
        figure: computes the figure from how often each row counts ``[N]``.
        prompts: of each row.
    """
    weights = prompt_resamples(prompts, resamples=resamples, seed=seed)
    samples = np.array([figure(w) for w in weights])
    return percentiles(figure(np.ones(len(prompts))), samples, len(set(prompts)))


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over rows of F quantities: ``total`` ``[F]``, and ``samples`` ``[S, F]`` over resamples of whole prompts."""

    total: np.ndarray
    samples: np.ndarray
    prompts: int

    def interval(self, figure: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """A figure of the sums, from ``[..., F]`` to ``[...]``, with its percentile interval; NaN if it is
        undefined."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return percentiles(float(figure(self.total)), np.asarray(figure(self.samples)), self.prompts)


def sums(quantities: np.ndarray, prompts: Sequence[Hashable], *, resamples: int = 1000, seed: int = 0) -> Sums:
    """Sums of rows' quantities ``[N, F]``, overall and over the prompts of each resample.

    The resamples are those of :func:`resampled`; for figures that are functions of sums this is many times faster.
    """
    place = numbered(prompts)
    n = int(place.max()) + 1 if len(place) else 0
    by_prompt = np.zeros((n, quantities.shape[1]))
    np.add.at(by_prompt, place, quantities)
    samples = [times @ by_prompt for times in draws(n, resamples=resamples, seed=seed)]
    return Sums(by_prompt.sum(0), np.array(samples).reshape(-1, quantities.shape[1]), n)
