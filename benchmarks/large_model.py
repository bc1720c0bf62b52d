"""Memory per rank while a model is read, sharded and trained: LoRA-DPO on a random model created on the spot.

    python -m benchmarks.large_model --dtypes bf16 --updates 1 --out benchmarks/results/large/large-model-cpu-bf16.json

Each row is one run of two ranks (gloo) in separate processes. *Start* is the peak before the first update: weights
read, sharded and checked, prompts probed, activations measured. Peaks are those of the process (``ru_maxrss``),
including libraries and file pages. ``--small`` uses a smaller model and also loads it in full on every rank, as happens
when a model cannot be read in pieces; ``--mixture`` uses a mixture of experts, with adapters on its attention. The
model is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import about_run
from benchmarks.rank_processes import losses_of, peak, said_by_all

_RANKS = 2
_WORDS = 32_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A llama with a tied embedding of 32,000 words; with ``experts``, a Mixtral with two experts per token."""

    width: int
    layers: int
    hidden: int
    heads: int = 16
    kv_heads: int = 4
    experts: int = 0


LARGE = Shape(2048, 32, 5632)  # 1.5 billion weights
SMALL = Shape(768, 16, 2048)  # 0.12 billion
MIXTURE = Shape(1024, 16, 3584, experts=8)  # 1.5 billion


def make(folder: Path, shape: Shape, dtype: str) -> int:
    """Write a random model, block by block, with a byte tokenizer; returns the number of weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, MixtralConfig

    number = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    generator = torch.Generator().manual_seed(0)
    kv = shape.width // shape.heads * shape.kv_heads
    block = {
        "self_attn.q_proj": (shape.width, shape.width),
        "self_attn.k_proj": (kv, shape.width),
        "self_attn.v_proj": (kv, shape.width),
        "self_attn.o_proj": (shape.width, shape.width),
        **_feed_forward(shape),
        "input_layernorm": (shape.width,),
        "post_attention_layernorm": (shape.width,),
    }
    parts: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (_WORDS, shape.width), "model.norm.weight": (shape.width,)}
    ]
    parts += [{f"model.layers.{i}.{name}.weight": size for name, size in block.items()} for i in range(shape.layers)]
    where, weights = {}, 0
    for i, part in enumerate(parts):
        name = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        made = {
            key: (torch.randn(size, generator=generator) * 0.02 if len(size) > 1 else torch.ones(size)).to(number)
            for key, size in part.items()
        }
        save_file(made, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(made, name)
        weights += sum(t.numel() for t in made.values())
    index = {"metadata": {"total_size": weights * number.itemsize}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = (MixtralConfig if shape.experts else LlamaConfig)(
        vocab_size=_WORDS,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        dtype=number,
        architectures=["MixtralForCausalLM" if shape.experts else "LlamaForCausalLM"],
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **({"num_local_experts": shape.experts} if shape.experts else {}),
    )
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return weights


def _feed_forward(shape: Shape) -> dict[str, tuple[int, int]]:
    """Matrices of a block by their names in the files, where each expert has separate matrices."""
    up, down = (shape.hidden, shape.width), (shape.width, shape.hidden)
    if not shape.experts:
        return {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
    matrices = {"w1": up, "w2": down, "w3": up}
    experts = {f"experts.{k}.{name}": size for k in range(shape.experts) for name, size in matrices.items()}
    return {f"block_sparse_moe.{name}": size for name, size in experts.items()} | {
        "block_sparse_moe.gate": (shape.experts, shape.width)
    }


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(["<s>", "</s>", *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def pairs(file: Path, n: int) -> None:
    """Write ``n`` short pairs."""
    rows = [{"prompt": f"Question {i}?", "chosen": f" yes, {i}", "rejected": f" no, {i}"} for i in range(n)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder: Path, shape: Shape, dtype: str, whole: bool, updates: int) -> dict[str, Any]:
    """Run two ranks once, and collect the costs that each reports."""
    pairs(folder / "pairs.jsonl", 2 * updates)
    out = folder / f"run-{dtype}-{'whole' if whole else 'pieces'}"
    about = {"folder": str(folder), "out": str(out), "dtype": dtype, "whole": whole, "updates": updates}
    about["mixture"] = bool(shape.experts)
    reports = said_by_all("benchmarks.large_model", about, _RANKS)
    return {
        "dtype": dtype,
        "read": "whole" if whole else "pieces",
        "start_gb": [round(r["start"] / 1e9, 3) for r in reports],
        "peak_gb": [round(r["peak"] / 1e9, 3) for r in reports],
        "libraries_gb": [round(r["libraries"] / 1e9, 3) for r in reports],
        "cpu_seconds": [round(r["cpu"], 1) for r in reports],
        "losses": losses_of(out),
    }


def _as_rank(about: dict[str, Any]) -> None:
    import importlib

    import torch

    from afzal import config, recipes
    from afzal.recipes import parallel

    module = importlib.import_module("afzal.recipes.train")
    peaks: dict[str, float] = {}
    original = module.check_first_loss

    def first_loss(*arguments: Any) -> None:
        peaks["start"] = peak()
        original(*arguments)

    module.check_first_loss = first_loss
    if about["whole"]:
        parallel.why_unsharded = lambda _: "to be compared"
    torch.set_num_threads(1)
    peaks["libraries"] = peak()
    settings = {
        "model": about["folder"],
        "data": f"{about['folder']}/pairs.jsonl",
        "out": about["out"],
        "dtype": about["dtype"],
        "lora_rank": 8,
        "lora_targets": ["q_proj", "k_proj", "v_proj", "o_proj"] if about["mixture"] else None,
        "lr": 1e-3,
        "batch_size": 2,
        "max_steps": about["updates"],
        "tokens_per_forward": 256,
        "eval_fraction": 0.0,
        "sample_prompts": 0,
        "log_every_steps": 1,
        "memory_gb": 64.0,
        "device": "cpu",
    }
    recipes.train(config.make("dpo", **settings))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("\n" + json.dumps(peaks | {"peak": peak(), "cpu": used.ru_utime + used.ru_stime}), flush=True)


def main() -> None:
    """Create the model, run, and write or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--folder", type=Path, help="where the model is created; default: a temporary folder")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument(
        "--small", action="store_true", help="a model with 0.12 billion weights, read in full and in pieces"
    )
    parser.add_argument(
        "--mixture", action="store_true", help="a mixture of experts with 1.5 billion weights, read in pieces"
    )
    parser.add_argument("--as-rank", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank is not None:
        _as_rank(options.as_rank)
        return
    shape, ways = (SMALL, (True, False)) if options.small else (MIXTURE if options.mixture else LARGE, (False,))
    before, rows = time.process_time(), []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        weights = make(Path(folder), shape, "bf16")
        print(
            f"{weights:,} weights in bf16, made in {time.process_time() - before:.0f} s of processor time", flush=True
        )
        for dtype in options.dtypes:
            for whole in ways:
                row = run(Path(folder), shape, dtype, whole, options.updates)
                row["share_of_fp32"] = round(max(row["start_gb"]) / (4 * weights / 1e9), 3)
                rows.append(row)
                print(json.dumps(row), flush=True)
    about = about_run("benchmarks.large_model", ("afzal", "torch", "transformers", "peft"), threads=1)
    figures = {"about": about, "weights": weights, "whole_fp32_gb": round(4 * weights / 1e9, 3), "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
