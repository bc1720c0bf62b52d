"""The machine that a benchmark runs on: what it is, and whether it is quiet enough for figures to mean something."""

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
    """End the process with a sentence when anything else runs."""
    load = os.getloadavg()[0]
    if load > BUSY:
        sys.exit(f"the load is {load:.2f}, above {BUSY}: wait until nothing else runs, or pass --force")


def processor() -> str:
    """The processor's name, and what of its instructions matters to bf16."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines) if v}
    found = [f for f in ("avx512_bf16", "amx_bf16", "avx512f", "avx2") if f in fields.get("flags", "").split()]
    family, model = fields.get("cpu family"), fields.get("model")
    return f"{fields.get('model name', platform.machine())} (family {family}, model {model}; {', '.join(found)})"


def card(gpu: str) -> Any:
    """The entry of `afzal plan` for a GPU of this name; None where its vendor's figures are not known.

    Cards of the same chip for narrower slots (PCIe, NVL) are slower than the table says, and count as unknown.
    """
    from afzal.plan import DEVICES

    words = gpu.lower().replace("-", " ").split()
    names = [name for name in DEVICES if name != "cpu" and name.partition("-")[0] in words]
    return DEVICES[names[0]] if names and not {"pcie", "nvl"} & set(words) else None


def about_run(module: str, packages: Sequence[str], *, threads: int, device: str = "") -> dict[str, Any]:
    """What every file of figures says of itself: date, command, hardware, versions, load. ``device`` names a GPU."""
    return {
        "date": str(date.today()),
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "device": device or processor(),
        "threads": threads,
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in packages},
        "load": os.getloadavg()[0],
    }


def version_of(package: str) -> str:
    """Afzal's own version is that of the working tree, which need not be installed."""
    if package == "afzal":
        from afzal import __version__

        return __version__
    return version(package)
