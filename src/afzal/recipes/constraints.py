"""Built-in constraints: costs of answers, as scalars with a gradient.

Each is a function ``(model, pi_logps, ref_logps, yw_idxs, yl_idxs, batch) -> scalar`` as in
:mod:`afzal.train.constraints`: a mean over what its ``counts`` counts, so the cost of an update does not depend on how
it is split into batches. Random draws depend on the update and the item alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from afzal import data
from afzal.config import ConstrainedConfig
from afzal.errors import AfzalError
from afzal.generate import Sample, Sampling, as_trees, sample
from afzal.model.logprobs import logits_of, predicting, score
from afzal.objectives import advantages
from afzal.prepare import Prepared
from afzal.rewards.functions import call_about, own_function
from afzal.tokens import Speaker
from afzal.tokens.batch import Batch, Sharing, collate, expand
from afzal.tokens.tree import Tree
from afzal.train.constraints import Constraint, Cost, responses
from afzal.train.feed import Layout
from afzal.train.shard import gathered

_ANSWERS = 4
_ARGUMENTS = 6  # of a cost, before the columns that it asks for
_COMPLETIONS = 32
_SCORES = "function(prompt, answer) returns a number, larger being worse"
_COSTS = "function(model, pi_logps, ref_logps, yw_idxs, yl_idxs, batch) returns a scalar with a gradient"

Scorer = Callable[..., float]
"""``(prompt, answer) -> cost``, for instance 1 for an unsafe answer and 0 for any other; further parameters get
the row's columns with their names (:func:`afzal.rewards.functions.by_text`)."""


def constraint_of(config: ConstrainedConfig, prepared: Prepared, layout: Layout) -> tuple[Constraint, ...]:
    """The constraint that the settings name.

    Raises:
        AfzalError: a token, file or function that it needs is missing.
    """
    cost = _cost(config, prepared, layout)
    name = (config.constraint or "").rpartition(":")[2]
    enforcement = (config.constraint_bound, config.constraint_weight, config.constraint_dual_lr)
    return (Constraint(name, cost, *enforcement, getattr(cost, "counts", responses)),)


def _counted_by(counts: Callable[[Batch], float]) -> Callable[[Cost], Cost]:
    """Declare what a cost is a mean over."""

    def mark(cost: Cost) -> Cost:
        cost.counts = counts  # pyright: ignore[reportFunctionMemberAccess]
        return cost

    return mark


def _cost(config: ConstrainedConfig, prepared: Prepared, layout: Layout) -> Cost:
    if config.constraint == "unsafe_mass":
        return unsafe_mass(_token_ids(prepared.tokenizer, config.constraint_tokens or ()))
    if config.constraint == "unsafe_likelihood":
        return unsafe_likelihood(_unsafe_trees(config, prepared), layout)
    if config.constraint == "black_box":
        scorer = own_function(config.constraint_score or "", "constraint_score", _SCORES)
        sampling = Sampling(max_new_tokens=config.sample_tokens or prepared.longest_response, temperature=1.0)
        return score_function(scorer, prepared.speaker, prepared.ends, sampling, layout.sharing)
    return _given_columns(own_function(config.constraint or "", "constraint", _COSTS))


def _given_columns(cost: Callable[..., Any]) -> Cost:
    """A user-defined cost, called with the columns it asks for as lists with one value per response."""
    request = data.column_request(cost, _ARGUMENTS)
    if not request.any:
        return cost

    @wraps(cost)
    def with_columns(model: Any, pi: Tensor, ref: Tensor | None, yw: Tensor, yl: Tensor, batch: Batch) -> Tensor:
        rows = [request.select(t.columns) for t, _ in batch.sources]
        lists = {key: [row.get(key) for row in rows] for key in (rows[0] if rows else {})}
        return cost(model, pi, ref, yw, yl, batch, **lists)

    return with_columns


