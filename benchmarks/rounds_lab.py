"""Compare settings of `afzal iterate` on the enumerable language, where reward, KL and optimum are exact.

    python benchmarks/rounds_lab.py OUT [--seeds 3] [--only NAME,...]

Three rounds on the same 160 prompts from one SFT policy, for several settings. Writes ``OUT/rounds-lab.json``, and
prints a line per run. One thread. Figures are exact means over 32 held-out prompts; the file also contains the run's
own estimates of reward, KL and win rate.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afzal import config, recipes
from afzal.config import IterateConfig, Setting
from afzal.iterate import iterate
from afzal.lab import exact, language

TRAIN, HELD_OUT = language.prompts()
REWARDS = language.reward(HELD_OUT)
GOLD = "afzal.lab.language:gold"
VOTES = f"{Path(__file__).resolve()}:votes"

_ONE = {"objective_arg": {"beta": 1.0}, "epochs": 20.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "initial": {},
    "initial accumulated": {"accumulate": True},
    "previous": {"reference": "previous"},
    "previous beta x 3": {"reference": "previous", "objective_arg": {"beta": 0.6}},
    "one round as long": {"rounds": 1, "epochs": 36.0},
    "best and worst": {"pairing": "best_worst"},
    "votes initial": {"reward": VOTES, "watch_reward": GOLD},
    "votes previous": {"reward": VOTES, "watch_reward": GOLD, "reference": "previous"},
    "votes initial beta 1": {**_ONE, "reward": VOTES, "watch_reward": GOLD},
    "votes previous beta 1": {**_ONE, "reward": VOTES, "watch_reward": GOLD, "reference": "previous"},
    "rso": {"pairing": "rso", "rso_beta": 0.5, "rso_accepted": 8, "n": 32, "objective": "hinge", "objective_arg": {}},
    "spin": {"pairing": "spin", "n": 4, "reference": "previous", "epochs": 2.0},
}


_CHANCE = random.Random(0)  # restarts with every run, which loads this file


def votes(prompt: str, answer: str) -> float:
    """The gold reward plus fresh Gumbel noise: the first of two answers wins with probability sigmoid(r1 - r2),
    which is a Bradley-Terry vote (Luce 1959)."""
    return language.gold(prompt, answer) - math.log(-math.log(_CHANCE.random()))


def sft(out: Path) -> Path:
    """The policy that every run starts from."""
    start = language.save_model(out / "start")
    rows = language.sft_items(TRAIN, 20_000, np.random.default_rng(0))
    data = language.write_demonstrations(rows, out / "demonstrations.jsonl")
    size = {"batch_size": 128, "max_steps": 600, "epochs": 5.0, "lr": 3e-3, "warmup": 50, "eval_fraction": 0.0}
    where = {"model": str(start), "data": str(data), "out": str(out / "sft"), "device": "cpu"}
    return recipes.train(config.make("sft", **where, **language.SETTINGS, **size))


def rounds(out: Path, name: str, seed: int, start: Path) -> list[dict[str, Any]]:
    """Exact figures of every round of one run, and the run's own estimates."""
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    settings: dict[str, Any] = {"model": str(start), "prompts": str(out / "prompts.jsonl"), "out": str(folder)}
    settings |= {"held_out_prompts": str(out / "held-out.jsonl"), "held_out_samples": 16, "reward": GOLD, "seed": seed}
    settings |= {"prompts_per_round": len(TRAIN), "reuse_prompts": True, "n": 8, "max_new_tokens": 4, "max_tokens": 8}
    settings |= {"eos_token": ".", "require_eos": False, "device": "cpu", "eval_fraction": 0.0, "pairing": "all"}
    settings |= {"batch_size": 32, "lr": 5e-4, "lr_schedule": "constant", "warmup": 10, "epochs": 12.0}
    settings |= {"objective_arg": {"beta": 0.2}} | VARIANTS[name]
    if name == "spin":
        settings["prompts"] = str(out / "few-demonstrations.jsonl")
    iterate(config.build(IterateConfig, [Setting(k, v) for k, v in settings.items()]))
    log_ref = policy(start)
    rows = []
    for r in json.loads((folder / "rounds.json").read_text())["rounds"]:
        e = exact.evaluate(policy(folder / r["policy"]) if r["policy"] else log_ref, log_ref, REWARDS)
        about = {"name": name, "seed": seed, "round": r["number"], "pairs": r["pairs"], "steps": r["steps"]}
        estimates = {f"{key}_estimate": [r[key]["mean"], r[key]["se"]] for key in ("reward", "kl", "win_rate")}
        about |= {"reward": e.reward, "kl": e.kl, "optimal": e.optimal, "share": e.share, "win_rate": e.win_rate}
        rows.append(about | estimates)
    return rows


def policy(folder: Path) -> np.ndarray:
    """All log-probabilities of a saved model on the held-out prompts, ``[X, Y]``."""
    from transformers import AutoModelForCausalLM

    return exact.log_policy(AutoModelForCausalLM.from_pretrained(folder), HELD_OUT)


def write_prompts(out: Path) -> None:
    """Write the prompts, and ten demonstrations per prompt for self-play."""
    for name, prompts in (("prompts", TRAIN), ("held-out", HELD_OUT)):
        rows = [{"prompt": language.prompt_text(x)} for x in prompts]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = language.sft_items(TRAIN, 1600, np.random.default_rng(5))
    end = language.VOCABULARY[
        language.EOS
    ]  # an empty answer of the policy would be rejected, so an empty one must not win
    rows = [row for row in rows if row.responses[0].turns != end]
    language.write_demonstrations(rows, out / "few-demonstrations.jsonl")


def main() -> None:
    """Run every variant with every seed, and print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    write_prompts(options.out)
    start = options.out / "sft" if (options.out / "sft" / "config.json").exists() else sft(options.out)
    rows: list[dict[str, Any]] = []
    for name in options.only.split(","):
        for seed in range(options.seeds):
            made = rounds(options.out, name, seed, start)
            rows += made
            path = " -> ".join(f"{r['reward']:.2f}@{r['kl']:.2f} [{r['optimal']:.2f}]" for r in made)
            print(f"{name}, seed {seed}: {path}", flush=True)
            (options.out / "rounds-lab.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
