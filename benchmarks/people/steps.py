"""The stages up to the answers, each by Afzal's own command or function. All paths are passed as arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from afzal import config, recipes
from afzal.generate.run import generate
from benchmarks.people import data, voting
from benchmarks.sentiment import valence

_TOKENS = 48
_SFT = {"lr": 5e-4}
_DPO = {"lr": 3e-4, "beta": 0.1, "lr_schedule": "constant", "warmup": 0}


def start() -> Path:
    """The folder of the starting model."""
    return valence.shared() / "models" / "stories260k"


def afzal(*arguments: str | Path) -> str:
    """Run an Afzal command and return its output; its messages go to the terminal.

    Raises:
        subprocess.CalledProcessError: the exit code is not 0.
    """
    command = [sys.executable, "-m", "afzal", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def first_votes(out: Path, to: Path) -> None:
    """Let all annotators vote on the first pairs, with the gold rows hidden among them."""
    known = out / "data" / "gold.jsonl"
    voting.vote(out / "data" / "first.jsonl", known, to.with_name("page-1"), to, data.worth())


def further_votes(out: Path, to: Path) -> None:
    """Let all annotators vote on the pairs that were asked for."""
    voting.vote(out / "to-label.jsonl", None, to.with_name("page-2"), to, data.worth())


def aggregate(votes: Path, to: Path) -> None:
    """Write one preference per pair, with annotators weighted by the gold rows and pairs by their certainty."""
    afzal("aggregate", votes, "--by", "gold", "--labels", "weighted", "--out", to)


def agreement(votes: Path, to: Path) -> None:
    """Write the report on the annotators."""
    afzal("aggregate", votes, "--by", "gold", "--page", to)
    (to / "aggregate.json").write_text(afzal("aggregate", votes, "--by", "gold", "--json"), "utf-8")


def ask(out: Path, to: Path, size: data.Size) -> None:
    """Choose the pairs to vote on next, by D-optimality."""
    pool, known = out / "data" / "pool.jsonl", out / "aggregated-1.jsonl"
    afzal("ask", pool, "--n", str(size.more), "--votes", known, "--out", to)


def joined(out: Path, to: Path) -> None:
    """Write both rounds of votes into one file."""
    to.write_bytes((out / "votes-1.jsonl").read_bytes() + (out / "votes-2.jsonl").read_bytes())


def train(method: str, rows: Path, to: Path, size: data.Size) -> None:
    """SFT on the preferred answers, or DPO on the pairs; the number of rows does not change the number of updates."""
    settings = _SFT if method == "sft" else _DPO
    common = {"model": str(start()), "data": str(rows), "out": str(to), "eval_fraction": 0, "batch_size": 16}
    length = {"epochs": 2 * size.updates, "max_steps": size.updates if method == "dpo" else max(1, size.updates // 4)}
    recipes.train(config.make(method, **common, **settings, **length, device="cpu", save_every_minutes=0))


def answer(name: str, out: Path, to: Path, size: data.Size) -> None:
    """Sample a model's answers to the held-out openings."""
    model = start() if name == "start" else out / name
    wanted = {"model": str(model), "prompts": str(out / "data" / "held-out.jsonl"), "n": size.answers, "out": str(to)}
    settings = {**wanted, "max_new_tokens": _TOKENS, "batch_size": 256}
    generate(config.build(config.GenerateConfig, [config.Setting(k, v) for k, v in settings.items()]))
