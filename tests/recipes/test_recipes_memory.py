"""Memory settings: recomputation, the size of forward passes, offloading, and the messages."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees
from helpers_runs import model_folder, pair_file

from afzal import config, recipes, runs
from afzal.errors import AfzalError
from afzal.model.memory import PerToken
from afzal.model.probe import choose_sharing
from afzal.model.recompute import recompute_of
from afzal.model.reference import Offloaded, live_reference, offloaded
from afzal.model.value import own_critic, shared_critic
from afzal.recipes import memory
from afzal.recipes.memory import LoadedModels, Sizes, sizes_of, terms
from afzal.train import checkpoint
from afzal.train.feed import Layout
from afzal.train.precision import Weights

GB = 1e9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory")
    model_folder(path / "model")
    pair_file(path / "pairs.jsonl")
    return path


def given(folder: Path, name: str, method: str = "dpo", **change: Any) -> config.TrainConfig:
    base = {"model": str(folder / "model"), "data": str(folder / "pairs.jsonl"), "out": str(folder / name)}
    plain = {"batch_size": 8, "max_steps": 5, "lr": 1e-3, "eval_fraction": 0.2}
    plain |= {} if method == "reward" else {"sample_prompts": 0}
    return config.make(method, **(base | plain | change))


def losses(settings: config.TrainConfig) -> list[float]:
    result = runs.open_run(recipes.train(settings))
    return [line["loss"] for line in result.metrics("train")] + [line["loss"] for line in result.metrics("eval")]


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a device with separate memory."""
    monkeypatch.setattr(memory, "shares_memory", lambda device: False)


def test_layers_that_are_recomputed_drop_nothing(folder: Path):
    """With its own configuration, OPT drops half of its activations in training, and one layer in four."""
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.25}
    opt = str(model_folder(folder / "opt", "OPTConfig", **sizes))
    plain = losses(given(folder, "opt-plain", model=opt, activation_checkpointing="none", max_steps=2))
    for mode in ("selective", "full"):
        actual = losses(given(folder, f"opt-{mode}", model=opt, activation_checkpointing=mode, max_steps=2))
        assert actual == pytest.approx(plain, abs=1e-6)


def test_layers_that_would_drop_are_not_recomputed(folder: Path):
    falcon = str(model_folder(folder / "falcon", "FalconConfig", hidden_dropout=0.5))
    with pytest.raises(AfzalError, match="activation_checkpointing=full is not possible") as refused:
        recipes.train(given(folder, "falcon-full", model=falcon, activation_checkpointing="full", max_steps=1))
    assert "rates in the configuration" in refused.value.why
    assert losses(given(folder, "falcon-auto", model=falcon, max_steps=1))


WAYS = {
    "selective": {"activation_checkpointing": "selective"},
    "full": {"activation_checkpointing": "full"},
    "reference": {"offload": "reference"},
    "optimizer": {"offload": "optimizer"},
    "all": {"offload": "all", "activation_checkpointing": "selective"},
    "auto tokens": {"tokens_per_forward": "auto"},
    "small memory": {"tokens_per_forward": "auto", "memory_gb": 0.0038},
}


@pytest.mark.usefixtures("apart")
def test_every_way_to_save_memory_leaves_a_whole_run_alone(folder: Path):
    plain = losses(given(folder, "plain", activation_checkpointing="none"))
    assert len(plain) > 5
    for name, change in WAYS.items():
        actual = losses(given(folder, name.replace(" ", "-"), **change))
        assert max(abs(a - b) for a, b in zip(plain, actual, strict=True)) <= 1e-6, name


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("method", ["sft", "kto", "reward"])
def test_the_optimizer_of_any_method_may_be_elsewhere(folder: Path, method: str):
    plain = losses(given(folder, f"{method}-here", method))
    assert losses(given(folder, f"{method}-there", method, offload="optimizer")) == plain


@pytest.mark.usefixtures("apart")
def test_an_offloaded_run_is_resumed_to_the_same_bits(folder: Path):
    whole = given(folder, "whole", offload="all", save_every_steps=3, keep_checkpoints=2)
    plain = losses(whole)
    run = runs.open_run(whole.out)
    last = checkpoint.newest(run.checkpoints, pytest.fail)
    assert last is not None
    shutil.rmtree(last)
    again = runs.open_run(recipes.train(whole, resume=True))
    assert [line["loss"] for line in again.metrics("train")] == plain[:5]


def test_on_a_cpu_there_is_nowhere_to_offload_to(folder: Path):
    with pytest.raises(AfzalError, match="offload=all has no effect on the cpu"):
        recipes.train(given(folder, "nowhere", offload="all"))


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    "change",
    [
        {"offload": "reference", "lora_rank": 2},
        {"offload": "reference", "method": "prefer", "objective": "simpo"},
    ],
    ids=str,
)
def test_a_reference_without_weights_of_its_own_is_not_offloaded(folder: Path, change: dict[str, Any]):
    change = dict(change)
    with pytest.raises(AfzalError, match="offload=reference has no effect"):
        recipes.train(given(folder, f"none-{len(change)}", change.pop("method", "dpo"), **change))


