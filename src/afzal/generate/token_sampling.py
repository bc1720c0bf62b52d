"""Drawing one token per row from logits: temperature, top-k, top-p, and randomness that depends only on the sample.

Every draw uses its own uniform number, a hash of (seed, prompt, sample, step), so it does not matter which rows are
decoded together.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from afzal.tokens.hashing import GOLDEN, avalanche

_BLOCK = 256
_CACHED = 2**19  # logits, in float32


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw: temperature 0 is greedy; ``top_p`` 1 and ``top_k`` 0 keep the full distribution.

    EOS tokens are not drawn before ``min_new_tokens`` tokens, and ``barred`` ones never: placeholder tokens of images
    or sounds mean nothing in an answer.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_new_tokens: int = 0
    barred: tuple[int, ...] = ()


PLAIN = Sampling()


def row_keys(seed: int, prompts: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """``[R]`` uint64: a key per (prompt, sample), for :func:`uniforms`."""
    key = avalanche(np.full(len(prompts), seed, dtype=np.uint64))
    key = avalanche(key ^ avalanche(prompts.astype(np.uint64) + np.uint64(1)))
    return avalanche(key ^ avalanche(samples.astype(np.uint64) + np.uint64(1 << 32)))


def uniforms(keys: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """``[R]`` float64 in (0, 1) on a grid of 2^-40: the number that determines token ``steps`` ``[R]`` (from 0) of each
    row."""
    bits = avalanche(keys + (steps.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))  # modulo 2^64
    return ((bits >> np.uint64(24)).astype(np.float64) + 0.5) * 2.0**-40


def draw_tokens(
    logits: Tensor, uniform: Tensor, sampling: Sampling, barred: Tensor | None = None, buffer: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A token per row and its log-prob under the model itself.

    Args:
        logits: ``[R, V]``, read as float32.
        uniform: ``[R]`` float64 in (0, 1); the token is where it falls in the cumulative distribution.
        barred: ids that must not be drawn.
        buffer: ``[R, V]`` float32 buffer to overwrite. On a CPU allocating it takes longer than filling it, so a caller
            that draws at every step keeps one.

    Returns:
        Tokens ``[R]`` int64, and log-probs ``[R]`` float32 in nats at temperature 1 of the full distribution,
        regardless of
        the sampling: the values that scoring the text gives.
    """
    if sampling.temperature == 0:
        scores = logits if barred is None else logits.index_fill(1, barred, -torch.inf)
        tokens = scores.argmax(-1)
        return tokens, _logps(logits, tokens)
    weights = torch.empty(logits.shape, dtype=torch.float32, device=logits.device) if buffer is None else buffer
    pieces = zip(logits.split(_rows(logits)), weights.split(_rows(logits)), strict=True)
    sums = torch.cat([_weigh(block, place, sampling, barred) for block, place in pieces])
    tokens = invert_cdf(weights, sums, uniform)
    if barred is None and sampling.temperature == 1 and sampling.top_p == 1 and not sampling.top_k:
        return tokens, (weights.gather(1, tokens[:, None])[:, 0] / sums.double().sum(1)).log().float()
    return tokens, _logps(logits, tokens)


def _rows(logits: Tensor) -> int:
    """The number of rows processed together: on a CPU, as many as fit into its cache."""
    return max(1, _CACHED // logits.shape[1] if logits.device.type == "cpu" else len(logits))


def _weigh(logits: Tensor, weights: Tensor, sampling: Sampling, barred: Tensor | None) -> Tensor:
    """Write unnormalised probabilities (at most 1) to ``weights``, and return their block sums."""
    scores = weights.copy_(logits)
    if barred is not None:
        scores.index_fill_(1, barred, -torch.inf)
    scores = filter_scores(scores, sampling)
    torch.sub(scores, scores.amax(-1, keepdim=True), out=weights).exp_()
    return block_sums(weights)


def filter_scores(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores ``[R, V]`` divided by the temperature; -inf for tokens removed by top-k, then top-p (ties with the k-th
    stay).

    Top-p keeps the likeliest tokens until their probabilities reach ``top_p``, at least one.
    """
    if sampling.temperature != 1:
        scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ascending, order = scores.sort(dim=-1)
        out = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        out[:, -1] = False
        scores = scores.masked_fill(out.scatter(1, order, out), -torch.inf)
    return scores


def invert_cdf(weights: Tensor, sums: Tensor, uniform: Tensor) -> Tensor:
    """``[R]`` int64: for each row the token at which the cumulative sum of its weights passes ``uniform`` of the total.

    It works in two steps, blocks (``sums``, from :func:`block_sums`) and then tokens of one block, both summed in
    float64, so that rounding errors do not grow along the vocabulary. A token of weight 0 is never drawn.
    """
    sums = sums.double()
    edges = sums.cumsum(1)
    target = uniform[:, None] * edges[:, -1:]
    # NaN is beyond every edge: such a row gets an arbitrary token, whose log-prob is NaN too
    block = torch.searchsorted(edges, target, right=True).clamp(max=edges.shape[1] - 1)
    fraction = (target - (edges - sums).gather(1, block)) / sums.gather(1, block)
    index = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    block_weights = weights.gather(1, index.clamp(max=weights.shape[1] - 1)).double()
    steps = block_weights.masked_fill(index >= weights.shape[1], 0.0).cumsum(1)
    # a block's float32 sum and the sum of its tokens differ in the last bits: use the latter
    places = torch.searchsorted(steps, fraction.clamp(0.0, 1 - 2.0**-40) * steps[:, -1:], right=True)
    return (block * _BLOCK + places)[:, 0].clamp(max=weights.shape[1] - 1)


def block_sums(weights: Tensor) -> Tensor:
    """``[R, blocks]``: sums of every 256 columns of ``[R, V]``; the last block may be shorter."""
    rows, size = weights.shape
    full = size // _BLOCK * _BLOCK
    sums = weights[:, :full].reshape(rows, -1, _BLOCK).sum(-1)
    if full == size:
        return sums
    return torch.cat([sums, weights[:, full:].sum(-1, keepdim=True)], dim=1)


def _logps(logits: Tensor, tokens: Tensor) -> Tensor:
    wholes = torch.cat([block.float().logsumexp(-1) for block in logits.split(_rows(logits))])
    return logits.gather(1, tokens[:, None])[:, 0].float() - wholes
