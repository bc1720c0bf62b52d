"""Copy values from the host to a model's device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """Copy values to a device, with shape and dtype unchanged.

    A GPU copies from pinned memory, in order with its other work, so the host does not wait for it as with a plain
    copy.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
