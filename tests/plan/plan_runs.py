"""One small training run in a separate process: its peak memory, less the memory in use before.

    python plan_runs.py '{"width": 768, ...}'

Prints the bytes. The tests compare them with the plan.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A run: ``trees`` items per update of these lengths, ``tokens`` per forward pass."""

    width: int = 768
    ff: int = 2048
    layers: int = 8
    heads: int = 12
    kv_heads: int = 4
    vocabulary: int = 8000
    tied: bool = False
    dtype: str = "fp32"
    rank: int = 0
    recompute: str = "none"
    method: str = "dpo"
    trees: int = 4
    prompt: int = 128
    response: int = 96
    tokens: int = 2048
    updates: int = 2
    experts: int = 0


def config_of(case: Case) -> Any:
    from transformers import LlamaConfig, MixtralConfig

    kind = partial(MixtralConfig, num_local_experts=case.experts) if case.experts else LlamaConfig
    return kind(
        hidden_size=case.width,
        intermediate_size=case.ff,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        vocab_size=case.vocabulary,
        tie_word_embeddings=case.tied,
    )


def train(case: Case) -> None:
    """The loop of ``afzal train`` with an AdamW over all masters, without a run folder."""
    import torch
    from transformers import AutoModelForCausalLM

    from afzal import objectives
    from afzal.model.load import add_lora
    from afzal.model.norms import fuse_norms
    from afzal.model.probe import choose_sharing
    from afzal.model.recompute import set_recompute
    from afzal.model.reference import live_reference
    from afzal.records import Preference
    from afzal.tokens import tree
    from afzal.train.feed import Feed, Layout
    from afzal.train.loop import Hooks, Settings, State, fit
    from afzal.train.method import Method
    from afzal.train.optim import make_optimizer
    from afzal.train.precision import Weights

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(case)).eval()
    fuse_norms(model)
    if case.rank:
        model = add_lora(model, rank=case.rank, alpha=2 * case.rank)
    choose_sharing(model)
    weights = Weights(model, case.dtype)  # type: ignore[arg-type]
    if case.recompute != "none":
        set_recompute(model, case.recompute)  # type: ignore[arg-type]
    needs = objectives.get(case.method).needs_reference
    reference = live_reference(model, fresh_adapter=bool(case.rank)) if needs else None
    draw = lambda n: torch.randint(0, case.vocabulary, (n,)).tolist()  # noqa: E731
    trees = [
        tree(str(n), draw(case.prompt), [draw(case.response) for _ in range(2)], pairs=[Preference(0, 1, 1.0)])
        for n in range(case.trees * case.updates)
    ]
    feed = Feed(trees, (), case.trees, 0, Layout("shared", case.tokens))
    optimizer = make_optimizer(weights.masters.values())
    method = Method.of(objectives.get(case.method), {}, reference)
    settings = Settings(steps=case.updates, lr=1e-6)
    fit(model, method, feed, optimizer, settings, hooks=Hooks(), state=State(), weights=weights)


def bytes_of(key: str) -> int:
    """An entry of this process's status, such as VmHWM."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


def peak_from_here() -> int:
    """Reset VmHWM; returns the bytes that are resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return bytes_of("VmHWM")


def quiet(folder: Path, *, dtype: str, rank: int) -> dict[str, Any]:
    """Settings of a run of ``afzal train`` on the CPU into ``folder / "out"``: nothing evaluated, no checkpoint before
    the end."""
    settings = {
        "out": str(folder / "out"),
        "eval_fraction": 0.0,
        "sample_prompts": 0,
        "dtype": dtype,
        "device": "cpu",
        "save_every_minutes": 0.0,
    }
    return settings | ({"lora_rank": rank} if rank else {})


def main(case: Case) -> None:
    # load every library and create its pools before counting
    small = Case(width=32, ff=64, layers=2, heads=4, kv_heads=2, vocabulary=100)
    train(replace(small, dtype=case.dtype, rank=case.rank and 1, experts=case.experts))
    before = peak_from_here()
    train(case)
    print(bytes_of("VmHWM") - before)


if __name__ == "__main__":
    main(Case(**json.loads(sys.argv[1])))
