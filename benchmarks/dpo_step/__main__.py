"""Time one DPO update by Afzal and by its peers: same model, tokens, number format, optimiser and pairs per update.

    make bench                                                # the whole table, on the CPU, after installing TRL
    .venv-trl/bin/python -m benchmarks.dpo_step --device cuda # the same on a GPU
    .venv-trl/bin/python -m benchmarks.dpo_step --shapes hh --sides afzal plain --repeats 2 --force

Every side runs its own loop in a thread and they take turns, one update each; ratios are taken between updates on the
same pairs. Before anything is timed all sides must agree on the losses of the first update, in float32. With --apart
every side has a process of its own, one after the other, as models of a billion weights on a GPU need it:

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
"""Relative distance of the sides' losses of the same pairs, by number format."""
WARM_UP = (32, 16, 16)
"""The first update, which is not timed, has prompts and responses of at most so many tokens: it loads kernels and makes
the optimiser's state, and need not last long."""


def main() -> None:
    given = _arguments()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    if device.type == "cpu" and not given.force:
        refuse_if_busy()
    if given.memory_of:
        print(json.dumps(_memory(given, device)))
        return
    if given.only:
        work, segments = _work_of(given, device)
        apart.run_side(given.only, work, segments, _check_works(given, device), given.out)
        return
    asked = [] if given.apart else given.sides  # a process of its own finds out by itself
    missing = {side: reason for side in asked if (reason := sides.unavailable(side))}
    given.sides = [side for side in given.sides if side not in missing]
    about = _about(given, device, missing)
    print(json.dumps(about))
    if given.apart:
        sys.exit(_all_apart(given, about))
    results = [_shape(given, name, device) for name in given.shapes]
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"about": about, "shapes": results}, indent=2) + "\n")
    print(markdown(about, results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(shapes.SHAPES), default=["uf", "hh", "tldr"])
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, "trl-bf16"], default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3, help="updates that are timed, after one that is not")
    parser.add_argument("--pairs", type=int, help="pairs per update, in place of the shape's own number")
    parser.add_argument("--model", choices=models.NAMES, help="a known shape, in place of the six sizes below")
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank; 0 trains all weights")
    parser.add_argument("--optimizer", choices=["adamw", "rmsprop"], default="adamw", help="of Afzal's sides")
    parser.add_argument("--peer-pairs", type=int, default=0, help="of one forward pass of the peers; 0 is all at once")
    parser.add_argument("--apart", action="store_true", help="every side in a process of its own")
    parser.add_argument("--seconds", type=float, help="with --apart: what is not done by then is left out")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--feed-forward", type=int, help="default 2.6875 times the width, in steps of 16")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="real lengths, where it is there")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--force", action="store_true", help="run on a loaded machine all the same")
    parser.add_argument("--no-check", dest="check", action="store_false", help="leave out the comparison of losses")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out the peak memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer_pairs and (given.pairs or 0) % given.peer_pairs:
        parser.error(f"--pairs {given.pairs} is no multiple of --peer-pairs {given.peer_pairs}")
    if given.apart and not given.out:
        parser.error("--apart needs --out, beside which the sides leave their figures")
    return given


def config_of(given: argparse.Namespace) -> Any:
    """The bench's llama, or the known shape that was asked for."""
    if given.model:
        return models.known(given.model)
    return models.llama(
        width=given.width,
        layers=given.layers,
        heads=given.heads,
        kv_heads=given.kv_heads,
        feed_forward=given.feed_forward,
        vocabulary=given.vocabulary,
    )


def _all_apart(given: argparse.Namespace, about: dict[str, Any]) -> int:
    """All sides, each in its own process; the file of figures is whole after every one of them."""
    given.out.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []

    def write(found: dict[str, Any]) -> None:
        losses = {
            dtype: {s: f["losses"][dtype] for s, f in found.items() if dtype in f["losses"]} for dtype in _TOLERANCE
        }
        results[:] = [_merged(given, found, name, losses) for name in given.shapes]
        whole = len(found) == len(given.sides) and not any(apart.THE_REST in f["failed"] for f in found.values())
        content = {"about": about, "shapes": results, "finished": whole}
        given.out.write_text(json.dumps(content, indent=2) + "\n")

    command = [sys.executable, "-m", "benchmarks.dpo_step", *_own_arguments("--out", str(given.out))]
    sound = apart.gather(given.sides, given.out.with_suffix(".parts"), command, write, given.seconds)
    print(markdown(about, results))
    return int(not sound or any(r["disagreement"] for r in results))


