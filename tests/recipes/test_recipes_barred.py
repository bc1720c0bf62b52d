"""Models some of whose tokens have probability 0: the head's bias is -inf, as in a padded vocabulary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import VOCABULARY, make, random_trees

from afzal.errors import AfzalError
from afzal.generate import Sampling, choose_decoding, sample
from afzal.iterate.answers import sequence_kl
from afzal.model.load import frozen_copy
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing, largest_gap, plain_logps
from afzal.tokens.batch import collate
from afzal.tokens.tree import Tree, tree

BARRED = slice(40, 60)


def barring(seed: int = 0) -> Any:
    model = make("phi", seed)
    with torch.no_grad():
        model.lm_head.bias[BARRED] = -math.inf
    return model


def open_trees(n: int) -> list[Tree]:
    """Trees without barred tokens."""
    move = lambda ids: np.where((ids >= 40) & (ids < 60), ids - 30, ids)  # noqa: E731
    return [
        tree(t.item_id, move(t.prompt), [move(b.ids) for b in t.branches], pairs=t.preferences) for t in random_trees(n)
    ]


def test_the_probe_does_not_take_a_barred_token_for_a_difference():
    model = barring()
    assert choose_sharing(model) == ("shared", "")
    assert choose_decoding(model) == ("shared", "")


def test_two_infinities_are_no_gap_and_nan_is_one():
    inf = math.inf
    assert largest_gap(torch.tensor([-inf, 1.0]), torch.tensor([-inf, 1.25])) == 0.25
    assert largest_gap(torch.tensor([-inf, 1.0]), torch.tensor([-2.0, 1.0])) == inf
    assert math.isnan(largest_gap(torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0])))


def test_log_probs_and_gradients_are_finite_and_those_of_the_model():
    model = barring()
    sharing, _ = choose_sharing(model)
    logps = score(model, collate(open_trees(4), sharing)).token_logps
    logps.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g.isfinite().all() for g in gradients)
    assert (model.lm_head.bias.grad[BARRED] == 0).all()
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = plain_logps(model, collate(open_trees(4), "unshared"))
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-4)


def test_the_kl_of_answers_is_the_sum_over_tokens_that_can_be_written():
    policy, first = barring(0), barring(1)
    prompts = [[5, 6, 7], [8, 9]]
    drawn = sample(policy, prompts, eos=[2], n=3, sampling=Sampling(6), seed=0)
    assert not any(40 <= i < 60 for s in drawn for i in s.ids.tolist())
    kls = sequence_kl(policy, first, drawn, prompts, 1000)
    keep = [v for v in range(VOCABULARY) if not 40 <= v < 60]
    for s, value in zip(drawn, kls, strict=True):
        ids = torch.tensor([prompts[s.prompt_index] + s.ids.tolist()])
        rows = slice(len(prompts[s.prompt_index]) - 1, -1)
        with torch.no_grad():
            for model in (policy, first):
                model.set_attn_implementation("sdpa")
            p, q = (m(ids).logits[0, rows][:, keep].double().log_softmax(-1) for m in (policy, first))
        assert value == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)


def test_a_policy_that_writes_what_its_start_never_writes_is_refused():
    first = barring()
    policy = frozen_copy(first)
    with torch.no_grad():
        policy.lm_head.bias[BARRED] = 0.0
    drawn = sample(policy, [[5, 6, 7]], eos=[2], n=2, sampling=Sampling(4), seed=0)
    with pytest.raises(AfzalError, match="not finite"):
        sequence_kl(policy, first, drawn, [[5, 6, 7]], 1000)
