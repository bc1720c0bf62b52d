"""Log-probs of the scored tokens only.

The output head runs only at the positions that predict a scored token, in tiles, in float32 after the matmul. The
model's own forward is called on the root module; a hook captures the hidden states at the head's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from afzal.errors import AfzalError
from afzal.model import last_block, rotary, virtual
from afzal.model.head import is_plain, linear_logps
from afzal.model.load import vocabulary_of
from afzal.model.reward import is_reward_model, reward_scores
from afzal.objectives.inputs import Scored
from afzal.tokens.attention_blocks import NeededLayout
from afzal.tokens.batch import Batch

TILE_ELEMENTS = 2**26  # float32 logits held at a time, for a head that is called as a module: 256 MiB


def score(model: Any, batch: Batch, temperature: float = 1.0) -> Scored:
    """Log-probs of every scored token of a batch: ``[M]`` float32 nats, with gradient unless switched off outside.

    A reward model gives one score per response instead; ``logps`` are then the scores.

    Args:
        temperature: divides the logits.
    """
    if is_reward_model(model):
        scores = reward_scores(model, batch)
        return Scored(scores, torch.arange(len(scores), device=scores.device), len(scores))
    logps = head_logps(model, predicting(model, batch), batch.target, temperature)
    return Scored(logps, batch.response_of, batch.n_responses)


def predicting(model: Any, batch: Batch) -> Tensor:
    """``[M, d]``: the output head's inputs at the positions that predict scored tokens."""
    return hidden_states(model, batch, batch.layout_of_predictions).flatten(0, 1)[batch.predict_at]


def hidden_states(model: Any, batch: Batch, needed: NeededLayout | None = None) -> Tensor:
    """``[R, L, d]``: the output head's inputs at every position, without an adapter's virtual tokens.

    Args:
        needed: the positions that will be read; the states at others are then not meaningful. None: all positions.
    """
    captured: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        captured.append(args[0])
        # One position per row, so the head does next to no work. Given a view with the full tensor's strides, a frozen
        # head would first copy its transposed matrix.
        return (args[0][:, 0].clone(memory_format=torch.contiguous_format)[:, None],)

    def run(inputs: Mapping[str, Any]) -> Tensor:
        captured.clear()
        model(**inputs, **last_block.keywords_for(model, needed), use_cache=False)
        return _only_input(captured, model)[:, -inputs["input_ids"].shape[1] :]

    hook = output_head(model).register_forward_pre_hook(take, prepend=True)
    try:
        if batch.layout is None or not virtual.is_active(model):
            return rotary.run_rows(model, batch, run)
        positions = virtual.run_shared(model, batch)
        return _only_input(captured, model)[:, positions]
    finally:
        hook.remove()


def _only_input(captured: list[Tensor], model: Any) -> Tensor:
    if len(captured) != 1:
        raise AfzalError(
            f"the output head of {type(model).__name__} ran {len(captured)} times in one forward pass",
            why="log-probs are taken at the head's input, which must be reached exactly once",
            remedy="use a model whose forward pass calls its output head once",
        )
    return captured[0]


def head_logps(model: Any, hidden: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-prob ``[M]`` of ``target`` ``[M]`` given hidden states ``[M, d]``, float32 nats.

    A plain linear head goes through :mod:`afzal.model.head`; any other (adapted, hooked, sharded) is called as a
    module, in tiles that the backward pass recomputes, so that at most one tile of logits is in memory.
    """
    head = output_head(model)
    if is_plain(head):
        scale, cap = logit_adjustment(model.config, temperature)
        return linear_logps(hidden, head.weight, head.bias, target, scale=scale, cap=cap)  # pyright: ignore

    def tile_logps(h: Tensor, t: Tensor) -> Tensor:
        return -F.cross_entropy(logits_of(model, h, temperature), t, reduction="none")

    return tiled(tile_logps, hidden, target, rows=max(1, TILE_ELEMENTS // vocabulary_of(model)))


def tiled(fn: Callable[..., Tensor], *columns: Tensor, rows: int) -> Tensor:
    """``fn(*columns)``, computed on at most ``rows`` rows of the columns at a time; rows are the result's last axis.

    If that takes several tiles, the backward pass recomputes them, so that only one is in memory at a time.
    """
    if len(columns[0]) <= rows:
        return fn(*columns)
    tiles = zip(*(column.split(rows) for column in columns), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([fn(*tile) for tile in tiles], dim=-1)
    results: list[Any] = [checkpoint(fn, *tile, use_reentrant=False) for tile in tiles]
    return torch.cat(results, dim=-1)


def logits_of(model: Any, hidden: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits ``[n, V]`` in float32 of hidden states ``[n, d]``, adjusted as in the model's own forward pass and divided
    by the temperature."""
    return adjusted(model.config, output_head(model)(hidden), temperature)


def adjusted(config: Any, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The head's raw logits, adjusted as :func:`logits_of` does."""
    scale, cap = logit_adjustment(config, temperature)
    logits = logits.float()
    logits = logits * scale if scale != 1.0 else logits
    return cap * torch.tanh(logits / cap) if cap else logits


def output_head(model: Any) -> nn.Module:
    """The layer from hidden states to logits.

    Raises:
        AfzalError: the model has none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise AfzalError(
            f"{type(model).__name__} has no output embeddings",
            why="only causal language models can be scored",
            remedy="pass a model that AutoModelForCausalLM loads",
        )
    return head


def logit_adjustment(config: Any, temperature: float = 1.0) -> tuple[float, float | None]:
    """The family's adjustment of logits after the head: a scale, then a soft-cap. Checked by the probe.

    Dividing the result by a temperature divides both: cap / T tanh(x scale / T / (cap / T)).
    """
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0) * float(getattr(text, "lm_head_multiplier", None) or 1.0)
    scale /= float(getattr(text, "logits_scaling", None) or 1.0) * temperature
    cap = getattr(text, "final_logit_softcapping", None)
    return scale, cap / temperature if cap else None
