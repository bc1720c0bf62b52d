"""Published figures of runs of up to 405 billion weights compared with the formulas: docs/scale.md."""

from __future__ import annotations

import numpy as np
import pytest

from afzal.plan import (
    DEVICES,
    METHODS,
    SHAPES,
    Assumptions,
    Job,
    Layout,
    LayoutRequest,
    executed_flops,
    layouts,
    lengths,
    parameters,
    peak,
    times,
    traffic,
)
from afzal.plan.memory import USABLE, states


def on_text(shape: str, tokens: int, items: int = 64, **changed) -> Job:
    """Plain training on ``items`` rows of this many tokens, all of them scored."""
    counts = np.array([[0, tokens]] * items)
    return Job(SHAPES[shape], METHODS["sft"], lengths(counts), batch_size=items, reference="none", **changed)


def flops_per_token(job: Job) -> float:
    return executed_flops(job, Layout()) / job.lengths.tokens


# name: shape, tokens per row, LoRA rank, published TFLOP/s per GPU, published tokens per second and GPU
THROUGHPUT = {
    "NeMo AutoModel, LoRA, 1 H100": ("llama-3.1-8b", 4096, 16, 402e12, 12.5e3),
    "Megatron-Bridge, full, 32 H100": ("llama-3.1-70b", 4096, 0, 710e12, 1638),
    "Megatron-Bridge, LoRA, 8 H100": ("llama-3.1-70b", 4096, 16, 735e12, 2643),
    "Megatron-Bridge, pre-training, 8B": ("llama-3.1-8b", 8192, 0, 744e12, 14451),
    "Megatron-Bridge, pre-training, 1024 H100": ("llama-3.1-405b", 8192, 0, 824.5e12, 327),
    "open-instruct DPO, 16 H100": ("olmo-2-7b", 2048, 0, 0.225 * 989e12, 5282),
}


@pytest.mark.parametrize("name", THROUGHPUT)
def test_operations_per_token_are_what_published_rates_imply(name: str):
    shape, tokens, rank, rate, per_second = THROUGHPUT[name]
    operations = flops_per_token(on_text(shape, tokens, rank=rank))
    print(f"{name}: {operations / 1e9:.1f} GFLOP per token, published {rate / per_second / 1e9:.1f}")
    assert operations == pytest.approx(rate / per_second, rel=0.1)


def test_the_state_of_full_fine_tuning_at_405b_is_six_and_a_half_terabytes():
    """Snowflake: 6.5 TB, which LoRA over an FP8 base brings below 80 GB per GPU on one node of eight."""
    job = on_text("llama-3.1-405b", 4096)
    whole = sum(states(job, Layout(shards=8, gpus=8)).values()) * 8 + 4 * parameters(job.shape)
    assert whole == pytest.approx(6.5e12, rel=0.01)


def least_peak(job: Job, device: str) -> float:
    """Bytes per device of an update on the best layout of one node of eight with tensor 4 or 8, a row at a time."""
    candidates = [layout for n in (4, 8) for layout in layouts(job, LayoutRequest(tensor=n, tokens=4096), 1, 8)]
    return min(peak(job, layout, DEVICES[device]).total for layout in candidates)


@pytest.mark.parametrize("frozen", ["fp8", "nf4"])
def test_405b_with_lora_fits_one_node_of_eight(frozen: str):
    """Snowflake and DeepSpeed: LoRA over FP8 on one node of 8 H100, below 80 GB per GPU (once it is loaded)."""
    assert least_peak(on_text("llama-3.1-405b", 4096, rank=16, frozen=frozen), "h100") < USABLE * 80e9


def test_405b_in_bf16_does_not_fit_one_node_of_h100_but_one_of_h200():
    job = on_text("llama-3.1-405b", 4096, items=8, rank=16)
    assert least_peak(job, "h100") > USABLE * DEVICES["h100"].memory
    assert least_peak(job, "h200") < USABLE * DEVICES["h200"].memory


def test_qlora_of_405b_takes_what_torchtune_reports():
    """torchtune: 405B QLoRA on 8 A100-80, 44.8 GB per GPU; the length of its rows is not stated, 1024 is assumed."""
    job = on_text("llama-3.1-405b", 1024, items=8, rank=16, frozen="nf4")
    layout = Layout(1, 8, shards=8, recompute="full", tokens=1024)
    # torchtune gathers embedding and head one after the other; here they are gathered with the root
    apart = 2 * 2 * 128256 * 16384
    assert peak(job, layout, DEVICES["a100-80"]).total - apart == pytest.approx(44.8e9, rel=0.1)


def test_405b_over_512_devices_as_reckoned_before():
    """Fully sharded over 512, 8192 tokens per device, reference in memory: 4.06 TB of traffic, 84 s at 40%."""
    counts = np.array([[4096, 2048, 2048]] * 512)
    job = Job(SHAPES["llama-3.1-405b"], METHODS["dpo"], lengths(counts), batch_size=512)
    layout = Layout(64, 8, shards=512, recompute="full", tokens=8192)
    moved = traffic(job, layout, DEVICES["h100"])
    assert moved.gather + moved.scatter == pytest.approx(4.06e12, rel=0.02)
    assert times(job, layout, DEVICES["h100"], Assumptions(0.4)).compute == pytest.approx(84, rel=0.1)
