"""What a policy is measured against: its method's reference, and its starting point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from afzal import runs
from afzal.config import REFERENCES, LiveReferenceConfig, TrainConfig
from afzal.errors import AfzalError
from afzal.folders.compatibility import refuse_other_size
from afzal.folders.load import refuse_another_tokenizer
from afzal.model.adapters import is_adapted
from afzal.model.load import cast_parameters, frozen_copy, refuse_fewer_positions, vocabulary_of
from afzal.model.offload import move_home
from afzal.model.probe import choose_sharing
from afzal.model.reference import (
    AdapterOff,
    Cached,
    Frozen,
    Offloaded,
    Reference,
    cache_key,
    cached,
    fill_cache,
    live_reference,
    missing_trees,
    offloaded,
    read_cache,
)
from afzal.prepare import Prepared
from afzal.recipes import memory, parallel
from afzal.tokens import Tree
from afzal.train import ranks
from afzal.train.dtensor import gather_full
from afzal.train.feed import Layout
from afzal.train.precision import Weights
from afzal.train.shard import Sharded

LEAVE = "leave it out, or offload=optimizer"


def reference_of(
    config: LiveReferenceConfig,
    weights: Weights | Sharded,
    prepared: Prepared,
    layout: Layout,
    run: runs.Run,
) -> Reference:
    """The reference of a method that has one.

    Raises:
        AfzalError: it does not fit the policy, or a setting for it has no effect.
    """
    model: Any = weights.model
    dtype = weights.dtype
    fresh = config.has_new_adapter
    offloaded_reference = memory.offloads(config, "reference", layout.device)
    of_its_own = config.reference not in REFERENCES or (config.reference == "frozen" and not is_adapted(model))
    if config.offload == "reference" and not of_its_own:
        raise AfzalError("offload=reference has no effect: the reference has no weights of its own", remedy=LEAVE)
    if offloaded_reference and config.reference == "frozen" and of_its_own:
        return offloaded(model, layout.device)
    if sync_steps(config):
        return Frozen(_copy(weights))
    if config.reference in ("frozen", "adapter_off"):
        # shards cannot be swapped, as the starting weights of an adapter would be
        copies = ranks.world() > 1 and not fresh
        return Frozen(_copy(weights)) if copies else live_reference(model, fresh_adapter=fresh)
    if config.reference != "cached":
        name = f"the reference {config.reference}"
        refuse_another_tokenizer(prepared.tokenizer, config.reference, name)
        reference_model = parallel.frozen_model(config.reference, dtype, layout.device)
        refuse_other_size(vocabulary_of(model), vocabulary_of(reference_model), name)
        refuse_fewer_positions(reference_model, prepared.max_tokens, name)
        longest = longest_row(config, prepared)
        if layout.sharing == "shared" and choose_sharing(reference_model, longest)[0] != "shared":
            raise AfzalError(f"reference {config.reference} cannot share prompts", remedy="sharing=unshared")
        if dtype == "bf16":  # a sharded model already is
            cast_parameters(reference_model, torch.bfloat16)
        name = f"the model {config.reference}"
        host_copy = move_home(reference_model, layout.device) if offloaded_reference else reference_model
        return (
            Offloaded(host_copy, name, False, device=layout.device)
            if offloaded_reference
            else Frozen(reference_model, name, is_start=False)
        )
    cache_folder = config.cacheable.reference_cache if config.cacheable is not None else None
    folder = Path(cache_folder) if cache_folder else run.path / "reference"
    trees = [*prepared.train, *prepared.evaluation, *prepared.train_mismatched, *prepared.evaluation_mismatched]
    if prepared.recipe.shows_pieces:
        trees += [t.in_pieces() for t in trees if t.media]
    cache_facts = {"sharing": layout.sharing, "dtype": dtype, "fresh_adapter": fresh}
    key = ranks.agreed(cache_key(model, **cache_facts, gather=gather_full))  # only rank 0 sees full tensors
    live = AdapterOff(model) if fresh else Frozen(model)
    if ranks.world() > 1:
        table = _cached_together(live, trees, folder, key, layout)
        parallel.release(model)
        return table
    return cached(
        live, trees, folder, key=key, sharing=layout.sharing, budget=layout.tokens_per_forward, device=layout.device
    )


def _cached_together(live: Reference, trees: Sequence[Tree], folder: Path, key: str, layout: Layout) -> Cached:
    """Like :func:`afzal.model.reference.cached`, over several ranks: each scores its share of what the folder lacks
    into separate files; then all read everything.

    Raises:
        AfzalError: on all ranks, if one does not see what the others have written.
    """
    lacking = ranks.agreed(
        missing_trees(trees, read_cache(folder, key))
    )  # the same on all ranks: passes are made together
    fill_cache(live, layout.passes([trees[i] for i in lacking]), folder, key)
    ranks.wait()
    table = read_cache(folder, key)
    blind = [r for r, missing in enumerate(ranks.gather(bool(missing_trees(trees, table)))) if missing]
    if blind:
        raise AfzalError(
            f"rank {blind[0]} does not see all reference log-probs that the ranks have written",
            where=str(folder),
            remedy="put the folder on a file system that all machines share",
        )
    return Cached(table)


def start_of(
    config: TrainConfig,
    weights: Weights | Sharded,
    prepared: Prepared,
    reference: Reference | None,
    device: torch.device,
) -> Reference | None:
    """The policy before training, for comparisons on held-out data; None if nothing is compared with it.

    This is the reference, if it is the fixed starting policy; else the current adapter, or no adapter. If all weights
    train and there is no such reference, it is a copy of them in host memory, in the compute dtype, which is copied to
    the device when needed. ``sample_prompts=0`` avoids the copy, except with a moving reference.
    """
    policy = config.policy
    model: Any = weights.model
    if policy is None or config.rollouts is not None or not prepared.evaluation:
        return None
    moves = bool(sync_steps(config))
    if not policy.sample_prompts and not moves:
        return None
    if reference is not None and reference.is_start and not moves and not isinstance(reference, Cached):
        return reference
    if is_adapted(model) and (ranks.world() == 1 or config.has_new_adapter):
        return live_reference(model, fresh_adapter=config.has_new_adapter)
    if ranks.world() > 1 or memory.shares_memory(device):
        return Frozen(_copy(weights))
    return offloaded(model, device)


def sync_steps(config: TrainConfig) -> int:
    """Updates between two moves of the reference; 0 if it is fixed."""
    return (config.referenced.reference_sync_steps or 0) if config.referenced is not None else 0


def longest_row(config: TrainConfig, prepared: Prepared) -> int:
    """Tokens of the longest prompt + response that the run can read: in its data, or sampled from the policy."""
    trees = (*prepared.train, *prepared.evaluation)
    with_mismatched = (*trees, *prepared.train_mismatched, *prepared.evaluation_mismatched)
    longest = max((len(t.prompt) + len(b.ids) for t in with_mismatched for b in t.branches), default=0)
    written = (config.policy.sample_tokens or prepared.longest_response) if config.policy is not None else 0
    constrained = prepared.max_tokens if config.constrained is not None and config.constrained.constraint_data else 0
    return max(longest, constrained, written + max((len(t.prompt) for t in trees), default=0))


def _copy(weights: Weights | Sharded) -> Any:
    """A frozen copy of the current model."""
    return weights.frozen_copy() if isinstance(weights, Sharded) else frozen_copy(weights.model)
