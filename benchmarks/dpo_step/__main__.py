"""Time one DPO update by Afzal and by its peers: same model, tokens, number format, optimiser and pairs per update.

    make bench                                                # the whole table, on the CPU, after installing TRL
    .venv-trl/bin/python -m benchmarks.dpo_step --device cuda # the same on a GPU
    .venv-trl/bin/python -m benchmarks.dpo_step --shapes hh --sides afzal plain --repeats 2 --force

Every side runs its own loop in a thread and they take turns, one update each; ratios are taken between updates on the
same pairs. Before anything is timed all sides must agree on the losses of the first update, in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dpo_step import flops, shapes, sides
from benchmarks.dpo_step.stepper import Stepper
from benchmarks.dpo_step.table import OPPONENT, SIDES, markdown
from benchmarks.machine import about_run, refuse_if_busy

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
    missing = {side: reason for side in given.sides if (reason := sides.unavailable(side))}
    given.sides = [side for side in given.sides if side not in missing]
    about = _about(given, device, missing)
    print(json.dumps(about))
    results = [_shape(given, name, device) for name in given.shapes]
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"about": about, "shapes": results}, indent=2) + "\n")
    print(markdown(about, results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(shapes.SHAPES), default=["uf", "hh", "tldr"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3, help="updates that are timed, after one that is not")
    parser.add_argument("--pairs", type=int, help="pairs per update, in place of the shape's own number")
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
    return parser.parse_args()


def config_of(given: argparse.Namespace) -> Any:
    """The bench's Llama."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=given.width,
        intermediate_size=given.feed_forward or round(given.width * 2.6875 / 16) * 16,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.kv_heads,
        vocab_size=given.vocabulary,
        max_position_embeddings=16384,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def _shape(given: argparse.Namespace, name: str, device: torch.device) -> dict[str, Any]:
    config, pairs = config_of(given), given.pairs or shapes.SHAPES[name].pairs
    counts, source = shapes.lengths(name, pairs * (given.repeats + 1), 0, given.shared)
    left_out: dict[str, str] = {}
    losses = _check_losses(config, counts[:pairs], given, device, left_out) if given.check else {}
    counts[:pairs] = np.minimum(counts[:pairs], WARM_UP)
    order = {side: _order(counts, pairs, grouped=side in ("trl-best", "afzal-cached")) for side in given.sides}
    make = lambda side: _stepper(side, config, counts[order[side]], pairs, given.dtype, device)  # noqa: E731
    steppers = _each([side for side in given.sides if side not in left_out], make, left_out)
    peak = flops.matmul_peak(torch.bfloat16 if given.dtype == "bf16" else torch.float32, device, given.width)
    for _ in range(given.repeats + 1):
        done = _each(steppers, lambda side, now=steppers: now[side].step(), left_out)
        steppers = {side: steppers[side] for side in done}
    found: dict[str, Any] = {
        "shape": name,
        "lengths": source,
        "mean": counts[pairs:].mean(0).round(1).tolist(),
        "peak": peak,
        "pairs": pairs,
        "losses": losses,
        "left_out": left_out,
    }
    for side, stepper in steppers.items():
        work = counts[order[side]].reshape(-1, pairs, 3)[1:]
        seconds = [t.wall for t in stepper.timings[1:]]
        least = [
            flops.minimum(part, config, reference_online="cached" not in side and side != "trl-best") for part in work
        ]
        tokens = [int(part.sum()) for part in work]
        found[side] = {
            "seconds": seconds,
            "pairs_per_second": pairs * len(seconds) / sum(seconds),
            "tokens_per_second": sum(tokens) / sum(seconds),
            "roofline": sum(least) / sum(seconds) / peak,
            "executed_over_minimum": stepper.loop.__dict__.get("executed", lambda: None)(),
        }
        if given.memory:
            found[side]["peak_bytes"] = _memory_in_a_process(side, name)
    for peer, own in OPPONENT.items():
        if peer in found and own in found:
            ratios = [a / b for a, b in zip(found[peer]["seconds"], found[own]["seconds"], strict=True)]
            found[peer]["ratio"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    print(json.dumps(found), flush=True)
    return found


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


def _stepper(side: str, config: Any, counts: np.ndarray, pairs: int, dtype: str, device: torch.device) -> Stepper:
    rows = shapes.rows(counts, config.vocab_size, 0)
    cached = side in ("afzal-cached", "trl-best")
    work = sides.make_work(config, rows, pairs=pairs, dtype=dtype, device=device, cached=cached)
    make = {
        "afzal": sides.afzal,
        "afzal-cached": sides.afzal,
        "plain": sides.plain,
        "trl": sides.trl,
        "trl-best": sides.trl_best,
    }[side]
    return Stepper(side, make(work))


def _check_losses(
    config: Any, counts: np.ndarray, given: argparse.Namespace, device: torch.device, left_out: dict[str, str]
) -> dict[str, dict[str, float]]:
    """All sides agree on the loss of the same pairs: to 1e-5 in float32, and in bf16 to its rounding.

    Two layers and short responses, whose summed log-probs float32 holds exactly enough to tell, are all it takes.
    """
    small = replace_config(config, num_hidden_layers=2)
    few = np.minimum(counts[:4], [64, 16, 16])
    found = {}
    for dtype, tolerance in {given.dtype: 2e-2, "fp32": 1e-5}.items():
        losses = _each(
            [side for side in given.sides if side not in left_out],
            lambda side, dtype=dtype: _first_loss(_stepper(side, small, few, len(few), dtype, device)),
            left_out,
        )
        low, high = min(losses.values()), max(losses.values())
        if not high - low <= tolerance * abs(low):
            sys.exit(f"the sides do not compute the same loss in {dtype}: {losses}")
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
    stepper = _stepper(side, config, counts, pairs, given.dtype, device)
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
    names = ["afzal", "torch", "transformers"] + (["trl"] if any("trl" in side for side in given.sides) else [])
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    weights = flops.body_weights(config_of(given)) + 2 * given.width * given.vocabulary
    more = {"dtype": given.dtype, "parameters": weights, "width": given.width, "left_out": missing}
    return about_run("benchmarks.dpo_step", names, threads=given.threads, device=gpu) | more


if __name__ == "__main__":
    main()
