"""Read the header of a safetensors file: names, dtypes and shapes of its tensors, without their data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 << 20  # some 100,000 tensors
_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16}
_BITS |= {"I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
_PACKED = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a file.

    Attributes:
        dtype: its safetensors dtype, such as F32 or BF16.
        end: end of its data, as a byte offset from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    end: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def packed(self) -> bool:
        """Whether its dtype is one of quantised weights."""
        return self.dtype in _PACKED


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: it is not a safetensors file, or its header contradicts itself or the length of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 2 <= length <= min(size - 8, MAX_HEADER_BYTES) else b""
    try:
        header = json.loads(text)
        tensors = {k: _tensor_info(k, v) for k, v in header.items() if k != "__metadata__"}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError("it is not a safetensors file, whatever its name says") from error
    stated = 8 + length + max((t.end for t in tensors.values()), default=0)
    if stated != size:
        raise ValueError(f"it is damaged: {size} bytes instead of {stated}")
    return tensors


def _tensor_info(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name}: sizes that are not counts")
    bits = _BITS.get(entry["dtype"])
    if bits is not None and math.prod(shape) * bits != 8 * (end - begin):
        raise ValueError(f"{name}: {end - begin} bytes are not its {list(shape)} numbers")
    return TensorInfo(str(entry["dtype"]), shape, end)
