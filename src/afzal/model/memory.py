"""How much memory an update needs, measured on the model, and how much is free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from afzal.model import logprobs
from afzal.model.head import KEEP_BYTES, TILE_ELEMENTS, is_plain
from afzal.model.load import vocabulary_of
from afzal.model.logprobs import hidden_states, output_head
from afzal.model.recompute import MODES, Recompute, set_recompute
from afzal.model.reward import head_scores, is_reward_model
from afzal.runs.environment import own_memory_limits
from afzal.tokens.batch import Sharing, collate
from afzal.tokens.tree import Tree, tree

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_SAID = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or of the machine, could not be allocated."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


@dataclass(frozen=True, slots=True)
class PerToken:
    """Bytes that grow with a forward pass.

    Attributes:
        block: per token, kept by one block if nothing is recomputed.
        kept: per token, kept by all blocks, by mode.
        logit: per scored token, for its logits in the compute dtype; 0 for a reward model.
        element: per number in the compute dtype.
        called: whether the head (adapted or sharded) is called as a module, in large tiles.
        fixed: for all blocks, by mode, independent of the tokens: values computed from weights alone, such as experts
            with their adapters.
        fixed_block: the same for one block if nothing is recomputed.
    """

    block: float
    kept: Mapping[Recompute, float]
    logit: float
    element: int
    called: bool = False
    fixed: Mapping[Recompute, float] = field(default_factory=dict)
    fixed_block: float = 0.0

    def of(self, mode: Recompute, tokens: float, scored: float) -> dict[str, float]:
        """Bytes of activations and logits that a forward pass keeps for its backward pass."""
        recomputes = mode != "none"  # one block's are recomputed at a time
        fixed = self.fixed.get(mode, 0.0) + self.fixed_block * recomputes
        growing = (self.kept[mode] + self.block * recomputes) * tokens
        return {"activations": growing + fixed, "logits": self._logits(scored)}

    def _logits(self, scored: float) -> float:
        size = scored * self.logit
        if self.called:  # logits, and in float32 their log-probs, the gradient, or a reference's alongside the policy's
            return min(size / self.element, logprobs.TILE_ELEMENTS) * (self.element + 12.0)
        return size if size <= KEEP_BYTES else float(TILE_ELEMENTS * self.element)


def measure(model: Any, sharing: Sharing, probe: Tree | None = None, modes: Sequence[Recompute] = MODES) -> PerToken:
    """Measure what a forward pass of this model keeps, by running it on one tree in each mode.

    Leaves the model in the last mode.

    Args:
        probe: the tree to run; a small one unless given. If attention keeps its weights, their size grows with
            the square of the length, so a longer tree has more per token.
        modes: the first is ``none``, which gives what one block keeps.
    """
    measured: dict[Recompute, KeptBytes] = {}
    for mode in modes:
        set_recompute(model, mode)
        measured[mode] = kept_bytes(model, sharing, probe)
    per_token: dict[Recompute, float] = {mode: measured[mode].per_token for mode in modes}
    fixed: dict[Recompute, float] = {mode: measured[mode].fixed for mode in modes}
    element = next(model.parameters()).element_size()
    scalar, blocks = is_reward_model(model), model.config.get_text_config().num_hidden_layers
    logit = 0.0 if scalar else float(vocabulary_of(model) * element)
    called = not scalar and not is_plain(output_head(model))
    return PerToken(per_token["none"] / blocks, per_token, logit, element, called, fixed, fixed["none"] / blocks)


class KeptBytes(NamedTuple):
    """Bytes that a forward pass keeps for its backward pass: per token, and independent of the tokens."""

    per_token: float
    fixed: float


def kept_bytes_per_token(model: Any, sharing: Sharing, probe: Tree | None = None) -> float:
    """Bytes per token that one forward pass keeps for its backward pass, without weights and the head."""
    return kept_bytes(model, sharing, probe).per_token


def kept_bytes(model: Any, sharing: Sharing, probe: Tree | None = None) -> KeptBytes:
    """Bytes that one forward pass keeps for its backward pass, without weights and the head."""
    device = next(model.parameters()).device
    batch = collate([probe or tree("memory", [0] * 40, [[0] * 12] * 2)], sharing, device)
    weight_storages = {storage._cdata for t in (*model.parameters(), *model.buffers()) for storage in _storages(t)}
    with torch.enable_grad(), _StorageRecorder(weight_storages) as recorder:
        output = head_scores(model, batch) if is_reward_model(model) else hidden_states(model, batch)
    # apart from the result, whatever is still alive is held by the graph
    alive = {
        address: size
        for address, (storage_ref, size) in recorder.storages.items()
        if address not in weight_storages and not storage_ref.expired()
    }
    for storage in _storages(output):
        alive.pop(storage._cdata, None)
    fixed = sum(size for address, size in alive.items() if address in recorder.fixed)
    return KeptBytes((sum(alive.values()) - fixed) / batch.ids.numel(), float(fixed))


class _StorageRecorder(TorchDispatchMode):
    """Records every storage that an operation creates, without keeping it alive.

    Attributes:
        fixed: those computed from weights alone.
    """

    def __init__(self, weights: Set[int]) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.fixed: set[int] = set()
        self._weights = weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [storage._cdata for leaf in tree_leaves((args, kwargs)) for storage in _storages(leaf)]
        of_weights = bool(read) and all(address in self._weights or address in self.fixed for address in read)
        results = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(results):
            for storage in _storages(leaf):
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                # the address may have belonged to a freed storage
                (self.fixed.add if of_weights else self.fixed.discard)(storage._cdata)
        return results


def _storages(t: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages that this process holds of a tensor: for a sharded tensor, its own shard."""
    if is_traceable_wrapper_subclass(t):
        for name in t.__tensor_flatten__()[0]:
            yield from _storages(getattr(t, name))
    elif isinstance(t, Tensor):
        yield t.untyped_storage()


def free_bytes(device: torch.device) -> int | None:
    """Bytes of memory free on the device now; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_available(_MEMINFO), _left_in_group(_CGROUP)]
    return min((n for n in limits if n is not None), default=None) if device.type == "cpu" else None


def _available(meminfo: Path) -> int | None:
    """Bytes that Linux reports as available: free memory plus reclaimable caches."""
    lines = _lines(meminfo)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_group(root: Path) -> int | None:
    """Bytes left under the memory limits of containers and jobs; None without limits. Cached files, the model's among
    them, count as used there, but the system can drop them: they count as free here."""
    free = []
    for group in own_memory_limits(root):
        used = "".join(_lines(group.used)).strip()
        if used.isdigit():
            free.append(group.limit - int(used) + _first_number(_lines(group.stat), group.cache))
    return min(free, default=None)


def _first_number(lines: Sequence[str], key: str) -> int:
    """The number of the line ``key NUMBER``; 0 without such a line."""
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return ()
