"""Bytes that stay, by hand; bytes that blocks keep, as autograd holds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_models import make

from afzal import config
from afzal.model import head
from afzal.model.load import add_lora
from afzal.model.logprobs import hidden_states
from afzal.model.probe import choose_sharing
from afzal.plan import DEVICES, METHODS, SHAPES, Job, Layout, lengths, moments, parameters, peak, shape_of
from afzal.plan.memory import KEPT_LOGITS, TILE, activation_bytes, states
from afzal.plan.shapes import adapter_parameters
from afzal.tokens.batch import collate
from afzal.tokens.tree import tree

PAIR = lengths(np.array([[256, 128, 128]] * 64))
EIGHT = Job(SHAPES["llama-3.1-8b"], METHODS["dpo"], PAIR)
N = parameters(EIGHT.shape)


def test_state_bytes_by_hand():
    assert sum(states(replace(EIGHT, dtype="fp32", reference="none"), Layout()).values()) == 12 * N  # gradients apart
    assert states(EIGHT, Layout()) == {
        "weights": 2 * N,
        "master weights": 4 * N,
        "optimiser": 8 * N,
        "reference": 2 * N,
    }
    cut = states(EIGHT, Layout(gpus=8, shards=4, tensor=2))
    assert cut == {"weights": N / 2, "master weights": 0.0, "optimiser": N, "reference": N / 4}
    small = adapter_parameters(EIGHT.shape, 16)
    adapted = states(replace(EIGHT, rank=16), Layout())
    assert adapted == {"weights": 2 * (N + small), "master weights": 4 * small, "optimiser": 8 * small}
    half = states(replace(EIGHT, state_bytes=4), Layout())["optimiser"]
    assert half == 4 * N


def test_a_quantised_base_is_smaller_and_leaves_the_ends_alone():
    whole, fp8, nf4 = (
        states(replace(EIGHT, rank=8, frozen=frozen), Layout())["weights"] for frozen in ("dtype", "fp8", "nf4")
    )
    ends = 2 * 2 * 128256 * 4096
    assert ends < nf4 < fp8 < whole
    assert (fp8 - ends) / (whole - ends) == pytest.approx(0.5, rel=0.02)
    assert (nf4 - ends) / (whole - ends) == pytest.approx(0.258, rel=0.03)


def test_online_methods_hold_more_models():
    ppo = states(replace(EIGHT, method=METHODS["ppo"]), Layout())
    trunk = N - 128256 * 4096
    assert ppo["weights"] == 2 * (N + trunk + 4096)
    assert ppo["reward model"] == 2 * trunk
    assert ppo["optimiser"] == 8 * (N + trunk + 4096)
    reinforce = states(replace(EIGHT, method=METHODS["reinforce"]), Layout())  # PPO's terms less its value model's
    assert reinforce == states(replace(EIGHT, method=METHODS["rloo"]), Layout())
    assert reinforce["weights"] == 2 * N
    assert reinforce["reward model"] == 2 * trunk


def test_every_method_that_trains_can_be_planned():
    assert set(METHODS) == set(config.METHODS)


def test_the_limits_of_the_head_are_those_of_the_head():
    assert (KEPT_LOGITS, TILE) == (head.KEEP_BYTES, head.TILE_ELEMENTS)


def kept_bytes(model, batch) -> int:
    """What the forward pass leaves alive below the head, counting every storage once and no weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        seen[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        hidden = hidden_states(model, batch)
    assert hidden.requires_grad
    return sum(n for at, n in seen.items() if at not in weights)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral-sliding", "qwen3", "gemma"])
def test_blocks_keep_what_is_planned(family: str, rank: int, dtype: str):
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_attention_heads": 4}
    sizes |= {"sliding_window": 1000} if family == "mistral-sliding" else {}
    sizes |= {"head_dim": 32} if family in ("qwen3", "gemma") else {}
    model = make(family, **sizes)
    choose_sharing(model)
    if rank:
        model = add_lora(model, rank=rank, alpha=8)
    if dtype == "bf16":
        model.to(torch.bfloat16)
    counts = np.array([[40, 24, 24]] * 6)
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(3, 97, n)  # noqa: E731
    batch = collate([tree(str(n), draw(40), [draw(24), draw(24)]) for n in range(6)], "shared")
    found = kept_bytes(model, batch)
    job = Job(shape_of(model.config.to_dict()), METHODS["dpo"], lengths(counts), rank=rank, dtype=dtype)  # type: ignore
    expected, _ = activation_bytes(job, Layout(), float(counts.sum()), on_cpu=True)
    print(f"{family} {dtype} rank {rank}: kept {found}, planned {expected:.0f}, {expected / found - 1:+.1%}")
    assert expected == pytest.approx(found, rel=0.1)


def test_the_fullest_moment_is_the_largest_of_four():
    found = moments(EIGHT, Layout(), DEVICES["h200"])
    assert [m.name for m in found] == ["head", "last block", "first block", "embedding"]
    assert peak(EIGHT, Layout(), DEVICES["h200"]).total == max(m.total for m in found)


def test_what_is_left_out_costs_no_memory():
    whole = peak(EIGHT, Layout(), DEVICES["h200"]).total
    for less in (
        peak(replace(EIGHT, reference="cached"), Layout(), DEVICES["h200"]),
        peak(EIGHT, Layout(recompute=True), DEVICES["h200"]),
        peak(EIGHT, Layout(gpus=2, shards=2), DEVICES["h200"]),
        peak(EIGHT, Layout(gpus=2, tensor=2), DEVICES["h200"]),
        peak(EIGHT, Layout(tokens=4096), DEVICES["h200"]),
        peak(replace(EIGHT, method=METHODS["reward"], reference="none"), Layout(), DEVICES["h200"]),
    ):
        assert less.total < whole
