"""Trust, but verify: does this very model give the same log-probs by the fast path as by the plain one?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.model import kernels, rotary
from afzal.model.attention import may_share, set_attention, stock_attention, stock_implementation, use_tree_attention
from afzal.model.load import vocabulary_of
from afzal.model.logprobs import score
from afzal.model.media import random_ids
from afzal.model.reward import is_reward_model, reward_head
from afzal.tokens.batch import Batch, Sharing, collate, expand
from afzal.tokens.tree import Tree, only_branch, tree

# largest difference of a single token's log-prob, in nats
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_TOLERANCE_LOW = 0.15
# in a mixture of experts, whose rounded router may send a token elsewhere: the median difference
_TOLERANCE_TYPICAL = 0.05

# the names that configurations give to the number of experts, and to the weight of the loss that balances them
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ROUTER_LOSSES = ("router_aux_loss_coef", "aux_loss_coef")

_Rule = tuple[float, Callable[[Tensor, Tensor], float]]  # how far log-probs may be apart, and how that is measured


def choose_sharing(
    model: Any, longest: int | None = None, shown: Sequence[Tree] = (), *, dtype: torch.dtype | None = None
) -> tuple[Sharing, str]:
    """Whether the model can share a prompt between branches, by allow-list and by trial; and why not, if not.

    Leaves the model with the attention that the answer needs.

    Args:
        longest: tokens of the longest prompt + response that there will be; None where that is not known.
        shown: trees with images or sounds to try as well; what the probe makes up itself has none.
        dtype: the number format that computes, where it is not that of the weights.

    Raises:
        AfzalError: even the unshared path disagrees with the model's own logits, so nothing could be trusted.
    """
    trees = [*probe_trees(model), *shown]
    model.eval()
    with torch.no_grad():
        allowed = tolerance(model, dtype)
        plain = _check_head(model, trees, allowed)
        reason = may_share(model.config) or rotary.why_not_share(model, longest)
        rule: _Rule = (allowed, largest_gap)
        if _is_mixture(model.config) and allowed == _TOLERANCE_LOW:
            rule = (_TOLERANCE_TYPICAL, typical_gap)
        reason = reason or _try_sharing(model, trees, plain, rule)
    if reason:
        set_attention(model, stock_implementation(model))
    return ("unshared", reason) if reason else ("shared", "")


def choose_common_sharing(models: Sequence[Any], longest: int | None = None) -> Sharing:
    """How models that score the same batches lay prompts out: shared where all of them can; all are set to it."""
    if {choose_sharing(model, longest)[0] for model in models} == {"shared"}:
        return "shared"
    for model in models:
        set_attention(model, stock_implementation(model))
    return "unshared"


def kernel_notes(model: Any) -> tuple[str, ...]:
    """What there is to say of the attention kernels that a sharing model uses, after each has had its trial.

    Nothing on a CPU, where there is one way only.
    """
    if _device(model).type != "cuda":
        return ()
    with torch.no_grad():
        score(model, collate(probe_trees(model), "shared", _device(model)))
    return kernels.notes()


def router_note(config: Any) -> str:
    """What there is to say of a mixture of experts that is trained without the loss that balances its experts; empty of
    any other model."""
    if not _is_mixture(config):
        return ""
    text = config.get_text_config()
    named = next(((n, c) for n in _ROUTER_LOSSES if (c := getattr(text, n, None)) is not None), None)
    which = f" ({named[0]} {named[1]:g} in its configuration)" if named else ""
    return (
        f"mixture of experts: the auxiliary loss that balances its experts{which} is not added to the loss, so that "
        "a long training may come to use few of them"
    )


def _is_mixture(config: Any) -> bool:
    return any((getattr(config.get_text_config(), name, None) or 0) > 1 for name in _EXPERTS)


def plain_logps(model: Any, batch: Batch) -> Tensor:
    """The oracle: log-softmax of the model's own logits at every position, gathered. ``[M]`` nats.

    Of a reward model the scores it gives itself, each response read alone and without padding, ``[B]``.
    """
    if is_reward_model(model):
        return torch.stack([_own_score(model, t, k) for t, k in batch.sources])
    if rotary.constant_up_to(model.config) is not None and batch.n_responses > 1:
        alone = [collate([only_branch(t, k)], "unshared", batch.ids.device) for t, k in batch.sources]
        return torch.cat([plain_logps(model, one) for one in alone])
    rotary.start_afresh(model)
    logits = model(**batch.inputs, use_cache=False).logits
    logits = logits[:, -batch.ids.shape[1] :]  # an adapter's virtual tokens have logits too
    flat = logits.flatten(0, 1)[batch.predict_at].float().log_softmax(-1)
    return flat.gather(1, batch.target[:, None])[:, 0]


def gap_to_plain(model: Any, t: Tree, sharing: Sharing) -> float:
    """Largest difference of a token's log-prob, in nats, between a tree scored as it is in training and its responses
    read one by one, without padding, by the model's own forward pass."""
    device, training = _device(model), model.training
    model.eval()  # in training mode layers that are computed again would do without the cache that holds a prefix
    with torch.no_grad():
        found = score(model, collate([t], sharing, device)).token_logps
    with torch.no_grad(), stock_attention(model):
        alone = [plain_logps(model, collate([one], "unshared", device)) for one in expand([t])]
    model.train(training)
    return largest_gap(found, torch.cat(alone))


