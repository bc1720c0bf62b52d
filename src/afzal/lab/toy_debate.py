"""Debate without words: a judge who sees only k pieces of evidence, and the sides that choose them.

The truth is whether the evidence for the first answer outweighs that for the second: the sign of the sum of n pieces.
The value of the shown pieces depends on who chooses them. A *naive* judge adds up the shown pieces. An *aware* judge
knows the protocol and decides by the sum expected under it, given the shown pieces.

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
class Evidence:
    """The evidence shown to the judge.

    Attributes:
        pieces: ``[N, k]`` int, the numbers of the pieces, in the order shown.
        values: ``[N, k]`` their values; positive ones favour the first answer.
        side: ``[N]`` the side that shows them: 1 for the first answer, -1 for the second, 0 for both or neither.
    """

    pieces: np.ndarray
    values: np.ndarray
    side: np.ndarray


def show_evidence(pieces: np.ndarray, k: int, protocol: Protocol, rng: np.random.Generator) -> Evidence:
    """The k pieces of each case ``[N, n]`` that the judge sees.

    ``random``: chosen at random. ``consultant``: one side, with equal probability the first or the second answer's
    regardless of the truth, shows the k pieces that help it most. ``debate``: the two sides show k / 2 pieces each, the
    first answer's side before the other.

    Raises:
        ValueError: k is odd in a debate, or not from 1 to n.
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
    return Evidence(chosen, np.take_along_axis(pieces, chosen, 1), side)


def evidence_subset(evidence: Evidence, part: slice) -> Evidence:
    """The shown evidence of a part of the cases."""
    return Evidence(evidence.pieces[part], evidence.values[part], evidence.side[part])


def naive_judge(evidence: Evidence) -> np.ndarray:
    """``[N]`` the sum of the shown values."""
    return evidence.values.sum(1)


def aware_judge(past: Evidence, totals: np.ndarray, evidence: Evidence) -> np.ndarray:
    """``[N]`` the expected sum of all pieces given the shown ones, by least squares on past cases of the same protocol,
    whose sums ``totals`` are known."""
    weights, *_ = np.linalg.lstsq(_regressors(past.values), totals, rcond=None)
    return _regressors(evidence.values) @ weights


def _regressors(values: np.ndarray) -> np.ndarray:
    """``[N, 1 + 3 k]``: a constant, then the values, their absolute values and their signed squares."""
    size = abs(values)
    return np.concatenate([np.ones((len(values), 1)), values, size, values * size], 1)


def probability(estimates: np.ndarray, past_estimates: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """``[N]`` probability that the sum is positive, from the errors of a judge's expected sums in past cases."""
    errors = np.sort(totals - past_estimates)
    above = len(errors) - np.searchsorted(errors, -estimates, side="right")
    equal = np.searchsorted(errors, -estimates, side="right") - np.searchsorted(errors, -estimates, side="left")
    return (above + 0.5 * equal) / len(errors)


def accuracy(estimates: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """``[N]`` 1 if the judge names the better answer, 0 if the other, 0.5 if neither."""
    return 0.5 + 0.5 * np.sign(estimates) * np.sign(totals)


def toy(
    ks: Sequence[int] = (2, 4, 6), *, n: int = 7, draws: int = 200_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Accuracy of both judges under each protocol, on n pieces drawn from N(0, 1); the aware judge learns from half of
    the draws."""
    accuracies = {}
    for k in ks:
        for number, protocol in enumerate(PROTOCOLS):
            rng = np.random.default_rng([seed, k, number])
            pieces = rng.standard_normal((draws, n))
            evidence, totals, n_past = show_evidence(pieces, k, protocol, rng), pieces.sum(1), draws // 2
            past, current = (evidence_subset(evidence, part) for part in (slice(n_past), slice(n_past, None)))
            accuracies[f"{protocol}, k = {k}"] = {
                "naive": float(accuracy(naive_judge(evidence), totals).mean()),
                "aware": float(accuracy(aware_judge(past, totals[:n_past], current), totals[n_past:]).mean()),
            }
    return accuracies


def positions(prompts: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """``[N, 4]`` the value of each position in two responses of the enumerable language, the first minus the second.

    Copied tokens, rises and repetitions have a position; length and parity have none and are never shown.

    Args:
        prompts: ``[X, 3]``.
        pairs: as returned by :func:`afzal.lab.language.sample_pairs`.
    """
    x, a, b = pairs
    first, second = (_local(prompts[x], language.RESPONSES[y]) for y in (a, b))
    return np.round(first - second, 9)


def _local(prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    values = np.zeros(response.shape)
    values[:, :3] += 0.9 * (response[:, :3] == prompt)
    both = response[:, 1:] >= 0
    values[:, 1:] += 0.5 * ((response[:, 1:] > response[:, :-1]) & both)
    values[:, 1:] -= 0.7 * ((response[:, 1:] == response[:, :-1]) & both)
    return values


def count_judge(past: Evidence, totals: np.ndarray, evidence: Evidence) -> np.ndarray:
    """``[N]`` how much likelier the first answer is to be better than the second, -1 to 1, among past cases with
    exactly the same evidence shown by the same side; if there are none, the sum of the shown values decides, with a
    magnitude below any count.

    For evidence with few distinct values, where this is the posterior itself.
    """
    tables = [np.concatenate([s.values, s.pieces, s.side[:, None]], 1) for s in (past, evidence)]
    rows = np.concatenate(tables)
    _, kind = np.unique(np.round(rows, 6), axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    past_kinds, kinds = kind[: len(past.values)], kind[len(past.values) :]
    n = np.bincount(past_kinds, minlength=kind.max() + 1)
    score = np.bincount(past_kinds, np.sign(totals), kind.max() + 1) / np.maximum(n, 1)
    return np.where(score[kinds] != 0, score[kinds], 1e-6 * np.sign(naive_judge(evidence)))
