"""How time and memory of one DPO update grow with its parts, compared with the least work needed.

    .venv/bin/python -m benchmarks.growth --out benchmarks/results/growth-cpu.json

One part is varied at a time around a prompt of 256 tokens, 2 responses of 64, 8 prompts per update and a vocabulary of
8,000. The last column is the share of the matmul peak of the same run: if it is constant, time grows in proportion to
the work. Memory is what the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import table
from benchmarks.dpo_step import flops
from benchmarks.machine import about_run, refuse_if_busy


@dataclass(frozen=True, slots=True)
class Case:
    """One update: tokens of the prompt and of each of ``responses`` answers, prompts per update, vocabulary size."""

    prompt: int = 256
    response: int = 64
    responses: int = 2
    prompts: int = 8
    vocabulary: int = 8000


def cases(shrink: int = 1) -> dict[str, list[Case]]:
    """The table's rows by the part that varies; lengths and vocabulary are divided by ``shrink`` for a trial run."""
    default = Case()
    base = replace(
        default,
        prompt=default.prompt // shrink,
        response=default.response // shrink,
        vocabulary=default.vocabulary // shrink,
    )
    vary = {
        "prompt": (64, 256, 1024, 4096),
        "response": (16, 64, 256, 1024),
        "responses": (2, 4, 8, 16),
        "prompts": (2, 8, 32),
        "vocabulary": (2000, 8000, 32000, 128000),
    }
    divisors = {"prompt": shrink, "response": shrink, "vocabulary": shrink}
    return {
        name: [replace(base, **{name: value // divisors.get(name, 1)}) for value in values]
        for name, values in vary.items()
    }


def groups(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Cost of a prompt with 4 responses, in units of a prompt with 2.

    Two pairs per prompt have as many responses and would cost 2. Since a prompt is computed once for all its responses,
    4 responses must not cost more.
    """
    pair, four = (
        next(row["seconds"] for row in rows if row["varied"] == "responses" and row["value"] == k) for k in (2, 4)
    )
    return {"k4_in_pair_steps": four / pair, "bound": 2.0}


def measure(case: Case, width: int, layers: int, dtype: str, repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of an update (median), bytes kept for its backward pass, and its least work in FLOPs."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from afzal import objectives
    from afzal.model.memory import kept_bytes_per_token
    from afzal.model.probe import choose_sharing
    from afzal.model.reference import live_reference
    from afzal.records import Preference
    from afzal.tokens import tree
    from afzal.train.feed import Feed, Layout
    from afzal.train.method import Method
    from afzal.train.optim import make_optimizer
    from afzal.train.precision import Weights
    from afzal.train.update import accumulate

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=round(width * 2.6875 / 16) * 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=case.vocabulary,
        max_position_embeddings=16384,
    )
    model = AutoModelForCausalLM.from_config(config).to(device).eval()
    choose_sharing(model)
    weights = Weights(model, dtype)  # type: ignore[arg-type]
    draw = lambda n: torch.randint(0, case.vocabulary, (n,)).tolist()  # noqa: E731
    pairs = [Preference(i, j, 1.0) for i, j in combinations(range(case.responses), 2)]
    trees = [
        tree(str(n), draw(case.prompt), [draw(case.response) for _ in range(case.responses)], pairs=pairs)
        for n in range(case.prompts)
    ]
    counts = [[case.prompt] + [case.response] * case.responses] * case.prompts
    method = Method.of(objectives.get("dpo"), {}, live_reference(model))
    feed = Feed(trees, (), case.prompts, 0, Layout("shared", 8192, device))
    optimizer = make_optimizer(weights.masters.values())
    seconds = []
    for step in range(repeats + 1):
        flops.wait(device)
        start = time.perf_counter()
        accumulate(model, method, feed.update(step))
        optimizer.step()
        optimizer.zero_grad()
        weights.publish()
        flops.wait(device)
        seconds.append(time.perf_counter() - start)
    largest = max(b.ids.numel() for b in feed.update(0).batches)
    return {
        "seconds": statistics.median(seconds[1:]),
        "kept_bytes": kept_bytes_per_token(model, "shared") * largest,
        "flops": flops.minimum(np.array(counts), config, reference_online=True),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shrink", type=int, default=1, help="divide lengths and vocabulary by this, for a trial run")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--force", action="store_true", help="run even if the machine is busy")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    device = torch.device(options.device)
    if device.type == "cpu" and not options.force:
        refuse_if_busy()
    torch.set_num_threads(options.threads)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    about = about_run("benchmarks.growth", ["afzal", "torch", "transformers"], threads=options.threads, device=gpu)
    about |= {"dtype": options.dtype, "width": options.width, "layers": options.layers}
    peak = flops.matmul_peak(torch.bfloat16 if options.dtype == "bf16" else torch.float32, device, options.width)
    rows = []
    for name, varied in cases(options.shrink).items():
        for case in varied:
            f = measure(case, options.width, options.layers, options.dtype, options.repeats, device)
            rows.append({"varied": name, "value": getattr(case, name), "share": f["flops"] / f["seconds"] / peak, **f})
            print(json.dumps(rows[-1]), flush=True)
    figures = {"about": about, "peak": peak, "rows": rows, "groups": groups(rows)}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table.growth(figures))


if __name__ == "__main__":
    main()
