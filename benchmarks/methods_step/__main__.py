"""Time one update of every method by Afzal and by TRL (default and best settings), and of PPO by a plain loop.

    .venv-trl/bin/python -m benchmarks.methods_step --out benchmarks/results/methods-step-cpu.json

For each method, all sides are set up in separate processes and then take turns, update by update, on the same rows.
Seconds are measured between two updates, in each side's callbacks. The run ends within ``--minutes``: each method gets
an equal share of the remaining time and makes updates until it is used up, at least one. A side that takes twice the
share is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.dpo_step import shapes
from benchmarks.machine import about_run, refuse_if_busy
from benchmarks.methods_step import table
from benchmarks.methods_step.pacing import Side, take_turns
from benchmarks.methods_step.work import ANSWERS, METHODS, SIDES, Work, save_models, sizes

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    options = arguments()
    began = time.monotonic()
    if not options.force:
        refuse_if_busy()
    sides = [side for side in options.sides if "trl" not in side or find_spec("trl")]
    sides = [side for side in sides if any(side in METHODS[method].sides for method in options.methods)]
    content: dict[str, Any] = {"about": _about(options, sides), "methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        content["about"]["parameters"] = _prepare(Path(folder), options)
        work = _work(options, folder)
        file = Path(folder, "work.json")
        file.write_text(json.dumps(work.as_json()))
        until = began + 60 * options.minutes
        for at, method in enumerate(options.methods):
            share = (until - time.monotonic()) / (len(options.methods) - at)
            late = min(until, time.monotonic() + 2 * share)
            kind = METHODS[method]
            result = _method(method, [side for side in sides if side in kind.sides], file, options, share, late)
            result |= {"differs": kind.differs, "remark": kind.remark}
            wider = kind.bf16_rounding if options.dtype == "bf16" else 1.0
            result["disagreement"] = table.disagreement(result, wider * content["about"]["tolerance"])
            content["methods"][method] = result
            print(table.row(method, result, sides), *result["left_out"].items(), result["disagreement"], flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(content, indent=2) + "\n")
    print(table.markdown(content))
    sys.exit(int(not sound(content)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--items", type=int, default=8, help="rows per update (answers, if the policy samples them)")
    parser.add_argument(
        "--updates", type=int, default=3, help="maximum number of timed updates, after one untimed update"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit for the run")
    parser.add_argument("--quick", action="store_true", help="a model with 2 million weights instead of 58 million")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--shared", type=Path, default=Path("../shared/data"), help="data folder with real lengths, if it exists"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--logs", type=Path, help="folder for the sides' output (default: a temporary folder)")
    parser.add_argument("--force", action="store_true", help="run even if the machine is busy")
    options = parser.parse_args()
    if options.items % ANSWERS:
        parser.error(f"--items {options.items} is not a multiple of {ANSWERS}, the answers per prompt")
    return options


def sound(content: dict[str, Any]) -> bool:
    """Whether Afzal made its updates for every method, and no losses disagree."""
    return all("afzal" in result and not result["disagreement"] for result in content["methods"].values())


def _about(options: argparse.Namespace, sides: list[str]) -> dict[str, Any]:
    names = ["afzal", "torch", "transformers", *(["trl"] if any("trl" in side for side in sides) else [])]
    about = about_run("benchmarks.methods_step", names, threads=options.threads) | {"dtype": options.dtype}
    about |= {"items": options.items, "answers": ANSWERS, "tokens": shapes.SHAPES["hh"].response}
    about["lengths"] = shapes.lengths("hh", options.items, 0, options.shared)[1]
    return about | {"tolerance": table.TOLERANCE[options.dtype], "sides": sides}


def _work(options: argparse.Namespace, folder: str) -> Work:
    return Work(
        folder=folder,
        items=options.items,
        updates=options.updates + 1,
        dtype=options.dtype,
        vocabulary=sizes(quick=options.quick)["vocabulary"],
        tokens=shapes.SHAPES["hh"].response,
        shared=str(options.shared),
    )


def _prepare(folder: Path, options: argparse.Namespace) -> int:
    return save_models(folder, sizes(quick=options.quick))


def _method(
    method: str, sides: list[str], file: Path, options: argparse.Namespace, share: float, late: float
) -> dict[str, Any]:
    """Start all sides of one method, run their updates, and stop them."""
    logs = options.logs or file.parent
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.methods_step.sides", str(file), method]
    started = {
        side: Side([*command, side], logs / f"{method}-{side}.log", environment(options.threads)) for side in sides
    }
    try:
        return take_turns(started, options.updates, share, late)
    finally:
        for side in started.values():
            side.stop()


def environment(threads: int) -> dict[str, str]:
    """Environment of a side's process: threads, this checkout's sources, no network."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    variables |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**os.environ, **variables}


if __name__ == "__main__":
    main()
