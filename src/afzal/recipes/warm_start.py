"""Training that starts from an existing adapter, optionally with a prior that keeps it nearby."""

from __future__ import annotations

from functools import partial
from typing import Any

from afzal.config import TrainConfig
from afzal.errors import AfzalError
from afzal.model.adapters import is_adapted, virtual_kind
from afzal.model.load import begin_with
from afzal.train.precision import Weights
from afzal.train.prior import Prior
from afzal.train.shard import Sharded
from afzal.train.update import Accumulate, accumulate


def folder_of(config: TrainConfig) -> str | None:
    """The folder of the adapter to start from; None if the adapter is fresh or there is none."""
    return config.policy.adapter_from if config.policy is not None else None


def with_adapter_from(model: Any, folder: str) -> Any:
    """The model with the adapter from a folder; not yet checked to compute finite numbers.

    Raises:
        AfzalError: the model is an adapter already, or the folder holds none that fits it.
    """
    if is_adapted(model):
        raise AfzalError("the model is an adapter already", remedy="set model to its base model, next to adapter_from")
    return begin_with(model, folder)


def describe_start(config: TrainConfig) -> str:
    """The model and the adapter that it starts from, for messages."""
    folder = folder_of(config)
    return config.model if folder is None else f"{config.model} with the adapter {folder}"


def not_the_identity(config: TrainConfig, model: Any) -> str:
    """A description of a new adapter that makes the policy differ from its reference; empty if none does."""
    if (folder := folder_of(config)) is not None:
        return f"the adapter {folder}"
    return f"a fresh {virtual_kind(model)} adapter" if config.adapter_kind and virtual_kind(model) else ""


def gradient_near_start(config: TrainConfig, weights: Weights | Sharded, items: int) -> Accumulate:
    """The function that computes an update's gradient, with a pull to the current weights if requested.

    Args:
        items: number of training items; the more, the weaker a prior with ``prior_labels``.
    """
    policy = config.policy
    if policy is None or policy.prior is None:
        return accumulate
    scale = 1.0 if policy.prior_labels is None else policy.prior_labels / items
    start = {name: carrier.detach().clone() for name, carrier in weights.masters.items()}
    return partial(Prior(start, policy.prior * scale).accumulate, accumulate, weights.masters, weights.carriers)
