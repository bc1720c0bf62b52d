"""Describe the machine that a benchmark runs on, and refuse to measure while it is busy."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

BUSY = 0.3  # a load average above this disturbs timings


def refuse_if_busy() -> None:
    """Exit with a message if the load average is above :data:`BUSY`."""
    load = os.getloadavg()[0]
    if load > BUSY:
        sys.exit(f"the load is {load:.2f}, above {BUSY}: wait until nothing else runs, or pass --force")


def processor() -> str:
    """The processor's name and its vector instructions that matter for bf16."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines) if v}
    features = [f for f in ("avx512_bf16", "amx_bf16", "avx512f", "avx2") if f in fields.get("flags", "").split()]
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{fields.get('model name', platform.machine())} (family {family}, model {model}; {', '.join(features)})"


def card(gpu: str) -> Any:
    """The `afzal plan` entry for a GPU of this name; None if the vendor's figures are unknown.

    PCIe and NVL cards with the same chip are slower than the table's figures, so they count as unknown.
    """
    from afzal.plan import DEVICES

    words = gpu.lower().replace("-", " ").split()
    names = [name for name in DEVICES if name != "cpu" and name.partition("-")[0] in words]
    return DEVICES[names[0]] if names and not {"pcie", "nvl"} & set(words) else None


def about_run(module: str, packages: Sequence[str], *, threads: int, device: str = "") -> dict[str, Any]:
    """Metadata for every results file: date, command, hardware, versions, load. ``device`` names a GPU."""
    return {
        "date": str(date.today()),
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "device": device or processor(),
        "threads": threads,
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in packages},
        "load": os.getloadavg()[0],
    }


def version_of(package: str) -> str:
    """Version of a package; Afzal's is read from the working tree, which need not be installed."""
    if package == "afzal":
        from afzal import __version__

        return __version__
    return version(package)
