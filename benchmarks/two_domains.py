"""Two real domains, one model: does training on both match training on each alone, within the interval?

    python -m benchmarks.two_domains OUT --page benchmarks/results/tasks    # about 15 minutes of processor time
    python -m benchmarks.two_domains OUT --quick                            # a few updates: does it run?

The domains are HH-RLHF's harmless dialogues and pairs of stories ordered by word valence; the model is stories260k. DPO
learns from one file alone, or from a mixture of both with temperature 2; ``group_dpo`` learns from the same mixture. A
run alone makes enough updates to see as many examples of its task as the mixture has. Runs are compared as judges of
the held-out pairs, by their implicit rewards: ``afzal judge`` with ``policy:RUN``. Running the command again resumes a
stopped run. Needs the folder ``shared/data`` next to the checkout, or AFZAL_SHARED.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afzal import data
from afzal.data.mixture import mixture_of
from afzal.data.turns import full_text
from afzal.records import Comparison, Item, prompt_key
from afzal.stats.intervals import Interval
from afzal.stats.policy_comparison import over_seeds_and_prompts
from afzal.text import interval, number
from benchmarks.machine import about_run
from benchmarks.people.steps import afzal, start
from benchmarks.sentiment import valence
from benchmarks.stages import Stage, make_all

TASKS = ("harmless", "stories")
FILES = {"harmless": "pref/hh_rlhf_harmless_a.jsonl.gz", "stories": "derived/stories_valence_pairs.jsonl"}
TOGETHER = ("mixed", "group_dpo")
_LONGEST = 600  # characters of a dialogue with both answers: the model has 512 positions of about 1.7 characters
_HELD_OUT, _TEMPERATURE, _BATCH = 0.4, 2, 16
_COMMON = ["--lr", "3e-4", "--lr-schedule", "constant", "--warmup", "0", "--device", "cpu"]
_MIX = """\
sources:
  - {{data: harmless-{part}.jsonl, task: harmless}}
  - {{data: stories-{part}.jsonl, task: stories}}
