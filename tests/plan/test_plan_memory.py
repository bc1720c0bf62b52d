"""Bytes of weights and optimiser, by hand; bytes that blocks save, as autograd holds them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_models import make

from afzal import config
from afzal.model import head
from afzal.model.load import add_lora
from afzal.model.logprobs import hidden_states
from afzal.model.memory import measure
from afzal.model.norms import fuse_norms
from afzal.model.probe import choose_sharing
from afzal.plan import DEVICES, METHODS, SHAPES, Job, Layout, lengths, moments, parameters, peak, rollouts, shape_of
from afzal.plan.activations import KEPT_LOGITS, TILE, activation_bytes
from afzal.plan.memory import states
from afzal.plan.shapes import adapter_parameters, embedding_parameters
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


@pytest.mark.parametrize(("rank", "times"), [(0, 2), (16, 1)])  # a live reference has them too
def test_towers_are_gathered_with_the_root(rank: int, times: int):
    """In addition to the shards of all ranks; a rank whose rows have no picture gathers them as well."""
    text = replace(EIGHT, rank=rank)
    shown = replace(text, shape=replace(text.shape, towers=3_000_000, projection=1_000_000))
    two = Layout(gpus=2, shards=2)
    without, beside = (moments(job, two, DEVICES["h100"]) for job in (text, shown))
    grown = [b.terms["gathered"] - a.terms["gathered"] for a, b in zip(without, beside, strict=True)]
    assert all(g == pytest.approx(times * 2 * 4_000_000) for g in grown)


def test_a_quantised_base_is_smaller_and_leaves_the_ends_alone():
    whole, fp8, nf4 = (
        states(replace(EIGHT, rank=8, frozen=frozen), Layout())["weights"] for frozen in ("dtype", "fp8", "nf4")
    )
    ends = 2 * 2 * 128256 * 4096
    assert ends < nf4 < fp8 < whole
    assert (fp8 - ends) / (whole - ends) == pytest.approx(0.5, rel=0.02)
    assert (nf4 - ends) / (whole - ends) == pytest.approx(0.258, rel=0.03)


def test_online_methods_hold_more_models():
    """The value model is a copy of the policy whose own output head is not used and never trains, with masters as the
    policy has them; the reward model is in float32."""
    trunk, head = N - 128256 * 4096, 4096
    ppo = replace(EIGHT, method=METHODS["ppo"], reward=EIGHT.shape)
    assert states(ppo, Layout()) == {
        "weights": 2 * N,
        "master weights": 4 * N,
        "optimiser": 8 * (N + trunk + head),
        "reference": 2 * N,
        "value model": 2 * (N - trunk) + 6 * (trunk + head),
        "reward model": 4 * (trunk + head),
    }
    small = adapter_parameters(EIGHT.shape, 16)
    adapted = states(replace(ppo, rank=16, reward=None), Layout())
    assert adapted["value model"] == 2 * N + 6 * (small + head)
    assert states(replace(ppo, dtype="fp32"), Layout())["value model"] == 4 * (N + head)
    cut = states(ppo, Layout(shards=8, gpus=8))
    assert cut["value model"] == (2 * (N - trunk) + 4 * (trunk + head)) / 8  # whose masters are what is gathered
    assert cut["reward model"] == 4 * (trunk + head) / 8
    assert states(ppo, Layout(shards=4, tensor=2, gpus=8))["reward model"] == 4 * (trunk + head) / 8
    assert adapted["optimiser"] == 8 * (2 * small + head)
    shared = states(replace(ppo, value="shared"), Layout())
    assert shared["optimiser"] == 8 * (N + head)
    assert "value model" not in shared
    without = {"value model", "optimiser"}
    reinforce = states(replace(ppo, method=METHODS["reinforce"]), Layout())  # PPO's terms less its value model's
    assert {k: v for k, v in states(ppo, Layout()).items() if k not in without} == {
        k: v for k, v in reinforce.items() if k != "optimiser"
    }
    assert reinforce == states(replace(ppo, method=METHODS["rloo"]), Layout())


def test_of_models_in_shards_those_that_write_or_the_one_that_rewards_are_whole():
    lines = lengths(np.array([[256, *[100] * 8]] * 64))
    eight, device = Layout(gpus=8, shards=8), DEVICES["h200"]
    for policy, reward in itertools.permutations([SHAPES["qwen2.5-0.5b"], EIGHT.shape]):
        job = replace(EIGHT, shape=policy, reward=reward, method=METHODS["rloo"], lengths=lines)
        gathered = moments(job, eight, device)[-1].terms["gathered"]
        trunk = parameters(reward) - (0 if reward.tied else embedding_parameters(reward))
        assert gathered == max(2 * 2 * parameters(policy), 4 * (trunk + reward.width))
        split = moments(job, Layout(gpus=8, shards=4, tensor=2), device)[-1].terms["gathered"]
        assert split == max(2 * parameters(policy), 4 * (trunk + reward.width))


def test_writing_answers_keeps_keys_and_values_by_hand():
    """16 prompts of 256 tokens once, 128 answers of 112: 32 blocks x 2 x 8 heads x 128 numbers each, in bf16."""
    job = replace(EIGHT, method=METHODS["rloo"], lengths=lengths(np.array([[256, *[100] * 8]] * 64)))
    generation, scoring = moments(job, Layout(), DEVICES["h200"])[-2:]
    assert (generation.name, scoring.name) == ("generation", "scoring")
    assert generation.terms["keys and values"] == 131072 * (16 * 256 + 128 * 112)
    assert generation.terms["gathered"] == 0
    wide = moments(job, Layout(gpus=8, shards=8), DEVICES["h200"])[-2]
    assert wide.terms["keys and values"] == 131072 * (8 * 256 + 64 * 112)  # a rank answers 8 of 64 prompts
    assert wide.terms["gathered"] == 2 * N + 2 * N  # policy and reference are unsharded then
    assert scoring.terms["logits"] == 0  # a block takes more than the head's tile
    assert generation.terms["packed weights"] == 0


def test_a_cpu_packs_the_matrices_while_answers_are_written():
    """Every matrix of the blocks and the head once more, in bf16; of 8 billion weights none, since they do not fit."""
    shape = replace(EIGHT.shape, layers=4, width=512, heads=8, kv_heads=8, head_width=64, ff=1024, vocabulary=64000)
    job = replace(EIGHT, shape=shape, method=METHODS["rloo"], lengths=lengths(np.array([[256, *[100] * 8]] * 64)))
    generation, scoring = moments(job, Layout(), DEVICES["cpu"])[-2:]
    matrices = 4 * (4 * 512 * 512 + 3 * 512 * 1024) + 64000 * 512
    assert generation.terms["packed weights"] == 2 * matrices
    assert scoring.terms["logits"] == 0  # a block takes more than the head's tile
    for answer, kept in (100, 2 * 100 * 64000), (200, 2**24):
        few = replace(job, lengths=lengths(np.array([[256, answer]])))
        of_few = moments(few, Layout(), DEVICES["cpu"])[-1].terms["logits"]
        assert of_few == 2 * kept + 5.25 * 4 * 2**18  # those of two models, and what a core compares at once
    assert moments(job, Layout(), DEVICES["h200"])[-1].terms["logits"] == 5.25 * 4 * 2**25
    large = replace(job, shape=EIGHT.shape)
    assert moments(large, Layout(), DEVICES["cpu"])[-2].terms["packed weights"] == 0


def test_the_limits_of_writing_are_those_of_the_sampler():
    import inspect

    from afzal.generate import sample
    from afzal.model import decode_cache, decoding, packed, statistics

    assert inspect.signature(sample).parameters["rows_per_batch"].default == rollouts.ROWS
    assert inspect.signature(decoding.read_prompts).parameters["tokens_per_forward"].default == rollouts.PROMPT_TOKENS
    assert (decode_cache._ROOM, statistics._TILE_ELEMENTS) == (rollouts.ROOM, rollouts.SCORED_TILE)
    on_cpu = statistics._TILE_BYTES_UNTRAINED, statistics._CACHED_ELEMENTS
    assert on_cpu == (rollouts.SCORED_BYTES_CPU, rollouts.SCORED_CACHED_CPU)
    assert packed._SHARE_OF_MEMORY == rollouts._PACKED_SHARE
    suffix = torch.zeros(1, decode_cache._ROOM, 2)
    for tokens in range(1, 300):
        suffix = decode_cache._longer(suffix) if suffix.shape[1] < tokens else suffix
        assert suffix.shape[1] == rollouts.cache_capacity(tokens)


def test_every_method_that_trains_can_be_planned():
    assert set(METHODS) == set(config.METHODS)


def test_the_limits_of_the_head_are_those_of_the_head():
    assert (KEPT_LOGITS, TILE) == (head.KEEP_BYTES, head.TILE_ELEMENTS)


def kept_bytes(model, batch) -> int:
    """Bytes that the forward pass leaves alive below the head, each storage once, without weights."""
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
    fuse_norms(model)
    choose_sharing(model)
    if rank:
        model = add_lora(model, rank=rank, alpha=8)
    if dtype == "bf16":
        model.to(torch.bfloat16)
    counts = np.array([[40, 24, 24]] * 6)
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(3, 97, n)  # noqa: E731
    batch = collate([tree(str(n), draw(40), [draw(24), draw(24)]) for n in range(6)], "shared")
    measured = kept_bytes(model, batch)
    job = Job(shape_of(model.config.to_dict()), METHODS["dpo"], lengths(counts), rank=rank, dtype=dtype)  # type: ignore
    expected, _ = activation_bytes(job, Layout(), float(counts.sum()), on_cpu=True)
    print(f"{family} {dtype} rank {rank}: kept {measured}, planned {expected:.0f}, {expected / measured - 1:+.1%}")
    assert expected == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("family", "rank", "dtype"), [("llama", 0, "fp32"), ("llama", 0, "bf16"), ("qwen3", 4, "fp32")]
)
def test_selective_checkpointing_keeps_what_is_planned(family: str, rank: int, dtype: str):
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = make(family, **sizes, **({"head_dim": 32} if family == "qwen3" else {}))
    fuse_norms(model)
    choose_sharing(model)
    if rank:
        model = add_lora(model, rank=rank, alpha=8)
    if dtype == "bf16":
        model.to(torch.bfloat16)
    modes = ("none", "selective", "full")
    measured = measure(model, "shared", modes=modes).kept  # one tree of 40 tokens and twice 12
    one = lengths(np.array([[40, 12, 12]]))
    job = Job(shape_of(model.config.to_dict()), METHODS["dpo"], one, rank=rank, dtype=dtype)  # type: ignore
    for mode in modes:
        expected, _ = activation_bytes(job, Layout(recompute=mode), 1.0, on_cpu=True)
        print(f"{family} {dtype} rank {rank} {mode}: {expected / measured[mode] - 1:+.1%}")
        assert expected == pytest.approx(measured[mode], rel=0.1)


def test_the_fullest_moment_is_the_largest_of_four():
    stages = moments(EIGHT, Layout(), DEVICES["h200"])
    assert [m.name for m in stages] == ["head", "last block", "first block", "embedding"]
    assert peak(EIGHT, Layout(), DEVICES["h200"]).total == max(m.total for m in stages)


def test_what_is_left_out_costs_no_memory():
    whole = peak(EIGHT, Layout(), DEVICES["h200"]).total
    for less in (
        peak(replace(EIGHT, reference="cached"), Layout(), DEVICES["h200"]),
        peak(EIGHT, Layout(recompute="selective"), DEVICES["h200"]),
        peak(EIGHT, Layout(recompute="full"), DEVICES["h200"]),
        peak(EIGHT, Layout(gpus=2, shards=2), DEVICES["h200"]),
        peak(EIGHT, Layout(gpus=2, tensor=2), DEVICES["h200"]),
        peak(EIGHT, Layout(tokens=4096), DEVICES["h200"]),
        peak(replace(EIGHT, method=METHODS["reward"], reference="none"), Layout(), DEVICES["h200"]),
    ):
        assert less.total < whole


def test_experts_with_adapters_are_planned_as_they_are_measured():
    """Their sums count whatever the tokens; per token adapters count on attention's four matrices and on the router."""
    model = add_lora(make("mixtral"), rank=2, alpha=4)
    sharing, _ = choose_sharing(model)
    measured = measure(model, sharing, modes=("none",))
    job = Job(shape_of(model.config.to_dict()), METHODS["dpo"], PAIR, rank=2, dtype="fp32")
    kept, one = activation_bytes(job, Layout(), 0, on_cpu=True)
    assert one == 4 * 3 * 48 * 32 * 4  # experts, matrices, their size, bytes
    assert kept == 2 * one
    assert kept <= measured.fixed["none"] < 1.3 * kept  # including the factors as they are multiplied
    assert activation_bytes(job, Layout(recompute="full"), 0, on_cpu=True) == (0, one)
    assert activation_bytes(replace(job, rank=0), Layout(), 0, on_cpu=True) == (0, 0)
    kept_of = lambda rank: activation_bytes(replace(job, rank=rank), Layout(), 100, on_cpu=True)[0]  # noqa: E731
    assert kept_of(5) - kept_of(2) == 100 * 2 * 4 * 5 * 3  # tokens, blocks, bytes, matrices, ranks
