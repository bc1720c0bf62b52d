"""If policy equals reference the DPO loss is ln 2, to 1e-6, whatever trains and wherever the reference comes from.

Every combination of {all weights, LoRA, on from an adapter, LoRA with a whole module} x {live, cached reference} x
{fp32, bf16} x {dropout 0, 0.1 in the model's configuration}, for an attention with and without residual dropout.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_models import SHARING_FAMILIES
from helpers_runs import pair_file
from helpers_tokenizers import byte_tokenizer

import afzal
from afzal import config, recipes, runs
from afzal.model.load import add_lora, load_model, load_tokenizer

LN2 = math.log(2)
DROPOUT = {
    "llama": ("attention_dropout",),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}
KINDS = ("full", "lora", "adapter", "lora_and_head")
REFERENCES, DTYPES = ("frozen", "cached"), ("fp32", "bf16")
COMBINATIONS = [
    *product(["llama"], KINDS, REFERENCES, DTYPES, [0.1]),
    *product(["gpt2"], KINDS, REFERENCES, ["fp32"], [0.1]),
]
MORE = [  # less can go wrong without dropout
    *product(["llama"], KINDS, REFERENCES, DTYPES, [0.0]),
    *product(["gpt2"], KINDS, REFERENCES, ["bf16"], [0.1]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("first-loss")
    pair_file(path / "pairs.jsonl", n=8)
    return path


def starting_model(folder: Path, family: str, dropout: float) -> Path:
    """A random model whose configuration asks for dropout, saved as a folder."""
    import transformers

    path = folder / f"{family}-{dropout}"
    if path.exists():
        return path
    name, fields = SHARING_FAMILIES[family]
    tokenizer = byte_tokenizer()
    rates = dict.fromkeys(DROPOUT[family], dropout)
    torch.manual_seed(0)
    made = getattr(transformers, name)(**(fields | rates | {"vocab_size": len(tokenizer)}))
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def settings(folder: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    base = {"data": str(folder / "pairs.jsonl"), "out": str(out), "batch_size": 8, "eval_fraction": 0.0}
    return base | {"max_steps": 1, "lr": 1e-2, "warmup": 0, "lr_schedule": "constant"} | overrides


def adapter_of(folder: Path, model: Path) -> Path:
    """The folder of an SFT run with LoRA, trained so far that its adapter is clearly not the identity."""
    path = folder / f"{model.name}-sft"
    if not path.exists():
        given = settings(folder, path, lora_rank=2, lr=3e-2, max_steps=3, epochs=3.0)
        recipes.train(config.make("sft", model=str(model), **given))
    return path


def run_once(kind: str, folder: Path, model: Path, given: dict[str, Any]) -> runs.Run:
    if kind == "lora_and_head":
        wrapped = add_lora(load_model(str(model)), rank=2, alpha=4, trained_in_full=["lm_head"])
        return afzal.fit("dpo", model=wrapped, tokenizer=load_tokenizer(str(model)), **given)
    start = adapter_of(folder, model) if kind == "adapter" else model
    given = given | ({"lora_rank": 2} if kind == "lora" else {})
    return afzal.fit("dpo", model=str(start), **given)


@pytest.mark.parametrize(
    ("family", "kind", "reference", "dtype", "dropout"),
    [*COMBINATIONS, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)],
)
def test_the_first_loss_is_ln2(
    folder: Path, tmp_path: Path, family: str, kind: str, reference: str, dtype: str, dropout: float
):
    model = starting_model(folder, family, dropout)
    result = run_once(kind, folder, model, settings(folder, tmp_path / "run", reference=reference, dtype=dtype))
    (first,) = result.metrics("train")
    assert abs(first["loss"] - LN2) <= 1e-6
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert first["grad_norm"] > 0, "nothing was trained, so the first loss would say nothing"


@pytest.mark.parametrize("family", list(DROPOUT))
def test_the_adapter_that_training_goes_on_from_is_not_the_identity(folder: Path, family: str):
    """Otherwise its combinations above would pass with the wrong reference, the base model."""
    base = starting_model(folder, family, 0.0)
    tuned = load_model(str(adapter_of(folder, base)))
    ids = torch.tensor([[70, 71, 72, 73]])
    with torch.no_grad():
        moved = tuned(input_ids=ids).logits - load_model(str(base))(input_ids=ids).logits
        with tuned.disable_adapter():
            off = tuned(input_ids=ids).logits - load_model(str(base))(input_ids=ids).logits
    assert float(moved.abs().max()) > 0.1
    assert float(off.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_each_way_of_training_moves_the_second_loss(folder: Path, tmp_path: Path, kind: str):
    """The reference stays where it was: a reference that followed the policy would give ln 2 for ever."""
    model = starting_model(folder, "llama", 0.1)
    given = settings(folder, tmp_path / "run", max_steps=2, epochs=2.0)
    first, second = run_once(kind, folder, model, given).metrics("train")
    assert abs(first["loss"] - LN2) <= 1e-6
    assert second["loss"] < LN2 - 0.01
