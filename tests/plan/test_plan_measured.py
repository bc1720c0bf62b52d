"""The plan of a run on the CPU against the memory that the run took, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from plan_runs import Case, config_of

from afzal.plan import DEVICES, METHODS, Job, Layout, lengths, peak, shape_of

SCRIPT = Path(__file__).with_name("plan_runs.py")
CASES = {
    "fp32": Case(),
    "fp32, two passes per update": Case(tokens=700),
    "fp32, tied": Case(tied=True, vocabulary=32000, layers=4),
    "bf16 behind float32 masters": Case(dtype="bf16"),
    "LoRA": Case(rank=16, width=1024, ff=2816, heads=16, layers=8),
    "LoRA in bf16": Case(rank=16, width=1024, ff=2816, heads=16, layers=8, dtype="bf16"),
    # three times the tokens, so that what blocks keep would be the most by far
    "fp32, full checkpointing": Case(recompute=True, trees=12, tokens=4096),
    "bf16, full checkpointing": Case(recompute=True, trees=12, tokens=4096, dtype="bf16"),
    "LoRA in bf16, full checkpointing": Case(
        rank=16, width=1024, ff=2816, heads=16, layers=8, dtype="bf16", recompute=True, trees=12, tokens=4096
    ),
}


def planned(case: Case) -> float:
    """Bytes at the fullest moment, without what the interpreter and its libraries take."""
    counts = np.tile([case.prompt, case.response, case.response], (case.trees * case.updates, 1))
    job = Job(
        shape=shape_of(config_of(case).to_dict()),
        method=METHODS[case.method],
        lengths=lengths(counts),
        batch_size=case.trees,
        reference="live" if METHODS[case.method].reference else "none",
        rank=case.rank,
        dtype=case.dtype,  # type: ignore[arg-type]
    )
    device = replace(DEVICES["cpu"], reserve=0.0)
    return peak(job, Layout(recompute=case.recompute, tokens=case.tokens), device).total


def measured(case: Case) -> int:
    # glibc raises the size from which freed memory goes back to the system, and then keeps what lies between; with a
    # fixed size the process has what its tensors take
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    command = [sys.executable, str(SCRIPT), json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("name", CASES)
def test_planned_memory_is_within_a_tenth_of_the_measured(name: str):
    found, expected = measured(CASES[name]), planned(CASES[name])
    print(f"{name}: measured {found / 1e6:.0f} MB, planned {expected / 1e6:.0f} MB, {expected / found - 1:+.1%}")
    assert expected == pytest.approx(found, rel=0.1)
