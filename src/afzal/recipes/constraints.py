"""The ready constraints: what an answer may cost, as a scalar with a gradient.

Each is a function ``(model, pi_logps, ref_logps, yw_idxs, yl_idxs, batch) -> scalar`` as :mod:`afzal.train.constraints`
takes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from afzal import data
from afzal.config import PreferConfig
from afzal.errors import AfzalError
from afzal.generate import Sample, Sampling, as_trees, sample
from afzal.model.logprobs import logits_of, predicting, score
from afzal.recipes.named import own_function
from afzal.tokens import continuation, encode
from afzal.tokens.batch import Batch, Sharing, collate, expand
from afzal.tokens.tree import Tree
from afzal.train.constraints import Constraint, Cost
from afzal.train.feed import Layout

_ANSWERS = 4
_SCORES = "function(prompt, answer) returns a number, larger being worse"
_COSTS = "function(model, pi_logps, ref_logps, yw_idxs, yl_idxs, batch) returns a scalar with a gradient"

Scorer = Callable[[str, str], float]
"""``(prompt, answer) -> cost``, for instance 1 for an unsafe answer and 0 for any other."""


def constraint_of(config: PreferConfig, encoder: Any, layout: Layout, eos: Sequence[int]) -> tuple[Constraint, ...]:
    """The constraint that the settings name, if any.

    Args:
        encoder: has ``tokenizer``, ``max_tokens`` and ``template``, as :class:`afzal.recipes.prepare.Prepared` has.
        eos: ids that end a sampled answer.

    Raises:
        AfzalError: a token, file or function that it needs is not there.
    """
    if config.constraint is None:
        return ()
    cost = _cost(config, encoder, layout, eos)
    name = config.constraint.rpartition(":")[2]
    return (Constraint(name, cost, config.constraint_bound, config.constraint_weight, config.constraint_dual_lr),)


def _cost(config: PreferConfig, encoder: Any, layout: Layout, eos: Sequence[int]) -> Cost:
    if config.constraint == "unsafe_mass":
        return unsafe_mass(_token_ids(encoder.tokenizer, config.constraint_tokens or ()))
    if config.constraint == "unsafe_likelihood":
        return unsafe_likelihood(_unsafe_trees(config, encoder), layout)
    if config.constraint == "black_box":
        scorer = own_function(config.constraint_score or "", "constraint_score", _SCORES)
        sampling = Sampling(max_new_tokens=config.sample_tokens or encoder.longest_response, temperature=1.0)
        return score_function(scorer, encoder.tokenizer, eos, sampling, layout.sharing)
    return own_function(config.constraint or "", "constraint", _COSTS)


def unsafe_mass(ids: Sequence[int]) -> Cost:
    """Probability of a set of tokens under the policy, in [0, 1]: the mean over the batch's scored positions."""
    wanted = torch.tensor(sorted(set(ids)))

    def cost(model: Any, pi: Tensor, ref: Tensor | None, yw: Tensor, yl: Tensor, batch: Batch) -> Tensor:
        log_p = logits_of(model, predicting(model, batch)).log_softmax(-1)
        return log_p[:, wanted.to(log_p.device)].exp().sum(-1).mean()

    return cost


def unsafe_likelihood(trees: Sequence[Tree], layout: Layout) -> Cost:
    """Likelihood of known-unsafe completions: the mean over them of e^(mean log-prob per token), in [0, 1].

    Of many batches of completions, each call takes one, which hangs on the items it is called with alone.
    """
    batches = layout.batches(trees)

    def cost(model: Any, pi: Tensor, ref: Tensor | None, yw: Tensor, yl: Tensor, batch: Batch) -> Tensor:
        return score(model, batches[_seed(batch) % len(batches)]).mean_logps.exp().mean()

    return cost


def score_function(scorer: Scorer, tokenizer: Any, eos: Sequence[int], sampling: Sampling, sharing: Sharing) -> Cost:
    """Expected cost of the policy's own answers to the batch's prompts, by any function of their texts.

    The value is the mean cost s of four answers y ~ pi per prompt; the gradient is that of the score-function estimator
    (Williams 1992), mean (s - mean s) grad log pi(y|x), with the mean of the other answers as baseline, so unbiased.
    Sampling is seeded by the items of the batch, so that a resumed run repeats it.
    """

    def cost(model: Any, pi: Tensor, ref: Tensor | None, yw: Tensor, yl: Tensor, batch: Batch) -> Tensor:
        prompts = [t.prompt.tolist() for t, k in batch.sources if k == 0]
        drawn = sample(model, prompts, eos=eos, n=_ANSWERS, sampling=sampling, seed=_seed(batch))
        costs = torch.tensor([_scored(scorer, tokenizer, prompts, s) for s in drawn], device=pi.device)
        logps = score(model, collate(as_trees(drawn, prompts), sharing, pi.device)).logps
        centred = (costs - costs.mean()) * (len(costs) / (len(costs) - 1))
        surrogate = (centred * logps).mean()
        return costs.mean() + surrogate - surrogate.detach()

    return cost


def _scored(scorer: Scorer, tokenizer: Any, prompts: Sequence[Sequence[int]], drawn: Sample) -> float:
    """What a sampled answer costs, its end marker left out."""
    prompt = prompts[drawn.prompt_index]
    text = continuation(tokenizer, prompt, drawn.answer.tolist())
    return float(scorer(tokenizer.decode(prompt, skip_special_tokens=True), text))


def _seed(batch: Batch) -> int:
    return int.from_bytes(hashlib.sha256("|".join(batch.item_ids).encode()).digest()[:7], "big")


def _token_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The id of each word, which must be one token."""
    found = []
    for word in words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise AfzalError(
                f"constraint_tokens: {word!r} is {len(ids)} tokens of this model, not one",
                remedy="name single tokens; a leading space makes another token of a word",
            )
        found.append(ids[0])
    return found


def _unsafe_trees(config: PreferConfig, encoder: Any) -> list[Tree]:
    source = config.constraint_data or ""
    items = data.read(source).items
    made = encode(items, encoder.tokenizer, max_tokens=encoder.max_tokens, chat_template=encoder.template).trees
    trees = expand(made)
    if not trees:
        raise AfzalError("no completion could be read", where=source, remedy="rows with prompt and completion")
    return trees
