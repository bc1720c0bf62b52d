"""Adapters through PEFT: the same log-probs as PEFT's own forward pass, in every layout."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees
from torch import Tensor
from transformers import AutoModelForCausalLM, Mamba2Config

from afzal.errors import AfzalError
from afzal.generate import Sampling, as_trees, choose_decoding, sample
from afzal.model import load
from afzal.model.adapters import (
    Adapter,
    acting_as,
    adapter_base,
    add_adapter,
    positions_taken,
    starting_weights,
    virtual_kind,
    virtual_tokens,
)
from afzal.model.attention import stock_attention
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing, gap_to_plain
from afzal.model.reference import AdapterOff, Frozen, StartingAdapter, cache_key, live_reference
from afzal.tokens.batch import collate, expand

VIRTUAL = ("prefix", "prompt", "p_tuning")
IDENTITIES = ("lora", "dora", "rslora", "ia3")
KINDS: tuple[Any, ...] = (*IDENTITIES, *VIRTUAL)
N = 3  # virtual tokens; the sliding windows of the tiny models are 5
FAMILIES = ("llama", "gpt2", "gemma2")


def fresh(kind: Any, family: str = "llama", seed: int = 0) -> Any:
    base = make(family)
    torch.manual_seed(seed)
    return add_adapter(base, Adapter(kind, rank=2, alpha=4.0, virtual_tokens=N)).eval()


def trained(kind: Any, family: str = "llama") -> Any:
    """As if trained: every adapter weight is moved at random."""
    model = fresh(kind, family)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return model


@torch.no_grad()
def plainly(model: Any, trees: Any) -> Tensor:
    """Log-probs of all scored tokens by the model's own forward pass, one response at a time, without padding."""
    parts = []
    for one in expand(trees):
        branch = one.branches[0]
        ids = torch.tensor([[*one.prompt.tolist(), *branch.ids.tolist()]])
        with stock_attention(model):
            logits = model(input_ids=ids).logits[0, -ids.shape[1] :]
        rows = logits[len(one.prompt) - 1 : -1].log_softmax(-1)
        parts.append(rows.gather(1, ids[0, len(one.prompt) :, None])[:, 0][torch.from_numpy(branch.scored)])
    return torch.cat(parts)


@torch.no_grad()
def ours(model: Any, trees: Any) -> Tensor:
    sharing, _ = choose_sharing(model)
    return score(model, collate(trees, sharing)).token_logps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_those_of_pefts_own_forward(kind: Any, family: str):
    model, trees = trained(kind, family), random_trees(6)
    assert float((ours(model, trees) - plainly(model, trees)).abs().max()) < 2e-5
    assert gap_to_plain(model, trees[0], choose_sharing(model)[0]) < 2e-5


