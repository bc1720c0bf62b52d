"""Fit a run into memory: recomputation, tokens per forward pass and offloading; and the errors if it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from afzal.config import TrainConfig
from afzal.errors import AfzalError
from afzal.model.adapters import virtual_kind
from afzal.model.load import drops_by_configuration
from afzal.model.memory import PerToken, free_bytes, measure
from afzal.model.recompute import MODES, Recompute, recompute_of, set_recompute
from afzal.model.reference import Frozen, Offloaded, Reference
from afzal.model.value import Critic
from afzal.prepare import Prepared
from afzal.tokens.tree import Tree
from afzal.train import ranks
from afzal.train.dtensor import local
from afzal.train.feed import Layout
from afzal.train.precision import Weights
from afzal.train.shard import Sharded

_SPARE = 0.8  # share of the free memory that a run may use
STATE_BYTES = {"adamw": 8, "rmsprop": 4, "sgd": 0}  # of the optimiser, per trained weight
_MOST_TOKENS = 2**17  # larger forward passes gain nothing


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """The models of a run; ``start`` is the policy before training, if something is measured against it."""

    weights: Weights | Sharded
    reference: Reference | None
    critic: Critic | None
    start: Reference | None = None

    @property
    def trunks(self) -> list[Any]:
        """The models that keep activations: the policy, and a separate value model if there is one."""
        critic_trunk = self.critic.trunk if self.critic is not None else None
        return [self.weights.model] if critic_trunk is None else [self.weights.model, critic_trunk]

    @property
    def measured(self) -> list[Any]:
        """Like ``trunks``, for measurements. Sharded models are replaced by stand-ins without weights, since a pass
        without a backward pass would leave layers gathered, and the next update would read stale weights."""
        policy, *others = self.trunks
        if self.critic is not None and isinstance(self.critic.weights, Sharded):
            others = [self.critic.weights.stand_in()]
        return [self.weights.stand_in() if isinstance(self.weights, Sharded) else policy, *others]

    @property
    def trained(self) -> dict[str, float]:
        """Number of trainable weights per rank, of the policy and the value model."""
        policy = sum(_share(p) for p in self.weights.masters.values())
        critic_parameters, unsharded = (), set[int]()
        if self.critic is not None:
            critic_parameters, unsharded = self.critic.parameters.values(), {id(p) for p in self.critic.unsharded}
        return {
            "policy": policy,
            "value model": sum(p.numel() if id(p) in unsharded else _share(p) for p in critic_parameters),
        }


def offloads(config: TrainConfig, part: Literal["reference", "optimizer"], device: torch.device) -> bool:
    """Whether a part of the run is offloaded to host memory.

    Raises:
        AfzalError: the device has no memory of its own.
    """
    if config.offload is not None and shares_memory(device):
        raise AfzalError(
            f"offload={config.offload} has no effect on the {device.type}",
            why="the device computes in the machine's own memory",
            remedy="leave it out",
        )
    return config.offload in (part, "all")


def shares_memory(device: torch.device) -> bool:
    """Whether a device computes in host memory."""
    return device.type in ("cpu", "mps")


def terms(config: TrainConfig, models: LoadedModels) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes on the device, by term: those present before the first update, and those that the first update adds.

    Activations and logits are not included. With several ranks they are the bytes of this rank once all models are
    sharded, as everything is except the head of a value model.
    """
    weights, trained = models.weights, models.trained
    current = {"weights": _bytes(weights.model.parameters())}
    policy_ids = {id(p) for p in weights.model.parameters()}
    current["float32 weights"] = _bytes(
        p for p in weights.masters.values() if id(p) not in policy_ids and not weights.offload
    )
    for name, reference in (("reference", models.reference), ("start", models.start)):
        counted = current.get("reference") and reference is models.reference
        if isinstance(reference, Frozen) and not isinstance(reference, Offloaded) and not counted:
            current[name] = _bytes(reference.model.parameters())
    if models.critic is not None:
        current["value model"] = float(sum(p.numel() * p.element_size() for p in models.critic.unsharded))
        if models.critic.trunk is not None:
            current["value model"] += _bytes(models.critic.trunk.parameters())
            policy_ids = {id(p) for p in (*models.critic.trunk.parameters(), *models.critic.unsharded)}
            current["value model"] += _bytes(p for p in models.critic.parameters.values() if id(p) not in policy_ids)
    updated = trained["value model"] + (0 if weights.offload else trained["policy"])
    added = {"gradients": 4.0 * sum(trained.values()), "optimizer": float(STATE_BYTES[config.optimizer] * updated)}
    return current, added


def _bytes(tensors: Any) -> float:
    return float(sum(_share(t) * t.element_size() for t in tensors))


def _share(t: Tensor) -> float:
    """Numbers of a tensor that this rank holds: the size of its shard, or the average size that it will have."""
    shard = local(t)
    return shard.numel() if shard is not t else t.numel() / ranks.world()


