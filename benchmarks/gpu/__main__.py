"""All GPU benchmarks in one command, with the machine's torch and transformers.

    python -m benchmarks.gpu --out OUT                      # TRL from the package index
    python -m benchmarks.gpu --out OUT --wheels WHEELS      # TRL from a folder of wheels, no network
    python -m benchmarks.gpu --out OUT --quick --budget-minutes 9
    python -m benchmarks.gpu --out OUT --device cpu --tiny  # the same, small, for a trial run

Creates OUT/.venv on top of the current environment, installs TRL into it, and runs the parts one by one, the most
important first. Each part writes OUT/<part>.json at its end, and OUT/README.md is updated. A failed part is recorded,
and the others continue; run again with the same OUT, the command runs the missing parts. Weights are random, created
on the spot. The exit code is 1 if a part failed. Figures to keep go to benchmarks/results: see `benchmarks/table.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.gpu import targets
from benchmarks.gpu.install import OLDEST, ROOT, installed, last_line, prepare, too_old
from benchmarks.gpu.parts import LOST_WHEN_STOPPED, Part, parts
from benchmarks.machine import about_run, card

_SHORTEST = 30.0  # seconds below which no part is started


def main() -> int:
    options, began = _arguments(), time.monotonic()
    if problems := too_old(installed(OLDEST)):
        sys.exit("\n".join(problems))
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [p for p in parts(options.device, tiny=options.tiny) if wanted(p, options.quick, options.parts)]
    if options.parts and len(chosen) < len(set(options.parts)):
        sys.exit(f"no such part; there are: {', '.join(p.name for p in parts(options.device, tiny=options.tiny))}")
    python, refusals = prepare(options.out / ".venv", options.wheels)
    for name, refusal in refusals.items():
        print(f"{name} could not be installed: {refusal}", flush=True)
    ends: dict[str, str] = {}
    for part in chosen:
        left = 60 * options.budget_minutes - (time.monotonic() - began) if options.budget_minutes else None
        ends[part.name] = run(part, python, options.out, left)
        print(f"{part.name}: {ends[part.name]} ({time.monotonic() - began:.0f} s since the start)", flush=True)
        _write_down(options.out, options.device, refusals, ends)
    print((options.out / "README.md").read_text(encoding="utf-8"))
    return int(any(end != "done" for end in ends.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install TRL from, instead of downloading it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, for a trial run")
    parser.add_argument("--quick", action="store_true", help="only the most important parts, about nine minutes")
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help="only these parts, by name")
    parser.add_argument("--budget-minutes", type=float, help="stop after this time; finished parts are kept")
    return parser.parse_args()


def wanted(part: Part, quick: bool, names: list[str]) -> bool:
    """Whether a part was requested."""
    return part.name in names if names else part.quick or not quick


def run(part: Part, python: Path, out: Path, left: float | None) -> str:
    """Run a part; returns ``done``, or how it ended. A finished part is not run again.

    Args:
        left: remaining seconds of the budget, None without one; if they are too few, the part is not started.
    """
    file = (out / f"{part.name}.json").resolve()
    if _finished(file):
        return "done"
    if left is not None and left < _SHORTEST:
        return "not started: out of time"
    seconds = 60 * part.minutes if left is None else min(60 * part.minutes, left)
    command = [str(python), "-m", part.module, *part.arguments, "--out", str(file)]
    if part.timed:
        command += ["--seconds", f"{seconds - LOST_WHEN_STOPPED:.0f}"]
    print(" ".join(command), flush=True)
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = file.with_suffix(".log")
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | quiet, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            os.killpg(process.pid, signal.SIGKILL)  # the group, since a part may start processes
            process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise
            return "stopped: out of time"
    if code:
        output = log.read_text(errors="replace")
        print(output[-2000:], file=sys.stderr)
        return f"exit code {code}: {last_line(output)}"
    return "done"


def _finished(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text()).get("finished", True))
    except (OSError, ValueError):
        return False


def _write_down(out: Path, device: str, refusals: dict[str, str], ends: dict[str, str]) -> None:
    about = about_run("benchmarks.gpu", ["afzal", *OLDEST], threads=os.cpu_count() or 1)
    record: dict[str, Any] = {"about": about, "not installed": refusals, "runs": ends}
    (out / f"run-{device}.json").write_text(json.dumps(record, indent=2) + "\n")
    figures = table.read(out)
    page = table.page(figures)
    cards = {d.name: d for f in figures if (d := card(f.content["about"]["device"])) is not None}
    fits = [line for d in cards.values() for line in targets.what_fits(d)]
    text = "\n".join([page, targets.section(figures), *fits])
    (out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
