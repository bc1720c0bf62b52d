"""Shared parts of the experiments on the enumerable language: the start, labels, cached runs, figures, plots."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from afzal import config, recipes, runs
from afzal.data.native import to_row
from afzal.errors import AfzalError
from afzal.lab import exact, language
from afzal.records import Item, Rating, Response
from afzal.report import svg
from afzal.train import checkpoint
from benchmarks.machine import processor

TRAIN, HELD_OUT = language.prompts()
REWARDS, TRAIN_REWARDS = language.reward(HELD_OUT), language.reward(TRAIN)
DEMONSTRATIONS = 20_000

Labels = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Map reward gaps ``[T]`` (first minus second response) to the probability ``[T]`` that the first is better."""


def fives(prompt: str, answer: str) -> float:
    """A black-box cost: the number of fives in an answer."""
    return float(answer.count("5"))


CHANCE = random.Random(0)
"""Random numbers for :func:`vote`; seed it to get the same votes again."""


def vote(prompt: str, answer: str) -> float:
    """The gold reward plus Gumbel noise: the higher of two values wins a Bradley-Terry vote."""
    return language.gold(prompt, answer) - math.log(-math.log(CHANCE.random()))


@dataclass(frozen=True)
class World:
    """The start of all runs, and its log-probs ``[X, Y]`` on held-out and on training prompts."""

    out: Path
    sft: Path
    log_ref: np.ndarray
    log_ref_train: np.ndarray


def make_world(out: Path, sft_steps: int) -> World:
    """The supervised start in ``out/runs``, trained if missing."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    start = out / "runs" / "start"
    if not (start / "config.json").exists():
        language.save_model(start)
    items = language.sft_items(TRAIN, DEMONSTRATIONS, np.random.default_rng(0))
    data = write(items, out, "demonstrations")
    schedule = {"lr": 3e-3, "warmup": 50, "batch_size": 128, "lr_schedule": "linear"}
    sft = train(out, "sft", start, data, "sft", steps=sft_steps, rows=DEMONSTRATIONS, **schedule)
    return World(out, sft, policy(sft), policy(sft, prompts=TRAIN))


def train(
    out: Path, method: str, model: Path, data: Path, name: str, *, steps: int, rows: int, **settings: Any
) -> Path:
    """The run ``out/runs/name`` on ``rows`` rows: trained by the ordinary recipe, or reused as in :func:`made`."""
    size = settings.get("batch_size", 64)
    length = {"max_steps": steps, "epochs": 1 + steps * size / rows, "warmup": 30, "batch_size": size}
    return made(out, method, model, data, name, **{**length, **settings})


def made(out: Path, method: str, model: Path, data: Path, name: str, **overrides: Any) -> Path:
    """The run ``out/runs/name`` with these settings: trained, or reused if it finished with the same settings.

    Raises:
        AfzalError: it exists with other settings.
    """
    common = {"lr": 5e-4, "lr_schedule": "constant", "eval_fraction": 0.0, "device": "cpu"}
    where = {"model": str(model), "data": str(data), "out": str(out / "runs" / name)}
    language_settings = {k: v for k, v in language.SETTINGS.items() if method != "reward" or k != "sample_tokens"}
    settings = config.make(method, **{**language_settings, **common, **overrides, **where})
    folder = Path(settings.out)
    return folder if finished(folder, settings.model_dump(mode="json")) else recipes.train(settings)


def finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a run with these settings has finished there; an unfinished run is deleted.

    Raises:
        AfzalError: a finished run has other settings.
    """
    if not (folder / "run.json").exists():
        return False
    run = runs.open_run(folder)
    if run.status() != "finished":
        shutil.rmtree(folder)
        return False
    before = run.facts()["config"]
    if different := sorted(k for k in settings if before.get(k) != settings[k]):
        raise AfzalError(f"{folder} is a run with other {', '.join(different)}", remedy="use another folder")
    return True


