"""Afzal's sampling against `transformers.generate`: tokens per second at equal settings, in one process, alternating.

    python -m benchmarks.generation                                  # a random Llama of 8 layers, width 512, V 32,000
    python -m benchmarks.generation --model ../shared/data/models/stories260k
    python -m benchmarks.generation --threads 1 --repeats 2 --prompts 16 --force

Both sides draw the same number of samples of the same prompts at temperature 1 from the whole distribution, and no
sample ends before its last token, so that both compute the same number of tokens. `transformers` gets its prompts
sorted by length, and the best of several batch sizes. Times are wall-clock; processor seconds stand beside them, for
machines that are shared. A machine with load is refused unless --force.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from afzal.generate import Sampling, sample
from afzal.model.load import load_model
from benchmarks.machine import processor, refuse_if_busy


def main() -> None:
    options = arguments()
    if not options.force:
        refuse_if_busy()
    torch.set_num_threads(options.threads)
    model = model_of(options).to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    prompts = prompts_of(options, model.config.vocab_size)
    tokens = options.prompts * options.samples * options.new_tokens
    mean = np.mean([len(p) for p in prompts])
    about = about_run(options, model, float(mean))
    print(json.dumps(about, indent=2))
    sides: dict[str, Callable[[], Any]] = {
        f"transformers, {rows} rows": partial(theirs, model, prompts, options, rows) for rows in options.their_rows
    } | {f"afzal, {rows} rows": partial(ours, model, prompts, options, rows) for rows in options.our_rows}
    ours(model, prompts[:2], options, 16)  # the trial of the model, and first touches of memory
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, run in sides.items():
            found[name].append(timed(run))
    best = {name: tuple(min(times) for times in zip(*pairs, strict=True)) for name, pairs in found.items()}
    for name, (wall, spent) in best.items():
        print(f"{name:24} {tokens / wall:9.0f} tokens/s  {tokens / spent:9.0f} tokens per processor second")
    ratios = {}
    for k, what in enumerate(("wall-clock", "processor")):
        fastest = {side: min(t[k] for n, t in best.items() if n.startswith(side)) for side in ("transformers", "afzal")}
        ratios[what] = fastest["transformers"] / fastest["afzal"]
        print(f"ratio of the best, {what}: {ratios[what]:.2f}")
    if options.out:
        seconds = {name: [wall for wall, _ in times] for name, times in found.items()}
        rates = {name: tokens / wall for name, (wall, _) in best.items()}
        facts = {"about": about, "seconds": seconds, "tokens_per_second": rates, "ratio": ratios}
        options.out.write_text(json.dumps(facts, indent=2) + "\n")


def about_run(options: argparse.Namespace, model: Any, mean: float) -> dict[str, Any]:
    return {
        "date": str(date.today()),
        "command": "python -m benchmarks.generation " + " ".join(sys.argv[1:]),
        "device": processor(),
        "threads": options.threads,
        "versions": {name: version(name) for name in ("afzal", "torch", "transformers")},
        "dtype": options.dtype,
        "model": options.model or "a random Llama of 8 layers, width 512",
        "parameters": model.num_parameters(),
        "prompts": options.prompts,
        "prompt_tokens": mean,
        "samples": options.samples,
        "new_tokens": options.new_tokens,
        "load": os.getloadavg()[0],
    }


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def ours(model: Any, prompts: list[list[int]], options: argparse.Namespace, rows: int) -> None:
    sampling = Sampling(options.new_tokens)
    drawn = sample(model, prompts, eos=[], n=options.samples, sampling=sampling, rows_per_batch=rows, decoding="shared")
    assert sum(len(s.ids) for s in drawn) == len(prompts) * options.samples * options.new_tokens


def theirs(model: Any, prompts: list[list[int]], options: argparse.Namespace, rows: int) -> None:
    ordered = sorted(prompts, key=len)
    per_batch = max(1, rows // options.samples)
    for first in range(0, len(ordered), per_batch):
        some = ordered[first : first + per_batch]
        width = max(map(len, some))
        ids, mask = (torch.zeros((len(some), width), dtype=torch.int64) for _ in range(2))
        for r, prompt in enumerate(some):
            ids[r, width - len(prompt) :], mask[r, width - len(prompt) :] = torch.tensor(prompt), 1
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=options.samples,
                max_new_tokens=options.new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert out.shape == (len(some) * options.samples, width + options.new_tokens)


def model_of(options: argparse.Namespace) -> Any:
    if options.model:
        model = load_model(options.model)
        model.generation_config = transformers.GenerationConfig()
        return model
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval()


def prompts_of(options: argparse.Namespace, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.prompt_tokens - 16, options.prompt_tokens + 17, options.prompts)
    return [rng.integers(3, vocabulary, int(n)).tolist() for n in lengths]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder; default: a random Llama")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=127)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--our-rows", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--their-rows", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    return parser.parse_args()


if __name__ == "__main__":
    main()
