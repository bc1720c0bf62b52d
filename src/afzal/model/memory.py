"""How much memory an update needs, and whether the machine has it: measured on the model, not guessed from its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afzal.model.load import vocabulary_of
from afzal.model.logprobs import hidden_states
from afzal.model.reward import head_scores, is_reward_model
from afzal.tokens.batch import Sharing, collate
from afzal.tokens.tree import tree

_SPARE = 0.8  # of the free memory that a run may plan with
_BYTES_OF_STATE = 12  # float32 gradient and AdamW's two moments, per trained weight
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def must_recompute(model: Any, sharing: Sharing, *, tokens: int, scored: int, trained: int) -> str:
    """Empty if an update fits into free memory with its activations kept, else how much is needed and how much is free.

    Args:
        tokens: of the largest forward pass.
        scored: tokens of it whose log-probs count, for which logits are kept.
        trained: weights that train.
    """
    device = next(model.parameters()).device
    free = free_bytes(device)
    if free is None:
        return ""
    width = next(model.parameters()).element_size()
    kept = tokens * saved_bytes_per_token(model, sharing)
    outputs = 1 if is_reward_model(model) else vocabulary_of(model)
    logits = scored * outputs * width
    needed = int(kept + logits + trained * _BYTES_OF_STATE)
    if needed <= _SPARE * free:
        return ""
    return f"{needed / 1e9:.1f} GB would be needed, and {free / 1e9:.1f} GB are free"


def saved_bytes_per_token(model: Any, sharing: Sharing) -> float:
    """Bytes that one forward pass keeps for its backward pass, per token, without weights and without the head.

    Measured on one small tree; what grows with the square of the length comes on top of it.
    """
    device = next(model.parameters()).device
    batch = collate([tree("memory", [0] * 40, [[0] * 12] * 2)], sharing, device)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        found = head_scores(model, batch) if is_reward_model(model) else hidden_states(model, batch)
    del found
    return sum(seen.values()) / batch.ids.numel()


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free now on the device; None when the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_available(_MEMINFO), _left_in_group(_CGROUP)]
    return min((n for n in found if n is not None), default=None) if device.type == "cpu" else None


def _available(meminfo: Path) -> int | None:
    """What Linux calls available: free, and what can be had back from caches."""
    lines = _lines(meminfo)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_group(group: Path) -> int | None:
    """What is left of a container's limit, where there is one."""
    limit, used = ("".join(_lines(group / name)).strip() for name in ("memory.max", "memory.current"))
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return ()
