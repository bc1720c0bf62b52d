"""Time one DPO update by Afzal and by its peers: same model, tokens, number format, optimiser and pairs per update.

    make bench                                                # the full table, on the CPU, after installing TRL
    .venv-trl/bin/python -m benchmarks.dpo_step --device cuda # the same on a GPU
    .venv-trl/bin/python -m benchmarks.dpo_step --shapes hh --sides afzal plain --repeats 2 --force

Every side runs its own loop in a thread, and the sides take turns, one update each; ratios compare updates on the same
pairs. Before anything is timed, all sides must agree on the losses of the first update, in float32. With --apart every
side runs in a separate process, one after the other, as needed for models with a billion weights on a GPU:

    python -m benchmarks.dpo_step --device cuda --apart --model llama-3.2-1b --pairs 16 --out 1b.json
    python -m benchmarks.dpo_step --device cuda --apart --model llama-3.1-8b --lora-rank 16 --pairs 16 --out 8b.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dpo_step import apart, flops, models, shapes, sides
from benchmarks.dpo_step.stepper import Stepper
from benchmarks.dpo_step.table import OPPONENT, SIDES, markdown
from benchmarks.machine import about_run, refuse_if_busy

_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""Largest relative difference between the sides' losses of the same pairs, by number format."""
WARM_UP = (32, 16, 16)
"""Maximum tokens of prompt and responses in the first, untimed update, which loads kernels and creates the optimiser's
state."""


def main() -> None:
    options = _arguments()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cpu" and not options.force:
        refuse_if_busy()
    if options.memory_of:
        print(json.dumps(_memory(options, device)))
        return
    if options.only:
        work, segments = _work_of(options, device)
        apart.run_side(options.only, work, segments, _check_works(options, device), options.out)
        return
    named = [] if options.apart else options.sides  # with --apart, each side's process finds out
    missing = {side: reason for side in named if (reason := sides.unavailable(side))}
    options.sides = [side for side in options.sides if side not in missing]
    about = _about(options, device, missing)
    print(json.dumps(about))
    if options.apart:
        sys.exit(_all_apart(options, about))
    results = [_shape(options, name, device) for name in options.shapes]
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "shapes": results}, indent=2) + "\n")
    print(markdown(about, results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(shapes.SHAPES), default=["uf", "hh", "tldr"])
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, "trl-bf16"], default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3, help="timed updates, after one untimed update")
    parser.add_argument("--pairs", type=int, help="pairs per update, instead of the shape's number")
    parser.add_argument("--model", choices=models.NAMES, help="a known shape, instead of the six sizes below")
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank; 0 trains all weights")
    parser.add_argument("--optimizer", choices=["adamw", "rmsprop"], default="adamw", help="optimizer of Afzal's sides")
    parser.add_argument(
        "--peer-pairs", type=int, default=0, help="pairs per forward pass of the peers; 0: the full update"
    )
    parser.add_argument("--apart", action="store_true", help="run every side in a separate process")
    parser.add_argument("--seconds", type=float, help="with --apart: time limit; unfinished work is left out")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--feed-forward", type=int, help="default: 2.6875 times the width, rounded to a multiple of 16")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--shared", type=Path, default=Path("../shared/data"), help="data folder with real lengths, if it exists"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--force", action="store_true", help="run even if the machine is busy")
    parser.add_argument("--no-check", dest="check", action="store_false", help="skip the comparison of losses")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip the measurement of peak memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer_pairs and (options.pairs or 0) % options.peer_pairs:
        parser.error(f"--pairs {options.pairs} is not a multiple of --peer-pairs {options.peer_pairs}")
    if options.apart and not options.out:
        parser.error("--apart needs --out: the sides write their figures next to it")
    return options


def config_of(options: argparse.Namespace) -> Any:
    """The configuration of the benchmark's llama, or of the shape named by --model."""
    if options.model:
        return models.known(options.model)
    return models.llama(
        width=options.width,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads,
        feed_forward=options.feed_forward,
        vocabulary=options.vocabulary,
    )


def _all_apart(options: argparse.Namespace, about: dict[str, Any]) -> int:
    """Run all sides, each in its own process; the results file is complete after each side."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []

    def write(by_side: dict[str, Any]) -> None:
        losses = {
            dtype: {s: f["losses"][dtype] for s, f in by_side.items() if dtype in f["losses"]} for dtype in _TOLERANCE
        }
        results[:] = [_merged(options, by_side, name, losses) for name in options.shapes]
        finished = len(by_side) == len(options.sides) and not any(
            apart.THE_REST in f["failed"] for f in by_side.values()
        )
        content = {"about": about, "shapes": results, "finished": finished}
        options.out.write_text(json.dumps(content, indent=2) + "\n")

    command = [sys.executable, "-m", "benchmarks.dpo_step", *_own_arguments("--out", str(options.out))]
    sound = apart.gather(options.sides, options.out.with_suffix(".parts"), command, write, options.seconds)
    print(markdown(about, results))
    return int(not sound or any(r["disagreement"] for r in results))


def _merged(options: argparse.Namespace, by_side: dict[str, Any], name: str, losses: dict[str, Any]) -> dict[str, Any]:
    counts, source = _lengths(options, name)
    about = {"lengths": source, "mean": counts.mean(0).round(1).tolist(), "pairs": _pairs(options), "losses": losses}
    about["counts"] = counts.tolist()
    about["disagreement"] = apart.disagreement(losses, _TOLERANCE)
    result = apart.merged(by_side, name, about)
    _add_ratios(result)
    return result


def _own_arguments(*without: str) -> list[str]:
    return [argument for argument in sys.argv[1:] if argument not in without]


def _pairs(options: argparse.Namespace) -> int:
    """Pairs per update of all shapes when they share a run."""
    return options.pairs or min(shapes.SHAPES[name].pairs for name in options.shapes)


def _lengths(options: argparse.Namespace, name: str) -> tuple[np.ndarray, str]:
    """``[updates x pairs, 3]`` lengths of a shape's timed updates, and their source."""
    return shapes.lengths(name, _pairs(options) * options.repeats, 0, options.shared)


