"""An adapter that begins as the one in a folder, and may be held near it."""

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
    """The folder of the adapter to begin with; None where it is fresh or there is none."""
    return config.policy.adapter_from if config.policy is not None else None


def begun(model: Any, folder: str) -> Any:
    """The model with the adapter of a folder on it; whether the two compute numbers is not known yet.

    Raises:
        AfzalError: the model is an adapter already, or the folder holds none that fits it.
    """
    if is_adapted(model):
        raise AfzalError("the model is an adapter already", remedy="name its base model beside adapter_from")
    return begin_with(model, folder)


def named(config: TrainConfig) -> str:
    """The model and the adapter that it begins with, for messages."""
    folder = folder_of(config)
    return config.model if folder is None else f"{config.model} with the adapter {folder}"


def not_the_identity(config: TrainConfig, model: Any) -> str:
    """In words, a new adapter that makes the policy another one than its reference; empty where none does."""
    if (folder := folder_of(config)) is not None:
        return f"the adapter {folder}"
    return f"a fresh {virtual_kind(model)} adapter" if config.adapter_kind and virtual_kind(model) else ""


def gradient_near_start(config: TrainConfig, weights: Weights | Sharded, items: int) -> Accumulate:
    """How an update gets its gradient: with a pull to the weights as they are now, where that is asked for.

    Args:
        items: of training; the more there are, the weaker a prior with ``prior_labels``.
    """
    asked = config.policy
    if asked is None or asked.prior is None:
        return accumulate
    scale = 1.0 if asked.prior_labels is None else asked.prior_labels / items
    start = {name: carrier.detach().clone() for name, carrier in weights.masters.items()}
    return partial(Prior(start, asked.prior * scale).accumulate, accumulate, weights.masters, weights.carriers)