@pytest.mark.parametrize("change", [{"method": "sft"}, {"method": "reward"}, {"reference": "cached"}], ids=str)
def test_settings_alone_show_that_there_is_no_such_reference(folder: Path, change: dict[str, Any]):
    change = dict(change)
    with pytest.raises(AfzalError, match="offload reference has no effect"):
        given(folder, "no-reference", change.pop("method", "dpo"), offload="reference", **change)


@pytest.mark.parametrize(
    ("value", "meant"), [("true", "full"), (True, "full"), (False, "none"), ("null", "auto"), (None, "auto")]
)
def test_the_switch_of_other_trainers_is_understood(folder: Path, value: Any, meant: str):
    assert given(folder, "switch", gradient_checkpointing=value).activation_checkpointing == meant


def test_the_switch_takes_no_other_word(folder: Path):
    with pytest.raises(AfzalError, match="gradient_checkpointing cannot be 'half'; wanted: true or false"):
        given(folder, "switch", gradient_checkpointing="half")


def test_memory_gb_beside_nothing_that_hangs_on_it_is_refused(folder: Path):
    with pytest.raises(AfzalError, match="memory_gb has no effect"):
        given(folder, "fixed", memory_gb=4, activation_checkpointing="none")
    assert given(folder, "free", memory_gb=4, activation_checkpointing="none", tokens_per_forward="auto").memory_gb == 4


def llama(**overrides: Any) -> Any:
    model = make("llama", **overrides)
    choose_sharing(model)
    return model


def test_the_terms_are_the_bytes_of_what_is_held(folder: Path):
    settings = given(folder, "terms")
    for dtype, element in (("fp32", 4), ("bf16", 2)):
        model = llama()
        n = sum(p.numel() for p in model.parameters())
        weights = Weights(model, dtype)
        there, coming = terms(settings, LoadedModels(weights, live_reference(model), shared_critic(model)))
        head = 32 + 1
        masters = 4.0 * n if dtype == "bf16" else 0.0
        assert there == {
            "weights": n * element,
            "float32 weights": masters,
            "reference": n * element,
            "value model": 4 * head,
        }
        assert coming == {"gradients": 4.0 * (n + head), "optimizer": 8.0 * (n + head)}


def test_what_is_offloaded_is_not_among_them(folder: Path):
    settings = given(folder, "terms", optimizer="rmsprop")
    model = llama()
    n = sum(p.numel() for p in model.parameters())
    held = LoadedModels(Weights(model, "bf16", offload=True), offloaded(model, torch.device("cpu")), None)
    assert isinstance(held.reference, Offloaded)
    there, coming = terms(settings, held)
    assert there == {"weights": 2.0 * n, "float32 weights": 0.0}
    assert coming == {"gradients": 4.0 * n, "optimizer": 0.0}
    _, coming = terms(settings, LoadedModels(Weights(model, "fp32"), None, None))
    assert coming["optimizer"] == 4.0 * n, "RMSprop keeps one number per weight"


