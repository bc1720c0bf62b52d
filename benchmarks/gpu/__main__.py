"""Everything that is to be measured on a CUDA GPU, in one command, with the torch and transformers of the machine.

    python -m benchmarks.gpu --out OUT                      # TRL from the package index
    python -m benchmarks.gpu --out OUT --wheels WHEELS      # TRL from a folder of wheels, no network
    python -m benchmarks.gpu --out OUT --quick --budget-minutes 9
    python -m benchmarks.gpu --out OUT --device cpu --tiny  # the same, small, to try it out

Makes OUT/.venv on top of the present environment, puts TRL into it, and runs part after part, the most important
first. Each part writes OUT/<part>.json as it ends, and OUT/README.md is renewed. A part that fails is recorded, and the
others go on; called again with the same OUT, the command makes what is missing. Weights are random and made on the
spot. Exit code 1 when a part failed. Figures that are to stay go to benchmarks/results: see `benchmarks/table.py`.
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

_SHORTEST = 30.0  # seconds below which no part is begun


def main() -> int:
    given, began = _arguments(), time.monotonic()
    if problems := too_old(installed(OLDEST)):
        sys.exit("\n".join(problems))
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = [p for p in parts(given.device, tiny=given.tiny) if wanted(p, given.quick, given.parts)]
    if given.parts and len(chosen) < len(set(given.parts)):
        sys.exit(f"no such part; there are: {', '.join(p.name for p in parts(given.device, tiny=given.tiny))}")
    python, refusals = prepare(given.out / ".venv", given.wheels)
    for name, refusal in refusals.items():
        print(f"{name} could not be installed: {refusal}", flush=True)
    ends: dict[str, str] = {}
    for part in chosen:
        left = 60 * given.budget_minutes - (time.monotonic() - began) if given.budget_minutes else None
        ends[part.name] = run(part, python, given.out, left)
        print(f"{part.name}: {ends[part.name]} ({time.monotonic() - began:.0f} s since the start)", flush=True)
        _write_down(given.out, given.device, refusals, ends)
    print((given.out / "README.md").read_text(encoding="utf-8"))
    return int(any(end != "done" for end in ends.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install TRL from; nothing is downloaded then")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the command out")
    parser.add_argument("--quick", action="store_true", help="only the most important parts, about nine minutes")
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help="only these parts, by their names")
    parser.add_argument("--budget-minutes", type=float, help="stop after so long; what is done stays")
    return parser.parse_args()


def wanted(part: Part, quick: bool, names: list[str]) -> bool:
    """Whether a part is among those asked for."""
    return part.name in names if names else part.quick or not quick


def run(part: Part, python: Path, out: Path, left: float | None) -> str:
    """``done``, or how it ended. A part whose file is whole is not run again; one without time left is not begun.

    Args:
        left: seconds of the budget, None without one.
    """
    file = (out / f"{part.name}.json").resolve()
    if _finished(file):
        return "done"
    if left is not None and left < _SHORTEST:
        return "not begun: the time was up"
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
            os.killpg(process.pid, signal.SIGKILL)  # its own group: a part may have processes of its own
            process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise
            return "stopped: the time was up"
    if code:
        said = log.read_text(errors="replace")
        print(said[-2000:], file=sys.stderr)
        return f"exit code {code}: {last_line(said)}"
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
    found = table.read(out)
    page = table.page(found)
    cards = {d.name: d for f in found if (d := card(f.content["about"]["device"])) is not None}
    fits = [line for d in cards.values() for line in targets.what_fits(d)]
    text = "\n".join([page, targets.section(found), *fits])
    (out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
