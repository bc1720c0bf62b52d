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
    lost: list[Rejection] = []
    seen: dict[str, int] = {}
    for k, candidate in enumerate(candidates):
        text = candidate.text.strip()
        if candidate.withheld:
            lost.append(Rejection("withheld", f"answer {k} ended by {candidate.withheld}"))
        elif not text:
            lost.append(Rejection("empty", f"answer {k}"))
        elif require_eos and not candidate.ended:
            lost.append(Rejection("no_eos", f"answer {k}"))
        elif repeats == "reject" and text in seen:
            lost.append(Rejection("duplicate", f"answer {k} is answer {seen[text]} again"))
        else:
            seen.setdefault(text, k)
            usable.append(k)
    return usable, lost


def pairs_of(
    candidates: Sequence[Candidate],
    kept: Sequence[int],
    pairing: Pairing,
    uniform: Iterator[float],
    *,
    min_margin: float = 0.0,
    rso_beta: float = 0.5,
    rso_accepted: int = 8,
) -> tuple[list[Pair], list[Rejection]]:
    """Pairs of the answers ``kept``, and rejections (``margin``, ``duplicate``, ``too_few``).

    Args:
        uniform: numbers in [0, 1), for the random choices of ``best_random`` and ``rso``.
        min_margin: pairs whose rewards differ by at most this are left out; 0 leaves out equal rewards.
        rso_beta, rso_accepted: as for :func:`rejection_sample`.
    """
    if len(kept) < 2:
        return [], [Rejection("too_few", f"{len(kept)} of {len(candidates)} answers are left", "item")]
    rewards = [candidates[k].reward for k in kept]
    chosen = [(kept[i], kept[j]) for i, j in _matches(rewards, pairing, uniform, rso_beta, rso_accepted)]
    pairs, lost = [], []
    for i, j in chosen:
        better, worse = (i, j) if candidates[i].reward >= candidates[j].reward else (j, i)
        margin = candidates[better].reward - candidates[worse].reward
        if candidates[better].text.strip() == candidates[worse].text.strip():
            lost.append(Rejection("duplicate", f"answers {better} and {worse} are the same text", "pair"))
        elif not margin > min_margin:
            lost.append(Rejection("margin", f"answers {better} and {worse} differ by {margin:g}", "pair"))
        else:
            pairs.append(Pair(better, worse, margin))
    return pairs, lost


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
    others = [k for k in numbers if k != best]
    if pairing == "best_random":
        return [(best, others[int(next(uniform) * len(others))])]
    return [(best, min(others, key=lambda k: (rewards[k], k)))]


def acceptance(rewards: Sequence[float], beta: float) -> list[float]:
    """exp((r - max r) / beta) of each reward: the probability that rejection sampling accepts it (RSO).

    Answers drawn from pi_ref and accepted in this way are distributed as pi_ref exp(r / beta) / Z if the maximum is
    that of all possible answers; with a sample's maximum this holds approximately (Liu et al. 2023, arXiv 2309.06657).
    """
    top = max(rewards)
    return [math.exp((r - top) / beta) for r in rewards]


def rejection_sample(rewards: Sequence[float], wanted: int, beta: float, uniform: Iterator[float]) -> list[int]:
    """Numbers of the accepted answers, in order, until there are ``wanted`` or none is left (RSO's Algorithm 1).

    Each pass goes over the remaining answers with their maximum, so that every pass accepts at least one.

    Args:
        beta: > 0, in units of the reward; a small value accepts only the best, a large one accepts all alike.
    """
    left, accepted = list(range(len(rewards))), []
    while left and len(accepted) < wanted:
        waiting = []
        for k, probability in zip(left, acceptance([rewards[k] for k in left], beta), strict=True):
            if len(accepted) < wanted and next(uniform) < probability:
                accepted.append(k)
            else:
                waiting.append(k)
        left = waiting
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
    used = sorted({k for p in pairs for k in (p.better, p.worse)})
    at = {k: n for n, k in enumerate(used)}
    responses = tuple(Response(answer(prompt, candidates[k].text), f"answer {k}") for k in used)
    votes = tuple(Comparison(at[p.better], at[p.worse], "first", strength=p.margin) for p in pairs)
    return Item(item_id, prompt, responses, votes)


def spin_item(
    item_id: str, prompt: Turns, demonstration: str, candidates: Sequence[Candidate], kept: Sequence[int]
) -> tuple[Item | None, list[Rejection]]:
    """The data's answer preferred to each of the policy's own (SPIN, Chen et al. 2024, arXiv 2401.01335).

    An answer with the same text is left out (``duplicate``); None if no other is left (``too_few``).
    """
    same = [k for k in kept if candidates[k].text.strip() == demonstration.strip()]
    lost = [Rejection("duplicate", f"answer {k} is the data's own") for k in same]
    used = [k for k in kept if k not in same]
    if not used:
        return None, [*lost, Rejection("too_few", f"none of {len(candidates)} answers is left", "item")]
    responses = [Response(answer(prompt, demonstration), "the data's answer")]
    responses += [Response(answer(prompt, candidates[k].text), f"answer {k}") for k in used]
    votes = tuple(Comparison(0, n, "first") for n in range(1, len(responses)))
    return Item(item_id, prompt, tuple(responses), votes), lost


def answer(prompt: Turns, text: str) -> Turns:
    """A text as an answer to this kind of prompt: a continuation, or an assistant message."""
    return text if isinstance(prompt, str) else assistant_turn(text)
