"""The one table of objectives: a function, and the facts the loop reads about it.

An objective is a pure function

    fn(policy: Scored, reference: Scored | None, pairs: Pairs, *, <parameters with defaults>) -> (losses, rewards)

that returns one unreduced loss per unit (pair, response or token, in nats or the objective's own measure) and
detached rewards ``[B]``. It never sees a model, a configuration or a device. The loop divides the weighted sum of
losses by the global weight, so accumulation and data parallelism are exact.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor

from .inputs import Pairs, Scored

Unit = Literal["pair", "response", "token"]
LossFunction = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Objective:
    """Facts about one objective.

    Attributes:
        unit: what a loss belongs to, and so what the loss is averaged over.
        needs_reference: whether reference log-probs are used; without it ``reference`` is None.
        at_reference: parameters -> the loss when policy equals reference (labels play no part), or None if it varies.
        statistic: for objectives that couple the batch: ``(policy, reference) -> (sum, count)`` over mismatched
            prompt/response rows, pooled over the whole update and handed to ``fn`` as ``statistic`` = sum / count.
        paper: where the formula comes from.
    """

    name: str
    fn: LossFunction
    unit: Unit
    needs_reference: bool
    at_reference: Callable[[Mapping[str, Any]], float | None]
    statistic: Callable[[Scored, Scored], tuple[Tensor, Tensor]] | None = None
    paper: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters and their defaults, read from the signature."""
        keyword = inspect.Parameter.KEYWORD_ONLY
        found = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in found if p.kind is keyword and p.name != "statistic"}


REGISTRY: dict[str, Objective] = {}


def objective(
    name: str,
    *,
    unit: Unit,
    needs_reference: bool,
    at_reference: Callable[[Mapping[str, Any]], float | None] = lambda _: None,
    statistic: Callable[[Scored, Scored], tuple[Tensor, Tensor]] | None = None,
    paper: str = "",
) -> Callable[[LossFunction], LossFunction]:
    """Register a function under ``name`` and leave it as it is."""

    def register(fn: LossFunction) -> LossFunction:
        if name in REGISTRY:
            raise ValueError(f"objective {name!r} is registered twice")
        REGISTRY[name] = Objective(name, fn, unit, needs_reference, at_reference, statistic, paper)
        return fn

    return register


def get(name: str) -> Objective:
    """The objective of that name, or of an import path ``package.module:function`` decorated with ``@objective``.

    Raises:
        ValueError: no such objective; names the closest ones.
    """
    if ":" in name:
        module, _, function = name.partition(":")
        fn = getattr(importlib.import_module(module), function)
        return next(o for o in REGISTRY.values() if o.fn is fn)
    if name not in REGISTRY:
        close = get_close_matches(name, REGISTRY, n=3) or sorted(REGISTRY)
        raise ValueError(f"unknown objective {name!r}; did you mean {', '.join(close)}?")
    return REGISTRY[name]


def unit_weights(unit: Unit, pairs: Pairs, response_of: Tensor) -> Tensor:
    """Weight of each unit of a batch, ``[n]``: its share of the count that the summed loss is divided by."""
    if unit == "pair":
        return pairs.weight
    if unit == "response":
        return (~pairs.desirable.isnan()).to(torch.float32)
    return torch.ones(response_of.shape, device=response_of.device)
