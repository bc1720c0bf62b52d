"""Check at run time that a model gives the same log-probs by the fast path as by the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.model import kernels, rotary
from afzal.model.attention import may_share, set_attention, stock_attention, stock_implementation, use_tree_attention
from afzal.model.last_block import skip_unneeded
from afzal.model.load import vocabulary_of
from afzal.model.logprobs import score
from afzal.model.media import random_ids
from afzal.model.reward import is_reward_model, reward_head
from afzal.tokens.batch import Batch, Sharing, collate, expand
from afzal.tokens.tree import Tree, only_branch, tree

# largest difference of a single token's log-prob, in nats
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_TOLERANCE_LOW = 0.15
# the median difference, for a mixture of experts: rounding in its router may send a token to other experts
_TOLERANCE_TYPICAL = 0.05

# configuration keys for the number of experts, and for the weight of the loss that balances them
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ROUTER_LOSSES = ("router_aux_loss_coef", "aux_loss_coef")

_Rule = tuple[float, Callable[[Tensor, Tensor], float]]  # the allowed difference of log-probs, and its measure


def choose_sharing(
    model: Any, longest: int | None = None, media_trees: Sequence[Tree] = (), *, dtype: torch.dtype | None = None
) -> tuple[Sharing, str]:
    """Decide by allow-list and by trial whether the model can share a prompt between branches; if not, say why.

    Leaves the model with the attention that the decision needs.

    Args:
        longest: tokens of the longest prompt + response to expect; None if unknown.
        media_trees: trees with images or sounds to try as well; the probe's own trees have none.
        dtype: the compute dtype, if it is not that of the weights.

    Raises:
        AfzalError: even the unshared path disagrees with the model's own logits, so no path can be trusted.
    """
    trees = [*probe_trees(model), *media_trees]
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
    """Choose one layout for models that score the same batches (shared if all can) and set all of them to it."""
    if {choose_sharing(model, longest)[0] for model in models} == {"shared"}:
        return "shared"
    for model in models:
        set_attention(model, stock_implementation(model))
    return "unshared"


def kernel_notes(model: Any) -> tuple[str, ...]:
    """Notes on the attention kernels of a sharing model, after each has had its trial.

    Empty on a CPU, which has one path only.
    """
    if _device(model).type != "cuda":
        return ()
    with torch.no_grad():
        score(model, collate(probe_trees(model), "shared", _device(model)))
    return kernels.notes()


def router_note(config: Any) -> str:
    """A note that a mixture of experts is trained without the loss that balances its experts; empty for other
    models."""
    if not _is_mixture(config):
        return ""
    text = config.get_text_config()
    setting = next(((n, c) for n in _ROUTER_LOSSES if (c := getattr(text, n, None)) is not None), None)
    details = f" ({setting[0]} {setting[1]:g} in its configuration)" if setting else ""
    return (
        f"mixture of experts: the auxiliary loss that balances its experts{details} is not added to the loss, so "
        "long training may end up using few of them"
    )


def _is_mixture(config: Any) -> bool:
    return any((getattr(config.get_text_config(), name, None) or 0) > 1 for name in _EXPERTS)


def plain_logps(model: Any, batch: Batch) -> Tensor:
    """The oracle: log-softmax of the model's own logits at every position, gathered. ``[M]`` nats.

    For a reward model: its own scores ``[B]``, each response read alone and without padding.
    """
    if is_reward_model(model):
        return torch.stack([_own_score(model, t, k) for t, k in batch.sources])
    if rotary.constant_up_to(model.config) is not None and batch.n_responses > 1:
        rows = [collate([only_branch(t, k)], "unshared", batch.ids.device) for t, k in batch.sources]
        return torch.cat([plain_logps(model, row) for row in rows])
    rotary.start_afresh(model)
    logits = model(**batch.inputs, use_cache=False).logits
    logits = logits[:, -batch.ids.shape[1] :]  # drop the logits of an adapter's virtual tokens
    flat = logits.flatten(0, 1)[batch.predict_at].float().log_softmax(-1)
    return flat.gather(1, batch.target[:, None])[:, 0]


def gap_to_plain(model: Any, t: Tree, sharing: Sharing) -> float:
    """Largest difference of a token's log-prob, in nats, between a tree scored as in training and the model's own
    forward pass on each response alone, without padding."""
    device, training = _device(model), model.training
    model.eval()  # in training mode, recomputed layers would ignore the cache that holds a prefix
    with torch.no_grad():
        actual = score(model, collate([t], sharing, device)).token_logps
    with torch.no_grad(), stock_attention(model):
        expected = [plain_logps(model, collate([row], "unshared", device)) for row in expand([t])]
    model.train(training)
    return largest_gap(actual, torch.cat(expected))


def largest_gap(actual: Tensor, expected: Tensor) -> float:
    """Largest difference of two log-probs, in nats. Probability 0 in both (-inf) counts as equal; NaN does not."""
    return float(_gaps(actual, expected).max())


def agree(model: Any, low: Tensor, exact: Tensor) -> str:
    """Empty if log-probs in bf16 are as near to exact ones as two exact paths in bf16 may be; else the difference."""
    gap, allowed = largest_gap(low, exact), _TOLERANCE_LOW
    if _is_mixture(model.config):
        gap, allowed = typical_gap(low, exact), _TOLERANCE_TYPICAL
    return "" if gap <= allowed else f"a token's log-prob differs by {gap:.3g} nats"


def typical_gap(actual: Tensor, expected: Tensor) -> float:
    """The median difference: a token routed to other experts does not move it, but a wrong layout does."""
    return float(_gaps(actual, expected).median())


def _gaps(actual: Tensor, expected: Tensor) -> Tensor:
    return torch.where(actual == expected, 0.0, (actual - expected).abs())


def _own_score(model: Any, t: Tree, branch: int) -> Tensor:
    device, outputs = _device(model), []
    if t.media:
        inputs = collate([only_branch(t, branch)], "unshared", device).inputs
    else:
        ids = np.concatenate([t.prompt, t.branches[branch].ids]).astype(np.int64)
        inputs = {"input_ids": torch.from_numpy(ids)[None].to(device)}
    hook = reward_head(model).register_forward_hook(lambda _m, _a, out: outputs.append(out[0, -1]))
    rotary.start_afresh(model)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return outputs[0].float().mean()


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
            why="its forward pass changes the logits after the output head in a way that Afzal does not know",
            remedy="report the model type; families are added in model/logprobs.py: logit_adjustment",
        )
    return expected


def _try_sharing(model: Any, trees: list[Tree], plain: Tensor, rule: _Rule) -> str:
    allowed, gap_of = rule
    use_tree_attention(model)
    skip_unneeded(model)
    try:
        shared = score(model, collate(trees, "shared", _device(model))).token_logps
    except (TypeError, ValueError, RuntimeError) as error:
        return f"the tree layout does not reach its attention ({type(error).__name__}: {error})"
    gap = gap_of(shared, plain)
    if gap <= allowed:
        return ""
    return f"shared and unshared log-probs differ by {gap:.3g} nats"


def probe_trees(model: Any) -> list[Tree]:
    """Two trees of random tokens with five responses in all; the same for all models with the same vocabulary."""
    rng = np.random.default_rng(0)
    draw = lambda n: random_ids(model.config, vocabulary_of(model), rng, n)  # noqa: E731
    return [tree("probe-1", draw(9), [draw(6), draw(4), draw(1)]), tree("probe-2", draw(3), [draw(5), draw(8)])]


def tolerance(model: Any, dtype: torch.dtype | None = None) -> float:
    """Largest allowed difference of a token's log-prob between two exact paths, in nats, for a number format (default:
    that of the weights)."""
    return _TOLERANCE.get(dtype or model.dtype, _TOLERANCE_LOW)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