@pytest.mark.parametrize("family", [*FAMILIES, "mistral-sliding", "opt"])
@pytest.mark.parametrize("kind", VIRTUAL)
def test_prompts_are_shared_with_virtual_tokens_in_front(kind: Any, family: str):
    """Sliding windows included: windows count virtual tokens, as they do in PEFT's own rows."""
    model, trees = trained(kind, family), random_trees(6)
    assert choose_sharing(model) == ("shared", "")
    assert (virtual_kind(model), virtual_tokens(model)) == (kind, N)
    with torch.no_grad():
        shared = score(model, collate(trees, "shared")).token_logps
        with stock_attention(model):
            unshared = score(model, collate(trees, "unshared")).token_logps
        with model.disable_adapter():
            off = score(model, collate(trees, "shared")).token_logps
    assert float((shared - unshared).abs().max()) < 2e-5
    assert float((off - plainly(make(family), trees)).abs().max()) < 2e-5
    assert float((off - shared).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", VIRTUAL)
def test_gradients_of_the_virtual_tokens_are_those_of_pefts_rows(kind: Any):
    model, trees = trained(kind), random_trees(4)
    choose_sharing(model)
    gradients = []
    for sharing in ("shared", "unshared"):
        context = stock_attention(model) if sharing == "unshared" else nullcontext()
        with context:
            score(model, collate(trees, sharing)).token_logps.sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert len(gradients[0]) == len(gradients[1]) > 0
    for a, b in zip(*gradients, strict=True):
        assert float((a - b).abs().max()) < 1e-4 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_only_fresh_adapters_without_virtual_tokens_are_the_identity(kind: Any):
    model, trees = fresh(kind), random_trees(4)
    with model.disable_adapter():
        off = ours(model, trees)
    gap = float((ours(model, trees) - off).abs().max())
    assert float((off - plainly(make("llama"), trees)).abs().max()) < 2e-5
    assert gap < 1e-5 if kind in IDENTITIES else gap > 1e-3


def drawn_tokens(model: Any, kind: str) -> list[int]:
    """The vocabulary tokens from which fresh virtual tokens were initialised."""
    base, weight = model.get_base_model(), model.prompt_encoder["default"].embedding.weight
    if kind == "prompt":
        rows, table = weight, base.get_input_embeddings().weight
    else:
        ids = torch.arange(base.config.vocab_size)[:, None]  # values of the first layer depend on the token alone
        table = base(input_ids=ids, use_cache=True).past_key_values.layers[0].values.flatten(1)
        rows = weight[:, table.shape[1] : 2 * table.shape[1]]
    distance = torch.cdist(rows, table, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distance.min(1).values.max()) < 1e-5
    return distance.argmin(1).tolist()


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@torch.no_grad()
def test_a_fresh_one_is_the_base_model_that_has_read_those_tokens_first(kind: Any):
    model, (tree, *_) = fresh(kind), random_trees(3)
    first = drawn_tokens(model, kind)
    ids = [*first, *tree.prompt.tolist(), *tree.branches[0].ids.tolist()]
    expected = make("llama")(input_ids=torch.tensor([ids])).logits[0, len(first) :]
    logits = model(input_ids=torch.tensor([ids[len(first) :]])).logits[0]
    assert torch.allclose(logits[-len(expected) :], expected, atol=1e-5)
    assert drawn_tokens(fresh(kind, seed=1), kind) != first


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_the_same_through_peft_and_through_us(kind: Any, tmp_path: Path):
    from peft import PeftModel

    make("llama").save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = add_adapter(load.load_model(str(tmp_path / "base")), Adapter(kind, rank=2, virtual_tokens=N))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    trees = random_trees(4)
    expected = ours(model, trees)
    with stock_attention(model):
        model.save_pretrained(tmp_path / "adapter")
    through_peft = PeftModel.from_pretrained(load.load_model(str(tmp_path / "base")), str(tmp_path / "adapter"))
    again = load.load_model(str(tmp_path / "adapter"))
    for logps in (plainly(through_peft.eval(), trees), ours(again, trees)):
        assert float((logps - expected).abs().max()) < 2e-5
    training = {name for name, p in again.named_parameters() if p.requires_grad}
    assert training
    assert all("lora_" in name or "ia3_" in name or "prompt_encoder" in name for name in training)
    assert positions_taken(tmp_path / "adapter") == virtual_tokens(model)
    assert load.context_tokens(str(tmp_path / "adapter")) == 256 - virtual_tokens(model)


def test_adapters_are_made_and_opened_without_a_word_about_names_that_are_given_up(tmp_path: Path):
    make("llama").save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = add_adapter(load.load_model(str(tmp_path / "base")), Adapter("lora", rank=2))
        model.save_pretrained(tmp_path / "adapter")
        load.load_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_starting_adapter_stays_where_it_was_and_leaves_gradients_alone(kind: Any):
    model, trees = trained(kind), random_trees(4)
    sharing, _ = choose_sharing(model)
    batch = collate(trees, sharing)
    reference, copy = live_reference(model), Frozen(load.frozen_copy(model))
    assert isinstance(reference, StartingAdapter)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in parameters:
            p.add_(0.1)
    kept = copy.score(batch).token_logps
    assert torch.equal(reference.score(batch).token_logps, kept)
    gradients = []
    for ref in (reference, copy):
        policy = score(model, batch).token_logps  # its graph holds the weights that are set aside meanwhile
        ((policy - ref.score(batch).token_logps) ** 2).sum().backward()
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        model.zero_grad()
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(p.requires_grad for p in parameters)
    assert float((score(model, batch).token_logps - kept).abs().max()) > 1e-3


def test_the_weights_come_back_even_when_the_block_fails():
    model = trained("lora")
    before, kept = dict(model.named_parameters()), starting_weights(model)
    with acting_as(model, {name: torch.zeros_like(w) for name, w in kept.items()}):
        assert all(not p.any() for name, p in model.named_parameters() if name in kept)
        with pytest.raises(TypeError), acting_as(model, kept):
            torch.zeros(1).backward(retain_graph="no")  # type: ignore[arg-type]
        assert all(not p.any() for name, p in model.named_parameters() if name in kept)
    assert all(p is before[name] for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_does_not_enter_the_key_of_cached_log_probs(kind: Any):
    about = {"sharing": "unshared", "dtype": "fp32"}
    assert isinstance(live_reference(fresh(kind), fresh_adapter=True), AdapterOff)
    keys = {cache_key(fresh(kind, seed=seed), fresh_adapter=True, **about) for seed in (0, 1)}
    assert keys == {cache_key(make("llama"), **about)}


@pytest.mark.parametrize("kind", VIRTUAL)
def test_samples_have_the_log_probs_that_scoring_gives_them(kind: Any):
    model = trained(kind)
    prompts = [[5, 6, 7, 8, 9], [12], [5, 6, 7], [20, 21, 22, 23, 24]]
    drawn = sample(model, prompts, eos=[2, 3], n=2, sampling=Sampling(max_new_tokens=6, min_new_tokens=2), seed=3)
    assert [s.prompt_index for s in drawn] == [0, 0, 1, 1, 2, 2, 3, 3]
    with torch.no_grad():
        scored = score(model, collate(as_trees(drawn, prompts), "unshared")).token_logps
    sampled = torch.cat([torch.from_numpy(s.logps) for s in drawn])
    assert float((sampled - scored).abs().max()) < 2e-5
    alone = sample(model, prompts[:1], eos=[2, 3], n=1, sampling=Sampling(max_new_tokens=6, min_new_tokens=2), seed=3)
    assert alone[0].ids.tolist() == drawn[0].ids.tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "stablelm"])
