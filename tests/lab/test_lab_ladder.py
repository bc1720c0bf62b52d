"""The ladder of recursive reward modelling with a known truth: labels, reward model, assistant, labels again."""

from __future__ import annotations

import numpy as np
import pytest

from afzal.lab import language
from afzal.lab.toy_debate import accuracy, naive_judge, positions, show_evidence
from afzal.stats.intervals import Estimate, clustered, mean

TRAIN, HELD = language.prompts()
LEVELS = 4


def cases(prompts, n, seed):
    pairs = language.sample_pairs(language.sft_policy(prompts), n, np.random.default_rng(seed))
    rewards = language.reward(prompts)
    gaps = rewards[pairs[0], pairs[1]] - rewards[pairs[0], pairs[2]]
    return tuple(part[gaps != 0] for part in pairs), gaps[gaps != 0]


def differences(prompts, pairs):
    """``[N, 6]``: inputs of a linear reward model, first response minus second."""
    x, a, b = pairs
    parity = [
        (np.where(language.RESPONSES >= 0, language.RESPONSES, 0).sum(1)[y] + prompts[x].sum(1)) % 2 for y in (a, b)
    ]
    length = [abs(language.LENGTHS[y] - 3) for y in (a, b)]
    return np.column_stack([positions(prompts, pairs), parity[0] * 1 - parity[1], length[0] - length[1]]).astype(float)


def fitted(features, won):
    """Bradley-Terry by Newton's method, with a little ridge."""
    w = np.zeros(features.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-features @ w))
        curvature = (features * (p * (1 - p))[:, None]).T @ features + np.eye(len(w))
        w += np.linalg.solve(curvature, features.T @ (won - p) - w)
    return w


def said(prompts, pairs, seed, answers):
    """The verdict of a judge who sees two random positions, and the assistant's answer."""
    rng = np.random.default_rng(seed)
    seen = naive_judge(show_evidence(positions(prompts, pairs), 2, "random", rng))
    return seen + answers + 1e-6 * rng.choice([-1, 1], len(seen))


@pytest.fixture(scope="module")
def climbed():
    """Per level, whether the labels of each held-out pair are right; and the gaps that the last assistant states."""
    (train, _), (held, gaps) = cases(TRAIN, 8000, 1), cases(HELD, 6000, 2)
    ours, theirs = differences(TRAIN, train), differences(HELD, held)
    weights, levels = np.zeros(ours.shape[1]), []
    for level in range(LEVELS):
        levels.append(accuracy(said(HELD, held, 50, theirs @ weights), gaps))
        weights = fitted(ours, (said(TRAIN, train, 10 + level, ours @ weights) > 0).astype(float))
    return held, gaps, levels, theirs @ weights


def over_prompts(held, values) -> Estimate:
    return mean(clustered(held[0].tolist(), values.tolist()))


def test_agreement_does_not_fall_over_the_levels_of_an_honest_assistant(climbed):
    held, _, levels, _ = climbed
    agreement = [float(level.mean()) for level in levels]
    assert agreement == sorted(agreement)
    first = over_prompts(held, levels[1] - levels[0])
    assert first.ends[0] > 0.02


def test_an_assistant_that_lies_is_caught_by_the_judge_alone(climbed):
    held, gaps, levels, stated = climbed
    lying = accuracy(said(HELD, held, 50, -stated), gaps)
    difference = over_prompts(held, lying - levels[0])
    assert difference.ends[1] < -0.05


def test_an_assistant_that_knows_nothing_changes_nothing(climbed):
    held, gaps, levels, _ = climbed
    assert accuracy(said(HELD, held, 50, np.zeros(len(gaps))), gaps).tolist() == levels[0].tolist()
