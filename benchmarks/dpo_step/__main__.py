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
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dpo_step import flops, shapes, sides
from benchmarks.dpo_step.stepper import Stepper
from benchmarks.machine import processor, refuse_if_busy

SIDES = ("afzal", "trl", "plain", "afzal-cached", "trl-best")
OPPONENT = {"trl": "afzal", "plain": "afzal", "trl-best": "afzal-cached"}
"""Each peer, and the side that does the same work: trl-best has grouped lengths and cached references, like its own."""


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
    about = _about(given, device)
    print(json.dumps(about))
    results = [_shape(given, name, device) for name in given.shapes]
    if given.out:
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
    if given.check:
        _check_losses(config, counts[:pairs], given, device)
    counts[:pairs] = np.minimum(counts[:pairs], WARM_UP)
    order = {side: _order(counts, pairs, grouped=side in ("trl-best", "afzal-cached")) for side in given.sides}
    steppers = {side: _stepper(side, config, counts[order[side]], pairs, given.dtype, device) for side in given.sides}
    peak = flops.matmul_peak(torch.bfloat16 if given.dtype == "bf16" else torch.float32, device, given.width)
    for _ in range(given.repeats + 1):
        for stepper in steppers.values():
            stepper.step()
    found: dict[str, Any] = {
        "shape": name,
        "lengths": source,
        "mean": counts[pairs:].mean(0).round(1).tolist(),
        "peak": peak,
        "pairs": pairs,
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


def _check_losses(config: Any, counts: np.ndarray, given: argparse.Namespace, device: torch.device) -> None:
    """All sides agree on the loss of the same pairs: to 1e-5 in float32, and in bf16 to its rounding.

    Two layers and short responses, whose summed log-probs float32 holds exactly enough to tell, are all it takes.
    """
    small = replace_config(config, num_hidden_layers=2)
    few = np.minimum(counts[:4], [64, 16, 16])
    for dtype, tolerance in (("fp32", 1e-5), (given.dtype, 2e-2)):
        losses = {}
        for side in given.sides:
            stepper = _stepper(side, small, few, len(few), dtype, device)
            stepper.step()
            losses[side] = stepper.losses[0]
        low, high = min(losses.values()), max(losses.values())
        if not high - low <= tolerance * abs(low):
            sys.exit(f"the sides do not compute the same loss in {dtype}: {losses}")
        print(f"losses agree in {dtype}: {losses}", flush=True)


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


def _about(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    config = config_of(given)
    names = ["afzal", "torch", "transformers"] + (["trl"] if any("trl" in side for side in given.sides) else [])
    return {
        "date": str(date.today()),
        "command": "python -m benchmarks.dpo_step " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": given.threads,
        "versions": {name: version(name) for name in names},
        "dtype": given.dtype,
        "parameters": flops.body_weights(config) + 2 * given.width * given.vocabulary,
        "load": os.getloadavg()[0],
    }


def markdown(about: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"{about['date']}, {about['device']}, {about['threads']} threads, "
        + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        + f", {about['dtype']}, {about['parameters'] / 1e6:.0f} M parameters",
        "",
        f"    {about['command']}",
        "",
        "| shape (prompt, responses) | side | pairs/s | tokens/s | Afzal is faster by | share of matmul peak "
        "| executed / minimum | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        for side in [s for s in SIDES if s in r]:
            f = r[side]
            ratio = f.get("ratio")
            lines.append(
                f"| {r['shape']} {tuple(round(x) for x in r['mean'])} | {side} | {f['pairs_per_second']:.3f} "
                f"| {f['tokens_per_second']:.0f} "
                + (f"| {ratio['median']:.1f}x ({ratio['low']:.1f} to {ratio['high']:.1f}) " if ratio else "| ")
                + f"| {f['roofline']:.0%} | {_shown(f['executed_over_minimum'], '.3f')} "
                + f"| {_shown(f.get('peak_bytes'), 'GB')} |"
            )
    return "\n".join(lines)


def _shown(value: float | None, how: str) -> str:
    if value is None:
        return ""
    return f"{value / 1e9:.2f} GB" if how == "GB" else f"{value:{how}}"


if __name__ == "__main__":
    main()
