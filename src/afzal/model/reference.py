"""The reference policy: one question (what were the log-probs?), four ways to answer it.

A frozen copy, the policy with its adapters switched off, the policy with its adapters as they were at the start, or a
table of log-probs computed once and kept on disk by content. All give the same numbers; which one is used is said at
the start of a run.
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
_TOKENS_PER_FILE = 2**20  # of one forward after another; what a killed pass can lose
_ADAPTER_FACTS = ("lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora")


class Reference(Protocol):
    """Gives the reference's log-probs of a batch, token for token in the policy's order.

    ``is_start`` says whether it is the model that training started from, and not another one. ``name`` is for people.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_start(self) -> bool: ...

    def score(self, batch: Batch) -> Scored: ...


@dataclass(frozen=True, slots=True)
class _Live:
    """A model that answers, in some state that it takes on for the call."""

    model: Any

    @contextmanager
    def acting(self) -> Iterator[Any]:
        """The model as the reference, as long as the block lasts."""
        yield self.model

    def score(self, batch: Batch) -> Scored:
        with torch.no_grad(), self.acting() as model:
            return score(model, batch)

    def hidden(self, batch: Batch) -> Tensor:
        with torch.no_grad(), self.acting() as model:
            return predicting(model, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """As they come out of the head."""
        with torch.no_grad(), self.acting() as model:
            return output_head(model)(hidden)


@dataclass(frozen=True, slots=True)
class Frozen(_Live):
    """A model of its own that is never trained."""

    name: str = "frozen copy of the starting weights"
    is_start: bool = True


@dataclass(frozen=True, slots=True)
class Offloaded(Frozen):
    """A frozen model that lies in the machine's memory and visits ``device`` for its forward passes.

    Its weights travel once per update where :func:`ahead` knows it, else once per forward pass.
    """

    device: torch.device = field(kw_only=True)
    known: dict[int, tuple[Batch, Scored]] = field(default_factory=dict)  # with the batch, so that its id stays its own
    visits: list[None] = field(default_factory=list)  # one while the weights are there

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
        found = self.known.get(id(batch))
        return found[1] if found is not None else _Live.score(self, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """As any other's; the head alone travels."""
        if self.visits:
            return _Live.logits(self, hidden)
        with torch.no_grad(), visiting(output_head(self.model).parameters(), self.device):
            return output_head(self.model)(hidden)


def ahead(reference: Reference | None, batches: Sequence[Batch]) -> None:
    """Have the batches of an update scored before the policy's first forward pass, where that is the cheaper way: an
    offloaded reference then travels once, and is gone before activations are there."""
    if not isinstance(reference, Offloaded):
        return
    reference.known.clear()
    with reference.acting():
        reference.known.update({id(b): (b, reference.score(b)) for b in batches})


@dataclass(frozen=True, slots=True)
class AdapterOff(_Live):
    """The policy's own base weights, with the adapters switched off for the call."""

    name: str = "the same model with its adapter switched off"
    is_start: bool = True

    @contextmanager
    def acting(self) -> Iterator[Any]:
        with self.model.disable_adapter():
            yield self.model


@dataclass(frozen=True, slots=True)
class StartingAdapter(_Live):
    """The policy with its adapters as they were at the start: a copy of the adapters alone, on the one base model."""

    weights: Mapping[str, Tensor]
    name: str = "frozen copy of the starting adapter"
    is_start: bool = True

    @contextmanager
    def acting(self) -> Iterator[Any]:
        with acting_as(self.model, self.weights):
            yield self.model


@dataclass(frozen=True, slots=True)
class Cached:
    """A table of per-token log-probs, by content of prompt and response."""

    table: Mapping[str, np.ndarray]
    name: str = "cached log-probs of the starting weights"
    is_start: bool = True

    def score(self, batch: Batch) -> Scored:
        rows = [self.table[t.key(k)] for t, k in batch.sources]
        logps = upload(np.concatenate(rows), batch.predict_at.device)
        return Scored(logps, batch.response_of, batch.n_responses)


class Remembered:
    """Another reference's answers, asked for once per batch object: for batches that come again, such as held-out ones.

    Keeps the batches it has seen alive.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference, self.name = reference, reference.name
        self._seen: dict[int, tuple[Batch, Scored]] = {}

    @property
    def is_start(self) -> bool:
        """As the other reference's."""
        return self.reference.is_start

    def score(self, batch: Batch) -> Scored:
        """The log-probs, from memory when this very batch was asked for before."""
        if id(batch) not in self._seen:
            self._seen[id(batch)] = (batch, self.reference.score(batch))
        return self._seen[id(batch)][1]


def follow(reference: Frozen, model: Any, mixup: float) -> None:
    """Move a frozen copy towards the model in parameter space: ref <- mixup model + (1 - mixup) ref; 1 copies it.

    The reference of TR-DPO (Gorbatovski et al. 2024, arXiv 2404.09656).
    """
    with torch.no_grad():
        for old, new in zip(reference.model.parameters(), model.parameters(), strict=True):
            old.lerp_(new.to(old), mixup)


def offloaded(model: Any, device: torch.device) -> Offloaded:
    """The model as it is now, copied into the machine's memory."""
    return Offloaded(host_copy(model, device), "frozen copy of the starting weights, offloaded", device=device)


def live_reference(model: Any, *, fresh_adapter: bool = False) -> Reference:
    """The policy as it was before the adapter that is fresh now: adapter-off; without a fresh one, the policy as it is.

    For a fresh adapter that is the identity both are the same. Virtual tokens never are: the reference is then the
    model without them, and the policy starts elsewhere. An adapter that was trained before is part of the starting
    point, so that switching it off would be another model: a copy of it is kept.
    """
    if fresh_adapter:
        return AdapterOff(model)
    return StartingAdapter(model, starting_weights(model)) if is_adapted(model) else Frozen(frozen_copy(model))


def cached(
    live: Reference, trees: Sequence[Tree], folder: Path, *, key: str, sharing: Sharing, budget: int, device: Any
) -> Cached:
    """The reference's log-probs of all ``trees``, from disk where present; what is missing is computed and written.

    Whatever was computed stays: a pass that is killed resumes where its last file ends.

    Args:
        folder: holds safetensors files whose metadata list the responses; they can be inspected and deleted freely.
        key: content of everything that changes the numbers but the tokens: see :func:`cache_key`.
        budget: tokens per forward pass.
    """
    table = stored(folder, key)
    lacking = [trees[i] for i in absent(trees, table)]
    bins = pack([t.n_tokens for t in lacking], budget)
    batches = (collate([lacking[i] for i in members], sharing, device) for members in bins)
    return Cached(table | store(live, batches, folder, key))


def stored(folder: Path, key: str) -> dict[str, np.ndarray]:
    """The log-probs that a folder of :func:`cached` has for ``key``, by content of prompt and response.

    Raises:
        AfzalError: a file is damaged, or belongs to other weights.
    """
    table: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob(f"reference-{key[:24]}-*.safetensors")):
        table |= _read(path, key)
    return table


def absent(trees: Sequence[Tree], table: Mapping[str, np.ndarray]) -> list[int]:
    """Which of the trees have a response that the table lacks."""
    return [i for i, t in enumerate(trees) if any(t.key(k) not in table for k in range(len(t.branches)))]


def store(live: Reference, batches: Iterable[Batch], folder: Path, key: str) -> dict[str, np.ndarray]:
    """The reference's log-probs of batches, scored one after the other and written to the folder on the way.

    An idle batch is scored and not kept.
    """
    table: dict[str, np.ndarray] = {}
    new: dict[str, np.ndarray] = {}
    tokens = 0
    for batch in batches:
        token_logps = live.score(batch).token_logps
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
    whole: Callable[[Mapping[str, Tensor]], Iterable[tuple[str, Tensor]]] = Mapping.items,
) -> str:
    """SHA-256 over what the reference's numbers depend on besides the tokens: weights, architecture, dtype, layout.

    A fresh adapter does not enter, since it is off in the reference.

    Args:
        dtype: number format of the forward pass as it is in effect, ``fp32`` or ``bf16``, never ``auto``.
        whole: gives tensors that lie in pieces on several ranks whole, one after the other.
    """
    adapters = {} if fresh_adapter else _adapters(model)
    about = [_CACHE_FORMAT, sharing, dtype, _architecture(model.config), adapters]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    weights = _base_weights(model) if fresh_adapter else model.state_dict().items()
    for name, value in whole(dict(sorted(weights, key=lambda pair: pair[0]))):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _architecture(config: Any) -> dict[str, Any]:
    """The configuration without what names its origin: rotary bases, norms and scales change numbers as weights do."""
    values = json.loads(config.to_json_string(use_diff=False))
    origin = {"transformers_version", "architectures", "torch_dtype", "dtype"}
    return {k: v for k, v in values.items() if not k.startswith("_") and k not in origin}


