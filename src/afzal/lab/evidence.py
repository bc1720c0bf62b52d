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

from afzal.lab import language

Protocol = Literal["random", "consultant", "debate"]
PROTOCOLS: tuple[Protocol, ...] = ("random", "consultant", "debate")


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What the judge sees.

    Attributes:
        pieces: ``[N, k]`` int, the numbers of the pieces, in the order shown.
        values: ``[N, k]`` what they are worth, for the first answer where positive.
        side: ``[N]`` for whom they are shown: 1 the first answer, -1 the second, 0 both or nobody.
    """

    pieces: np.ndarray
    values: np.ndarray
    side: np.ndarray


def shown(pieces: np.ndarray, k: int, protocol: Protocol, rng: np.random.Generator) -> Shown:
    """The k pieces of each case ``[N, n]`` that the judge sees.

    ``random``: drawn without a purpose. ``consultant``: one side, for the first answer or for the second with equal
    chances whatever is true, shows the k pieces that help it most. ``debate``: the two sides show k / 2 each, the first
    answer's side before the other.

    Raises:
        ValueError: k is odd in a debate, or no number from 1 to n.
    """
    n, side = pieces.shape[1], np.zeros(len(pieces))
    if not 1 <= k <= n or (protocol == "debate" and k % 2):
        raise ValueError(f"{k} of {n} pieces cannot be shown in protocol {protocol}")
    if protocol == "random":
        chosen = rng.permuted(np.broadcast_to(np.arange(n), pieces.shape), axis=1)[:, :k]
    else:
        rising = np.argsort(pieces, axis=1, kind="stable")
        if protocol == "debate":
            chosen = np.concatenate([rising[:, ::-1][:, : k // 2], rising[:, : k // 2]], 1)
        else:
            side = np.where(rng.random(len(pieces)) < 0.5, 1.0, -1.0)
            chosen = np.where(side[:, None] > 0, rising[:, ::-1][:, :k], rising[:, :k])
    return Shown(chosen, np.take_along_axis(pieces, chosen, 1), side)


def part_of(seen: Shown, which: slice) -> Shown:
    """What the judge sees of some of the cases."""
    return Shown(seen.pieces[which], seen.values[which], seen.side[which])


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
            past, now = (part_of(seen, part) for part in (slice(half), slice(half, None)))
            found[f"{protocol}, k = {k}"] = {
                "naive": float(right(naive(seen), totals).mean()),
                "aware": float(right(aware(past, totals[:half], now), totals[half:]).mean()),
            }
    return found


def positions(prompts: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """``[N, 4]`` what each position of two responses of the enumerable language is worth, the first less the second.

    Copied tokens, rises and repetitions stand at a position; length and parity belong to none and are never shown.

    Args:
        prompts: ``[X, 3]``.
        pairs: as :func:`afzal.lab.language.sample_pairs` gives them.
    """
    x, a, b = pairs
    one, other = (_local(prompts[x], language.RESPONSES[y]) for y in (a, b))
    return np.round(one - other, 9)


def _local(prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    worth = np.zeros(response.shape)
    worth[:, :3] += 0.9 * (response[:, :3] == prompt)
    both = response[:, 1:] >= 0
    worth[:, 1:] += 0.5 * ((response[:, 1:] > response[:, :-1]) & both)
    worth[:, 1:] -= 0.7 * ((response[:, 1:] == response[:, :-1]) & both)
    return worth


def aware_by_count(past: Shown, totals: np.ndarray, seen: Shown) -> np.ndarray:
    """``[N]`` how much likelier the first answer is the better one than the second, -1 to 1, among past cases in which
    the very same was shown for the same side; where nothing was, the sum of what is shown decides, at less than any
    count.

    For evidence that takes few values, where it is the posterior itself.
    """
    described = [np.concatenate([s.values, s.pieces, s.side[:, None]], 1) for s in (past, seen)]
    rows = np.concatenate(described)
    _, kind = np.unique(np.round(rows, 6), axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    before, now = kind[: len(past.values)], kind[len(past.values) :]
    n = np.bincount(before, minlength=kind.max() + 1)
    score = np.bincount(before, np.sign(totals), kind.max() + 1) / np.maximum(n, 1)
    return np.where(score[now] != 0, score[now], 1e-6 * np.sign(naive(seen)))
