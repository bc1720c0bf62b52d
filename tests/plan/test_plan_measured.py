"""The plan of a CPU run against the memory that the run took in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import plan_runs_media as media
import plan_runs_ranks as ranked
import plan_runs_rewards as rewards
import pytest
from plan_runs import Case, config_of

from afzal.api import planning
from afzal.config import PlanConfig
from afzal.plan import DEVICES, METHODS, Assumptions, Job, Layout, lengths, peak, shape_of, times

HERE = Path(__file__).parent
CASES = {
    "fp32": Case(),
    "fp32, two passes per update": Case(tokens=700),
    "fp32, tied": Case(tied=True, vocabulary=32000, layers=4),
    "bf16 behind float32 masters": Case(dtype="bf16"),
    "LoRA": Case(rank=16, width=1024, ff=2816, heads=16, layers=8),
    "LoRA in bf16": Case(rank=16, width=1024, ff=2816, heads=16, layers=8, dtype="bf16"),
    # three times the tokens, so that saved activations would be by far the largest term
    "fp32, full checkpointing": Case(recompute="full", trees=12, tokens=4096),
    "bf16, full checkpointing": Case(recompute="full", trees=12, tokens=4096, dtype="bf16"),
    "LoRA in bf16, full checkpointing": Case(
        rank=16, width=1024, ff=2816, heads=16, layers=8, dtype="bf16", recompute="full", trees=12, tokens=4096
    ),
    "a mixture of experts, fp32": Case(width=512, ff=1024, heads=8, layers=6, experts=8),
    "a mixture of experts, bf16": Case(width=512, ff=1024, heads=8, layers=6, experts=8, dtype="bf16"),
    "a mixture of experts, LoRA": Case(width=512, ff=1024, heads=8, layers=6, experts=8, rank=16),
    "a mixture of experts, LoRA in bf16": Case(width=512, ff=1024, heads=8, layers=6, experts=8, rank=16, dtype="bf16"),
    "a mixture of experts, LoRA, full checkpointing": Case(
        width=512, ff=1024, heads=8, layers=6, experts=8, rank=16, recompute="full"
    ),
    "a mixture of experts, bf16, selective checkpointing": Case(
        width=512, ff=1024, heads=8, layers=6, experts=8, dtype="bf16", recompute="selective", trees=48, tokens=16384
    ),
}


def planned(case: Case) -> float:
    """Peak bytes, without the interpreter and its libraries."""
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
    return peak(job, Layout(recompute=case.recompute, tokens=case.tokens), device).total  # type: ignore[arg-type]


def run(script: str, case: Any, *more: str) -> Any:
    # glibc raises the size above which freed memory is returned to the system, and keeps smaller blocks; with a
    # fixed size the process uses what its tensors use
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    # of kernels for bf16 oneDNN keeps a thousand, one for each length that an answer passes through and each number of
    # tokens that visit an expert; and PyTorch keeps as many of its own
    environment |= {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
    command = [sys.executable, str(HERE / script), json.dumps(asdict(case)), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("name", CASES)
def test_planned_memory_is_within_a_tenth_of_the_measured(name: str):
    measured, expected = run("plan_runs.py", CASES[name]), planned(CASES[name])
    print(f"{name}: measured {measured / 1e6:.0f} MB, planned {expected / 1e6:.0f} MB, {expected / measured - 1:+.1%}")
    assert expected == pytest.approx(measured, rel=0.1)


REWARDS = {
    "RLOO, all weights, fp32": rewards.Case(),
    "PPO, all weights, fp32, a reward model": rewards.Case("ppo", prompts=24, answers=1, rewarded=True),
    "PPO, all weights, bf16, two minibatches": rewards.Case(
        "ppo", prompts=24, answers=1, dtype="bf16", minibatches=2, ppo_epochs=2
    ),
    "PPO, LoRA of rank 16, fp32": rewards.Case("ppo", prompts=24, answers=1, rank=16),
    "RLOO, LoRA of rank 16, bf16, a reward model": rewards.Case(rank=16, dtype="bf16", rewarded=True),
    "RLOO, all weights, fp32, selective checkpointing": rewards.Case(
        recompute="selective", prompts=24, answers=2, tokens=8192
    ),
    # answers are many and long, and an update reads one prompt with its own
    "GRPO, full checkpointing, fullest while answers are written": rewards.Case(
        "grpo", prompts=16, answers=8, response=128, minibatches=16, tokens=1088, recompute="full"
    ),
}


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("name", REWARDS)
def test_learning_from_rewards_takes_the_planned_memory_and_shares_of_time(name: str):
    case = REWARDS[name]
    shape = shape_of(rewards.shape(case) | {"model_type": "llama"})
    counts = np.tile([case.prompt, *[case.response] * case.answers], (2 * case.prompts, 1))
    job = Job(
        shape,
        METHODS[case.method],
        lengths(counts),
        batch_size=case.prompts,
        rank=case.rank,
        dtype=case.dtype,  # type: ignore[arg-type]
        reward=shape if case.rewarded else None,
        minibatches=case.minibatches,
        ppo_epochs=case.ppo_epochs,
    )
    layout = Layout(recompute=case.recompute, tokens=case.tokens)  # type: ignore[arg-type]
    device = replace(DEVICES["cpu"], reserve=0.0)
    measured, moment = run("plan_runs_rewards.py", case), peak(job, layout, device)
    t = times(job, layout, device, Assumptions(0.45))
    parts = {"sampling": t.sampling, "scoring": t.scoring, "updates": t.updates * t.update}
    whole = sum(measured["seconds"][part] for part in parts)
    shares = ", ".join(
        f"{part} {measured['seconds'][part] / whole:.0%} ({seconds / t.iteration:.0%})"
        for part, seconds in parts.items()
    )
    print(
        f"{name}: measured {measured['peak'] / 1e6:.0f} MB, planned {moment.total / 1e6:.0f} MB ({moment.name}), "
        f"{moment.total / measured['peak'] - 1:+.1%}; time, planned in brackets: {shares}"
    )
    assert moment.total == pytest.approx(measured["peak"], rel=0.1)
    assert (moment.name == "generation") == ("answers are written" in name)
    for part, seconds in parts.items():
        assert seconds / t.iteration == pytest.approx(measured["seconds"][part] / whole, abs=0.15)


RANKS = {
    "two ranks share every matrix": ranked.Case(prompts=16),
    "two ranks share the layers": ranked.Case(prompts=16, tensor=1),
}


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("name", RANKS)
def test_a_rank_takes_the_planned_memory(name: str):
    case = RANKS[name]
    counts = np.tile([case.prompt, *[case.response] * case.answers], (2 * case.prompts, 1))
    shape = shape_of(rewards.shape(case) | {"model_type": "llama"})
    job = Job(shape, METHODS["dpo"], lengths(counts), batch_size=case.prompts, dtype="fp32")
    layout = Layout(gpus=2, shards=2 // case.tensor, tensor=case.tensor, tokens=case.tokens)
    measured, expected = run("plan_runs_ranks.py", case), peak(job, layout, replace(DEVICES["cpu"], reserve=0.0)).total
    print(f"{name}: measured {measured / 1e6:.0f} MB, planned {expected / 1e6:.0f} MB, {expected / measured - 1:+.1%}")
    assert expected == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@needs_proc
def test_a_model_of_images_takes_the_planned_memory(tmp_path: Path):
    from afzal import plan

    case = media.Case()
    measured = run("plan_runs_media.py", case, str(tmp_path))
    settings = {"model": str(tmp_path / "model"), "data": str(tmp_path / "pairs.jsonl"), "memory_gb": 64.0}
    settings |= {"hardware": "cpu", "checkpointing": "none", "batch_size": case.items, "nodes": 1, "gpus": 1}
    _, job, chosen, device = planning.planned(PlanConfig.model_validate(settings))
    assert job.shape.towers > 15e6
    expected = plan.peak(job, chosen.layout, replace(device, reserve=0.0)).total
    print(f"a LLaVA: measured {measured / 1e6:.0f} MB, planned {expected / 1e6:.0f} MB, {expected / measured - 1:+.1%}")
    assert expected == pytest.approx(measured, rel=0.1)
