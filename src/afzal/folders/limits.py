"""Limit the size of a model under construction by the file that fills it.

A configuration of a few bytes can request more modules than a library builds in an hour, or buffers larger than memory.
Libraries register every weight and buffer that they create, so the first one over the limit stops them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from afzal.errors import AfzalError
from afzal.folders.safetensors_header import TensorInfo

_SLACK = 1 << 20  # numbers: a tiny model's fresh head
_BUFFERS = 1 << 27  # numbers in all buffers; the causal masks of old families take a tenth of it


@contextmanager
def bounded_by(folder: str, stored: Mapping[str, TensorInfo]) -> Iterator[None]:
    """In the block, modules can be built with at most twice the weights that ``stored`` has.

    Raises:
        AfzalError: more weights, tensors or buffers are built.
    """
    from torch.nn.modules import module

    # a tied head is built before it is tied; quantised files pack several weights into one number
    weights = 2 * sum(t.size * (8 if t.packed else 1) for t in stored.values()) + _SLACK
    tensors = 1000 + 100 * len(stored)
    totals = {"weights": 0, "tensors": 0, "buffers": 0}

    # a weight is registered when its module is made, and again when it is read or tied: it counts once
    sizes_of: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()

    def count(kind: str, owner: Any, name: str, value: Any) -> None:
        if value is None:
            return
        sizes = sizes_of.setdefault(owner, {})
        totals["tensors"] += name not in sizes
        totals[kind] += value.numel() - sizes.get(name, 0)
        sizes[name] = value.numel()
        if totals["tensors"] > tensors or totals["weights"] > weights or totals["buffers"] > _BUFFERS:
            raise AfzalError(
                f"{folder} describes a larger model than it holds",
                where="config.json",
                why=f"the files hold {len(stored)} tensors, {sum(t.size for t in stored.values())} numbers in all",
                remedy="get the configuration that belongs to the weights",
            )

    hooks = [
        module.register_module_parameter_registration_hook(lambda m, n, value: count("weights", m, n, value)),
        module.register_module_buffer_registration_hook(lambda m, n, value: count("buffers", m, n, value)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
