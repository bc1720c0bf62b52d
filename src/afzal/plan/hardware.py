"""Peaks and sizes of devices as stated by their vendors; nothing here is measured."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from afzal.errors import AfzalError

_TERA, _GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator (or the CPU of one machine) and its links.

    Attributes:
        memory: bytes.
        bf16, fp32: floating-point operations per second of a dense matrix product, without sparsity.
        bandwidth: bytes per second to and from its own memory.
        intra, inter: bytes per second and direction to devices in the same node, and in other nodes.
        reserve: bytes taken by the runtime, the libraries and the communication buffers before any tensor.
        per_node: usual number of devices in one node.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    intra: float
    inter: float
    reserve: float = 2 * _GIGA
    per_node: int = 8


def _device(
    name: str, gb: float, bf16: float, fp32: float, tb_s: float, intra: float, inter: float, **optional: float
) -> Device:
    reserve, per_node = optional.get("reserve", 2.0) * _GIGA, int(optional.get("per_node", 8))
    rates = (bf16 * _TERA, fp32 * _TERA, tb_s * _TERA, intra * _GIGA, inter * _GIGA)
    return Device(name, gb * _GIGA, *rates, reserve=reserve, per_node=per_node)


# Dense bf16 and plain float32 TFLOP/s, memory TB/s; links in GB/s per direction: NVLink or PCIe inside a node, and
# one network card per GPU between nodes (400 Gb/s with H100, H200 and B200, 200 Gb/s with A100).
_DEVICES = (
    _device("h100", 80, 989, 67, 3.35, 450, 50),
    _device("h200", 141, 989, 67, 4.8, 450, 50),
    _device("b200", 180, 2250, 75, 7.7, 900, 50),
    _device("a100-80", 80, 312, 19.5, 2.039, 300, 25),
    _device("a100-40", 40, 312, 19.5, 1.555, 300, 25),
    _device("l4", 24, 121, 30.3, 0.3, 32, 12.5, reserve=1.0),
    _device("4090", 24, 165, 82.6, 1.008, 32, 3.1, reserve=1.0),
    # Two cores of a server from 2023; for another machine, give --memory-gb and --tflops.
    _device("cpu", 16, 0.42, 0.2, 0.03, 1, 1, reserve=0.5, per_node=1),
)
DEVICES: dict[str, Device] = {device.name: device for device in _DEVICES}
_ALIASES = {"a100": "a100-80", "h100-80": "h100", "rtx4090": "4090", "rtx-4090": "4090"}


def device_named(name: str) -> Device:
    """A device of the table by its name, in upper or lower case.

    Raises:
        AfzalError: no device has that name.
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    key = _ALIASES.get(key, key)
    if key not in DEVICES:
        matches = get_close_matches(key, DEVICES, n=1, cutoff=0.6)
        hint = f" (did you mean {matches[0]}?)" if matches else ""
        raise AfzalError(
            f"hardware {name!r} is not in the table{hint}",
            remedy=f"choose one of {', '.join(DEVICES)}; --memory-gb, --tflops and the like override its numbers",
        )
    return DEVICES[key]
