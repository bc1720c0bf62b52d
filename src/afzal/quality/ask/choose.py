"""Choose the next questions, by a rule and a share at random, with the reason for each.

Shapes: N pairs of the pool, V pairs of the rows with votes, D features, M members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from afzal.errors import AfzalError
from afzal.records import Item, Vote

from . import rules
from .linear import fit, sigmoid
from .matches import match_scores, matches_of, next_matches
from .pool import Pool, Votes, places_in, votes_of
from .rules import Belief, Choice, Rule

By = Literal["d_optimal", "bald", "entropy", "information", "repeat", "random", "max_margin", "closest"]
RULES: tuple[By, ...] = get_args(By)

HARMFUL: Mapping[str, str] = {
    "max_margin": "max_margin asks about the pairs that the model is most sure of; on real pairs of texts it was 3.3 "
    "points of accuracy worse than random questions",
    "closest": "closest asks about the two models that seem most alike; after 300 votes on five models it found the "
    "best one in 74% of runs, random questions in 99%",
}
"""Rules measured to be worse than random questions, and by how much."""


@dataclass(frozen=True, slots=True, eq=False)
class RuleInputs:
    """The rules' inputs for the pairs of the pool and for the pairs voted on.

    Attributes:
        features: ``[N, D]`` and ``[V, D]``, of the first response minus the second.
        margins: ``[M, N]`` and ``[M, V]`` in nats, by the given scorers; None to fit the linear model on the features
            to the votes.
    """

    features: tuple[np.ndarray, np.ndarray]
    margins: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A pair of the pool to ask about, the rule that chose it (``random`` for the random share), and its score."""

    pair: int
    rule: By
    score: float


def words_of(pool: Pool, votes: Votes) -> RuleInputs:
    """Inputs with the hashed words of the responses as features."""
    return RuleInputs((pool.words, votes.pool.words))


def next_questions(
    pool: Pool,
    votes: Mapping[int, Sequence[Vote]],
    n: int,
    rule: By = "d_optimal",
    seed: int = 0,
    *,
    random_share: float = 0.1,
) -> list[Question]:
    """The next n questions during voting, from the words of the answers and the votes so far.

    The first call computes the features of the pool; later calls take milliseconds to tenths of a second.

    Args:
        votes: votes by the item's number in the pool.
        n: number of questions; fewer are returned if fewer are left.
        seed: seed of the random share and of the order among equal scores.
    """
    cast = votes_of(pool, votes)
    return choose(pool, cast, words_of(pool, cast), n, rule, seed=seed, random_share=random_share)


def choose(
    pool: Pool,
    votes: Votes,
    inputs: RuleInputs | None,
    n: int,
    rule: By,
    *,
    seed: int,
    random_share: float,
    ridge: float = 1.0,
) -> list[Question]:
    """The next n questions, or fewer if fewer are left.

    Pairs with votes are not asked about again, except by ``repeat``, which asks only about those. The random share is
    drawn first, uniformly from all eligible pairs, so it is a fair sample; its questions are spread among the others,
    since people may stop early. If all scores are equal, the questions and their order are those of ``random``.

    Args:
        inputs: may be None for rules without scores: information, closest, repeat, random.
        random_share: share of the n questions, from 0 to 1; fractions are rounded at random.
        ridge: precision of the linear model's prior.

    Raises:
        AfzalError: the rule lacks what it needs: a second scorer, named models, or votes that disagree.
        ValueError: the rule needs scores, and ``inputs`` is None.
    """
    generator = np.random.default_rng(seed)
    places = places_in(pool, votes)
    eligible = (places >= 0 if rule == "repeat" else places < 0) & ~pool.settled
    matches = matches_of(pool, votes) if rule in ("information", "closest") else None
    if matches is not None:
        eligible = eligible & (matches.match_of_pair >= 0)
    order = generator.permutation(np.flatnonzero(eligible))
    n = min(n, len(order))
    n_random = min(n, int(random_share * n + generator.random()))
    by_chance, rest = order[:n_random], order[n_random:]
    if rule == "information" or rule == "closest":
        assert matches is not None
        chosen, scores = next_matches(matches, rule, n - n_random, rest), match_scores(matches, rule)
    elif rule == "repeat":
        chosen, scores = _repeat_questions(votes, places, n - n_random, rest)
    elif rule == "random":
        chosen, scores = [Choice(k, 0.0) for k in rest[: n - n_random].tolist()], np.zeros(len(pool.pairs))
    elif inputs is None:
        raise ValueError(f"{rule} needs scores or features of the pairs")
    else:
        chosen, scores = _pairs(votes, inputs, rule, n - n_random, by_chance, rest, ridge)
    random = [Question(k, "random", float(scores[k])) for k in by_chance.tolist()]
    return _spread([Question(c.pair, rule, c.score) for c in chosen], random)