def policy(folder: Path, step: int | None = None, prompts: np.ndarray = HELD_OUT) -> np.ndarray:
    """Log-probs ``[X, Y]`` of a run's model, at the end or at a checkpoint."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if step is not None:
        saved = checkpoint.load(folder / "checkpoints" / f"step-{step:08d}")[0]["model"]
        model.load_state_dict(
            {name: saved[name] for name in model.state_dict()}
        )  # the checkpoint may also contain a value model
    return exact.log_policy(model, prompts)


def pairs(world: World, seed: int, n: int, labels: Labels, name: str) -> Path:
    """``n`` pairs of the reference's responses with labels from their reward gaps."""
    rng = np.random.default_rng(100 + seed)
    drawn = language.sample_pairs(np.exp(world.log_ref_train), n, rng)
    gaps = TRAIN_REWARDS[drawn[0], drawn[1]] - TRAIN_REWARDS[drawn[0], drawn[2]]
    return write(language.pair_items(TRAIN, drawn, labels(gaps, rng)), world.out, f"{name}-{seed}")


def rankings(world: World, seed: int, n: int, k: int) -> Path:
    """``n`` prompts with ``k`` different responses, ranked by a Plackett-Luce draw on the gold reward."""
    rng = np.random.default_rng(200 + seed)
    items: list[Item] = []
    while len(items) < n:
        x = int(rng.integers(len(TRAIN)))
        drawn = np.unique(language.sample(np.exp(world.log_ref_train), np.full(k, x), rng))
        if len(drawn) < k:
            continue
        order = np.argsort(-(TRAIN_REWARDS[x, drawn] + rng.gumbel(size=k)))
        votes = tuple(Rating(int(which), float(place), "rank") for place, which in enumerate(order))
        texts = tuple(Response(language.response_text(language.RESPONSES[y])) for y in drawn)
        items.append(Item(f"rank-{len(items)}", language.prompt_text(TRAIN[x]), texts, votes))
    return write(items, world.out, f"rankings-{seed}")


def write(items: Sequence[Item], out: Path, name: str) -> Path:
    """Write ``out/runs/name.jsonl``; an existing file must have the same content, since runs depend on it.

    Raises:
        AfzalError: it has other content.
    """
    path, text = out / "runs" / f"{name}.jsonl", "".join(json.dumps(to_row(item)) + "\n" for item in items)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise AfzalError(f"{path} holds other data than would be written now", remedy="use another folder")
    runs.atomic_write(path, text)
    return path


def about(command: str, minutes: float, cores: int = 1) -> dict[str, Any]:
    """Metadata of the figures: command, time, machine and versions."""
    return {
        "date": date.today().isoformat(),
        "command": command,
        "minutes": round(minutes, 1),
        "cores": cores,
        "load": round(os.getloadavg()[2], 1),
        "processor": processor(),
        "python": python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def about_line(facts: dict[str, Any]) -> str:
    """The metadata as a sentence."""
    return (
        f"{facts['date']}, {facts['cores']} core(s) of {facts['processor']}, one thread per run; Python "
        f"{facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}; {facts['minutes']:.0f} "
        f"minutes at a load of {facts['load']:g}, not counting reused runs. Made by "
        f"`{facts['command']}`."
    )


Points = Sequence[tuple[float, Sequence[float]]]
"""For each x, the values of all seeds."""


def bands(lines: Sequence[tuple[str, Points]]) -> list[svg.Series]:
    """Means over the seeds, with bands from the lowest to the highest."""
    return [
        svg.Series(
            name,
            tuple((x, float(np.mean(v))) for x, v in points),
            colour=k,
            low=tuple(min(v) for _, v in points),
            high=tuple(max(v) for _, v in points),
            label=f"{name} " if len(lines) > 1 else "",  # the space leaves room for wide letters
        )
        for k, (name, points) in enumerate(lines)
    ]


def plot(
    lines: Sequence[tuple[str, Points]],
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    rules: Sequence[svg.Rule] = (),
) -> None:
    """Draw :func:`bands` into an SVG file."""
    drawing = svg.line_chart(bands(lines), title=title, x_label=x_label, y_label=y_label, rules=rules)
    path.write_text(svg.standalone(drawing), encoding="utf-8")