def _merged(given: argparse.Namespace, found: dict[str, Any], name: str, losses: dict[str, Any]) -> dict[str, Any]:
    counts, source = _lengths(given, name)
    about = {"lengths": source, "mean": counts.mean(0).round(1).tolist(), "pairs": _pairs(given), "losses": losses}
    about["counts"] = counts.tolist()
    about["disagreement"] = apart.disagreement(losses, _TOLERANCE)
    result = apart.merged(found, name, about)
    _add_ratios(result)
    return result


def _own_arguments(*without: str) -> list[str]:
    return [argument for argument in sys.argv[1:] if argument not in without]


def _pairs(given: argparse.Namespace) -> int:
    """Pairs per update of all shapes, where they stand in one run."""
    return given.pairs or min(shapes.SHAPES[name].pairs for name in given.shapes)


def _lengths(given: argparse.Namespace, name: str) -> tuple[np.ndarray, str]:
    """``[updates x pairs, 3]`` lengths of the updates of a shape that are timed, and where they come from."""
    return shapes.lengths(name, _pairs(given) * given.repeats, 0, given.shared)


def _work_of(given: argparse.Namespace, device: torch.device) -> tuple[sides.Work, apart.Segments]:
    """The rows of a side: an update to warm up, and then those of every shape."""
    pairs, side = _pairs(given), given.only
    drawn = {name: _lengths(given, name)[0] for name in given.shapes}
    sorted_ = {name: c[_order(c, pairs, grouped=sides.is_cached(side))] for name, c in drawn.items()}
    first = np.tile([WARM_UP], (pairs, 1))
    work = _work(side, config_of(given), np.concatenate([first, *sorted_.values()]), pairs, given, device)
    return work, {name: counts.reshape(-1, pairs, 3) for name, counts in sorted_.items()}


def _check_works(given: argparse.Namespace, device: torch.device) -> dict[str, sides.Work]:
    """The small work by which the sides are compared, in each number format."""
    if not given.check:
        return {}
    counts, _ = shapes.lengths(given.shapes[0], 4, 0, given.shared)
    config, few = config_of(given), np.minimum(counts, [64, 16, 16])
    small = replace_config(config, num_hidden_layers=2, vocab_size=min(config.vocab_size, 32_000))
    works = {}
    for dtype in _TOLERANCE if given.only != "trl-bf16" else ["bf16"]:
        works[dtype] = replace(_work(given.only, small, few, len(few), given, device), dtype=dtype, peer_pairs=0)
    return works


def _work(
    side: str, config: Any, counts: np.ndarray, pairs: int, given: argparse.Namespace, device: torch.device
) -> sides.Work:
    rows = shapes.rows(counts, config.vocab_size, 0)
    more = {"cached": sides.is_cached(side), "rank": given.lora_rank, "optimizer": given.optimizer}
    more |= {"peer_pairs": given.peer_pairs}
    return sides.Work(config, rows, pairs, given.dtype, device, **more)


def _shape(given: argparse.Namespace, name: str, device: torch.device) -> dict[str, Any]:
    config, pairs = config_of(given), given.pairs or shapes.SHAPES[name].pairs
    counts, source = shapes.lengths(name, pairs * (given.repeats + 1), 0, given.shared)
    left_out: dict[str, str] = {}
    losses = _check_losses(config, counts[:pairs], given, device, left_out) if given.check else {}
    counts[:pairs] = np.minimum(counts[:pairs], WARM_UP)
    order = {side: _order(counts, pairs, grouped=sides.is_cached(side)) for side in given.sides}
    make = lambda side: _stepper(side, config, counts[order[side]], pairs, given, device)  # noqa: E731
    steppers = _each([side for side in given.sides if side not in left_out], make, left_out)
    products: list[list[float]] = []  # after each update, since a shared machine changes its speed
    for _ in range(given.repeats + 1):
        done = _each(steppers, lambda side, now=steppers: now[side].step(), left_out)
        steppers = {side: steppers[side] for side in done}
        products.append(_products(given, device))
    peak, means = max(map(max, products)), [statistics.mean(a + b) for a, b in pairwise(products)]
    found: dict[str, Any] = {
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
            flops.minimum(part, config, reference_online=not sides.is_cached(side), rank=given.lora_rank)
            for part in work
        ]
        tokens = [int(part.sum()) for part in work]
        found[side] = {
            "seconds": seconds,
            "pairs_per_second": pairs * len(seconds) / sum(seconds),
            "tokens_per_second": sum(tokens) / sum(seconds),
            "roofline": sum(least) / sum(seconds) / peak,
            "of_mean": statistics.median(a / t / m for a, t, m in zip(least, seconds, means, strict=True)),
            "flops_per_second": sum(least) / sum(seconds),
            "executed_over_minimum": stepper.loop.__dict__.get("executed", lambda: None)(),
        }
        if given.memory:
            found[side]["peak_bytes"] = _memory_in_a_process(side, name)
    _add_ratios(found)
    print(json.dumps(found), flush=True)
    return found


