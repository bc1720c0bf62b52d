"""The public names of the guide to direct preference optimisation, with correct semantics.

``dpo_loss`` is the function of the DPO paper's Appendix B; ``DPOTrainer`` is the guide's trainer, whose forward pass
gives what its loss assumes: one summed log-prob per sequence, over response tokens only. ``DPOTrainerWithLoRA``,
``ProbabilisticDPOTrainer`` and ``ConstitutionalDPOTrainer`` are its variants. The recipes behind ``afzal train`` are
built from the same parts and do more (packing, checkpoints, evaluation).

Shapes: B sequences of L tokens, T pairs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from afzal.model.attention import stock_attention
from afzal.model.load import add_lora, frozen_copy, switch_off_dropout
from afzal.objectives import soft_label
from afzal.train.optim import make_optimizer


def dpo_loss(
    pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """DPO's loss per pair and reward per sequence (Rafailov et al. 2023, arXiv 2305.18290, eq. 7 and Appendix B).

    Args:
        pi_logps: ``[B]`` summed log-probs of the responses under the policy, in nats.
        ref_logps: ``[B]`` the same under the frozen reference.
        yw_idxs: ``[T]`` indices into B of the preferred responses; indices may repeat.
        yl_idxs: ``[T]`` indices into B of the other responses.
        beta: strength of the KL constraint; larger keeps the policy nearer to the reference.

    Returns:
        losses ``[T]`` = -log sigma(beta ((pi_w - pi_l) - (ref_w - ref_l))), and detached rewards
        ``[B]`` = beta (pi - ref), larger meaning better in the policy's own eyes.

    Raises:
        ValueError: a shape or an index is wrong; the message names it.
    """
    _check_shapes(pi_logps, ref_logps, yw_idxs, yl_idxs)
    pi_margin = pi_logps[yw_idxs] - pi_logps[yl_idxs]
    ref_margin = ref_logps[yw_idxs] - ref_logps[yl_idxs]
    losses = soft_label(beta * (pi_margin - ref_margin), torch.ones_like(pi_margin))
    return losses, beta * (pi_logps - ref_logps).detach()


class DPOTrainer:
    """The guide's trainer: ``train_step((x, yw_idxs, yl_idxs))`` makes one optimiser step on one batch.

    Args:
        model: a causal language model (`transformers`); trained in place, dropout switched off.
        ref_model: the reference; None takes a frozen copy of ``model`` as it is now. It must not be ``model`` itself.
        beta: strength of the KL constraint.
        lr: learning rate of AdamW without weight decay.
    """

    def __init__(self, model: Any, ref_model: Any = None, beta: float = 0.1, lr: float = 1e-5) -> None:
        if ref_model is model:
            raise ValueError("ref_model is model itself, so every log-ratio would be 0; pass None for a frozen copy")
        switch_off_dropout(model)
        self._hold(model, frozen_copy(model) if ref_model is None else ref_model.eval().requires_grad_(False), beta, lr)

    def _hold(self, model: Any, ref_model: Any, beta: float, lr: float) -> None:
        self.model, self.ref_model, self.beta = model, ref_model, beta
        self.optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def compute_loss(
        self, pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean loss over the pairs (scalar, nats) and the rewards ``[B]``; arguments as for :func:`dpo_loss`."""
        losses, rewards = dpo_loss(pi_logps, ref_logps, yw_idxs, yl_idxs, self.beta)
        return losses.mean(), rewards

    def reference_logps(self, x: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The reference's summed log-probs ``[B]``, in nats, without gradient."""
        with torch.no_grad():
            return sequence_logps(self.ref_model, x)

    def train_step(self, batch: Sequence[Any]) -> float:
        """One update on ``(x, yw_idxs, yl_idxs)``; returns the loss before it, in nats.

        Args:
            batch: ``x`` is what :func:`sequence_logps` takes: ids ``[B, L]``, or a mapping with masks. Elements after
                the indices are passed to ``compute_loss`` (for instance the preference probabilities).
        """
        x, *rest = batch
        loss, _ = self.compute_loss(sequence_logps(self.model, x), self.reference_logps(x), *rest)
        return self._step(loss)

    def _step(self, loss: Tensor) -> float:
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {float(loss)}; the weights were not changed")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class DPOTrainerWithLoRA(DPOTrainer):
    """The guide's trainer for low-rank adapters only.

    Args:
        model: wrapped with fresh adapters on all linear layers (no dropout, alpha twice the rank), which start as the
            identity, so that the first loss is ln 2.
        ref_model: None takes the model itself with its adapters switched off. It must not be ``model``.
        beta: strength of the KL constraint.
        lr: learning rate; adapters need about ten times that of full fine-tuning.
        lora_rank: rank of the adapters.
    """

    def __init__(
        self, model: Any, ref_model: Any = None, beta: float = 0.1, lr: float = 1e-4, lora_rank: int = 8
    ) -> None:
        if ref_model is model:
            raise ValueError("ref_model is model itself; pass None for the model with its adapters switched off")
        switch_off_dropout(model)
        adapted = add_lora(model, rank=lora_rank, alpha=2 * lora_rank)
        self._hold(adapted, None if ref_model is None else ref_model.eval().requires_grad_(False), beta, lr)

    def reference_logps(self, x: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The reference's summed log-probs ``[B]``: from ``ref_model``, or from the model with its adapters off."""
        if self.ref_model is not None:
            return super().reference_logps(x)
        with torch.no_grad(), self.model.disable_adapter():
            return sequence_logps(self.model, x)


class ProbabilisticDPOTrainer(DPOTrainer):
    """The guide's trainer for uncertain preferences: ``train_step((x, yw_idxs, yl_idxs, preference_prob))``."""

    def compute_loss(
        self,
        pi_logps: Tensor,
        ref_logps: Tensor,
        yw_idxs: Tensor,
        yl_idxs: Tensor,
        preference_prob: float | Tensor = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Mean soft-label loss over the pairs (scalar, nats) and the rewards ``[B]``.

        -p log sigma(u) - (1 - p) log sigma(-u) with u = beta ((pi_w - pi_l) - (ref_w - ref_l)); minimal at u = logit p.

        Args:
            preference_prob: p ``[T]``, or one number for all pairs: the probability, in [0, 1], that ``yw`` is better.
        """
        _check_shapes(pi_logps, ref_logps, yw_idxs, yl_idxs)
        p = torch.as_tensor(preference_prob, dtype=pi_logps.dtype, device=pi_logps.device)
        if not bool(((p >= 0) & (p <= 1)).all()) or p.dim() > 1 or (p.dim() == 1 and len(p) not in (1, len(yw_idxs))):
            raise ValueError(f"preference_prob must be one number in [0, 1] or one for each of {len(yw_idxs)} pairs")
        rho = pi_logps - ref_logps
        losses = soft_label(self.beta * (rho[yw_idxs] - rho[yl_idxs]), p)
        return losses.mean(), self.beta * rho.detach()


GuideConstraint = Callable[..., Tensor]
"""``(model, pi_logps, ref_logps, yw_idxs, yl_idxs[, batch]) -> scalar`` that carries a gradient."""


class ConstitutionalDPOTrainer(DPOTrainer):
    """The guide's trainer that adds constraints to the loss.

    Args:
        model, ref_model, beta, lr: as for :class:`DPOTrainer`.
        constraints: functions ``(model, pi_logps, ref_logps, yw_idxs, yl_idxs) -> scalar``, such as
            ``relu(unsafe_score - 0.5)``, whose values are added to the loss; one with a sixth parameter gets the batch
            ``x`` too. Each must carry a gradient: a score of generated text has none, see
            :func:`afzal.recipes.constraints.score_function`.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        beta: float = 0.1,
        lr: float = 1e-5,
        constraints: Sequence[GuideConstraint] | None = None,
    ) -> None:
        super().__init__(model, ref_model, beta, lr)
        self.constraints = list(constraints or [])

    def compute_loss(
        self, pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor, batch: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Mean loss plus the constraints (scalar), and the rewards ``[B]``.

        Raises:
            ValueError: a constraint gives no scalar, or one without a gradient.
        """
        loss, rewards = super().compute_loss(pi_logps, ref_logps, yw_idxs, yl_idxs)
        for constraint in self.constraints:
            extra = (batch,) if len(inspect.signature(constraint).parameters) == 6 else ()
            loss = loss + self._cost(constraint, pi_logps, ref_logps, yw_idxs, yl_idxs, *extra)
        return loss, rewards

    def train_step(self, batch: Sequence[Any]) -> float:
        """One update on ``(x, yw_idxs, yl_idxs)``; returns the loss before it, constraints included."""
        x, yw_idxs, yl_idxs = batch
        return super().train_step((x, yw_idxs, yl_idxs, x))

    def _cost(self, constraint: GuideConstraint, pi_logps: Tensor, *rest: Any) -> Tensor:
        value = constraint(self.model, pi_logps, *rest)
        name = getattr(constraint, "__name__", repr(constraint))
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise ValueError(f"constraint {name} must give a scalar tensor")
        if pi_logps.requires_grad and not value.requires_grad:
            raise ValueError(f"constraint {name} has no gradient, so training cannot change it")
        return value


def sequence_logps(model: Any, x: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Summed log-prob of every sequence's response, ``[B]`` float32 nats: shifted by one, gathered, masked.

    Args:
        x: ids ``[B, L]`` (no padding; every token after the first is scored), or a mapping with ``input_ids``,
            optionally ``attention_mask`` (1 for real tokens) and ``response_mask`` (1 for the response's tokens).
    """
    inputs = x if isinstance(x, Mapping) else {"input_ids": x}
    ids = inputs["input_ids"]
    attention = inputs.get("attention_mask", torch.ones_like(ids))
    scored = inputs.get("response_mask", attention) * attention
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    with stock_attention(model):
        logits = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False).logits
    logps = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    counted = scored[:, 1:].bool() & attention[:, :-1].bool()
    return logps.masked_fill(~counted, 0.0).sum(-1)


def _check_shapes(pi_logps: Tensor, ref_logps: Tensor, yw_idxs: Tensor, yl_idxs: Tensor) -> None:
    for name, value in (("pi_logps", pi_logps), ("ref_logps", ref_logps)):
        if value.dim() != 1:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but one summed log-prob per sequence is needed, (B,); "
                "afzal.guide.sequence_logps makes them from token ids"
            )
    if pi_logps.shape != ref_logps.shape:
        raise ValueError(f"pi_logps {tuple(pi_logps.shape)} and ref_logps {tuple(ref_logps.shape)} differ in shape")
    if yw_idxs.shape != yl_idxs.shape or yw_idxs.dim() != 1:
        raise ValueError(f"yw_idxs {tuple(yw_idxs.shape)} and yl_idxs {tuple(yl_idxs.shape)} must both be (T,)")
    for name, value in (("yw_idxs", yw_idxs), ("yl_idxs", yl_idxs)):
        if value.numel() and not (int(value.min()) >= 0 and int(value.max()) < len(pi_logps)):
            raise ValueError(f"{name} points outside the {len(pi_logps)} sequences")
    if bool((yw_idxs == yl_idxs).any()):
        raise ValueError("a pair compares a response with itself (yw_idxs == yl_idxs)")
