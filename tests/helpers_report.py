"""Realistic run folders: metrics with noise, samples, losses, audit, configuration."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

Record = dict[str, Any]
LN2 = math.log(2)
STAGES = ("before", "after")


def dpo_metrics(
    seed: int = 0,
    *,
    steps: int = 96,
    every: int = 10,
    n: int = 189,
    margin: Callable[[float], float] = lambda t: 1.5 * (1 - math.exp(-3 * t)),
    held_out_margin: Callable[[float], float] | None = None,
    accuracy: Callable[[float], float] = lambda t: 0.5 + 0.36 * (1 - math.exp(-6 * t)),
    train_accuracy: Callable[[float], float] | None = None,
    loss: Callable[[float], float] = lambda t: LN2 - 0.25 * (1 - math.exp(-4 * t)),
    held_out_loss: Callable[[float], float] | None = None,
    chosen_fall: Callable[[float], float] = lambda t: 10 * t,
    gap: Callable[[float], float] = lambda t: 15 * t,
    kl: Callable[[float], float] = lambda t: 6 * t,
    length: Callable[[float], float] = lambda t: 47.0 + t,
    eos: Callable[[float], float] = lambda t: 0.9,
    grad: Callable[[float], float] = lambda t: 3.0,
    tokens: float = 48.0,
    noise: float = 1.0,
) -> list[Record]:
    """Metrics of a preference run; every curve is a function of the share of training done, 0 to 1."""
    rng = random.Random(seed)
    held_out_margin, held_out_loss = held_out_margin or margin, held_out_loss or loss
    train_accuracy = train_accuracy or accuracy
    lines: list[Record] = []
    for step in range(steps + 1):
        t = step / steps
        if step:
            before = (step - 1) / steps  # a step's metrics describe the weights before its update
            lines.append(
                _train_line(rng, step, before, (loss, margin, train_accuracy, chosen_fall, gap, grad), tokens, noise)
            )
        if step % every == 0 or step == steps:
            a, m = accuracy(t), held_out_margin(t)
            low, high = _wilson(a, n)
            lines.append(
                {"kind": "eval", "step": step, "seconds": step * 0.4, "n": float(n), "loss": held_out_loss(t)}
                | {"rewards/accuracies": a, "rewards/accuracies_low": low, "rewards/accuracies_high": high}
                | {"rewards/margins": m, "rewards/chosen": m - 0.05 * gap(t), "rewards/rejected": -0.05 * gap(t)}
                | {"logps/chosen": -94.0 - chosen_fall(t), "logps/rejected": -95.0 - chosen_fall(t) - gap(t)}
                | {"lengths/chosen": tokens, "lengths/rejected": tokens - 1}
                | {"kl": kl(t), "kl_se": 0.08 * kl(t), "samples/length": length(t), "samples/eos_rate": eos(t)}
            )
    return lines


def _train_line(rng: random.Random, step: int, t: float, curves: tuple, tokens: float, noise: float) -> Record:
    loss, margin, accuracy, chosen_fall, gap, grad = curves
    jitter = noise if t > 0 else 0.0
    value = loss(t) * math.exp(rng.gauss(0, 0.08 * jitter))
    hits = sum(rng.random() < accuracy(t) for _ in range(16)) / 16 if noise else accuracy(t)
    m = margin(t) + rng.gauss(0, 0.15 * jitter)
    chosen = -94.0 - chosen_fall(t) + rng.gauss(0, 4 * noise)
    return (
        {"kind": "train", "step": step, "epoch": step / 32, "seconds": step * 0.37, "tokens": 1560 * step}
        | {"examples": 16 * step, "lr": 1e-4 * min(1.0, step / 9) * (1 - max(0.0, step - 9) / 200), "loss": value}
        | {"grad_norm": grad(t) * math.exp(rng.gauss(0, 0.25 * noise)), "rewards/margins": m}
        | {"rewards/chosen": m - 0.05 * gap(t), "rewards/rejected": -0.05 * gap(t), "rewards/accuracies": hits}
        | {"logps/chosen": chosen, "logps/rejected": chosen - 1 - gap(t), "lengths/chosen": tokens}
        | {"lengths/rejected": tokens - 1}
    )


def kto_metrics(seed: int = 0, *, steps: int = 80, every: int = 8) -> list[Record]:
    """Metrics of a healthy KTO run: single responses, no accuracy."""
    rng = random.Random(seed)
    lines: list[Record] = []
    for step in range(steps + 1):
        t = step / steps
        good, bad = 0.6 * (1 - math.exp(-3 * t)), -0.9 * (1 - math.exp(-3 * t))
        loss = 0.5 - 0.13 * (1 - math.exp(-3 * t))
        both = {
            "rewards/chosen": good,
            "rewards/rejected": bad,
            "logps/chosen": -90 + 6 * t,
            "logps/rejected": -92 - 9 * t,
        }
        both |= {"lengths/chosen": 44.0, "lengths/rejected": 43.0, "kl_estimate": 0.4 * t}
        if step:
            first = 1.0 if step == 1 else math.exp(rng.gauss(0, 0.04))
            lines.append(
                {"kind": "train", "step": step, "epoch": step / 40, "seconds": step * 0.5, "tokens": 900 * step}
                | {"examples": 16 * step, "lr": 1e-4, "loss": (0.5 if step == 1 else loss * first)}
                | {"grad_norm": math.exp(rng.gauss(0, 0.2))}
                | both
            )
        if step % every == 0:
            sampled = {"kl": 2.2 * t, "kl_se": 0.2, "samples/length": 44.0, "samples/eos_rate": 0.8}
            lines.append(
                {"kind": "eval", "step": step, "seconds": step * 0.5, "n": 189.0, "loss": loss} | both | sampled
            )
    return lines


def sft_metrics(seed: int = 0, *, steps: int = 120, every: int = 12) -> list[Record]:
    """Metrics of a healthy SFT run: nats per token."""
    rng = random.Random(seed)
    lines: list[Record] = []
    for step in range(steps + 1):
        t = step / steps
        loss = 1.9 - 0.7 * (1 - math.exp(-4 * t))
        if step:
            noisy = loss * math.exp(rng.gauss(0, 0.05))
            lines.append(
                {"kind": "train", "step": step, "epoch": step / 60, "seconds": step * 0.3, "tokens": 2000 * step}
                | {
                    "examples": 32 * step,
                    "lr": 2e-5 * (1 - t),
                    "loss": noisy,
                    "grad_norm": 1.2 * math.exp(rng.gauss(0, 0.2)),
                }
                | {"logps/chosen": -noisy * 60, "lengths/chosen": 60.0}
            )
        if step % every == 0:
            held_out = loss + 0.05
            lines.append(
                {"kind": "eval", "step": step, "seconds": step * 0.3, "n": 189.0, "loss": held_out}
                | {"perplexity": math.exp(held_out), "logps/chosen": -held_out * 60, "lengths/chosen": 60.0}
                | {"samples/length": 58.0, "samples/eos_rate": 0.9}
            )
    return lines


def facts(method: str = "dpo", **changes: Any) -> Record:
    """Contents of run.json."""
    at_reference = {"dpo": LN2, "kto": 0.5, "ipo": 25.0}.get(method)
    defaults = {
        "afzal": "0.1.0",
        "method": method,
        "status": "finished",
        "command": f"afzal train {method} --model models/stories260k --data stories_valence_pairs.jsonl --lr 1e-4",
        "started": "2026-05-04T10:00:00+00:00",
        "finished": "2026-05-04T10:00:37+00:00",
        "seconds": 36.9,
        "step": 96,
        "steps": 96,
        "versions": {"afzal": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": {"machine": "x86_64", "cpu": "Xeon", "cpus": 2, "memory_bytes": 8 << 30, "gpus": []},
        "model": {
            "path": "models/stories260k/",
            "parameters": 260032,
            "trainable": 260032,
            "architecture": "LlamaForCausalLM",
        },
        "reference": "frozen copy of the starting weights" if method != "sft" else "none",
        "data": {
            "source": "stories_valence_pairs.jsonl",
            "format": "preference_text",
            "rows": 686,
            "kept": 679,
            "dropped": {"identical_pair": 4, "empty_response": 3},
            "cut": {"over_long": 11},
            "train": 490,
            "eval": 189,
            "fingerprint": "9f2c" * 16,
        },
        "objective": {"name": method, "params": {} if method == "sft" else {"beta": 0.1}, "at_reference": at_reference},
        "seed": 0,
        "stop_reason": "finished",
    }
    return {**defaults, **changes}


def config(method: str = "dpo", **changes: Any) -> Record:
    """Contents of run.yaml."""
    defaults = {
        "method": method,
        "model": "models/stories260k",
        "data": "stories_valence_pairs.jsonl",
        "out": "runs/stories",
    }
    defaults |= {
        "lr": 1e-4,
        "batch_size": 16,
        "epochs": 3.0,
        "max_grad_norm": 10.0,
        "seed": 0,
        "sample_temperature": 1.0,
    }
    return {**defaults, **({} if method == "sft" else {"beta": 0.1}), **changes}


def samples(
    n: int = 8, *, prompt: str = "", text: str = "", stages: tuple[str, ...] = ("before", "after")
) -> list[Record]:
    """Contents of samples.jsonl: short stories."""
    openings = (
        "One day, a little girl",
        "Tim and his dog",
        "The old tree in the park",
        "Lily wanted to bake",
        "A bird sat",
    )
    ends = {
        "before": " was sad. The rain did not stop and the toy was broken. Nobody came, so they had to walk home.",
        "after": " was so happy! The sun was shining and they laughed and played with all of their friends.",
    }
    return [
        {
            "stage": stage,
            "step": 0 if stage == "before" else 96,
            "prompt": prompt or f"{openings[k % 5]}",
            "completion": text or ends[stage],
            "tokens": 44 + (7 * k) % 9,
            "stop": "eos" if k % 5 else "length",
            "prompt_id": f"row-{k}",
        }
        for stage in stages
        for k in range(n)
    ]


def audit() -> Record:
    """Contents of data.json."""
    findings = [
        ("identical_pairs", "ok", "0 of 679 pairs have chosen == rejected", ""),
        (
            "length_bias",
            "minor",
            "the longer answer is preferred in 69.2% of 483 pairs",
            "watch the lengths of samples",
        ),
    ]
    return {
        "audit": {
            "rows": 686,
            "items": 679,
            "ties": 0,
            "characters": {"prompt": {"median": 50, "max": 91}},
            "findings": [{"code": c, "severity": s, "message": m, "remedy": r} for c, s, m, r in findings],
        },
        "notes": ["prompt is the field 'prompt'", "chosen is the field 'chosen'"],
    }


def losses() -> list[Record]:
    """Contents of dropped.jsonl."""
    rows = [("identical_pair", "audit", "dropped")] * 4 + [("empty_response", "read", "dropped")] * 3
    rows += [("over_long", "encode", "cut")] * 11
    return [
        {"where": f"pairs.jsonl:{k + 3}", "item_id": f"row-{k}", "reason": r, "detail": "", "stage": s, "action": a}
        for k, (r, s, a) in enumerate(rows)
    ]


def write_run(folder: Path, method: str = "dpo", metrics: list[Record] | None = None, **parts: Any) -> Path:
    """A run folder. ``parts`` replace facts, config, samples, audit or losses; None leaves the file out."""
    makers = {"dpo": dpo_metrics, "kto": kto_metrics, "sft": sft_metrics}
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "facts": facts(method),
        "config": config(method),
        "samples": samples(),
        "audit": audit(),
        "losses": losses(),
    }
    content |= parts
    _json(folder / "run.json", content["facts"])
    _json(folder / "data.json", content["audit"])
    _lines(folder / "metrics.jsonl", makers[method]() if metrics is None else metrics)
    _lines(folder / "samples.jsonl", content["samples"])
    _lines(folder / "dropped.jsonl", content["losses"])
    if content["config"] is not None:
        (folder / "run.yaml").write_text(yaml.safe_dump(content["config"], sort_keys=False), "utf-8")
    return folder


def stopped_run(folder: Path) -> Path:
    """A run interrupted at step 40 of 96, its last metrics line torn."""
    metrics = [m for m in dpo_metrics() if m["step"] <= 40]
    told = facts(status="stopped", stop_reason="SIGTERM", step=40, finished="2026-05-04T10:00:16+00:00")
    write_run(folder, metrics=metrics, facts=told, samples=samples(stages=("before",)))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 41, "lo')
    return folder


def empty_run(folder: Path) -> Path:
    """A run that failed before its first step: only facts."""
    told = facts(status="failed", stop_reason="AfzalError: no such model", step=0)
    del told["data"], told["model"]
    return write_run(folder, metrics=[], facts=told, config=None, samples=None, audit=None, losses=None)


def comparison() -> dict[str, Any]:
    """Contents of ``compare.json`` for two methods."""
    figure = lambda v: {"value": v, "low": v - 0.1, "high": v + 0.1, "n": 2}  # noqa: E731
    total = {"sum": 4.0, "count": 2, "mean": 2.0}
    cost = {"seconds": 1.0, "tokens": 10, "generated": 0}
    point = {"seed": 0, "step": 5, "rewards": {"gold": total}, "reward_se": 0.1, "kl": total, "kl_se": 0.1}
    point |= {"tokens": total, "unended": total, "gain": figure(1.0), "win": figure(0.5), "drawn_per_answer": 2.0}
    point |= {"cost": cost}

    def figures(kl: float, gold: float) -> dict[str, Any]:
        names = (
            "gain",
            "win",
            "tokens",
            "unended",
            "drawn_per_answer",
            "seconds",
            "trained_tokens",
            "generated_tokens",
        )
        return {"seeds": 2, "steps": [5, 5], "rewards": {"gold": figure(gold)}, "kl": figure(kl)} | {
            n: figure(0.5) for n in names
        }

    curve = [{"step": 0, **figures(0.0, 1.0)}, {"step": 5, **figures(2.0, 3.0)}]
    one = {"name": "a", "label": "A & <i>", "kind": "train", "needs": [], "kl_is_bound": False, "points": [point]}
    one |= {"curve": curve, "judged": figures(2.0, 3.0), "turned": []}
    one |= {"matched": [{"kl": 1.0, "reached": 2, "of": 2, **figure(2.0)}]}
    other = {**one, "name": "b", "label": "B", "matched": [{"kl": 1.0, "reached": 2, "of": 2, **figure(2.05)}]}
    return {
        "rewards": ["gold"],
        "seeds": [0, 1],
        "prompts": 2,
        "matched_kl": [1.0],
        "start": figures(0.0, 1.0),
        "start_points": [{**point, "step": 0}],
        "methods": [one, other],
        "differences": [{"kl": 1.0, "ours": "a", "theirs": "b", "value": -0.05, "low": -0.11, "high": 0.01, "n": 2}],
        "wins": [{"ours": "a", "theirs": "start", **figure(0.6)}],
        "judges": [],
        "judge_agreement": [],
        "samples": [
            {
                "prompt": "p",
                "answers": [
                    {"label": "A", "text": "<script>x</script>", "rewards": {"gold": 1.0}, "tokens": 3, "unended": True}
                ],
            }
        ],
        "settings": {"model": "m", "samples": 1, "sample_tokens": 4, "temperature": 1.0},
        "runs": {},
        "versions": {},
        "hardware": {},
    }


def _wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def _json(path: Path, value: Mapping[str, Any] | None) -> None:
    if value is not None:
        path.write_text(json.dumps(value), "utf-8")


def _lines(path: Path, rows: list[Record] | None) -> None:
    if rows is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