def _products(given: argparse.Namespace, device: torch.device) -> list[float]:
    return flops.matmul_rates(torch.bfloat16 if given.dtype == "bf16" else torch.float32, device, given.width)


def _add_ratios(found: dict[str, Any]) -> None:
    """How many times faster Afzal is than each peer, update by update on the same pairs."""
    for peer, own in OPPONENT.items():
        if peer in found and own in found:
            ratios = [a / b for a, b in zip(found[peer]["seconds"], found[own]["seconds"], strict=True)]
            found[peer]["ratio"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def _each(names: Iterable[str], act: Callable[[str], Any], left_out: dict[str, str]) -> dict[str, Any]:
    """``act(side)`` of every side. A peer that fails is left out, with its reason; where Afzal fails the bench ends."""
    found = {}
    for side in names:
        try:
            found[side] = act(side)
        except Exception as error:
            if side not in OPPONENT:
                raise
            left_out[side] = sides.reason(error.__cause__ or error)
            print(f"left out: {side}: {left_out[side]}", flush=True)
    return found


def _order(counts: np.ndarray, pairs: int, *, grouped: bool) -> np.ndarray:
    """Rows as they come; or all rows by length, the first update (not timed) being the shortest."""
    rows = np.arange(len(counts))
    return rows[np.argsort(counts.sum(1), kind="stable")] if grouped else rows


def _stepper(
    side: str, config: Any, counts: np.ndarray, pairs: int, given: argparse.Namespace, device: torch.device
) -> Stepper:
    return Stepper(side, sides.loop_of(side, _work(side, config, counts, pairs, given, device)))


def _check_losses(
    config: Any, counts: np.ndarray, given: argparse.Namespace, device: torch.device, left_out: dict[str, str]
) -> dict[str, dict[str, float]]:
    """All sides agree on the loss of the same pairs: to 1e-5 in float32, and in bf16 to its rounding.

    Two layers and short responses, whose summed log-probs float32 holds exactly enough to tell, are all it takes.
    """
    small = replace_config(config, num_hidden_layers=2)
    few = np.minimum(counts[:4], [64, 16, 16])
    found = {}
    for dtype in _TOLERANCE:
        asked = argparse.Namespace(**{**vars(given), "dtype": dtype})
        losses = _each(
            [side for side in given.sides if side not in left_out],
            lambda side, asked=asked: _first_loss(_stepper(side, small, few, len(few), asked, device)),
            left_out,
        )
        if wrong := apart.disagreement({dtype: losses}, _TOLERANCE):
            sys.exit(wrong)
        print(f"losses agree in {dtype}: {losses}", flush=True)
        found[dtype] = losses
    return found


def _first_loss(stepper: Stepper) -> float:
    stepper.step()
    return stepper.losses[0]


def replace_config(config: Any, **changes: Any) -> Any:
    return type(config)(**{**config.to_dict(), **changes})


def _memory_in_a_process(side: str, shape: str) -> int | None:
    """Peak memory of one side alone, in a process of its own that makes two updates."""
    own = [a for a in sys.argv[1:] if a not in ("--force",)]
    command = [sys.executable, "-m", "benchmarks.dpo_step", *own, "--force", "--memory-of", f"{side}:{shape}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"] if done.returncode == 0 else None


def _memory(given: argparse.Namespace, device: torch.device) -> dict[str, int]:
    side, name = given.memory_of.split(":")
    config, pairs = config_of(given), given.pairs or shapes.SHAPES[name].pairs
    counts, _ = shapes.lengths(name, pairs, 0, given.shared)
    stepper = _stepper(side, config, counts, pairs, given, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stepper.step()
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated()}
    status = Path("/proc/self/status").read_text().splitlines()
    return {"peak_bytes": next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))}


def _about(given: argparse.Namespace, device: torch.device, missing: dict[str, str]) -> dict[str, Any]:
    for side, reason in missing.items():
        print(f"left out: {side}: {reason}")
    names = ["afzal", "torch", "transformers"]
    names += ["trl"] if any("trl" in side for side in given.sides) and find_spec("trl") else []
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    config = config_of(given)
    more = {"dtype": given.dtype, "parameters": flops.parameters(config), "width": config.hidden_size}
    more |= {"model": given.model, "rank": given.lora_rank, "optimizer": given.optimizer, "left_out": missing}
    more |= {"stated_peak": flops.stated_peak(gpu), "memory": _memory_of_gpu(device)}
    return about_run("benchmarks.dpo_step", names, threads=given.threads, device=gpu) | more


def _memory_of_gpu(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


if __name__ == "__main__":
    main()
