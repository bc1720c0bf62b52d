"""Cost of several ranks on one machine compared with one process: memory per rank, processor and wall time per update.

    python -m benchmarks.ranks --out benchmarks/results/large/ranks-cpu-fp32.json

A random llama with 0.12 billion weights is created on the spot. DPO on all weights, and RLOO, run in one process with
one thread, in one process with a thread per rank, over ranks that share layers (*shards*), and over ranks that share
every matrix (*tensor*), with the same items in every update. Every run uses new processes; ranks communicate by gloo,
one thread each. The first update is not timed. Peaks are those of the process (``ru_maxrss``); *libraries* is the peak
of a process that has only imported them. Gloo on one machine copies through the memory that the ranks compute in, so
these figures say nothing about NVLink or a network between machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.large_model import SMALL, Shape, make
from benchmarks.machine import about_run, refuse_if_busy
from benchmarks.rank_processes import losses_of, peak, said_by_all

_RANKS = 2
WAYS: dict[str, tuple[int, int, int]] = {
    "one process": (1, 1, 1),
    "one process, 2 threads": (1, _RANKS, 1),
    "shards": (_RANKS, 1, 1),
    "tensor": (_RANKS, 1, _RANKS),
}
"""Processes, threads per process, and ranks that share every matrix."""
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"batch_size": 4},
    "rloo": {"batch_size": 4, "n": 4, "sample_tokens": 32, "minibatches": 1, "ppo_epochs": 1},
}
_REWARD = "def length(prompt, answer):\n    return len(answer) % 7\n"
_TINY = Shape(32, 2, 64, heads=4, kv_heads=2)


def write_data(folder: Path, items: int) -> None:
    """Write pairs with prompts and answers of 32 bytes each, and a reward function."""
    words = lambda name, i: f"{name} {i} ".ljust(32, "x")  # noqa: E731
    rows = [{n: words(n, i) for n in ("prompt", "chosen", "rejected")} for i in range(items)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(_REWARD)


def run(folder: Path, method: str, way: str, dtype: str, updates: int) -> dict[str, Any]:
    """Run once, and collect the costs that each process reports."""
    processes, threads, members = WAYS[way]
    about = {"folder": str(folder), "out": str(folder / f"{method}-{way}".replace(" ", "-")), "method": method}
    about |= {"dtype": dtype, "updates": updates + 1, "threads": threads, "members": members}
    reports = said_by_all("benchmarks.ranks", about, processes, threads)
    return {
        "method": method,
        "way": way,
        "peak_gb": [round(r["peak"] / 1e9, 2) for r in reports],
        "libraries_gb": round(max(r["libraries"] for r in reports) / 1e9, 2),
        "cpu_seconds": round(statistics.median(map(sum, zip(*(r["cpu"] for r in reports), strict=True))), 2),
        "seconds": round(statistics.median(reports[0]["wall"]), 2),
        "losses": losses_of(Path(about["out"])),
    }


def _as_rank(about: dict[str, Any]) -> None:
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from afzal import config, recipes

    torch.set_num_threads(about["threads"])
    libraries, marks = peak(), []
    register_optimizer_step_post_hook(lambda *_: marks.append((time.perf_counter(), time.process_time())))
    folder, online = about["folder"], about["method"] == "rloo"
    settings = METHODS[about["method"]] | {
        "model": f"{folder}/model",
        "data": f"{folder}/pairs.jsonl",
        "out": about["out"],
        "dtype": about["dtype"],
        "lr": 1e-5,
        "max_steps": about["updates"],
        "tokens_per_forward": 512,
        "activation_checkpointing": "none",
        "eval_fraction": 0.0,
        "log_every_steps": 1,
        "device": "cpu",
        "tensor_parallel": about["members"],
    }
    settings |= {"reward": f"{folder}/reward.py:length"} if online else {"sample_prompts": 0}
    recipes.train(config.make(about["method"], **settings))
    each = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]
    wall, cpu = ([step[k] for step in each] for k in (0, 1))
    print("\n" + json.dumps({"libraries": libraries, "peak": peak(), "wall": wall, "cpu": cpu}), flush=True)


def main() -> None:
    """Create the model, run, and write or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--folder", type=Path, help="where the model is created; default: a temporary folder")
    parser.add_argument("--updates", type=int, default=3, help="timed updates")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--tiny", action="store_true", help="a toy model, to see whether all runs work")
    parser.add_argument("--force", action="store_true", help="measure even if the machine is busy")
    parser.add_argument("--as-rank", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_rank is not None:
        _as_rank(options.as_rank)
        return
    if not (options.force or options.tiny):
        refuse_if_busy()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        (Path(folder) / "model").mkdir()
        weights = make(Path(folder) / "model", _TINY if options.tiny else SMALL, options.dtype)
        write_data(Path(folder), 4 * (options.updates + 1))
        for method in options.methods:
            for way in WAYS:
                rows.append(run(Path(folder), method, way, options.dtype, options.updates))
                print(json.dumps(rows[-1]), flush=True)
    about = about_run("benchmarks.ranks", ("afzal", "torch", "transformers"), threads=_RANKS)
    if options.out is not None:
        figures = {"about": about | {"dtype": options.dtype}, "weights": weights, "rows": rows}
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
