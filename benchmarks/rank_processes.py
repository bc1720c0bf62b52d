"""Run one training as several processes on this machine: ranks connected by gloo, each reporting its costs."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def said_by_all(module: str, about: Mapping[str, Any], processes: int, threads: int = 1) -> list[dict[str, Any]]:
    """Run ``python -m module --as-rank`` in several processes; returns the JSON on the last line of each.

    The processes return freed memory to the system immediately, so a peak shows the memory needed. If a process
    fails, this one exits.

    Args:
        about: passed to the module as JSON; ``out`` is the run's folder.
        threads: threads per process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "262144",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", module, "--as-rank", json.dumps(about)]
    started = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE, text=True
        )
        for r in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        codes = [process.returncode for process in started]
        sys.exit(f"{Path(about['out']).name}: its processes ended with {codes}")
    return [json.loads(lines.strip().splitlines()[-1]) for lines in outputs]


def losses_of(run: Path) -> list[float]:
    """The loss of every update of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def peak() -> float:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
