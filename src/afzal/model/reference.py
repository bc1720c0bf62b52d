"""The reference policy's log-probs, from one of four sources.

A frozen copy, the policy with its adapters switched off, the policy with its adapters as they were at the start, or a
table of log-probs computed once and stored on disk by content. All give the same numbers; a run prints at the start
which one it uses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.model.adapters import acting_as, is_adapted, starting_weights, virtual_tokens
from afzal.model.load import frozen_copy
from afzal.model.logprobs import output_head, predicting, score
from afzal.model.offload import host_copy, visiting
from afzal.objectives.inputs import Scored
from afzal.tokens.batch import Batch, Sharing, collate
from afzal.tokens.pack import pack
from afzal.tokens.tree import Tree
from afzal.tokens.upload import upload

_CACHE_FORMAT = 4
_TOKENS_PER_FILE = 2**20  # of consecutive forward passes; the most that a killed pass can lose
_ADAPTER_FACTS = ("lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora")


class Reference(Protocol):
    """Gives the reference's log-probs of a batch, token for token in the policy's order.

    ``is_start``: whether it is the model that training started from. ``name``: for display.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_start(self) -> bool: ...

    def score(self, batch: Batch) -> Scored: ...


@dataclass(frozen=True, slots=True)
class _Live:
    """A model that is run as the reference, in the state of :meth:`acting`."""

    model: Any

    @contextmanager
    def acting(self) -> Iterator[Any]:
        """The model, put into the reference's state for the duration of the block."""
        yield self.model

    def score(self, batch: Batch) -> Scored:
        with torch.no_grad(), self.acting() as model:
            return score(model, batch)

    def hidden(self, batch: Batch) -> Tensor:
        with torch.no_grad(), self.acting() as model:
            return predicting(model, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Raw logits, as the head gives them."""
        with torch.no_grad(), self.acting() as model:
            return output_head(model)(hidden)


@dataclass(frozen=True, slots=True)
class Frozen(_Live):
    """A separate model that is never trained."""

    name: str = "frozen copy of the starting weights"
    is_start: bool = True


@dataclass(frozen=True, slots=True)
class Offloaded(Frozen):
    """A frozen model in host memory whose weights are copied to ``device`` for its forward passes.

    The copy is made once per update with :func:`score_ahead`, else once per forward pass.
    """

    device: torch.device = field(kw_only=True)
    known: dict[int, tuple[Batch, Scored]] = field(default_factory=dict)  # with the batch, so that its id is not reused
    visits: list[None] = field(default_factory=list)  # one entry while the weights are on the device

    @contextmanager
    def acting(self) -> Iterator[Any]:
        if self.visits:
            yield self.model
            return
        with visiting(self.model.parameters(), self.device):
            self.visits.append(None)
            try:
                yield self.model
            finally:
                self.visits.pop()

    def score(self, batch: Batch) -> Scored:
        scored = self.known.get(id(batch))
        return scored[1] if scored is not None else _Live.score(self, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Raw logits; only the head is copied to the device."""
        if self.visits:
            return _Live.logits(self, hidden)
        with torch.no_grad(), visiting(output_head(self.model).parameters(), self.device):
            return output_head(self.model)(hidden)


def score_ahead(reference: Reference | None, batches: Sequence[Batch]) -> None:
    """Score the batches of an update before the policy's first forward pass, if the reference is offloaded.

    It is then copied to the device once, and is gone before there are activations.
    """
    if not isinstance(reference, Offloaded):
        return
    reference.known.clear()
    with reference.acting():
        reference.known.update({id(b): (b, reference.score(b)) for b in batches})


@dataclass(frozen=True, slots=True)
class AdapterOff(_Live):
    """The policy's base weights, with the adapters switched off for the call."""

    name: str = "the same model with its adapter switched off"
    is_start: bool = True

    @contextmanager
    def acting(self) -> Iterator[Any]:
        with self.model.disable_adapter():
            yield self.model


@dataclass(frozen=True, slots=True)
class StartingAdapter(_Live):
    """The policy with a copy of its adapters from the start of training, on the same base model."""

    weights: Mapping[str, Tensor]
    name: str = "frozen copy of the starting adapter"
    is_start: bool = True

    @contextmanager
    def acting(self) -> Iterator[Any]:
        with acting_as(self.model, self.weights):
            yield self.model


@dataclass(frozen=True, slots=True)
class Cached:
    """A table of per-token log-probs, keyed by the content of prompt and response."""

    table: Mapping[str, np.ndarray]
    name: str = "cached log-probs of the starting weights"
    is_start: bool = True

    def score(self, batch: Batch) -> Scored:
        rows = [self.table[t.key(k)] for t, k in batch.sources]
        logps = upload(np.concatenate(rows), batch.predict_at.device)
        return Scored(logps, batch.response_of, batch.n_responses)


class MemoizedReference:
    """Caches another reference's log-probs per batch object, for batches that are scored repeatedly, such as held-out
    ones.

    Keeps the batches it has seen in memory.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference, self.name = reference, reference.name
        self._seen: dict[int, tuple[Batch, Scored]] = {}

    @property
    def is_start(self) -> bool:
        """The other reference's value."""
        return self.reference.is_start

    def score(self, batch: Batch) -> Scored:
        """The log-probs, from memory if this batch object was scored before."""
        if id(batch) not in self._seen:
            self._seen[id(batch)] = (batch, self.reference.score(batch))
        return self._seen[id(batch)][1]


def move_towards_policy(reference: Frozen, model: Any, mixup: float) -> None:
    """Move a frozen copy towards the model in parameter space: ref <- mixup model + (1 - mixup) ref; 1 copies it.

    The reference of TR-DPO (Gorbatovski et al. 2024, arXiv 2404.09656).
    """
    with torch.no_grad():
        for old, new in zip(reference.model.parameters(), model.parameters(), strict=True):
            old.lerp_(new.to(old), mixup)


def offloaded(model: Any, device: torch.device) -> Offloaded:
    """A copy of the current model in host memory."""
    return Offloaded(host_copy(model, device), "frozen copy of the starting weights, offloaded", device=device)


def live_reference(model: Any, *, fresh_adapter: bool = False) -> Reference:
    """The policy before its fresh adapter (switched off for the call); without a fresh adapter, the current policy.

    A fresh adapter that is the identity makes no difference. Virtual tokens do: the reference is then the model without
    them, and the policy starts elsewhere. An adapter that was trained before is part of the starting point, and
    switching it off would give another model, so a copy of it is kept.
    """
    if fresh_adapter:
        return AdapterOff(model)
    return StartingAdapter(model, starting_weights(model)) if is_adapted(model) else Frozen(frozen_copy(model))


def cached(
    reference: Reference, trees: Sequence[Tree], folder: Path, *, key: str, sharing: Sharing, budget: int, device: Any
) -> Cached:
    """The reference's log-probs of all ``trees``, from disk if present; missing ones are computed and written.

    A pass that is killed resumes after its last complete file.

    Args:
        folder: holds safetensors files whose metadata list the responses; they can be inspected and deleted freely.
        key: hash of everything except the tokens that changes the numbers, see :func:`cache_key`.
        budget: tokens per forward pass.
    """
    table = read_cache(folder, key)
    lacking = [trees[i] for i in missing_trees(trees, table)]
    bins = pack([t.n_tokens for t in lacking], budget)
    batches = (collate([lacking[i] for i in members], sharing, device) for members in bins)
    return Cached(table | fill_cache(reference, batches, folder, key))


def read_cache(folder: Path, key: str) -> dict[str, np.ndarray]:
    """The log-probs that a folder of :func:`cached` holds for ``key``, by content of prompt and response.

    Raises:
        AfzalError: a file is damaged, or belongs to other weights.
    """
    table: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob(f"reference-{key[:24]}-*.safetensors")):
        table |= _read(path, key)
    return table


