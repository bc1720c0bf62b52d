"""Images and sounds with known captions: SFT on captions that often count wrong, DPO and MPO on noisy preferences for
the true captions, accuracy against the truth.

    make media
    python -m benchmarks.media OUT            # a few minutes on two cores, without a network
    python -m benchmarks.media OUT --quick    # a few items and updates: does it run?

Every stage writes a file or a folder that is complete or absent, so running the command again resumes a stopped run.
Pictures and sounds are independent and run in parallel, one process each. Needs the extras vision and audio.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, STDOUT
from threading import Thread

from afzal.errors import AfzalError
from benchmarks.machine import about_run
from benchmarks.media import models, page, steps, world
from benchmarks.stages import Stage, make_all


def stages(out: Path, size: world.Size) -> list[Stage]:
    """All stages in order. Each reads only the outputs of earlier stages in ``out``."""
    return [
        *(stage for name in world.WORLDS for stage in _of_world(out, name, size)),
        Stage("page", lambda to: page.write(out, to, size)),
    ]


def _of_world(out: Path, name: world.World, size: world.Size) -> list[Stage]:
    at = out / name
    held_out = at / "data" / "held-out.jsonl"
    measured = [
        Stage(f"{name}/measured-{model}.json", lambda to, model=model: steps.measure(at / model, held_out, to))
        for model in page.MODELS
    ]
    rows = at / "data"
    preferred = [
        Stage(f"{name}/{way}", lambda to, way=way: steps.prefer(way, at / "sft", rows / "prefer.jsonl", to, size))
        for way in steps.OBJECTIVES
    ]
    return [
        Stage(f"{name}/data", lambda to: world.write(to, name, size)),
        Stage(f"{name}/start", lambda to: models.write(to, name, size.seed)),
        Stage(f"{name}/sft", lambda to: steps.learn_captions(at / "start", rows / "sft.jsonl", to, size)),
        *preferred,
        *measured,
        Stage(f"{name}/answers", lambda to: steps.answer(at / page.BEST, held_out, to)),
    ]


def run(out: Path, size: world.Size, say: Callable[[str], None] = print) -> Path:
    """Make the missing stages; returns the path of the page."""
    make_all(out, stages(out, size), say)
    return out / "page" / "media.html"


def side_by_side(arguments: Sequence[str]) -> int:
    """Make the stages of both worlds in parallel, one process each; returns the first non-zero exit code, or 0.

    The processes' output is passed on, each line with the world's name before it.

    Args:
        arguments: arguments of the command line.
    """
    command = [sys.executable, "-m", "benchmarks.media", *arguments, "--world"]
    started = [subprocess.Popen([*command, name], stdout=PIPE, stderr=STDOUT, text=True) for name in world.WORLDS]
    try:
        relays = [Thread(target=_relay, args=pair) for pair in zip(world.WORLDS, started, strict=True)]
        for relay in relays:
            relay.start()
        for relay in relays:
            relay.join()
        return next((code for process in started if (code := process.wait())), 0)
    finally:
        for process in started:
            process.terminate()


def _relay(name: str, process: subprocess.Popen[str]) -> None:
    for line in process.stdout or ():
        print(f"{name}: {line}", end="", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the media, the runs and the page")
    parser.add_argument("--quick", action="store_true", help="a few items and updates")
    parser.add_argument("--seed", type=int, default=0, help="seed of media, rows, weights and training runs")
    parser.add_argument("--world", choices=world.WORLDS, help="make only this world's stages, and no page")
    options = parser.parse_args(argv)
    size = replace(world.QUICK if options.quick else world.PROPER, seed=options.seed)
    began = time.monotonic()
    if options.world is None and (code := side_by_side(sys.argv[1:] if argv is None else argv)):
        return code
    import torch

    torch.set_num_threads(1)  # operations this small are slower on several cores
    try:
        if options.world is not None:
            make_all(options.out, _of_world(options.out, options.world, size), aside=f"unfinished-{options.world}")
            return 0
        made = run(options.out, size)
    except AfzalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = time.process_time() + children.ru_utime + children.ru_stime
    seconds = {"wall": round(time.monotonic() - began), "processor": round(processor)}
    about = about_run("benchmarks.media", ["afzal", "torch", "transformers"], threads=1)
    (options.out / "about.json").write_text(json.dumps({**about, "seconds": seconds}, indent=1) + "\n", "utf-8")
    print("\n".join(page.findings(options.out)))
    print(f"page: {made}")
    print(f"time of this call: {seconds['wall']} s; processor time of all its processes {seconds['processor']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
