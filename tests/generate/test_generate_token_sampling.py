"""One draw: independent uniform numbers, the truncation of `transformers`, and exact inversion."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from afzal.generate.token_sampling import (
    Sampling,
    block_sums,
    draw_tokens,
    filter_scores,
    invert_cdf,
    row_keys,
    uniforms,
)


def grid(prompts, samples):
    p, s = np.meshgrid(np.arange(prompts), np.arange(samples), indexing="ij")
    return p.ravel(), s.ravel()


def _uniforms(keys, step):
    return uniforms(keys, np.full(len(keys), step))


def test_uniforms_are_uniform_over_rows_and_over_steps():
    keys = row_keys(7, *grid(50, 40))
    drawn = np.stack([_uniforms(keys, step) for step in range(20)])
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02
    assert len(np.unique(drawn)) == drawn.size


def test_a_uniform_belongs_to_seed_prompt_sample_and_step_and_to_nothing_else():
    prompts, samples = grid(5, 4)
    every = _uniforms(row_keys(3, prompts, samples), 2)
    some = np.array([17, 4, 9])
    np.testing.assert_array_equal(_uniforms(row_keys(3, prompts[some], samples[some]), 2), every[some])
    others = [_uniforms(row_keys(4, prompts, samples), 2), _uniforms(row_keys(3, prompts, samples), 3)]
    others += [_uniforms(row_keys(3, prompts + 1, samples), 2)[:4], _uniforms(row_keys(3, samples, prompts), 2)[1:]]
    for other in others[:3]:
        assert not np.isin(other[: len(every)], every[: len(other)]).all()
    assert not (others[0] == every).any()
    assert not (others[1] == every).any()


@pytest.mark.parametrize("size", [5, 255, 256, 257, 1000, 4096])
def test_inversion_is_that_of_the_cumulative_sum(size):
    generator = torch.Generator().manual_seed(size)
    scores = 4 * torch.randn(64, size, generator=generator)
    scores[:, ::3] = -torch.inf
    probabilities = scores.softmax(-1)
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    edges = probabilities.double().cumsum(1)
    expected = torch.searchsorted(edges, uniform[:, None] * edges[:, -1:], right=True)[:, 0]
    assert torch.equal(invert_cdf(probabilities, block_sums(probabilities), uniform), expected)


def test_inversion_never_draws_what_is_impossible_even_at_the_ends():
    probabilities = torch.zeros(3, 700)
    probabilities[:, [3, 299, 511]] = torch.tensor([1e-30, 0.25, 0.75])
    ends = torch.tensor([2.0**-41, 1 - 2.0**-41, 0.25], dtype=torch.float64)
    assert invert_cdf(probabilities, block_sums(probabilities), ends).tolist() == [299, 511, 511]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("top_k", [0, 1, 5, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.01])
def test_limits_are_those_of_transformers(temperature, top_k, top_p):
    scores = 2 * torch.randn(16, 300, generator=torch.Generator().manual_seed(0))
    scores[0, :7] = scores[0].max() + 1  # ties at the top
    expected = TemperatureLogitsWarper(temperature)(None, scores) if temperature != 1 else scores
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    actual = filter_scores(scores, Sampling(temperature=temperature, top_p=top_p, top_k=top_k))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.6, top_k=3), Sampling(temperature=0)])
def test_log_probs_are_those_of_the_full_distribution_at_temperature_1(sampling):
    logits = 3 * torch.randn(200, 50, generator=torch.Generator().manual_seed(1))
    uniform = torch.from_numpy(_uniforms(row_keys(0, np.arange(200), np.zeros(200, int)), 0))
    tokens, logps = draw_tokens(logits, uniform, sampling)
    torch.testing.assert_close(logps, logits.log_softmax(-1)[torch.arange(200), tokens], atol=2e-6, rtol=0)
    if sampling.temperature == 0:
        assert torch.equal(tokens, logits.argmax(-1))


def test_barred_ids_are_not_drawn_and_leave_log_probs_as_they_are():
    logits = torch.zeros(500, 4)
    logits[:, 2] = 5.0
    uniform = torch.from_numpy(_uniforms(row_keys(0, np.arange(500), np.zeros(500, int)), 0))
    tokens, logps = draw_tokens(logits, uniform, Sampling(), torch.tensor([2]))
    assert set(tokens.tolist()) == {0, 1, 3}
    torch.testing.assert_close(logps, logits.log_softmax(-1)[:, 0])
    assert 2 not in draw_tokens(logits, uniform, Sampling(temperature=0), torch.tensor([2]))[0]


@pytest.mark.parametrize("top_p", [1e-3, 1e-9, 1e-30])
def test_the_likeliest_token_stays_however_small_top_p_is(top_p):
    """In float32, 1 - 1e-9 is 1: without a rule for the last token, nothing would be left to draw."""
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, -1.0]])
    left = filter_scores(scores, Sampling(top_p=top_p))
    assert left.isfinite().tolist() == [[False, True, False], [True, False, False]]


def test_draws_have_the_frequencies_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(40_000, 4)
    uniform = torch.from_numpy(_uniforms(row_keys(0, np.arange(40_000), np.zeros(40_000, int)), 5))
    counts = torch.bincount(draw_tokens(logits, uniform, Sampling(temperature=2.0))[0], minlength=4).numpy()
    assert stats.chisquare(counts, (logits[0] / 2).softmax(-1).double().numpy() * 40_000).pvalue > 0.01
