"""Weight counts equal those of the real models, built on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers_models import SHARING_FAMILIES, make

from afzal.errors import AfzalError
from afzal.model.load import add_lora
from afzal.plan import SHAPES, parameters, shape_from, shape_of
from afzal.plan.shapes import adapter_parameters, trunk_parameters

FAMILIES = (
    *("llama", "qwen2", "qwen3", "mistral-sliding", "gemma", "gemma2", "gemma3", "mixtral", "qwen3_moe", "olmo2"),
    *("granite", "smollm3"),
)
CONFIGS = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "olmo2": "Olmo2Config",
}
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "mixtral-8x7b": 46_702_792_704,
    "gemma-2-2b": 2_614_341_888,
}


def built(config: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("changed", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_model(family: str, changed: dict[str, Any]):
    name, fields = SHARING_FAMILIES[family]
    config = getattr(transformers, name)(**(fields | changed))
    assert parameters(shape_of(config.to_dict())) == count(built(config))


@pytest.mark.parametrize("changed", [{"attention_bias": True}, {"mlp_bias": True}, {"head_dim": 16}])
def test_biases_and_wide_heads_count(changed: dict[str, Any]):
    config = transformers.LlamaConfig(**(SHARING_FAMILIES["llama"][1] | changed))
    assert parameters(shape_of(config.to_dict())) == count(built(config))


@pytest.mark.parametrize("name", SHAPES)
def test_built_in_shapes_are_real_models(name: str):
    shape = SHAPES[name]
    fields: dict[str, Any] = {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.ff,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
    }
    if shape.experts:
        fields |= {"num_local_experts": shape.experts, "num_experts_per_tok": shape.experts_used}
    config = getattr(transformers, CONFIGS[shape.family])(**fields)
    assert shape_of(config.to_dict(), name) == shape
    assert parameters(shape) == count(built(config)) == PUBLISHED.get(name, parameters(shape))


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe"])
def test_adapters_are_counted_as_peft_makes_them(family: str):
    model = make(family)
    adapted = add_lora(model, rank=3, alpha=6)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert adapter_parameters(shape_of(model.config.to_dict()), 3) == trained


def test_a_trunk_is_the_model_without_its_head():
    config = transformers.LlamaConfig(**SHARING_FAMILIES["llama"][1])
    assert trunk_parameters(shape_of(config.to_dict())) == count(built(config).model)


def test_a_folder_needs_its_configuration_only(tmp_path: Path):
    config = transformers.LlamaConfig(**SHARING_FAMILIES["llama"][1])
    config.save_pretrained(tmp_path)
    assert parameters(shape_from(str(tmp_path))) == count(built(config))


def test_the_text_part_of_a_larger_model_is_planned():
    text = {"model_type": "llama", **SHARING_FAMILIES["llama"][1]}
    assert shape_of({"model_type": "llava", "text_config": text}).width == 32


def test_names_are_found_in_any_dress():
    assert shape_from("meta-llama/Llama-3.1-8B-Instruct") is SHAPES["llama-3.1-8b"]
    assert shape_from("Qwen/Qwen2.5-7B") is SHAPES["qwen2.5-7b"]


@pytest.mark.parametrize(
    ("model", "said"),
    [("llama-3.1-8bb", "did you mean llama-3.1-8b"), ("./nowhere", "neither a folder"), ("x", "org/name")],
)
def test_an_unknown_model_is_refused_with_the_way_out(model: str, said: str):
    with pytest.raises(AfzalError, match=said):
        shape_from(model)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba"}, "model type 'mamba' cannot be planned"),
        ({"model_type": "llama", "hidden_size": 8, "num_attention_heads": True}, "num_attention_heads is True"),
        ({"model_type": "llama", "hidden_size": 8}, "num_attention_heads is None"),
    ],
)
def test_a_configuration_that_says_too_little_is_refused(tmp_path: Path, config: dict[str, Any], said: str):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AfzalError, match=said):
        shape_from(str(tmp_path))


@pytest.mark.parametrize(("text", "said"), [("[]", "not a JSON object"), ("{", "not JSON")])
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(AfzalError, match=said):
        shape_from(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(AfzalError, match="has no config"):
        shape_from(str(tmp_path))


@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_vl", "gemma3", "qwen2_audio", "voxtral"])
def test_weights_beside_the_language_model_are_those_of_the_model(family: str, tmp_path: Path):
    """Of a folder, from the headers of its files: what `afzal train` keeps frozen, and what stands between."""
    import helpers_multimodal

    from afzal.model.media import towers
    from afzal.plan import shape_from

    if not hasattr(helpers_multimodal, family):
        pytest.skip("no such family among the helpers")
    model, _ = getattr(helpers_multimodal, family)()
    model.save_pretrained(tmp_path)
    shape = shape_from(str(tmp_path))
    frozen = sum(p.numel() for tower in towers(model).values() for p in tower.parameters())
    assert shape.media
    assert shape.towers == frozen
    assert parameters(shape) + shape.towers + shape.projection == sum(p.numel() for p in model.parameters())
