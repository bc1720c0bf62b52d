"""Mixtures of experts: adapters on them; and the loss that balances them, which has no effect on the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import OTHER_FAMILIES, SHARING_FAMILIES, make, random_trees
from helpers_runs import settings
from helpers_tokenizers import byte_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen2MoeConfig

from afzal import config, recipes
from afzal.errors import AfzalError
from afzal.model.adapters import Adapter, add_adapter
from afzal.model.load import load_model
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing, router_note
from afzal.tokens.batch import collate

MIXTURES = {"mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.mark.parametrize("family", [*SHARING_FAMILIES, *OTHER_FAMILIES])
def test_every_mixture_is_told_and_no_other_model(family: str):
    assert bool(router_note(make(family).config)) == (family in MIXTURES)


def test_the_note_names_the_weight_that_the_configuration_gives():
    assert "(router_aux_loss_coef 0.25 in its configuration)" in router_note(
        make("mixtral", router_aux_loss_coef=0.25).config
    )


@pytest.mark.parametrize("family", sorted(MIXTURES))
def test_log_probs_and_gradients_are_the_same_whether_or_not_the_configuration_asks_for_router_logits(family: str):
    results = []
    for asked in (False, True):
        model = make(family, output_router_logits=asked)
        sharing, _ = choose_sharing(model)
        logps = score(model, collate(random_trees(4), sharing)).token_logps
        logps.sum().backward()
        results.append([logps.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_adapters_on_experts_are_loaded_and_merged_as_they_were_trained(family: str, kind: Any, tmp_path: Path):
    """Two weights of each expert have an adapter, and PEFT nests one in the other."""
    model = add_adapter(make(family), Adapter(kind, 4, 8.0))
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    assert any("experts.base_layer.lora_B" in name for name, _ in model.named_parameters())
    make(family).save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    batch = collate(random_trees(4), choose_sharing(model)[0])
    with torch.no_grad():
        expected, base = score(model, batch).token_logps, score(make(family), batch).token_logps
        loaded = load_model(str(tmp_path / "adapter"))
        choose_sharing(loaded)
        assert torch.equal(score(loaded, batch).token_logps, expected)
        merged = loaded.merge_and_unload()
        assert torch.allclose(score(merged, batch).token_logps, expected, atol=1e-5)
    assert float((base - expected).abs().max()) > 0.01


def test_dora_on_experts_is_refused_with_what_works():
    with pytest.raises(AfzalError, match="lora_targets") as refused:
        add_adapter(make("mixtral"), Adapter("dora", 4, 8.0))
    assert "adapter=lora" in str(refused.value.remedy)
    made = add_adapter(make("mixtral"), Adapter("dora", 4, 8.0, ["q_proj", "v_proj"]))
    assert any("lora_magnitude_vector" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize(("kind", "own"), [(MixtralConfig, {"num_local_experts": 4}), (Qwen2MoeConfig, {})])
def test_a_run_says_so_once_at_its_start(kind: Any, own: dict[str, Any], tmp_path: Path, capsys: Any):
    tokenizer = byte_tokenizer()
    experts = own or {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **SMALL, **experts, **ids))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipes.train(config.make("dpo", **settings(tmp_path, tmp_path / "run", max_steps=1, save_every_steps=None)))
    said = capsys.readouterr().err
    assert said.count("the auxiliary loss that balances its experts (router_aux_loss_coef 0.001") == 1
