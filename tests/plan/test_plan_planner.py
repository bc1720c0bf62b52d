"""Chosen layouts fit; a run that does not fit is refused, and its largest term is named."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from afzal.errors import AfzalError
from afzal.plan import (
    DEVICES,
    METHODS,
    SHAPES,
    Assumptions,
    Job,
    Layout,
    LayoutRequest,
    device_named,
    does_not_fit,
    fits,
    largest_tokens,
    layouts,
    lengths,
    plan,
    times,
    traffic,
    updates,
)
from afzal.plan.memory import loading
from afzal.plan.rollouts import generation_bytes, scoring_bytes
from afzal.plan.shapes import block_parameters, parameters
from afzal.plan.table import assumptions

H100 = DEVICES["h100"]
ASSUMED = Assumptions(0.4)


def job(shape: str, method: str = "dpo", **changed) -> Job:
    traits = METHODS[method]
    counts = np.array([[256, *[128] * traits.responses]] * 1000)
    return replace(
        Job(SHAPES[shape], traits, lengths(counts), reference="live" if traits.reference else "none"), **changed
    )


@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("shape", ["qwen2.5-0.5b", "llama-3.2-1b", "llama-3.2-3b"])
def test_the_suggested_layout_fits_and_half_of_it_does_not(shape: str, rank: int):
    result = plan(job(shape, rank=rank), H100, LayoutRequest(), ASSUMED)
    assert result.fits
    assert result.largest >= 512
    assert result.layout.devices % (result.layout.shards * result.layout.tensor) == 0
    if result.layout.devices > 1:
        nodes, gpus = (result.layout.nodes // 2, 8) if result.layout.nodes > 1 else (1, result.layout.gpus // 2)
        assert not any(fits(result.job, layout, H100) for layout in layouts(result.job, LayoutRequest(), nodes, gpus))


def test_the_largest_pass_fits_and_a_larger_one_does_not():
    for layout in (Layout(gpus=8, shards=8), Layout(gpus=8, shards=4, tensor=2, recompute="full")):
        work = job("llama-3.2-3b", batch_size=100_000)
        work = replace(work, lengths=lengths(np.array([[256, 128, 128]] * 100_000)))
        most = largest_tokens(work, layout, H100)
        assert fits(work, replace(layout, tokens=most), H100)
        assert not fits(work, replace(layout, tokens=round(1.02 * most)), H100)


def test_a_fixed_layout_is_planned_even_when_it_does_not_fit():
    result = plan(job("llama-3.1-70b"), H100, LayoutRequest(1, 8, 8, 1, recompute="full"), ASSUMED)
    assert not result.fits
    assert result.largest == 0
    assert result.chosen == ()


@pytest.mark.parametrize(
    ("shape", "changed", "layout", "term", "flag"),
    [
        ("llama-3.1-70b", {}, Layout(gpus=8, shards=8, recompute="full"), "optimiser", "--lora-rank"),
        ("llama-3.1-70b", {"rank": 8}, Layout(recompute="full"), "weights", "--frozen-weights nf4"),
        (
            "llama-3.1-70b",
            {"rank": 8, "frozen": "nf4"},
            Layout(tokens=512, recompute="full"),
            "weights",
            "more --shards",
        ),
        ("llama-3.2-1b", {}, Layout(tokens=40000), "activations", "--checkpointing full"),
        ("llama-3.2-1b", {}, Layout(tokens=400000, recompute="full"), "activations", "--tokens-per-forward below"),
    ],
)
def test_what_does_not_fit_names_the_largest_term_and_a_flag(shape: str, changed, layout, term: str, flag: str):
    work = job(shape, batch_size=1000, **changed)
    error = does_not_fit(work, layout, H100)
    assert f"the largest term is {term}" in error.why
    assert flag in error.remedy


def test_what_fits_on_no_machine_is_an_error():
    with pytest.raises(AfzalError, match="GB per device are needed"):
        plan(job("llama-3.1-8b"), DEVICES["cpu"], LayoutRequest(), ASSUMED)


def test_parts_that_contradict_each_other_are_an_error():
    with pytest.raises(AfzalError, match="no layout of nodes 1, gpus 8, shards 3"):
        plan(job("llama-3.1-8b"), H100, LayoutRequest(nodes=1, gpus=8, shards=3), ASSUMED)
    with pytest.raises(AfzalError, match="did you mean h100"):
        device_named("h10")


def test_traffic_by_hand():
    work = job("llama-3.1-8b", "sft")
    n = 8_030_261_248
    cut = traffic(work, Layout(gpus=8, shards=8, tokens=100_000), H100)
    ends = 2 * 128256 * 4096  # gathered once for both ways
    assert (cut.gather, cut.scatter) == (2 * (2 * n - ends) * 7 / 8, 4 * n * 7 / 8)
    assert (cut.replicas, cut.tensor, cut.shard_rate) == (0, 0, H100.intra)
    live = traffic(job("llama-3.1-8b"), Layout(gpus=8, shards=8, tokens=100_000), H100)
    assert live.gather == cut.gather + 2 * n * 7 / 8
    copies = traffic(work, Layout(nodes=2, gpus=8, shards=8, tokens=100_000), H100)
    assert copies.replicas == 4 * n / 8
    assert copies.replica_rate == H100.inter
    one = traffic(work, Layout(), H100)
    assert (one.gather, one.scatter, one.replicas, one.tensor) == (0, 0, 0, 0)


def test_a_group_beyond_its_node_goes_through_all_cards_of_the_node():
    work = job("llama-3.1-8b", "sft")
    wide = traffic(work, Layout(nodes=4, gpus=8, shards=32), H100)
    assert wide.shard_rate == 8 * H100.inter
    beside = traffic(work, Layout(nodes=4, gpus=8, shards=4, tensor=8), H100)
    assert beside.shard_rate == H100.inter
    assert beside.tensor_rate == H100.intra


def test_time_adds_up():
    whole = times(job("llama-3.1-8b"), Layout(gpus=8, shards=8), H100, ASSUMED)
    assert whole.update == pytest.approx(max(whole.compute, whole.shards) + whole.optimiser)
    faster = times(job("llama-3.1-8b"), Layout(gpus=8, shards=8), H100, Assumptions(0.8))
    assert faster.compute == pytest.approx(whole.compute / 2)
    cached = times(job("llama-3.1-8b", reference="cached"), Layout(gpus=8, shards=8), H100, ASSUMED)
    assert cached.compute == pytest.approx(whole.compute * 3 / 4)
    assert cached.before == pytest.approx(whole.compute / 4 * 1000 / 64)
    drawn = times(job("llama-3.1-8b", "rloo"), Layout(gpus=8, shards=8), H100, ASSUMED)
    assert drawn.sampling >= 128 * 2 * 8_030_261_248 / 8 / H100.bandwidth


def test_cost_is_price_times_device_hours():
    result = plan(job("llama-3.1-8b"), H100, LayoutRequest(gpus=8, nodes=1), ASSUMED, price=2.5)
    assert result.updates == updates(result.job) == 16
    assert result.hours == pytest.approx(result.times.update * 16 / 3600)
    assert result.cost == pytest.approx(2.5 * 8 * result.hours)


def test_layouts_divide_what_they_divide():
    for layout in islice(layouts(job("llama-3.1-8b"), LayoutRequest(), 2, 8), 100):
        assert layout.replicas % layout.shards == 0
        assert 8 % layout.tensor == 0


@pytest.mark.parametrize("shape", ["llama-3.2-3b", "llama-3.1-8b"])
def test_tensor_parallelism_which_the_trainer_has_not_is_chosen_by_nobody(shape: str):
    assert plan(job(shape, rank=16), H100, LayoutRequest(), ASSUMED).layout.tensor == 1
    assert {layout.tensor for layout in layouts(job(shape), LayoutRequest(), 2, 8)} == {1}
    assert {layout.tensor for layout in layouts(job(shape), LayoutRequest(tensor=4), 2, 8)} == {4}


def test_a_rank_loads_its_share():
    """A share of the float32 weights that train and of the bf16 reference, and one gathered block with both ends;
    unsharded on a single device."""
    shape = SHAPES["llama-3.1-8b"]
    n, ends = parameters(shape), 2 * 128256 * 4096
    eight = Layout(gpus=8, shards=8)
    start = loading(job("llama-3.1-8b"), eight, H100).total - H100.reserve
    assert start == pytest.approx((4 + 2) * n / 8 + 2 * (block_parameters(shape) + ends))
    assert plan(job("llama-3.1-70b"), H100, LayoutRequest(), ASSUMED).fits
    mixture = SHAPES["mixtral-8x7b"]
    weights = loading(job("mixtral-8x7b"), eight, H100).total - H100.reserve
    assert weights == pytest.approx(6 * parameters(mixture) / 8 + 2 * (block_parameters(mixture) + 2 * 32000 * 4096))
    cached = loading(job("llama-3.1-8b", reference="cached"), eight, H100).total - H100.reserve
    assert cached == pytest.approx(4 * n / 8 + 2 * (block_parameters(shape) + ends))
    reward = loading(job("llama-3.1-8b", "reward"), eight, H100).total - H100.reserve
    trunk = n - ends / 2
    assert reward == pytest.approx(4 * (trunk + 4096) / 8 + 2 * (block_parameters(shape) + ends / 2))
    rewards = loading(job("llama-3.1-8b", "rloo"), eight, H100).total - H100.reserve
    assert rewards == pytest.approx(start)
    valued = loading(job("llama-3.1-8b", "ppo"), eight, H100).total - H100.reserve  # whose start is a copy
    assert valued == pytest.approx(start + (2 * ends / 2 + 4 * (trunk + 4096)) / 8)  # the unused head never trains
    lora = loading(job("llama-3.1-8b", rank=16), Layout(), H100)
    assert lora.terms["weights"] == 4 * n
    assert "reference" not in lora.terms


def test_what_every_rank_holds_whole_fits_nowhere_when_it_is_too_large():
    assert plan(job("llama-3.1-70b", "reward"), H100, LayoutRequest(), ASSUMED).fits
    assert plan(job("llama-3.1-70b", reference="cached"), H100, LayoutRequest(), ASSUMED).fits
    with pytest.raises(AfzalError, match="GB per device are needed"):
        plan(job("llama-3.1-70b", "rloo"), H100, LayoutRequest(), ASSUMED)


def test_loading_names_itself_where_an_update_would_fit():
    small = replace(H100, memory=32e9)  # an update with frozen weights in bf16 would fit
    error = does_not_fit(job("llama-3.1-8b", rank=16), Layout(recompute="full", tokens=512), small)
    assert "to load the model" in str(error)
    assert "one device loads the full model in float32" in str(error)
    assert "several devices" in error.remedy


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "reinforce"])
def test_learning_from_rewards_is_planned_for_one_device_or_several(method: str):
    result = plan(job("qwen2.5-0.5b", method), H100, LayoutRequest(), ASSUMED)
    assert result.layout.devices == 1
    result = plan(job("qwen2.5-0.5b", method), H100, LayoutRequest(nodes=1, gpus=8), ASSUMED)
    assert result.layout.devices == 8
    said = any("policy, reference and value model unsharded" in line for line in assumptions(result))
    assert said == (result.layout.shards > 1)


def test_a_quantised_model_is_planned_for_one_device():
    assert plan(job("llama-3.1-8b", rank=16, frozen="nf4"), H100, LayoutRequest(), ASSUMED).layout.devices == 1
    with pytest.raises(AfzalError, match="a quantised model cannot be trained over several devices"):
        plan(job("llama-3.1-8b", rank=16, frozen="nf4"), H100, LayoutRequest(nodes=2), ASSUMED)


def test_weights_in_pieces_are_gathered_once_for_an_iteration():
    work = job("llama-3.1-8b", "rloo")
    whole = 2 * parameters(SHAPES["llama-3.1-8b"])
    layouts = (Layout(gpus=8), Layout(gpus=8, shards=8))
    copies, cut = (times(work, layout, H100, ASSUMED).sampling for layout in layouts)
    assert cut - copies == pytest.approx(whole * 7 / 8 / (H100.intra * ASSUMED.link))


def test_a_drawn_token_reads_weights_and_cache_or_computes():
    """8 answers of 128 tokens to each of 64 prompts of 256, 128 at a time: 4 times 128 steps, each of which reads all
    weights and, of 16 prompts and half of 128 answers, 2 x 32 blocks x 8 heads x 128 numbers per token in bf16."""
    work = replace(job("llama-3.1-8b", "rloo"), lengths=lengths(np.array([[256, *[128] * 8]] * 64)))
    read = 2 * parameters(SHAPES["llama-3.1-8b"]) + 131072 * (16 * 256 + 128 * 64)
    slow = replace(H100, bandwidth=1e9)
    assert times(work, Layout(), slow, ASSUMED).sampling == pytest.approx(4 * 128 * read / 1e9)
    fast = times(work, Layout(), replace(H100, bandwidth=1e20), ASSUMED)
    assert fast.sampling == pytest.approx(fast.scoring / 2)  # policy and reference read them once more, no reward model


def test_an_iteration_is_its_answers_their_scores_and_its_updates():
    work = job("qwen2.5-0.5b", "ppo", ppo_epochs=4, minibatches=2)
    whole = times(work, Layout(), H100, ASSUMED)
    assert whole.updates == 8
    assert whole.iteration == pytest.approx(whole.sampling + whole.scoring + 8 * whole.update)
    once = times(replace(work, minibatches=1), Layout(), H100, ASSUMED)
    assert once.compute == pytest.approx(2 * whole.compute)
    assert once.sampling == whole.sampling
    assert updates(work) == 8 * 16 - 3  # 1000 prompts are 15.6 iterations of 64
    planned = plan(work, H100, LayoutRequest(nodes=1, gpus=1), ASSUMED)
    assert planned.hours == pytest.approx(planned.times.iteration * 125 / 8 / 3600)


def test_ranks_that_share_every_matrix_share_what_answers_take_too():
    work = job("llama-3.2-1b", "rloo")
    alone, two = Layout(), Layout(gpus=2, tensor=2)
    large = replace(DEVICES["cpu"], memory=1e12)
    whole, own = (generation_bytes(work, layout, large) for layout in (alone, two))
    assert own["keys and values"] == whole["keys and values"] / 2
    assert own["activations"] < whole["activations"]
    assert whole["packed weights"] > own["packed weights"] == 0.0
    assert scoring_bytes(work, two, H100)["activations"] <= scoring_bytes(work, alone, H100)["activations"]
    times_of = [
        times(work, layout, replace(H100, intra=rate), ASSUMED)
        for layout, rate in ((alone, 1e12), (two, 1e12), (two, 1e11))
    ]
    assert times_of[1].sampling < times_of[0].sampling
    assert times_of[2].sampling > times_of[1].sampling
    assert times_of[2].scoring > times_of[1].scoring


@pytest.mark.parametrize("method", list(METHODS))
def test_what_is_planned_is_what_the_trainer_does(method: str, monkeypatch):
    """The trainer accepts under that many ranks exactly what the plan recommends for several devices."""
    from afzal import config
    from afzal.recipes import parallel

    monkeypatch.setattr(parallel, "world_size", lambda: 8)
    given = {"reward": "r.py:f"} if METHODS[method].online else {}
    given |= {"objective": "simpo"} if method == "prefer" else {"samples": "s"} if method == "irl" else {}
    for adapter in ({}, {"lora_rank": 16}):
        settings = config.make(method, model="m", data="d", out="o", **given, **adapter)
        work = job("llama-3.2-1b", method, rank=adapter.get("lora_rank", 0))
        try:
            parallel.refuse(settings, None)
        except AfzalError:
            assert plan(work, H100, LayoutRequest(), ASSUMED).layout.devices == 1
            with pytest.raises(AfzalError):
                plan(work, H100, LayoutRequest(nodes=1, gpus=8), ASSUMED)
        else:
            assert plan(work, H100, LayoutRequest(nodes=1, gpus=8), ASSUMED).layout.tensor == 1
