"""One update of every method by Afzal and by TRL (in its default and its best settings), of PPO by a plain loop.

    .venv-trl/bin/python -m benchmarks.methods_step --out benchmarks/results/methods-step-cpu.json

For each method all sides are set up in processes of their own and then take turns, update by update, on the same rows.
Seconds are those between two updates, as the callbacks of each side hear of them. The run ends within ``--minutes``:
each method has an equal share of what is left and makes updates as long as it lasts, one at least. What takes twice
the share is left out, and the table says so.
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
    given = arguments()
    began = time.monotonic()
    if not given.force:
        refuse_if_busy()
    sides = [side for side in given.sides if "trl" not in side or find_spec("trl")]
    sides = [side for side in sides if any(side in METHODS[method].sides for method in given.methods)]
    content: dict[str, Any] = {"about": _about(given, sides), "methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        content["about"]["parameters"] = _prepare(Path(folder), given)
        work = _work(given, folder)
        file = Path(folder, "work.json")
        file.write_text(json.dumps(work.as_json()))
        until = began + 60 * given.minutes
        for at, method in enumerate(given.methods):
            share = (until - time.monotonic()) / (len(given.methods) - at)
            late = min(until, time.monotonic() + 2 * share)
            kind = METHODS[method]
            found = _method(method, [side for side in sides if side in kind.sides], file, given, share, late)
            found |= {"differs": kind.differs, "remark": kind.remark}
            wider = kind.bf16_rounding if given.dtype == "bf16" else 1.0
            found["disagreement"] = table.disagreement(found, wider * content["about"]["tolerance"])
            content["methods"][method] = found
            print(table.row(method, found, sides), *found["left_out"].items(), found["disagreement"], flush=True)
            if given.out:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(content, indent=2) + "\n")
    print(table.markdown(content))
    sys.exit(int(not sound(content)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--items", type=int, default=8, help="rows per update; answers, where the policy writes them")
    parser.add_argument("--updates", type=int, default=3, help="that are timed at most, after one that is not")
    parser.add_argument("--minutes", type=float, default=9.5, help="for the whole run")
    parser.add_argument("--quick", action="store_true", help="a model of 2 million weights in place of 58 million")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="real lengths, where it is there")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--logs", type=Path, help="folder for what the sides print; default: a temporary one")
    parser.add_argument("--force", action="store_true", help="run on a loaded machine all the same")
    given = parser.parse_args()
    if given.items % ANSWERS:
        parser.error(f"--items {given.items} is no multiple of {ANSWERS}, the answers to a prompt")
    return given


def sound(content: dict[str, Any]) -> bool:
    """Whether Afzal made its updates everywhere, and no losses disagree."""
    return all("afzal" in found and not found["disagreement"] for found in content["methods"].values())


def _about(given: argparse.Namespace, sides: list[str]) -> dict[str, Any]:
    names = ["afzal", "torch", "transformers", *(["trl"] if any("trl" in side for side in sides) else [])]
    about = about_run("benchmarks.methods_step", names, threads=given.threads) | {"dtype": given.dtype}
    about |= {"items": given.items, "answers": ANSWERS, "tokens": shapes.SHAPES["hh"].response}
    about["lengths"] = shapes.lengths("hh", given.items, 0, given.shared)[1]
    return about | {"tolerance": table.TOLERANCE[given.dtype], "sides": sides}


def _work(given: argparse.Namespace, folder: str) -> Work:
    return Work(
        folder=folder,
        items=given.items,
        updates=given.updates + 1,
        dtype=given.dtype,
        vocabulary=sizes(quick=given.quick)["vocabulary"],
        tokens=shapes.SHAPES["hh"].response,
        shared=str(given.shared),
    )


def _prepare(folder: Path, given: argparse.Namespace) -> int:
    return save_models(folder, sizes(quick=given.quick))


def _method(
    method: str, sides: list[str], file: Path, given: argparse.Namespace, share: float, late: float
) -> dict[str, Any]:
    """All sides of one method, from their start to their end."""
    logs = given.logs or file.parent
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.methods_step.sides", str(file), method]
    started = {
        side: Side([*command, side], logs / f"{method}-{side}.log", environment(given.threads)) for side in sides
    }
    try:
        return take_turns(started, given.updates, share, late)
    finally:
        for side in started.values():
            side.stop()


def environment(threads: int) -> dict[str, str]:
    """Of a side: its threads, this checkout's sources, and no network."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    own |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**os.environ, **own}


if __name__ == "__main__":
    main()
