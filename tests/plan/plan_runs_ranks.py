"""DPO over two ranks (gloo) that share every matrix or every layer, in processes of their own: memory of the fuller
rank at its fullest, less that of the same run of a tiny model.

    python plan_runs_ranks.py '{"tensor": 2, ...}'

Prints the bytes. The tests compare them with the plan.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import plan_runs_rewards as rewards
from plan_runs import bytes_of, quiet


@dataclass(frozen=True)
class Case(rewards.Case):
    """Pairs of ``prompt`` + 2 ``response`` tokens, ``prompts`` of them per update; ``tensor`` ranks share a matrix."""

    method: str = "dpo"
    kv_heads: int = 2
    tensor: int = 2
    answers: int = 2


def train(case: Case) -> None:
    """Two updates of ``afzal train dpo``, as this rank takes part in them."""
    from afzal import config, recipes

    folder = Path(os.environ["PLAN_FOLDER"]) / f"{case.width}"
    settings = quiet(folder, dtype=case.dtype, rank=case.rank) | {
        "model": str(folder / "policy"),
        "data": str(folder / "pairs.jsonl"),
        "batch_size": case.prompts,
        "max_steps": 2,
        "tokens_per_forward": case.tokens,
        "activation_checkpointing": case.recompute,
        "tensor_parallel": case.tensor,
    }
    recipes.train(config.make("dpo", **settings))


def make(folder: Path, case: Case) -> None:
    """The model and pairs of random words, all of one length."""
    import random

    draw = random.Random(0)
    rewards.make(folder, case)
    words = lambda n: " ".join(f"w{draw.randrange(2, case.vocabulary)}" for _ in range(n))  # noqa: E731
    answer = lambda: f" {words(case.response - 1)}"  # noqa: E731 - and its end
    rows = [{"prompt": words(case.prompt), "chosen": answer(), "rejected": answer()} for _ in range(2 * case.prompts)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def small(case: Case) -> Case:
    """The same run of a tiny model, whose memory is that of the libraries."""
    size = {"width": 32, "ff": 64, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 100}
    return replace(case, **size, prompt=8, response=4, prompts=2, rank=case.rank and 1)


def peak_of(case: Case, name: str) -> int:
    """The fuller rank's peak, libraries included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group |= {"PLAN_FOLDER": name, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, json.dumps(asdict(case)), "rank"]
    started = [
        subprocess.Popen(command, env=os.environ | group | {"RANK": r, "LOCAL_RANK": r}, stdout=subprocess.PIPE)
        for r in ("0", "1")
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a rank failed")
    return max(int(lines.split()[-1]) for lines in said)


def as_rank(case: Case) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        train(case)
    print(bytes_of("VmHWM"))


def main(case: Case) -> None:
    with tempfile.TemporaryDirectory() as name:
        for each in (case, small(case)):
            folder = Path(name) / f"{each.width}"
            folder.mkdir()
            with contextlib.redirect_stderr(io.StringIO()):
                make(folder, each)
        print(peak_of(case, name) - peak_of(small(case), name))


if __name__ == "__main__":
    (as_rank if sys.argv[2:] else main)(Case(**json.loads(sys.argv[1])))