def free_for_activations(config: TrainConfig, models: LoadedModels, device: torch.device) -> float | None:
    """Bytes that activations and logits may take; None if the system does not say what is free."""
    current, added = (sum(part.values()) for part in terms(config, models))
    if config.memory_gb is not None:
        return config.memory_gb * 1e9 - current - added
    free = free_bytes(device)
    return None if free is None else _SPARE * free - added


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the largest update: in total, of its largest item, and the share that is scored."""

    update: int
    item: int
    scored: float

    def largest_pass(self, tokens_per_forward: int) -> int:
        """Tokens of the largest forward pass under a limit that a single item may exceed."""
        return max(min(tokens_per_forward, self.update), self.item)


def sizes_of(config: TrainConfig, trees: Sequence[Tree]) -> Sizes:
    """The sizes of an update of the longest items; answers still to be sampled count at full length."""
    counts = np.array([(t.n_tokens, sum(int(b.scored.sum()) for b in t.branches)) for t in trees])
    if (rollouts := config.rollouts) is not None:
        counts += rollouts.n * rollouts.sample_tokens
    tokens, scored = counts[np.argsort(-counts[:, 0])][: config.batch_size].sum(0)
    return Sizes(int(tokens), int(counts[:, 0].max()), float(scored / tokens))


def fit(config: TrainConfig, prepared: Prepared, models: LoadedModels, layout: Layout) -> list[str]:
    """Set what the models recompute and the tokens per forward pass; returns notes for the user.

    Raises:
        AfzalError: nothing fits into ``memory_gb``, or recomputed layers would not see the model's prefix.
    """
    requested: Recompute | None = None if config.activation_checkpointing == "auto" else config.activation_checkpointing
    obstacle = _obstacle(models, layout)
    if obstacle and requested not in (None, "none"):
        raise AfzalError(f"activation_checkpointing={requested} is not possible", why=obstacle, remedy="leave it out")
    allowed = (requested,) if requested is not None else ("none",) if obstacle else MODES
    space = _agreed(free_for_activations(config, models, layout.device))
    if requested is not None and config.tokens_per_forward is not None:
        mode, notes = requested, []
    elif space is None:
        unknown = f"{layout.tokens_per_forward} tokens per forward pass, since it is not known what memory is free"
        mode, notes = requested or "none", [unknown] if config.tokens_per_forward is None else []
    else:
        mode, notes = _choose(config, sizes_of(config, prepared.train), allowed, models, layout, space)
    mode = MODES[max(ranks.gather(MODES.index(mode)))]
    layout.tokens_per_forward = min(ranks.gather(layout.tokens_per_forward))
    for trunk in models.trunks:
        set_recompute(trunk, mode)
    return notes


def _agreed(space: float | None) -> float | None:
    """The smallest space of any rank; None if one does not know it. Ranks may have different amounts of free memory but
    must compute in the same way, and the ranks of a group measure together."""
    spaces = [theirs for theirs in ranks.gather(space) if theirs is not None]
    return min(spaces) if len(spaces) == ranks.world() else None


def _obstacle(models: LoadedModels, layout: Layout) -> str:
    """Why activations cannot be recomputed; empty if they can."""
    model = models.weights.model
    if virtual_kind(model) == "prefix" and layout.sharing == "unshared":
        return "it would lose the prefix: recomputed layers drop the cache that holds its keys and values"
    if any(map(drops_by_configuration, models.trunks)):
        return "in training mode its layers would apply dropout at the rates in the configuration"
    if not all(getattr(trunk, "supports_gradient_checkpointing", False) for trunk in models.trunks):
        return f"{type(model).__name__} does not support it"
    return ""


def _choose(
    config: TrainConfig, sizes: Sizes, allowed: Sequence[Recompute], models: LoadedModels, layout: Layout, space: float
) -> tuple[Recompute, list[str]]:
    """The mode that the space allows, with notes; also sets the tokens per forward pass, unless the settings do."""
    tokens = sizes.largest_pass(layout.tokens_per_forward)
    mode, per = _first_that_fits(allowed, models, layout, partial(_fits, tokens=tokens, sizes=sizes, space=space))
    notes = []
    if mode != "none" and config.activation_checkpointing == "auto":
        notes.append(f"activations are recomputed ({mode}): {_shortage(_needed(per, 'none', tokens, sizes), space)}")
    if config.tokens_per_forward is None:
        layout.tokens_per_forward = _largest(per, mode, sizes, space)
        tokens = sizes.largest_pass(layout.tokens_per_forward)
        notes.append(f"{tokens} tokens per forward pass: {_shortage(_needed(per, mode, tokens, sizes), space)}")
    if _fits(per, mode, tokens=tokens, sizes=sizes, space=space):
        return mode, notes
    if config.memory_gb is None:
        return mode, [*notes, f"memory may not do: {_shortage(_needed(per, mode, tokens, sizes), space)}"]
    current, added = terms(config, models)
    bytes_by_term = current | added | per.of(mode, tokens, tokens * sizes.scored)
    raise short_of_memory(config, bytes_by_term, mode, f"memory_gb {config.memory_gb:g} is too little")


def _first_that_fits(
    allowed: Sequence[Recompute], models: LoadedModels, layout: Layout, fits: Callable[[PerToken, Recompute], bool]
) -> tuple[Recompute, PerToken]:
    """The first mode that fits, else the last. Modes are measured one by one, since most runs need only the first."""
    modes: tuple[Recompute, ...] = ("none",)
    trunks = models.measured
    for mode in allowed:
        modes = modes if mode in modes else (*modes, mode)
        per = per_token(trunks, layout, modes)
        if fits(per, mode) or mode == allowed[-1]:
            return mode, per
    raise ValueError("no mode is allowed")


def _fits(per: PerToken, mode: Recompute, *, tokens: int, sizes: Sizes, space: float) -> bool:
    return _needed(per, mode, tokens, sizes) <= space


def _shortage(needed: float, space: float) -> str:
    return (
        f"{needed / 1e9:.1f} GB of activations and logits would be needed, and {max(0.0, space) / 1e9:.1f} GB are free"
    )


def _needed(per: PerToken, mode: Recompute, tokens: int, sizes: Sizes) -> float:
    return sum(per.of(mode, tokens, tokens * sizes.scored).values())


def _largest(per: PerToken, mode: Recompute, sizes: Sizes, space: float) -> int:
    """The largest power of two that fits, at least 256."""
    tokens = _MOST_TOKENS
    while tokens > 256 and _needed(per, mode, min(tokens, sizes.update), sizes) > space:
        tokens //= 2
    return tokens


def per_token(trunks: Sequence[Any], layout: Layout, modes: Sequence[Recompute]) -> PerToken:
    """What all trained models keep in total."""
    measured = [measure(trunk, layout.sharing, modes=modes) for trunk in trunks]
    kept: dict[Recompute, float] = {mode: sum(f.kept[mode] for f in measured) for mode in modes}
    fixed: dict[Recompute, float] = {mode: sum(f.fixed[mode] for f in measured) for mode in modes}
    return PerToken(
        sum(f.block for f in measured),
        kept,
        measured[0].logit,
        measured[0].element,
        fixed=fixed,
        fixed_block=sum(f.fixed_block for f in measured),
    )


def ran_out(config: TrainConfig, prepared: Prepared, models: LoadedModels, layout: Layout, message: str) -> AfzalError:
    """The error for memory that ran out during a run."""
    current, added = terms(config, models)
    mode, sizes = recompute_of(models.weights.model), sizes_of(config, prepared.train)
    tokens = sizes.largest_pass(layout.tokens_per_forward)
    grows = _measured(models, layout, mode, tokens, tokens * sizes.scored)
    what = f"out of memory on {layout.device} with {tokens} tokens in the largest forward pass"
    error = short_of_memory(config, current | added | grows, mode, what)
    return AfzalError(error.what, why=f"{error.why}; {message}", remedy=error.remedy)


def _measured(models: LoadedModels, layout: Layout, mode: Recompute, tokens: int, scored: float) -> dict[str, float]:
    """Bytes of activations and logits; empty if a pass would wait for other ranks or does not fit at all."""
    if ranks.world() > 1:
        return {}
    try:
        per = per_token(models.trunks, layout, ("none",) if mode == "none" else ("none", mode))
    except (RuntimeError, MemoryError):
        return {}
    return per.of(mode, tokens, scored)


def short_of_memory(config: TrainConfig, bytes_by_term: Mapping[str, float], mode: Recompute, what: str) -> AfzalError:
    """The error for too little memory: all terms, the largest one, and the setting that reduces it."""
    largest = max(bytes_by_term, key=lambda name: bytes_by_term[name])
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in bytes_by_term.items() if size)
    return AfzalError(
        what,
        why=f"the largest term is {largest}: {bytes_by_term[largest] / 1e9:.2f} GB (all, in GB: {listed})",
        remedy=_remedy(config, largest, mode),
    )


def _remedy(config: TrainConfig, term: str, mode: Recompute) -> str:
    adapter = "" if config.adapter_kind else "lora_rank=16"
    offload = "" if config.offload in ("optimizer", "all") else "offload=optimizer"
    smaller = "a smaller model, or a device with more memory"
    options = {
        "activations": ["" if mode == "full" else "activation_checkpointing=full", "a smaller tokens_per_forward"],
        "logits": ["a smaller tokens_per_forward"],
        "reference": [
            "offload=reference",
            "reference=cached" if config.cacheable is not None else "",
        ],
        "start": ["sample_prompts=0"],
        "value model": ["value=shared" if config.critic is not None else ""],
        "float32 weights": [offload, adapter],
        "optimizer": [offload, adapter],
        "gradients": [adapter],
        "weights": ["" if config.dtype == "bf16" else "dtype=bf16", "quantize=4bit with an adapter"],
    }[term]
    if term in ("activations", "logits"):
        options.append("a smaller max_tokens")
    return ", or ".join(filter(None, options)) or smaller