def _work_of(options: argparse.Namespace, device: torch.device) -> tuple[sides.Work, apart.Segments]:
    """A side's work, a warm-up update and then every shape's updates; and the lengths of the latter."""
    pairs, side = _pairs(options), options.only
    drawn = {name: _lengths(options, name)[0] for name in options.shapes}
    sorted_ = {name: c[_order(c, pairs, grouped=sides.is_cached(side))] for name, c in drawn.items()}
    first = np.tile([WARM_UP], (pairs, 1))
    work = _work(side, config_of(options), np.concatenate([first, *sorted_.values()]), pairs, options, device)
    return work, {name: counts.reshape(-1, pairs, 3) for name, counts in sorted_.items()}


def _check_works(options: argparse.Namespace, device: torch.device) -> dict[str, sides.Work]:
    """The small work on which the sides' losses are compared, in each number format."""
    if not options.check:
        return {}
    counts, _ = shapes.lengths(options.shapes[0], 4, 0, options.shared)
    config, few = config_of(options), np.minimum(counts, [64, 16, 16])
    small = replace_config(config, num_hidden_layers=2, vocab_size=min(config.vocab_size, 32_000))
    works = {}
    for dtype in _TOLERANCE if options.only != "trl-bf16" else ["bf16"]:
        works[dtype] = replace(_work(options.only, small, few, len(few), options, device), dtype=dtype, peer_pairs=0)
    return works


def _work(
    side: str, config: Any, counts: np.ndarray, pairs: int, options: argparse.Namespace, device: torch.device
) -> sides.Work:
    rows = shapes.rows(counts, config.vocab_size, 0)
    more = {"cached": sides.is_cached(side), "rank": options.lora_rank, "optimizer": options.optimizer}
    more |= {"peer_pairs": options.peer_pairs}
    return sides.Work(config, rows, pairs, options.dtype, device, **more)


def _shape(options: argparse.Namespace, name: str, device: torch.device) -> dict[str, Any]:
    config, pairs = config_of(options), options.pairs or shapes.SHAPES[name].pairs
    counts, source = shapes.lengths(name, pairs * (options.repeats + 1), 0, options.shared)
    left_out: dict[str, str] = {}
    losses = _check_losses(config, counts[:pairs], options, device, left_out) if options.check else {}
    counts[:pairs] = np.minimum(counts[:pairs], WARM_UP)
    order = {side: _order(counts, pairs, grouped=sides.is_cached(side)) for side in options.sides}
    make = lambda side: _stepper(side, config, counts[order[side]], pairs, options, device)  # noqa: E731
    steppers = _each([side for side in options.sides if side not in left_out], make, left_out)
    products: list[list[float]] = []  # after each update, since a shared machine's speed varies
    for _ in range(options.repeats + 1):
        done = _each(steppers, lambda side, now=steppers: now[side].step(), left_out)
        steppers = {side: steppers[side] for side in done}
        products.append(_products(options, device))
    peak, means = max(map(max, products)), [statistics.mean(a + b) for a, b in pairwise(products)]
    result: dict[str, Any] = {
        "shape": name,
        "lengths": source,
        "mean": counts[pairs:].mean(0).round(1).tolist(),
        "peak": peak,
        "peak_means": means,
        "pairs": pairs,
        "losses": losses,
        "left_out": left_out,
    }
    for side, stepper in steppers.items():
        work = counts[order[side]].reshape(-1, pairs, 3)[1:]
        seconds = [t.wall for t in stepper.timings[1:]]
        least = [
            flops.minimum(part, config, reference_online=not sides.is_cached(side), rank=options.lora_rank)
            for part in work
        ]
        tokens = [int(part.sum()) for part in work]
        result[side] = {
            "seconds": seconds,
            "processor_seconds": [t.processor for t in stepper.timings[1:]],
            "pairs_per_second": pairs * len(seconds) / sum(seconds),
            "tokens_per_second": sum(tokens) / sum(seconds),
            "roofline": sum(least) / sum(seconds) / peak,
            "of_mean": statistics.median(a / t / m for a, t, m in zip(least, seconds, means, strict=True)),
            "flops_per_second": sum(least) / sum(seconds),
            "executed_over_minimum": stepper.loop.__dict__.get("executed", lambda: None)(),
        }
        if options.memory:
            result[side]["peak_bytes"] = _memory_in_a_process(side, name)
    _add_ratios(result)
    print(json.dumps(result), flush=True)
    return result