@pytest.mark.parametrize("kind", VIRTUAL)
def test_sampling_is_our_own_with_virtual_tokens(kind: Any, family: str, monkeypatch: pytest.MonkeyPatch):
    """Uses neither PEFT's `generate` nor that of transformers; both ways give the log-probs of scoring."""
    model = trained(kind, family)
    monkeypatch.setattr(type(model), "generate", None)
    monkeypatch.setattr(type(model.get_base_model()), "generate", None)
    prompts = [[5, 6, 7, 8, 9], [12], [5, 6, 7]]
    assert choose_decoding(model)[0] == ("stock" if family == "stablelm" else "shared")
    for decoding in ("auto", "stock"):
        drawn = sample(
            model, prompts, eos=[2, 3], n=3, sampling=Sampling(6, min_new_tokens=3), seed=3, decoding=decoding
        )
        model.set_attn_implementation("eager")
        with torch.no_grad():
            scored = score(model, collate(as_trees(drawn, prompts), "unshared")).token_logps
        sampled = torch.cat([torch.from_numpy(s.logps) for s in drawn])
        assert float((sampled - scored).abs().max()) < 5e-5
        assert float((sampled - away_from_virtual(model, drawn, prompts)).abs().max()) > 0.05


def away_from_virtual(model: Any, drawn: Any, prompts: Any) -> torch.Tensor:
    """Log-probs of the same tokens by the model without its adapter."""
    with torch.no_grad(), model.disable_adapter():
        return score(model, collate(as_trees(drawn, prompts), "unshared")).token_logps


def test_sampling_with_virtual_tokens_switched_off_is_that_of_the_base_model():
    model = trained("prompt")
    how = {"eos": [2, 3], "n": 2, "sampling": Sampling(6), "seed": 3}
    with_them = sample(model, [[5, 6, 7], [8]], **how)
    with model.disable_adapter():
        without = sample(model, [[5, 6, 7], [8]], **how)
    base = sample(model.get_base_model(), [[5, 6, 7], [8]], **how)
    assert [s.ids.tolist() for s in without] == [s.ids.tolist() for s in base]
    assert [s.ids.tolist() for s in without] != [s.ids.tolist() for s in with_them]


