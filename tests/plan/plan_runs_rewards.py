"""Two iterations of a method that learns from rewards, in a process of its own: memory at its fullest, beyond what was
there before, and processor time of writing, scoring and learning.

    python plan_runs_rewards.py '{"method": "ppo", ...}'

Prints a JSON object. The tests compare it with the plan.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plan_runs import bytes_of, peak_from_here, quiet


@dataclass(frozen=True)
class Case:
    """A llama of about 56 million weights whose random answers never end, so that all have ``response`` tokens."""

    method: str = "rloo"
    width: int = 640
    ff: int = 1728
    layers: int = 10
    heads: int = 10
    kv_heads: int = 5
    vocabulary: int = 8000
    dtype: str = "fp32"
    rank: int = 0
    recompute: str = "none"
    rewarded: bool = False  # by a reward model of the same shape, else by a function
    prompts: int = 8
    answers: int = 4
    prompt: int = 64
    response: int = 64
    minibatches: int = 1
    ppo_epochs: int = 1
    tokens: int = 4096


def shape(case: Case) -> dict[str, Any]:
    """The model's shape as a transformers configuration."""
    return {
        "hidden_size": case.width,
        "intermediate_size": case.ff,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "vocab_size": case.vocabulary,
    }


def make(folder: Path, case: Case) -> None:
    """The policy, a reward model, a function that rewards, and prompts of words that are one token each."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    names = ["<s>", "</s>", *(f"w{i}" for i in range(2, case.vocabulary))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(**shape(case), **ids, num_labels=1, max_position_embeddings=1024)
    torch.manual_seed(0)
    for name, kind in (("policy", AutoModelForCausalLM), ("reward", AutoModelForSequenceClassification)):
        kind.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "reward.py").write_text("def score(prompt, answer):\n    return float(len(answer) % 7)\n")
    words = iter(torch.randint(2, case.vocabulary, (2 * case.prompts * case.prompt,)).tolist())
    rows = [{"prompt": " ".join(f"w{next(words)}" for _ in range(case.prompt))} for _ in range(2 * case.prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(case: Case) -> None:
    """``afzal train`` with nothing evaluated and no checkpoint before the end."""
    from afzal import config, recipes

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, case)
        settings = quiet(folder, dtype=case.dtype, rank=case.rank) | {
            "model": str(folder / "policy"),
            "data": str(folder / "prompts.jsonl"),
            "reward": str(folder / "reward") if case.rewarded else f"{folder / 'reward.py'}:score",
            "batch_size": case.prompts,
            "sample_tokens": case.response,
            "iterations": 2,
            "minibatches": case.minibatches,
            "ppo_epochs": case.ppo_epochs,
            "tokens_per_forward": case.tokens,
            "activation_checkpointing": case.recompute,
        }
        settings |= {"n": case.answers} if case.answers > 1 else {}
        recipes.train(config.make(case.method, **settings))


def timed(module: str, owner: str, name: str, seconds: dict[str, float], label: str) -> None:
    """Have a function count the processor time of its calls."""
    holder = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    original: Callable[..., Any] = getattr(holder, name)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        before = time.process_time()
        try:
            return original(*arguments, **keywords)
        finally:
            seconds[label] = seconds.get(label, 0.0) + time.process_time() - before

    setattr(holder, name, counted)


def main(case: Case) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # load every library and create its pools before counting
        small = replace(case, width=32, ff=64, layers=2, heads=4, kv_heads=2, vocabulary=100, response=4, prompt=8)
        train(replace(small, prompts=2, minibatches=1, ppo_epochs=1, rank=case.rank and 1))
        seconds: dict[str, float] = {}
        timed("afzal.recipes.rollout", "", "sample", seconds, "sampling")
        timed("afzal.recipes.rollout", "Writer", "write", seconds, "writing")
        timed("afzal.recipes.setup", "", "accumulate", seconds, "updates")
        before = peak_from_here()
        train(case)
        seconds["scoring"] = seconds["writing"] - seconds["sampling"]
    print(json.dumps({"peak": bytes_of("VmHWM") - before, "seconds": seconds}))


if __name__ == "__main__":
    main(Case(**json.loads(sys.argv[1])))