def missing_trees(trees: Sequence[Tree], table: Mapping[str, np.ndarray]) -> list[int]:
    """Indices of the trees with a response that the table lacks."""
    return [i for i, t in enumerate(trees) if any(t.key(k) not in table for k in range(len(t.branches)))]


def fill_cache(reference: Reference, batches: Iterable[Batch], folder: Path, key: str) -> dict[str, np.ndarray]:
    """Score batches one by one and write the reference's log-probs to the folder on the way.

    An idle batch is scored but not stored.
    """
    table: dict[str, np.ndarray] = {}
    new: dict[str, np.ndarray] = {}
    tokens = 0
    for batch in batches:
        token_logps = reference.score(batch).token_logps
        if batch.idle:
            continue
        new |= _by_key(batch, token_logps)
        tokens += batch.n_tokens
        if tokens >= _TOKENS_PER_FILE:
            table |= _written(folder, key, new)
            new, tokens = {}, 0
    return table | _written(folder, key, new)


def cache_key(
    model: Any,
    *,
    sharing: Sharing,
    dtype: str,
    fresh_adapter: bool = False,
    gather: Callable[[Mapping[str, Tensor]], Iterable[tuple[str, Tensor]]] = Mapping.items,
) -> str:
    """SHA-256 over everything except the tokens that the reference's numbers depend on: weights, architecture, dtype,
    layout.

    A fresh adapter is left out, since it is off in the reference.

    Args:
        dtype: effective number format of the forward pass, ``fp32`` or ``bf16``, never ``auto``.
        gather: gathers tensors that are sharded over ranks, one at a time.
    """
    adapters = {} if fresh_adapter else _adapters(model)
    facts = [_CACHE_FORMAT, sharing, dtype, _architecture(model.config), adapters]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    weights = _base_weights(model) if fresh_adapter else model.state_dict().items()
    for name, value in gather(dict(sorted(weights, key=lambda pair: pair[0]))):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _architecture(config: Any) -> dict[str, Any]:
    """The configuration without its origin: rotary bases, norms and scales change the numbers as weights do."""
    values = json.loads(config.to_json_string(use_diff=False))
    origin = {"transformers_version", "architectures", "torch_dtype", "dtype"}
    return {k: v for k, v in values.items() if not k.startswith("_") and k not in origin}