def largest_gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two log-probs, in nats. Probability 0 in both (-inf) is no difference; NaN is one."""
    return float(_gaps(found, expected).max())


def typical_gap(found: Tensor, expected: Tensor) -> float:
    """The median difference: a token that goes to other experts does not move it, and a layout that is wrong does."""
    return float(_gaps(found, expected).median())


def _gaps(found: Tensor, expected: Tensor) -> Tensor:
    return torch.where(found == expected, 0.0, (found - expected).abs())


def _own_score(model: Any, t: Tree, branch: int) -> Tensor:
    device, seen = _device(model), []
    if t.media:
        inputs = collate([only_branch(t, branch)], "unshared", device).inputs
    else:
        ids = np.concatenate([t.prompt, t.branches[branch].ids]).astype(np.int64)
        inputs = {"input_ids": torch.from_numpy(ids)[None].to(device)}
    hook = reward_head(model).register_forward_hook(lambda _m, _a, out: seen.append(out[0, -1]))
    rotary.start_afresh(model)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return seen[0].float().mean()


def _check_head(model: Any, trees: list[Tree], allowed: float) -> Tensor:
    batch = collate(trees, "unshared", _device(model))
    with stock_attention(model):
        expected = plain_logps(model, batch)
        gap = largest_gap(score(model, batch).token_logps, expected)
    if bool(expected.isnan().any()):
        raise AfzalError(
            f"log-probs of {type(model).__name__} are not numbers",
            why="its logits are NaN or infinite at a token of two short texts",
            remedy="take an earlier checkpoint, or dtype=fp32",
        )
    if not gap <= allowed:
        raise AfzalError(
            f"log-probs of {type(model).__name__} cannot be computed from its hidden states: off by {gap:.3g} nats",
            why="its forward does something to the logits after the output head that is not known here",
            remedy="report the model type; a family is added in model/logprobs.py: logit_adjustment",
        )
    return expected


def _try_sharing(model: Any, trees: list[Tree], plain: Tensor, rule: _Rule) -> str:
    allowed, gap_of = rule
    use_tree_attention(model)
    try:
        shared = score(model, collate(trees, "shared", _device(model))).token_logps
    except (TypeError, ValueError, RuntimeError) as error:
        return f"the tree layout does not reach its attention ({type(error).__name__}: {error})"
    gap = gap_of(shared, plain)
    if gap <= allowed:
        return ""
    return f"shared and unshared log-probs differ by {gap:.3g} nats"


def probe_trees(model: Any) -> list[Tree]:
    """Two trees of random tokens, five responses in all; the same for every model of one vocabulary."""
    rng = np.random.default_rng(0)
    draw = lambda n: random_ids(model.config, vocabulary_of(model), rng, n)  # noqa: E731
    return [tree("probe-1", draw(9), [draw(6), draw(4), draw(1)]), tree("probe-2", draw(3), [draw(5), draw(8)])]


def tolerance(model: Any, dtype: torch.dtype | None = None) -> float:
    """Largest difference of a token's log-prob between two exact paths, in nats, at a number format: the weights' own
    unless given."""
    return _TOLERANCE.get(dtype or model.dtype, _TOLERANCE_LOW)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