def _products(options: argparse.Namespace, device: torch.device) -> list[float]:
    return flops.matmul_rates(torch.bfloat16 if options.dtype == "bf16" else torch.float32, device, options.width)


def _add_ratios(result: dict[str, Any]) -> None:
    """How many times faster Afzal is than each peer, update by update on the same pairs."""
    for peer, ours in OPPONENT.items():
        if peer in result and ours in result:
            for seconds, name in (("seconds", "ratio"), ("processor_seconds", "processor_ratio")):
                if seconds in result[peer]:  # sides in separate processes have wall time only
                    ratios = [a / b for a, b in zip(result[peer][seconds], result[ours][seconds], strict=True)]
                    result[peer][name] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def _each(names: Iterable[str], act: Callable[[str], Any], left_out: dict[str, str]) -> dict[str, Any]:
    """``act(side)`` for every side. A failing peer is left out, with the reason; if Afzal fails, the benchmark ends."""
    results = {}
    for side in names:
        try:
            results[side] = act(side)
        except Exception as error:
            if side not in OPPONENT:
                raise
            left_out[side] = sides.reason(error.__cause__ or error)
            print(f"left out: {side}: {left_out[side]}", flush=True)
    return results


def _order(counts: np.ndarray, pairs: int, *, grouped: bool) -> np.ndarray:
    """Row order: as given, or grouped by length, with the shortest rows in the first (untimed) update."""
    rows = np.arange(len(counts))
    return rows[np.argsort(counts.sum(1), kind="stable")] if grouped else rows


def _stepper(
    side: str, config: Any, counts: np.ndarray, pairs: int, options: argparse.Namespace, device: torch.device
) -> Stepper:
    return Stepper(side, sides.loop_of(side, _work(side, config, counts, pairs, options, device)))


def _check_losses(
    config: Any, counts: np.ndarray, options: argparse.Namespace, device: torch.device, left_out: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Check that all sides agree on the loss of the same pairs: to 1e-5 in float32, and to rounding in bf16.

    Two layers and short responses suffice, since float32 represents their summed log-probs accurately enough.
    """
    small = replace_config(config, num_hidden_layers=2)
    few = np.minimum(counts[:4], [64, 16, 16])
    by_dtype = {}
    for dtype in _TOLERANCE:
        in_dtype = argparse.Namespace(**{**vars(options), "dtype": dtype})
        losses = _each(
            [side for side in options.sides if side not in left_out],
            lambda side, in_dtype=in_dtype: _first_loss(_stepper(side, small, few, len(few), in_dtype, device)),
            left_out,
        )
        if wrong := apart.disagreement({dtype: losses}, _TOLERANCE):
            sys.exit(wrong)
        print(f"losses agree in {dtype}: {losses}", flush=True)
        by_dtype[dtype] = losses
    return by_dtype


def _first_loss(stepper: Stepper) -> float:
    stepper.step()
    return stepper.losses[0]


def replace_config(config: Any, **changes: Any) -> Any:
    return type(config)(**{**config.to_dict(), **changes})


def _memory_in_a_process(side: str, shape: str) -> int | None:
    """Peak memory of one side alone, measured in a separate process; None if it fails."""
    arguments = [a for a in sys.argv[1:] if a not in ("--force",)]
    command = [sys.executable, "-m", "benchmarks.dpo_step", *arguments, "--force", "--memory-of", f"{side}:{shape}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"] if done.returncode == 0 else None


def _memory(options: argparse.Namespace, device: torch.device) -> dict[str, int]:
    side, name = options.memory_of.split(":")
    config, pairs = config_of(options), options.pairs or shapes.SHAPES[name].pairs
    counts, _ = shapes.lengths(name, pairs, 0, options.shared)
    stepper = _stepper(side, config, counts, pairs, options, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stepper.step()
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated()}
    status = Path("/proc/self/status").read_text().splitlines()
    return {"peak_bytes": next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))}


def _about(options: argparse.Namespace, device: torch.device, missing: dict[str, str]) -> dict[str, Any]:
    for side, reason in missing.items():
        print(f"left out: {side}: {reason}")
    names = ["afzal", "torch", "transformers"]
    names += ["trl"] if any("trl" in side for side in options.sides) and find_spec("trl") else []
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    config = config_of(options)
    more = {"dtype": options.dtype, "parameters": flops.parameters(config), "width": config.hidden_size}
    more |= {"model": options.model, "rank": options.lora_rank, "optimizer": options.optimizer, "left_out": missing}
    more |= {"stated_peak": flops.stated_peak(gpu), "memory": _memory_of_gpu(device)}
    return about_run("benchmarks.dpo_step", names, threads=options.threads, device=gpu) | more


def _memory_of_gpu(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


if __name__ == "__main__":
    main()