temperature: {temperature}
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the runs and the verdicts")
    parser.add_argument("--page", type=Path, help="folder for two-domains.json and .md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--quick", action="store_true", help="a few updates and pairs, one seed")
    options = parser.parse_args(argv)
    seeds, updates, most = ([0], 4, 24) if options.quick else (options.seeds, 80, 10_000)
    make_all(options.out, [Stage("data", lambda to: write_data(to, most))])
    make_all(options.out, stages(options.out, seeds, updates))
    results = figures(options.out, seeds, updates)
    if options.page:
        options.page.mkdir(parents=True, exist_ok=True)
        (options.page / "two-domains.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (options.page / "two-domains.md").write_text("\n".join(page(results)) + "\n", "utf-8")
    print("\n".join(page(results)))


def write_data(to: Path, most: int) -> None:
    """Write each task's training and held-out pairs, which share no dialogue opening, and the two mixtures."""
    to.mkdir(parents=True)
    for task in TASKS:
        items = [i for i in data.read(valence.shared() / FILES[task]).items if _characters(i) <= _LONGEST][:most]
        for part, rows in zip(("train", "test"), data.split(items, _HELD_OUT, 0), strict=True):
            data.write(rows, to / f"{task}-{part}.jsonl", "afzal")
    for part in ("train", "test"):
        (to / f"mix-{part}.yaml").write_text(_MIX.format(part=part, temperature=_TEMPERATURE), "utf-8")


def _characters(item: Item) -> int:
    return sum(len(full_text(turns)) for turns in (item.prompt, *(r.turns for r in item.responses)))


def stages(out: Path, seeds: Sequence[int], updates: int) -> list[Stage]:
    """The runs of every seed, then the verdicts of all runs on each task's held-out pairs."""
    alone = updates_alone(out, updates)
    names = [f"{kind}-{seed}" for seed in seeds for kind in (*TASKS, *TOGETHER)]

    def trained(name: str) -> Stage:
        kind, _, seed = name.rpartition("-")
        return Stage(f"runs/{name}", lambda to: train(out, kind, to, int(seed), alone.get(kind, updates)))

    judged = [Stage(f"judged-{task}", lambda to, task=task: judge(out, task, names, to)) for task in TASKS]
    return [*map(trained, names), *judged]


def updates_alone(out: Path, updates: int) -> dict[str, int]:
    """By task, the updates for a run on that task alone to see as many of its examples as in the mixture."""
    sizes = {task: len(data.read(out / "data" / f"{task}-train.jsonl").items) for task in TASKS}
    shares = mixture_of(out / "data" / "mix-train.yaml").shares(sizes)
    return {task: max(1, round(updates * share)) for task, share in shares.items()}


def train(out: Path, kind: str, to: Path, seed: int, updates: int) -> None:
    """``afzal train`` on one task's file, or on the mixture with held-out figures by task."""
    method = ["prefer", "--objective", "group_dpo"] if kind == "group_dpo" else ["dpo", "--beta", "0.1"]
    source = f"{kind}-train.jsonl" if kind in TASKS else "mix-train.yaml"
    held_out = [] if kind != "mixed" else ["--eval-data", out / "data" / "mix-test.yaml"]
    rare = ["--eval-every-steps", str(max(1, updates // 2))] if held_out else ["--eval-fraction", "0"]
    size = ["--batch-size", str(_BATCH), "--epochs", "200", "--max-steps", str(updates), "--seed", str(seed)]
    about = ["--model", start(), "--data", out / "data" / source, "--out", to]
    afzal("train", *method, *about, *held_out, *rare, *size, *_COMMON)


def judge(out: Path, task: str, names: Sequence[str], to: Path) -> None:
    """Use every run as a judge of the held-out pairs, by its implicit reward relative to the start."""
    judges = [word for name in names for word in ("--judge", f"policy:{out / 'runs' / name}")]
    afzal("judge", out / "data" / f"{task}-test.jsonl", *judges, "--out", to)


def figures(out: Path, seeds: Sequence[int], updates: int) -> dict[str, Any]:
    """Accuracy of each run on each task over seeds and prompts, and the joint runs' difference from the run alone."""
    tasks = {}
    for task in TASKS:
        right = {kind: [] for kind in (*TASKS, *TOGETHER)}
        rows = data.read(out / f"judged-{task}" / "rows.jsonl").items
        for kind, shares in right.items():
            shares += [ordered_right(rows, f"{kind}-{seed}") for seed in seeds]
        alone = np.array(right[task])
        tasks[task] = {
            "trained on": len(data.read(out / "data" / f"{task}-train.jsonl").items),
            "held out": alone.shape[1],
            "updates alone": updates_alone(out, updates)[task],
            "runs": [
                compared("alone" if kind == task else kind, np.array(right[kind]), alone) for kind in (task, *TOGETHER)
            ],
            "other": plain(over_seeds_and_prompts(np.array(right[TASKS[1 - TASKS.index(task)]]))),
        }
    about = {"seeds": list(seeds), "updates": updates, "batch": _BATCH, "temperature": _TEMPERATURE}
    ran = about_run("benchmarks.two_domains", ("afzal", "torch", "transformers"), threads=1)
    return {**about, "run": ran, "tasks": tasks}


def ordered_right(rows: Sequence[Item], judge: str) -> list[float]:
    """By prompt, the share of pairs that a judge orders as the data's label does; in order of appearance."""
    prompts: dict[str, list[float]] = {}
    for item in rows:
        votes = [v for v in item.votes if isinstance(v, Comparison)]
        (truth,) = (v for v in votes if v.annotator is None)
        (verdict,) = (v for v in votes if v.annotator == judge)
        hit = 0.5 if verdict.outcome == "tie" else float(verdict.outcome == truth.outcome)
        prompts.setdefault(prompt_key(item), []).append(hit)
    return [float(np.mean(hits)) for hits in prompts.values()]


def compared(name: str, ours: np.ndarray, alone: np.ndarray) -> dict[str, Any]:
    """Accuracy over ``[S, X]`` seeds and prompts, and its paired difference from the runs alone.

    A task is lost if the whole interval of the difference is below 0, and gained if it is above.
    """
    accuracy, less = over_seeds_and_prompts(ours), over_seeds_and_prompts(ours - alone)
    low, high = (less.low or 0.0, less.high or 0.0) if name != "alone" else (0.0, 0.0)
    verdict = "lost" if high < 0 else "gained" if low > 0 else "within its interval"
    row = {"run": name, "accuracy": plain(accuracy)}
    return row if name == "alone" else {**row, "less alone": plain(less), "verdict": verdict}


def plain(estimate: Interval) -> list[float | None]:
    """Value, low and high, rounded to 4 digits."""
    return [None if x is None else round(float(x), 4) for x in (estimate.value, estimate.low, estimate.high)]


def page(results: Mapping[str, Any]) -> list[str]:
    """The page: the table, and a sentence on every task and joint run."""
    seeds = f" and {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else ""
    lines = [
        "# Two domains, alone and together",
        "",
        "`python -m benchmarks.two_domains OUT --page benchmarks/results/tasks`: stories260k, DPO with beta 0.1 and lr "
        f"3e-4, {results['updates']} updates of {results['batch']} pairs on both tasks with temperature "
        f"{results['temperature']}; a run alone uses as many examples of the task as the mixture. Held-out accuracy of "
        "the implicit reward in percent, and the difference from the run alone on the same prompts, in points. "
        f"95% intervals over prompts{seeds}.",
        "",
        "| task | trained on | held out | run | accuracy | minus alone | |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, about in results["tasks"].items():
        for run in about["runs"]:
            less = _points(run["less alone"]) if "less alone" in run else ""
            shown = f"{run['run']}, {about['updates alone']} updates" if run["run"] == "alone" else run["run"]
            sizes = f"{about['trained on']} | {about['held out']}"
            verdict = run.get("verdict", "")
            lines.append(f"| {task} | {sizes} | {shown} | {_points(run['accuracy'])} | {less} | {verdict} |")
        other = next(t for t in results["tasks"] if t != task)
        lines.append(f"| {task} | | | {other} alone | {_points(about['other'])} | | |")
    return [*lines, "", *(f"- {line}" for line in sentences(results)), "", _footing(results["run"])]


def _footing(run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {known}" for name, known in run["versions"].items())
    return f"*{run['date']}, {run['device']}, {versions}.*"


def sentences(results: Mapping[str, Any]) -> list[str]:
    """A sentence on each task for each run trained on both."""
    phrases = {
        "lost": "loses accuracy beyond the interval",
        "gained": "gains accuracy beyond the interval",
        "within its interval": "is within the interval of training alone",
    }
    return [
        f"{run['run']}: {task} {phrases[run['verdict']]} ({_points(run['less alone'])} points)."
        for task, about in results["tasks"].items()
        for run in about["runs"]
        if "verdict" in run
    ]


def _points(values: Sequence[float | None]) -> str:
    value, low, high = (None if x is None else 100 * x for x in values)
    assert value is not None
    return number(value, 3) if low is None or high is None else f"{number(value, 3)} {interval(low, high, 3)}"


if __name__ == "__main__":
    main()
