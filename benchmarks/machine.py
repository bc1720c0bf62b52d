"""The machine that a benchmark runs on: what it is, and whether it is quiet enough for figures to mean something."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

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