def test_a_prefix_longer_than_a_sliding_window_is_refused():
    with pytest.raises(AfzalError, match=r"(?s)adapter prefix does not fit(.*)6 virtual tokens do not fit in its slid"):
        add_adapter(make("gemma2"), Adapter("prefix", virtual_tokens=6))


@pytest.mark.parametrize("family", ["olmo", "olmo2", "cohere", "cohere2", "granite", "smollm3", "stablelm"])
def test_ia3_takes_the_usual_layers_where_peft_has_no_list(family: str):
    model = make(family)
    choose_sharing(model)
    batch = collate(random_trees(3), "shared")
    with torch.no_grad():
        before = score(model, batch).token_logps
        made = add_adapter(model, Adapter("ia3"))
        assert torch.equal(score(made, batch).token_logps, before)
    factors = {name.split(".")[-3]: tuple(p.shape) for name, p in made.named_parameters() if p.requires_grad}
    text = model.config
    width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    assert factors == {"k_proj": (width, 1), "v_proj": (width, 1), "down_proj": (1, text.intermediate_size)}
    assert sum(p.requires_grad for p in made.parameters()) == 3 * text.num_hidden_layers


@pytest.mark.parametrize("family", ["starcoder2", "qwen3_moe", "qwen2_moe"])
def test_ia3_is_refused_where_the_layers_are_not_known(family: str):
    with pytest.raises(AfzalError, match="adapter ia3 does not fit") as refused:
        add_adapter(make(family), Adapter("ia3"))
    assert refused.value.remedy == "adapter=lora"


@pytest.mark.parametrize(
    ("adapter", "remedy"),
    [
        (Adapter("lora"), "lora_targets=in_proj,x_proj,dt_proj"),
        (Adapter("dora"), "adapter=lora, or lora_targets=in_proj,x_proj,dt_proj"),
        (Adapter("lora", targets=["out_proj"]), "lora_targets=in_proj,x_proj,dt_proj"),
        (
            Adapter("lora", targets=["q_proj"]),
            "leave lora_targets out, or lora_targets=in_proj,x_proj,dt_proj,out_proj",
        ),
        (Adapter("prefix"), "adapter=lora"),
    ],
)
def test_an_adapter_that_does_not_fit_says_what_might(adapter: Adapter, remedy: str):
    with pytest.raises(AfzalError, match="does not fit MambaForCausalLM") as refused:
        add_adapter(make("mamba"), adapter)
    assert refused.value.remedy == remedy


def test_what_is_named_for_a_model_that_an_adapter_does_not_fit_fits_it():
    assert add_adapter(make("mamba"), Adapter("lora", targets=["in_proj", "x_proj", "dt_proj"]))


def test_a_prefix_needs_keys_and_values_in_every_layer():
    config = Mamba2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4, head_dim=8, num_heads=4, n_groups=1
    )
    with pytest.raises(AfzalError, match="does not fit Mamba2ForCausalLM") as refused:
        add_adapter(AutoModelForCausalLM.from_config(config), Adapter("prefix", virtual_tokens=3))
    assert "no keys and values" in refused.value.why


@pytest.mark.parametrize("kind", ["MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"])
def test_other_kinds_of_virtual_tokens_are_refused_by_name(kind: str, tmp_path: Path):
    about = {"peft_type": kind, "base_model_name_or_path": "base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(AfzalError, match=f"adapter of type {kind}, which is not supported"):
        adapter_base(tmp_path)


def test_four_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(AfzalError, match="pip install bitsandbytes"):
        load.load_model("nowhere", quantize="4bit")


def test_all_linear_in_a_list_is_the_default():
    named, plain = (
        {name for name, p in add_adapter(make("llama"), adapter).named_parameters() if p.requires_grad}
        for adapter in (Adapter("lora", targets=["all-linear"]), Adapter("lora"))
    )
    assert named == plain