def _adapters(model: Any) -> dict[str, Any]:
    """How strongly, and where, the model's adapters act: the same weights with another alpha are another policy."""
    adapters = getattr(model, "peft_config", {})
    return {name: {k: getattr(c, k, None) for k in _ADAPTER_FACTS} for name, c in adapters.items()}


def _base_weights(model: Any) -> Iterable[tuple[str, Tensor]]:
    """Weights that act when adapters are off, under the names they have without adapters."""
    prefix = "base_model." if virtual_tokens(model) else "base_model.model."
    for name, value in model.state_dict().items():
        # the table of word embeddings beside virtual tokens is the base model's own, once more
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
    """A stored table. A damaged or foreign file is an error, never a silent recompute."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            found = json.loads(file.metadata()["afzal"])
            flat, keys, ends = file.get_tensor("logps"), found["responses"], file.get_tensor("ends")
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise AfzalError(f"reference cache {path} is damaged", why=str(error), remedy=f"delete {path}") from error
    if found["key"] != key:
        raise AfzalError(f"reference cache {path} belongs to other weights", remedy=f"delete {path}")
    return dict(zip(keys, np.split(flat, ends[:-1]), strict=True))


def _written(folder: Path, key: str, table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The table, once it is on disk; its file is named by its responses, so that two runs never write the same name
    with different content."""
    if table:
        name = hashlib.sha256("".join(table).encode()).hexdigest()[:16]
        _write(folder / f"reference-{key[:24]}-{name}.safetensors", key, table)
    return table


def _write(path: Path, key: str, table: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    from afzal.runs import atomic_write, make_folder

    make_folder(path.parent)
    ends = np.cumsum([len(v) for v in table.values()])
    about = json.dumps({"key": key, "responses": list(table)})
    data = save({"logps": np.concatenate(list(table.values())), "ends": ends}, metadata={"afzal": about})
    atomic_write(path, data)