def _repeat_questions(votes: Votes, places: np.ndarray, n: int, rest: np.ndarray) -> tuple[list[Choice], np.ndarray]:
    """Pairs on which people disagree, starting with the one whose majority is most likely to be wrong."""
    scores = np.zeros(len(places))
    has_votes = places >= 0
    positions = places[has_votes]
    scores[has_votes] = np.where(votes.disagree, rules.may_be_wrong(votes.points, votes.weight), 0.0)[positions]
    if not scores.any():
        raise AfzalError(
            "there is no pair to ask about again",
            where="--by repeat",
            why="repeat asks about pairs of the pool on which votes disagree, and there are none",
            remedy="give votes of several people with --votes, or choose another rule",
        )
    split = rest[scores[rest] > 0]
    chosen = rules.by_score(scores[split], n, np.arange(len(split)))
    return [Choice(int(split[c.pair]), c.score) for c in chosen], scores


def _pairs(
    votes: Votes, inputs: RuleInputs, rule: Rule, n: int, by_chance: np.ndarray, rest: np.ndarray, ridge: float
) -> tuple[list[Choice], np.ndarray]:
    belief = belief_of(votes, inputs, rule, ridge)
    scores = np.zeros(belief.margins.shape[1])
    for choice in rules.ranked(rule, _part(belief, by_chance), len(by_chance), np.arange(len(by_chance))):
        scores[by_chance[choice.pair]] = choice.score
    if rule in ("d_optimal", "bald"):  # the random questions will be answered too
        x, p = belief.features[by_chance], belief.p_first[by_chance]
        expected = (x * (p * (1 - p))[:, None]).T @ x
        belief = replace(belief, precision=belief.precision + expected)
    chosen = rules.ranked(rule, _part(belief, rest), n, np.arange(len(rest)))
    return [Choice(int(rest[c.pair]), c.score) for c in chosen], scores


def belief_of(votes: Votes, inputs: RuleInputs, rule: Rule, ridge: float) -> Belief:
    """The belief about the pairs of the pool, from the votes and the scorers.

    Raises:
        AfzalError: BALD has a single scorer, which cannot disagree with itself.
    """
    pool_features, voted_features = inputs.features
    if inputs.margins is None:
        model = fit(voted_features, votes.p_first, votes.weight, ridge)
        return Belief((pool_features @ model.theta)[None], pool_features, model.precision)
    margins, voted_margins = inputs.margins
    if rule == "bald" and len(margins) == 1:
        raise AfzalError(
            "a single scorer cannot disagree with itself",
            where="--by bald",
            why="with given scores, BALD is the disagreement of several scorers or heads",
            remedy="give --reward several times, or a reward model that was trained with heads=4 or so",
        )
    p = sigmoid(voted_margins).mean(0)
    precision = (
        ridge * np.eye(pool_features.shape[1])
        + (voted_features * (votes.weight * p * (1 - p))[:, None]).T @ voted_features
    )
    return Belief(margins, pool_features, precision)


def _part(belief: Belief, pairs: np.ndarray) -> Belief:
    return Belief(belief.margins[:, pairs], belief.features[pairs], belief.precision)


def _spread(chosen: Sequence[Question], random: Sequence[Question]) -> list[Question]:
    """All questions, with the random ones evenly spaced among the others."""
    total = len(chosen) + len(random)
    places = {int((k + 0.5) * total / len(random)) for k in range(len(random))} if random else set()
    by_rule, at_random = iter(chosen), iter(random)
    return [next(at_random) if position in places else next(by_rule) for position in range(total)]


def question_rows(pool: Pool, questions: Sequence[Question]) -> list[Item]:
    """The questions as rows for ``afzal annotate``: two responses, no votes, and the reason in ``extra.asked``."""
    rows = []
    for q in questions:
        row = pool.row(q.pair)
        rows.append(replace(row, extra={**row.extra, "asked": {"rule": q.rule, "score": q.score}}))
    return rows
