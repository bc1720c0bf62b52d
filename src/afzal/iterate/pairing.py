"""From scored answers to preference pairs: rejection of answers and choice of pairs.

Pure functions of texts, rewards and random numbers that depend only on names, so that a round replays exactly.
Rewards are in their source's units; larger is better.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, count
from typing import Literal

from afzal.data.turns import assistant_turn
from afzal.records import Comparison, Item, Response, Turns

Pairing = Literal["best_worst", "best_random", "all", "rso"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled answer. ``ended``: with EOS, not at the token limit; ``reward``: NaN if it was not scored;
    ``withheld``: the finish reason if a server ended it in another way, such as by a filter."""

    text: str
    reward: float = math.nan
    ended: bool = True
    withheld: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejected answer, pair or prompt (``unit``), with the reason."""

    reason: str
    detail: str
    unit: Literal["response", "pair", "item"] = "response"


@dataclass(frozen=True, slots=True)
class Pair:
    """Answer ``better`` preferred to answer ``worse`` (numbers), by ``margin`` > 0 in units of the reward."""

    better: int
    worse: int
    margin: float


def split_rejected(
    candidates: Sequence[Candidate], *, require_eos: bool = True, repeats: Literal["reject", "keep"] = "reject"
) -> tuple[list[int], list[Rejection]]:
    """The numbers of the answers that can be paired, and the rejections of the others.

    Rejected are answers withheld by a server (``withheld``), empty ones (``empty``), answers cut at the token limit
    (``no_eos``, with ``require_eos``), and repeats of an earlier answer's text (``duplicate``), ignoring surrounding
    white space. Rejection sampling keeps repeats: an answer's frequency reflects its probability.
    """
    usable: list[int] = []
    rejections: list[Rejection] = []
    first_number: dict[str, int] = {}
    for k, candidate in enumerate(candidates):
        text = candidate.text.strip()
        if candidate.withheld:
            rejections.append(Rejection("withheld", f"answer {k} ended by {candidate.withheld}"))
        elif not text:
            rejections.append(Rejection("empty", f"answer {k}"))
        elif require_eos and not candidate.ended:
            rejections.append(Rejection("no_eos", f"answer {k}"))
        elif repeats == "reject" and text in first_number:
            rejections.append(Rejection("duplicate", f"answer {k} is answer {first_number[text]} again"))
        else:
            first_number.setdefault(text, k)
            usable.append(k)
    return usable, rejections


def pairs_of(
    candidates: Sequence[Candidate],
    usable: Sequence[int],
    pairing: Pairing,
    uniform: Iterator[float],
    *,
    min_margin: float = 0.0,
    rso_beta: float = 0.5,
    rso_accepted: int = 8,
) -> tuple[list[Pair], list[Rejection]]:
    """Pairs of the answers ``usable``, and rejections (``margin``, ``duplicate``, ``too_few``).

    Args:
        uniform: numbers in [0, 1), for the random choices of ``best_random`` and ``rso``.
        min_margin: pairs whose rewards differ by at most this are left out; 0 leaves out equal rewards.
        rso_beta, rso_accepted: as for :func:`rejection_sample`.
    """
    if len(usable) < 2:
        return [], [Rejection("too_few", f"{len(usable)} of {len(candidates)} answers are left", "item")]
    rewards = [candidates[k].reward for k in usable]
    chosen = [(usable[i], usable[j]) for i, j in _matches(rewards, pairing, uniform, rso_beta, rso_accepted)]
    pairs, rejections = [], []
    for i, j in chosen:
        better, worse = (i, j) if candidates[i].reward >= candidates[j].reward else (j, i)
        margin = candidates[better].reward - candidates[worse].reward
        if candidates[better].text.strip() == candidates[worse].text.strip():
            rejections.append(Rejection("duplicate", f"answers {better} and {worse} are the same text", "pair"))
        elif not margin > min_margin:
            rejections.append(Rejection("margin", f"answers {better} and {worse} differ by {margin:g}", "pair"))
        else:
            pairs.append(Pair(better, worse, margin))
    return pairs, rejections


def _matches(
    rewards: Sequence[float], pairing: Pairing, uniform: Iterator[float], rso_beta: float, rso_accepted: int
) -> list[tuple[int, int]]:
    """The index pairs to compare, among two or more rewards."""
    numbers = range(len(rewards))
    if pairing == "all":
        return list(combinations(numbers, 2))
    if pairing == "rso":
        accepted = rejection_sample(rewards, rso_accepted, rso_beta, uniform)
        return list(zip(accepted[0::2], accepted[1::2], strict=False))
    best = max(numbers, key=lambda k: (rewards[k], -k))
    other_numbers = [k for k in numbers if k != best]
    if pairing == "best_random":
        return [(best, other_numbers[int(next(uniform) * len(other_numbers))])]
    return [(best, min(other_numbers, key=lambda k: (rewards[k], k)))]


def acceptance(rewards: Sequence[float], beta: float) -> list[float]:
    """exp((r - max r) / beta) of each reward: the probability that rejection sampling accepts it (RSO).

    Answers drawn from pi_ref and accepted in this way are distributed as pi_ref exp(r / beta) / Z if the maximum is
    that of all possible answers; with a sample's maximum this holds approximately (Liu et al. 2023, arXiv 2309.06657).
    """
    top = max(rewards)
    return [math.exp((r - top) / beta) for r in rewards]


def rejection_sample(rewards: Sequence[float], limit: int, beta: float, uniform: Iterator[float]) -> list[int]:
    """Numbers of the accepted answers, in order, until there are ``limit`` or none is left (RSO's Algorithm 1).

    Each pass goes over the remaining answers with their maximum, so that every pass accepts at least one.

    Args:
        beta: > 0, in units of the reward; a small value accepts only the best, a large one accepts all alike.
    """
    remaining, accepted = list(range(len(rewards))), []
    while remaining and len(accepted) < limit:
        not_accepted = []
        for k, probability in zip(remaining, acceptance([rewards[k] for k in remaining], beta), strict=True):
            if len(accepted) < limit and next(uniform) < probability:
                accepted.append(k)
            else:
                not_accepted.append(k)
        remaining = not_accepted
    return accepted


def dual_steps(means: Sequence[float], bound: float, lr: float, start: float = 0.0) -> float:
    """The multiplier after a step lambda <- max(0, lambda + lr (mean cost - bound)) for each mean cost, in order.

    Args:
        lr: step size: reward per cost, per unit of cost above the bound.
        start: >= 0, the multiplier before the first step.
    """
    value = start
    for mean in means:
        value = max(0.0, value + lr * (mean - bound))
    return value


def uniforms(name: str) -> Iterator[float]:
    """Yield numbers in [0, 1) that depend only on the name, the same on every machine and in every version."""
    for k in count():
        digest = hashlib.sha256(f"{name}/{k}".encode()).digest()
        yield (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def paired_item(item_id: str, prompt: Turns, candidates: Sequence[Candidate], pairs: Sequence[Pair]) -> Item:
    """The pairs of one prompt as an item; margins become the strengths of its votes, and answers keep their numbers."""
    numbers = sorted({k for p in pairs for k in (p.better, p.worse)})
    position = {k: n for n, k in enumerate(numbers)}
    responses = tuple(Response(answer(prompt, candidates[k].text), f"answer {k}") for k in numbers)
    votes = tuple(Comparison(position[p.better], position[p.worse], "first", strength=p.margin) for p in pairs)
    return Item(item_id, prompt, responses, votes)


def spin_item(
    item_id: str, prompt: Turns, demonstration: str, candidates: Sequence[Candidate], usable: Sequence[int]
) -> tuple[Item | None, list[Rejection]]:
    """The data's answer preferred to each of the policy's own (SPIN, Chen et al. 2024, arXiv 2401.01335).

    An answer with the same text is left out (``duplicate``); None if no other is left (``too_few``).
    """
    equal = [k for k in usable if candidates[k].text.strip() == demonstration.strip()]
    rejections = [Rejection("duplicate", f"answer {k} is the data's own") for k in equal]
    different = [k for k in usable if k not in equal]
    if not different:
        return None, [*rejections, Rejection("too_few", f"none of {len(candidates)} answers is left", "item")]
    responses = [Response(answer(prompt, demonstration), "the data's answer")]
    responses += [Response(answer(prompt, candidates[k].text), f"answer {k}") for k in different]
    votes = tuple(Comparison(0, n, "first") for n in range(1, len(responses)))
    return Item(item_id, prompt, tuple(responses), votes), rejections


def answer(prompt: Turns, text: str) -> Turns:
    """A text as an answer to this kind of prompt: a continuation, or an assistant message."""
    return text if isinstance(prompt, str) else assistant_turn(text)