def unsafe_mass(ids: Sequence[int]) -> Cost:
    """Probability of a set of tokens under the policy, in [0, 1]: the mean over the update's scored positions."""
    token_ids = torch.tensor(sorted(set(ids)))

    @_counted_by(lambda batch: float(batch.scored.sum()))
    def cost(model: Any, pi: Tensor, ref: Tensor | None, yw: Tensor, yl: Tensor, batch: Batch) -> Tensor:
        log_p = logits_of(model, predicting(model, batch)).log_softmax(-1)
        return log_p[:, token_ids.to(log_p.device)].exp().sum(-1).mean()

    return cost


def unsafe_likelihood(trees: Sequence[Tree], layout: Layout) -> Cost:
    """Likelihood of known-unsafe completions: the mean over them of e^(mean log-prob per token), in [0, 1].

    If there are many, each update takes the next 32, in file order and cyclically.
    """
    n = min(_COMPLETIONS, len(trees))

    def cost(model: Any, pi: Tensor, ref: Tensor | None, yw: Tensor, yl: Tensor, batch: Batch) -> Tensor:
        selected = [trees[(batch.update * n + k) % len(trees)] for k in range(n)]
        parts = [score(model, b).mean_logps.exp().sum() for b in layout.batches(selected)]
        return torch.stack(parts).sum() / n

    return cost


def score_function(scorer: Scorer, speaker: Speaker, eos: Sequence[int], sampling: Sampling, sharing: Sharing) -> Cost:
    """Expected cost of the policy's own answers to the batch's prompts, by any function of the texts.

    The value is the mean cost s of four answers y ~ pi per prompt; the gradient is that of the score-function estimator
    (Williams 1992), mean (s - b) grad log pi(y|x), with the mean of the prompt's other answers as
    baseline b, so it is unbiased. Draws depend on the update number and the item, so a resumed run repeats them.
    """
    score_text = partial(call_about, scorer, data.column_request(scorer))

    @_counted_by(lambda batch: float(len(_sampled_items(batch))))
    def cost(model: Any, pi: Tensor, ref: Tensor | None, yw: Tensor, yl: Tensor, batch: Batch) -> Tensor:
        trees = _sampled_items(batch)
        numbers = [_number(t.item_id) for t in trees]
        seed = _number(f"update {batch.update}")
        with gathered(model):  # answers differ in length, so ranks run unequal numbers of passes
            samples = sample(model, trees, eos=eos, n=_ANSWERS, sampling=sampling, seed=seed, numbers=numbers)
        costs = torch.tensor([_score_sample(score_text, speaker, trees, s) for s in samples], device=pi.device)
        logps = score(model, collate(as_trees(samples, trees), sharing, pi.device)).logps
        better_than_others = advantages.rloo(costs.view(-1, _ANSWERS)).flatten()
        surrogate = (better_than_others * logps).mean()
        return costs.mean() + surrogate - surrogate.detach()

    return cost


def _sampled_items(batch: Batch) -> list[Tree]:
    """The items of a batch, whose prompts are sampled from."""
    return [t for t, k in batch.sources if k == 0]


def _score_sample(
    score_text: Callable[[str, str, Mapping[str, Any]], float],
    speaker: Speaker,
    trees: Sequence[Tree],
    sample: Sample,
) -> float:
    """The cost of a sampled answer, without its end marker."""
    item = trees[sample.prompt_index]
    prompt = item.prompt.tolist()
    text = speaker.continuation(prompt, sample.answer.tolist())
    prompt_text = speaker.tokenizer.decode(prompt, skip_special_tokens=True)
    return score_text(prompt_text, text, item.columns)


def _number(words: str) -> int:
    """A hash in [0, 2^56)."""
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")


def _token_ids(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """The id of each word, which must be one token."""
    single_ids = []
    for word in words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise AfzalError(
                f"constraint_tokens: {word!r} is {len(ids)} tokens of this model, not one",
                remedy="name single tokens; a leading space makes another token of a word",
            )
        single_ids.append(ids[0])
    return single_ids


def _unsafe_trees(config: ConstrainedConfig, prepared: Prepared) -> list[Tree]:
    source = config.constraint_data or ""
    items = data.read(source).items
    encoded = prepared.speaker.encode(items, max_tokens=prepared.max_tokens).trees
    trees = expand(encoded)
    if not trees:
        raise AfzalError("no completion could be read", where=source, remedy="rows with prompt and completion")
    return trees
