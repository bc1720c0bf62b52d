"""Numbers of the host to the device of a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """The values on the device, shape and dtype kept.

    A GPU gets them from pinned memory, in order with its other work: the host does not wait until that is done, which
    a plain copy does.
    """
    held = values if isinstance(values, Tensor) else torch.tensor(values)
    if torch.device(device).type == "cuda":
        return held.pin_memory().to(device, non_blocking=True)
    return held.to(device)
