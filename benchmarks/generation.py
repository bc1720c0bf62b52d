"""Compare Afzal's sampling with `transformers.generate`: tokens per second at equal settings, in one process, in turns.

    python -m benchmarks.generation                                  # a random Llama: 8 layers, width 512, V 32,000
    python -m benchmarks.generation --model ../shared/data/models/stories260k
    python -m benchmarks.generation --ends 500 --new-tokens 256      # samples of 64 tokens on average
    python -m benchmarks.generation --threads 1 --repeats 2 --prompts 16 --force
    python -m benchmarks.generation --device cuda --shape llama-3.2-1b --dtype bf16 --continuous --force

Both sides draw the same number of samples per prompt at temperature 1 from the full distribution. No sample ends
early, so both compute the same number of tokens; with --ends N any of N tokens ends a sample, as in practice, and the
tokens of the samples are counted. `transformers` gets its prompts sorted by length, and the best of
several batch sizes; with --continuous also its continuous batching. Times are wall-clock times; processor seconds are
reported too, for shared machines. A busy machine is refused unless --force is given.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from afzal.generate import Sampling, sample
from afzal.model.load import load_model
from benchmarks.dpo_step.flops import wait
from benchmarks.dpo_step.models import NAMES, build, known, llama
from benchmarks.machine import about_run, refuse_if_busy

Timings = dict[str, list[tuple[float, float, int]]]
"""Of every side: wall-clock seconds, processor seconds and tokens of each run."""


def main() -> None:
    options = arguments()
    if not options.force:
        refuse_if_busy()
    torch.set_num_threads(options.threads)
    model = model_of(options)
    prompts = prompts_of(options, model.config.vocab_size)
    about = about_of(options, model, float(np.mean([len(p) for p in prompts])))
    print(json.dumps(about, indent=2))
    sides: dict[str, Callable[[], int]] = {
        f"transformers, {rows} rows": partial(theirs, model, prompts, options, rows) for rows in options.their_rows
    } | {f"afzal, {rows} rows": partial(ours, model, prompts, options, rows) for rows in options.our_rows}
    ours(model, prompts[:2], options, 16)  # checks the model, and touches its memory for the first time
    if options.device != "cpu":
        theirs(model, prompts[:2], options, 16)  # loads its kernels too
    timings: Timings = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, run in sides.items():
            timings[name].append(timed(run, options.device))
    write_down(options, about | {"left_out": {}}, timings, finished=not options.continuous)
    if options.continuous:
        left_out: dict[str, str] = {}
        try:
            continuous(model, prompts[:2], options)
            name = "transformers, continuous batching"
            timings[name] = [timed(partial(continuous, model, prompts, options), options.device)]
        except Exception as error:  # it is new, and may fail with some versions of torch and some models
            left_out["continuous batching"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        write_down(options, about | {"left_out": left_out}, timings, finished=True)


def write_down(options: argparse.Namespace, about: dict[str, Any], timings: Timings, *, finished: bool) -> None:
    """Print the figures so far, and write them to the file."""
    best = {
        name: [max(tokens / times[k] for *times, tokens in runs) for k in range(2)] for name, runs in timings.items()
    }
    for name, (rate, of_processor) in best.items():
        print(f"{name:24} {rate:9.0f} tokens/s  {of_processor:9.0f} tokens per processor second", flush=True)
    ratios = {}
    for k, what in enumerate(("wall-clock", "processor")):
        fastest = {side: max(r[k] for n, r in best.items() if n.startswith(side)) for side in ("transformers", "afzal")}
        ratios[what] = fastest["afzal"] / fastest["transformers"]
        print(f"ratio of the best, {what}: {ratios[what]:.2f}", flush=True)
    if options.out:
        seconds = {name: [wall for wall, *_ in runs] for name, runs in timings.items()}
        rates = {name: rate for name, (rate, _) in best.items()}
        facts = {"about": about, "seconds": seconds, "tokens_per_second": rates, "ratio": ratios, "finished": finished}
        options.out.write_text(json.dumps(facts, indent=2) + "\n")


def about_of(options: argparse.Namespace, model: Any, mean: float) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(options.device) if options.device != "cpu" else ""
    width, layers = options.sizes
    return about_run(
        "benchmarks.generation", ["afzal", "torch", "transformers"], threads=options.threads, device=gpu
    ) | {
        "dtype": options.dtype,
        "model": options.model or options.shape or f"a random Llama of {layers} layers, width {width}",
        "parameters": model.num_parameters(),
        "prompts": options.prompts,
        "prompt_tokens": mean,
        "samples": options.samples,
        "new_tokens": options.new_tokens,
        "ends": options.ends,
    }


def timed(run: Callable[[], int], device: str) -> tuple[float, float, int]:
    wait(torch.device(device))
    wall, processor = time.perf_counter(), time.process_time()
    tokens = run()
    wait(torch.device(device))
    return time.perf_counter() - wall, time.process_time() - processor, tokens


def ours(model: Any, prompts: list[list[int]], options: argparse.Namespace, rows: int) -> int:
    sampling, ends = Sampling(options.new_tokens), range(3, 3 + options.ends)
    drawn = sample(
        model, prompts, eos=ends, n=options.samples, sampling=sampling, rows_per_batch=rows, decoding="shared"
    )
    return counted([s.ids.tolist() for s in drawn], prompts, options)


def counted(samples: list[list[int]], prompts: list[list[int]], options: argparse.Namespace) -> int:
    """The tokens of the samples; every sample must be there, and as long as possible unless it ended."""
    assert len(samples) == len(prompts) * options.samples
    for s in samples:
        assert len(s) == options.new_tokens or 3 <= s[-1] < 3 + options.ends
    return sum(map(len, samples))


def theirs(model: Any, prompts: list[list[int]], options: argparse.Namespace, rows: int) -> int:
    ordered, samples = sorted(prompts, key=len), []
    per_batch = max(1, rows // options.samples)
    for first in range(0, len(ordered), per_batch):
        some = ordered[first : first + per_batch]
        width = max(map(len, some))
        ids, mask = (torch.zeros((len(some), width), dtype=torch.int64) for _ in range(2))
        for r, prompt in enumerate(some):
            ids[r, width - len(prompt) :], mask[r, width - len(prompt) :] = torch.tensor(prompt), 1
        with torch.no_grad():
            out = model.generate(
                ids.to(options.device),
                attention_mask=mask.to(options.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=options.samples,
                max_new_tokens=options.new_tokens,
                eos_token_id=list(range(3, 3 + options.ends)) or None,
                pad_token_id=0,
            )
        samples += [cut(row, options) for row in out[:, width:].tolist()]
    return counted(samples, prompts, options)


def cut(row: list[int], options: argparse.Namespace) -> list[int]:
    """The tokens up to the first that ends a sample."""
    length = next((k + 1 for k, token in enumerate(row) if 3 <= token < 3 + options.ends), len(row))
    return row[:length]


def continuous(model: Any, prompts: list[list[int]], options: argparse.Namespace) -> int:
    """Sample with the continuous batching of `transformers`, which keeps keys and values in pages.

    Every sample is a request, because release 5.17 returns only the first of ``num_return_sequences``; requests with
    the same prompt share pages in any case.
    """
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=options.new_tokens,
        eos_token_id=-1,
        pad_token_id=0,
    )
    wanted: dict[str, Any] = {"auto_switch_to_flash": False, "max_memory_percent": 0.5}
    if options.device == "cpu":  # it would otherwise allocate pages for half of the memory
        wanted |= {"num_blocks": 64, "max_batch_tokens": 256}
    known = {field.name for field in fields(transformers.ContinuousBatchingConfig)}
    batching = transformers.ContinuousBatchingConfig(**{k: v for k, v in wanted.items() if k in known})
    requests = [prompt for prompt in prompts for _ in range(options.samples)]
    out = model.generate_batch(requests, generation_config=config, continuous_batching_config=batching)
    made = sum(len(o.generated_tokens) for o in out.values())
    assert made == len(prompts) * options.samples * options.new_tokens, f"{made} tokens were generated"
    return made


def model_of(options: argparse.Namespace) -> Any:
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    device = torch.device(options.device)
    if options.model:
        model = load_model(options.model).to(device, dtype)
    else:
        width, layers = options.sizes
        sizes = {"width": width, "layers": layers, "heads": width // 64, "kv_heads": width // 64}
        random_llama = llama(**sizes, feed_forward=round(width * 2.75), vocabulary=32_000)
        model = build(known(options.shape) if options.shape else random_llama, device, dtype)
    model.generation_config = transformers.GenerationConfig()
    return model


def prompts_of(options: argparse.Namespace, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.prompt_tokens - 16, options.prompt_tokens + 17, options.prompts)
    return [rng.integers(3, vocabulary, int(n)).tolist() for n in lengths]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder; default: a random Llama")
    parser.add_argument("--shape", choices=NAMES, help="a known shape with random weights, instead of --model")
    parser.add_argument("--sizes", type=int, nargs=2, default=[512, 8], help="width and layers of the random Llama")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--continuous", action="store_true", help="also measure the continuous batching of transformers"
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=127)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--ends", type=int, default=0, help="number of tokens that end a sample; not with --continuous")
    parser.add_argument("--our-rows", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--their-rows", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--force", action="store_true", help="measure even if the machine is busy")
    return parser.parse_args()


if __name__ == "__main__":
    main()
