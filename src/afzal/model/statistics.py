"""Log-probs together with other statistics of the next-token distributions, for objectives that declare them.

Tiled as in :mod:`.logprobs`: the head runs only where a scored token is predicted, logits are float32 after the
matmul, and if there are several tiles they are recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.model.load import vocabulary_of
from afzal.model.logprobs import adjusted, output_head, predicting, tiled
from afzal.objectives.inputs import Scored
from afzal.objectives.statistics import Statistic, compares_with_reference
from afzal.tokens.batch import Batch

_TILE_ELEMENTS = 2**25  # float32 logits of each model held at a time: 128 MiB
# Without a backward pass nothing has to be recomputed, so tiles may be small. On a CPU the allocator reuses
# tensors of 16 MiB, but returns larger ones and faults them in again, which costs more than the arithmetic.
_TILE_BYTES_UNTRAINED = 2**24  # of each model's raw logits
_CACHED_ELEMENTS = 2**18  # float32 logits that a core works on at a time: a dozen operations find them in its cache

StatisticRequests = Sequence[tuple[Statistic, Mapping[str, Any]]]
"""Statistics with the values of their parameters."""


class LiveReference(Protocol):
    """A reference model that can be run, so that its logits are available."""

    def hidden(self, batch: Batch) -> Tensor: ...

    @property
    def model(self) -> Any: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


def score_with(
    model: Any, reference: Any, batch: Batch, requests: StatisticRequests, temperature: float = 1.0
) -> tuple[Scored, Scored | None]:
    """The policy's log-probs with ``extras``, and the reference's log-probs if a statistic compares the two.

    Args:
        temperature: divides both models' logits.

    Raises:
        AfzalError: a statistic needs the reference's logits, but the reference is a table of log-probs.
    """
    compares = any(compares_with_reference(fn) for fn, _ in requests)
    if compares and not hasattr(reference, "logits"):
        names = ", ".join(fn.__name__ for fn, _ in requests)
        raise AfzalError(
            f"the reference ({getattr(reference, 'name', 'none')}) has no logits for {names}", remedy="reference=frozen"
        )
    hidden = predicting(model, batch)
    ref_hidden = reference.hidden(batch) if compares else None

    def read(logits: Tensor, target: Tensor, ref_logits: Tensor | None = None) -> Tensor:
        logp = adjusted(model.config, logits, temperature).log_softmax(-1)
        rows = [logp.gather(1, target[:, None])[:, 0]]
        compared = {}
        if ref_logits is not None:
            compared = {"ref_logp": adjusted(reference.model.config, ref_logits, temperature).log_softmax(-1)}
            rows.append(compared["ref_logp"].gather(1, target[:, None])[:, 0])
        for fn, parameters in requests:
            rows.append(fn(logp, target, **parameters, **(compared if compares_with_reference(fn) else {})))
        return torch.stack(rows)

    def tile(h: Tensor, target: Tensor, *r: Tensor) -> Tensor:
        columns = output_head(model)(h), target, *map(reference.logits, r)
        return tiled(read, *columns, rows=inner) if small else read(*columns)

    columns = (hidden, batch.target) if ref_hidden is None else (hidden, batch.target, ref_hidden)
    small, vocabulary = hidden.device.type == "cpu" and not torch.is_grad_enabled(), vocabulary_of(model)
    elements = _TILE_BYTES_UNTRAINED // hidden.element_size() if small else _TILE_ELEMENTS
    inner = max(1, _CACHED_ELEMENTS * torch.get_num_threads() // vocabulary)
    rows = tiled(tile, *columns, rows=max(1, elements // vocabulary))
    names = [fn.__name__ for fn, _ in requests]
    extras = dict(zip(names, rows[-len(names) :], strict=True))
    policy = Scored(rows[0], batch.response_of, batch.n_responses, extras)
    return policy, Scored(rows[1].detach(), batch.response_of, batch.n_responses) if compares else None
