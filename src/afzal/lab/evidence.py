"""Debate without words: a judge who can look at k pieces of evidence only, and those who choose them.

The truth is whether the evidence for the first answer outweighs that for the second: the sign of the sum of n pieces.
Who chooses which pieces the judge sees decides what they are worth. A *naive* judge adds up what is shown. An *aware*
judge knows the protocol, and decides by the sum that is to be expected from what is shown under it.

Shapes: N cases, n pieces, k shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Protocol = Literal["random", "consultant", "debate"]
PROTOCOLS: tuple[Protocol, ...] = ("random", "consultant", "debate")


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What the judge sees.

    Attributes:
        pieces: ``[N, k]`` int, the numbers of the pieces, in the order shown.
        values: ``[N, k]`` what they are worth, for the first answer where positive.
    """

    pieces: np.ndarray
    values: np.ndarray


def shown(pieces: np.ndarray, k: int, protocol: Protocol, rng: np.random.Generator) -> Shown:
    """The k pieces of each case ``[N, n]`` that the judge sees.

    ``random``: drawn without a purpose. ``consultant``: one side, for the first answer or for the second with equal
    chances whatever is true, shows the k pieces that help it most. ``debate``: the two sides show k / 2 each, the first
    answer's side before the other.

    Raises:
        ValueError: k is odd in a debate, or no number from 1 to n.
    """
    n = pieces.shape[1]
    if not 1 <= k <= n or (protocol == "debate" and k % 2):
        raise ValueError(f"{k} of {n} pieces cannot be shown in protocol {protocol}")
    if protocol == "random":
        chosen = rng.permuted(np.broadcast_to(np.arange(n), pieces.shape), axis=1)[:, :k]
    else:
        rising = np.argsort(pieces, axis=1, kind="stable")
        if protocol == "debate":
            chosen = np.concatenate([rising[:, ::-1][:, : k // 2], rising[:, : k // 2]], 1)
        else:
            for_first = rng.random(len(pieces)) < 0.5
            chosen = np.where(for_first[:, None], rising[:, ::-1][:, :k], rising[:, :k])
    return Shown(chosen, np.take_along_axis(pieces, chosen, 1))


def naive(seen: Shown) -> np.ndarray:
    """``[N]`` the sum of what is shown."""
    return seen.values.sum(1)


def aware(past: Shown, totals: np.ndarray, seen: Shown) -> np.ndarray:
    """``[N]`` the sum of all pieces as it is to be expected from what is shown, by least squares on past cases of the
    same protocol, whose sums ``totals`` were seen in the end."""
    weights, *_ = np.linalg.lstsq(_described(past.values), totals, rcond=None)
    return _described(seen.values) @ weights


def _described(values: np.ndarray) -> np.ndarray:
    """``[N, 1 + 3 k]``: a constant, and of each value itself, its size and its signed square."""
    size = abs(values)
    return np.concatenate([np.ones((len(values), 1)), values, size, values * size], 1)


def probability(judged: np.ndarray, past: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """``[N]`` probability that the sum is positive, by how far sums were off what a judge expected in past cases."""
    off = np.sort(totals - past)
    above = len(off) - np.searchsorted(off, -judged, side="right")
    equal = np.searchsorted(off, -judged, side="right") - np.searchsorted(off, -judged, side="left")
    return (above + 0.5 * equal) / len(off)


def right(judged: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """``[N]`` 1 where the judge names the better answer, 0 where the other, 0.5 where it names none."""
    return 0.5 + 0.5 * np.sign(judged) * np.sign(totals)


def toy(
    ks: Sequence[int] = (2, 4, 6), *, n: int = 7, draws: int = 200_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Accuracy of both judges under each protocol, on n pieces drawn from N(0, 1); half of the draws are the past that
    the aware judge learns from."""
    found = {}
    for k in ks:
        for number, protocol in enumerate(PROTOCOLS):
            rng = np.random.default_rng([seed, k, number])
            pieces = rng.standard_normal((draws, n))
            seen, totals, half = shown(pieces, k, protocol, rng), pieces.sum(1), draws // 2
            past, now = (Shown(seen.pieces[part], seen.values[part]) for part in (slice(half), slice(half, None)))
            found[f"{protocol}, k = {k}"] = {
                "naive": float(right(naive(seen), totals).mean()),
                "aware": float(right(aware(past, totals[:half], now), totals[half:]).mean()),
            }
    return found
