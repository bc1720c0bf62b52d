"""Tiny random models of many families, and random trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from afzal.records import Preference
from afzal.tokens.tree import Tree, tree

VOCABULARY = 97
_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {k: v for k, v in _BASE.items() if k not in ("num_key_value_heads", "intermediate_size")}
_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_WINDOW = {"sliding_window": 5, "head_dim": 8}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}

SHARING_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _BASE),
    "qwen2": ("Qwen2Config", _BASE),
    "qwen3": ("Qwen3Config", _BASE | {"head_dim": 8}),
    "mistral-sliding": ("MistralConfig", _BASE | {"sliding_window": 5}),
    "gemma": ("GemmaConfig", _BASE | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", _BASE | _WINDOW | {"query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", _BASE | _WINDOW),
    "gpt2": ("GPT2Config", _IDS | _GPT2 | {"n_positions": 256}),
    "gpt_bigcode": ("GPTBigCodeConfig", _IDS | _GPT2),
    "gpt_neox": ("GPTNeoXConfig", _HEADS | {"intermediate_size": 48}),
    "phi": ("PhiConfig", _BASE),
    "phi3": ("Phi3Config", _BASE),
    "mixtral": ("MixtralConfig", _BASE | {"num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", _BASE | _MOE | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", _BASE | _MOE | {"head_dim": 8}),
    "olmo": ("OlmoConfig", _BASE),
    "olmo2": ("Olmo2Config", _BASE),
    "cohere": ("CohereConfig", _BASE | {"logit_scale": 0.5}),
    "cohere2": ("Cohere2Config", _BASE | {"sliding_window": 5, "logit_scale": 0.5}),
    "granite": ("GraniteConfig", _BASE | {"logits_scaling": 0.5}),
    "opt": (
        "OPTConfig",
        _IDS
        | {k: _HEADS[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0},
    ),
    "starcoder2": ("Starcoder2Config", _BASE | {"sliding_window": 5}),
    "gpt_oss": ("GptOssConfig", _BASE | _WINDOW | {"num_local_experts": 4}),
    "smollm3": ("SmolLM3Config", _BASE),
}
OTHER_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", _IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": ("MambaConfig", _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "falcon": ("FalconConfig", {k: v for k, v in _HEADS.items() if k != "max_position_embeddings"}),
    "stablelm": ("StableLmConfig", _BASE),
}


def make(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A random model whose weights are large enough for every token to matter."""
    name, fields = (SHARING_FAMILIES | OTHER_FAMILIES)[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**(fields | overrides))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(3)
    return model


def random_trees(n: int, *, seed: int = 0, k: int = 2, longest: int = 12) -> list[Tree]:
    """Pairs (or K-wise trees) of random ids with skewed lengths; the first branch is preferred."""
    rng = np.random.default_rng(seed)
    draw = lambda m: rng.integers(3, VOCABULARY, m)  # noqa: E731
    made = []
    for i in range(n):
        prompt = draw(1 + int(rng.integers(longest)) * (1 + 3 * (i % 4 == 0)))
        branches = [draw(1 + int(rng.integers(longest))) for _ in range(k)]
        made.append(tree(f"item-{i}", prompt, branches, pairs=[Preference(0, j) for j in range(1, k)]))
    return made