def _adapters(model: Any) -> dict[str, Any]:
    """How strongly and where the model's adapters act: the same weights with another alpha are another policy."""
    adapters = getattr(model, "peft_config", {})
    return {name: {k: getattr(c, k, None) for k in _ADAPTER_FACTS} for name, c in adapters.items()}


def _base_weights(model: Any) -> Iterable[tuple[str, Tensor]]:
    """Yield the weights that act with adapters off, under their names without adapters."""
    prefix = "base_model." if virtual_tokens(model) else "base_model.model."
    for name, value in model.state_dict().items():
        # with virtual tokens, the word embeddings appear a second time
        if name.startswith(("prompt_encoder.", "word_embeddings.")):
            continue
        if "lora_" in name or "ia3_" in name or "modules_to_save" in name:
            continue
        yield name.removeprefix(prefix).replace(".base_layer", "").replace(".original_module", ""), value


def _by_key(batch: Batch, token_logps: Tensor) -> dict[str, np.ndarray]:
    counts = torch.bincount(batch.response_of, minlength=batch.n_responses).tolist()
    parts = token_logps.float().cpu().split(counts)
    return {t.key(k): part.numpy() for (t, k), part in zip(batch.sources, parts, strict=True)}


def _read(path: Path, key: str) -> dict[str, np.ndarray]:
    """Read a stored table. A damaged or foreign file is an error; it is never silently recomputed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["afzal"])
            flat, keys, ends = file.get_tensor("logps"), header["responses"], file.get_tensor("ends")
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise AfzalError(f"reference cache {path} is damaged", why=str(error), remedy=f"delete {path}") from error
    if header["key"] != key:
        raise AfzalError(f"reference cache {path} belongs to other weights", remedy=f"delete {path}")
    return dict(zip(keys, np.split(flat, ends[:-1]), strict=True))


def _written(folder: Path, key: str, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write the table and return it. Its file name is a hash of its responses, so two runs never write different
    content under the same name."""
    if table:
        name = hashlib.sha256("".join(table).encode()).hexdigest()[:16]
        _write(folder / f"reference-{key[:24]}-{name}.safetensors", key, table)
    return table


def _write(path: Path, key: str, table: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    from afzal.runs import atomic_write, make_folder

    make_folder(path.parent)
    ends = np.cumsum([len(v) for v in table.values()])
    header = json.dumps({"key": key, "responses": list(table)})
    data = save({"logps": np.concatenate(list(table.values())), "ends": ends}, metadata={"afzal": header})
    atomic_write(path, data)
