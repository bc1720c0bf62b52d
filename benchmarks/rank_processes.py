"""Processes of one training, on this machine: ranks that join each other by gloo, each of which says what it took."""

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
    """Run ``python -m module --as-rank`` in so many processes; the last line of each, which is JSON.

    Freed memory goes back at once there, so that a peak is what was needed. A process that fails ends this one.

    Args:
        about: what the module gets as JSON; ``out`` is the run's folder.
        threads: of each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    given |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", module, "--as-rank", json.dumps(about)]
    started = [
        subprocess.Popen(command, env=given | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE, text=True)
        for r in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        codes = [process.returncode for process in started]
        sys.exit(f"{Path(about['out']).name}: its processes ended with {codes}")
    return [json.loads(lines.strip().splitlines()[-1]) for lines in said]


def losses_of(run: Path) -> list[float]:
    """The loss of every update of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def peak() -> float:
    """Bytes: the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