def test_over_several_ranks_each_tensor_counts_with_its_own_share(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Four ranks: a policy not yet sharded, a reference already sharded, and a head that stays unsharded."""
    model, frozen = llama(), live_reference(llama())
    n = sum(p.numel() for p in model.parameters())
    pieces = {id(p) for p in frozen.model.parameters()}
    monkeypatch.setattr(memory.ranks, "world", lambda: 4)
    monkeypatch.setattr(memory, "local", lambda t: t.flatten()[: t.numel() // 4] if id(t) in pieces else t)
    critic = own_critic(model)
    head, trunk = 32 + 1, sum(p.numel() for p in critic.trunk.parameters())
    learns = sum(p.numel() for p in critic.trunk.parameters() if p.requires_grad)
    held = LoadedModels(Weights(model, "fp32"), frozen, critic)
    there, coming = terms(given(folder, "shares"), held)
    assert there == {
        "weights": 4 * n / 4,
        "float32 weights": 0.0,
        "reference": 4 * n / 4,
        "value model": 4 * (head + trunk / 4),
    }
    trained = n / 4 + head + learns / 4
    assert coming == {"gradients": 4 * trained, "optimizer": 8 * trained}
    settings = given(folder, "shares", memory_gb=1)
    assert memory.free_for_activations(settings, held, torch.device("cpu")) == 1e9 - sum(there.values()) - sum(
        coming.values()
    )


def test_a_value_model_in_bf16_counts_with_its_masters(folder: Path):
    model = llama()
    critic = own_critic(model)
    trunk = sum(p.numel() for p in critic.trunk.parameters())
    learns = sum(p.numel() for p in critic.trunk.parameters() if p.requires_grad)
    critic = replace(critic, weights=Weights(critic.trunk, "bf16"))
    held = LoadedModels(Weights(model, "bf16"), None, critic)
    there, coming = terms(given(folder, "masters", dtype="bf16"), held)
    assert there["value model"] == 4 * (32 + 1) + 2 * trunk + 4 * learns
    assert learns < trunk  # whose unused head is frozen
    assert coming["gradients"] == 4 * (sum(p.numel() for p in model.parameters()) + learns + 32 + 1)


def test_a_value_model_counts_with_its_activations(folder: Path):
    model = llama()
    layout = Layout("shared", 1000)
    alone = memory.per_token([model], layout, ("none",))
    critic = own_critic(model)
    both = memory.per_token(LoadedModels(Weights(model, "fp32"), None, critic).trunks, layout, ("none",))
    assert both.kept["none"] == pytest.approx(2 * alone.kept["none"], rel=1e-6)


def test_the_sizes_of_the_fullest_update_by_hand(folder: Path):
    trees = random_trees(10)
    tokens = sorted((t.n_tokens for t in trees), reverse=True)
    sizes = sizes_of(given(folder, "sizes", batch_size=3), trees)
    assert sizes.update == sum(tokens[:3])
    assert sizes.item == tokens[0]
    assert sizes.largest_pass(1) == tokens[0]
    assert sizes.largest_pass(10**9) == sum(tokens[:3])


@pytest.mark.parametrize(
    ("free", "mode"), [(1e12, "none"), (7.0, "none"), (5.0, "selective"), (2.0, "full"), (0.1, "full")]
)
def test_the_first_mode_that_fits_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch, free: float, mode: str):
    """Activations of 4, 2 and 1 kB per token and passes of 1000 tokens: 6, 4 and 1.x MB with the other terms."""
    made = PerToken(block=0.0, kept={"none": 6000.0, "selective": 4000.0, "full": 1000.0}, logit=0.0, element=4)
    monkeypatch.setattr(memory, "per_token", lambda trunks, layout, modes: made)
    monkeypatch.setattr(memory, "sizes_of", lambda *_: Sizes(update=1000, item=10, scored=0.5))
    monkeypatch.setattr(memory, "free_for_activations", lambda *_: free * 1e6)
    model = llama()
    prepared: Any = type("Prepared", (), {"train": []})()
    layout = Layout("shared", 8192)
    notes = memory.fit(given(folder, "modes"), prepared, LoadedModels(Weights(model, "fp32"), None, None), layout)
    assert recompute_of(model) == mode
    assert any("recomputed" in note for note in notes) == (mode != "none")
    assert any("memory may not do" in note for note in notes) == (free == 0.1)


@pytest.mark.parametrize(("free", "tokens"), [(1e12, 2**17), (6.0, 2**17), (5.0, 512), (0.1, 256)])
def test_auto_tokens_are_the_largest_power_of_two_that_fits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: float, tokens: int
):
    made = PerToken(block=0.0, kept={"none": 6000.0}, logit=0.0, element=4)
    monkeypatch.setattr(memory, "per_token", lambda trunks, layout, modes: made)
    monkeypatch.setattr(memory, "sizes_of", lambda *_: Sizes(update=1000, item=10, scored=0.5))
    monkeypatch.setattr(memory, "free_for_activations", lambda *_: free * 1e6)
    prepared: Any = type("Prepared", (), {"train": []})()
    layout = Layout("shared", 8192)
    settings = given(folder, "tokens", tokens_per_forward="auto", activation_checkpointing="none")
    memory.fit(settings, prepared, LoadedModels(Weights(llama(), "fp32"), None, None), layout)
    assert layout.tokens_per_forward == tokens


def test_too_little_memory_is_refused_with_every_term_and_the_setting_that_helps(folder: Path):
    with pytest.raises(AfzalError) as caught:
        recipes.train(given(folder, "little", memory_gb=1e-6))
    said = str(caught.value)
    assert "memory_gb 1e-06 is too little" in said
    assert "the largest term is" in said
    for term in ("weights", "reference", "gradients", "optimizer", "activations", "logits"):
        assert term in said
    assert "try: " in said


REMEDIES = {
    "activations": "activation_checkpointing=full",
    "logits": "tokens_per_forward",
    "reference": "offload=reference",
    "optimizer": "offload=optimizer",
    "float32 weights": "offload=optimizer",
    "gradients": "lora_rank=16",
    "weights": "dtype=bf16",
}


@pytest.mark.parametrize("term", REMEDIES)
def test_the_remedy_is_that_of_the_largest_term(folder: Path, term: str):
    terms = dict.fromkeys(REMEDIES, 1.0 * GB) | {term: 30.0 * GB}
    error = memory.short_of_memory(given(folder, "remedy"), terms, "none", "too little")
    assert f"the largest term is {term}: 30.00 GB" in error.why
    assert REMEDIES[term] in error.remedy


def test_what_is_done_already_is_not_advised(folder: Path):
    settings = given(folder, "done", offload="optimizer", lora_rank=4, dtype="bf16")
    for term in ("optimizer", "gradients", "activations"):
        error = memory.short_of_memory(settings, {term: GB}, "full", "too little")
        assert "lora_rank" not in error.remedy
        assert "offload=optimizer" not in error.remedy
        assert "activation_checkpointing" not in error.remedy
        assert error.remedy
