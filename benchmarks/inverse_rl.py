"""Inverse RL on real text: does the reward inferred from a tuned policy's samples match the one it was tuned for?

    python -m benchmarks.inverse_rl OUT [--quick]

A model of children's stories with 260 thousand weights is tuned by RLOO for the summed valence of words (VADER). No
later step sees that reward. The tuned model's answers to 512 openings are the demonstrations, the untuned model's
answers to the same openings are the samples, and `afzal train irl` fits a reward model to both. Then the inferred
rewards of the untuned model's held-out answers are compared with their valence, and PPO trains the untuned model with
the inferred reward. Every stage is a file or a run folder, so running the command again resumes a stopped run. Writes
OUT/inverse-rl.json and OUT/inverse-rl.md. Needs the folder ``shared/data`` next to the checkout, or AFZAL_SHARED.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afzal import config, recipes, runs
from afzal.generate.run import generate
from afzal.rewards.source import reward_source
from afzal.stats.intervals import clustered, mean
from afzal.stats.rewards import epic, ordering, pooled_spearman
from benchmarks.sentiment import data, valence
from benchmarks.stages import figures_command

GOLD = "benchmarks.sentiment.valence:summed"
OPENINGS, TOKENS, SHOWN, DRAWN = 512, 24, 4, 8
ESTIMATORS = ("ranking_nce", "maxent_irl", "airl", "demonstration_pairs")


def main() -> None:
    figures_command(
        __doc__ or "",
        "benchmarks.inverse_rl",
        "one estimator instead of four",
        measured,
        page,
        (ESTIMATORS, ESTIMATORS[:1]),
    )


def measured(out: Path, estimators: Sequence[str]) -> dict[str, Any]:
    """All figures; missing runs are made first."""
    reference = str(valence.shared() / "models" / "stories260k")
    openings, held_out = prompts(out)
    tuned = tune(out, reference, openings)
    shown = drawn(out, "shown", str(tuned), openings, SHOWN, seed=1)
    samples = drawn(out, "drawn", reference, openings, DRAWN, seed=2)
    texts = rows(drawn(out, "held-out-texts", reference, held_out, 16, seed=3))
    start = worth(rows(drawn(out, "start-answers", reference, held_out, 16, seed=4)))
    figures = {"start": figure(start), "demonstrator": figure(gained(out, str(tuned), "tuned", held_out, start))}
    results: dict[str, Any] = {"valence": figures, "estimators": {}}
    for name in estimators:
        model = infer(out, name, reference, shown, samples)
        facts = runs.open_run(model).facts()
        seen = {"updates": facts.get("kept_step", facts["steps"]), "trees": facts["data"]["train"]}
        results["estimators"][name] = compare_with_valence(model, texts) | {"run": facts["identified"] | seen}
    best = estimators[0]
    policy = improve(out, reference, out / f"irl-{best}", openings)
    after = worth(rows(drawn(out, "ppo-answers", str(policy), held_out, 16, seed=4)))
    figures["ppo"] = figure(after)
    figures["ppo_gain"] = figure(difference(after, start))
    return results


def prompts(out: Path) -> tuple[Path, Path]:
    """Files of training openings and of held-out openings."""
    if not (out / "held-out.jsonl").exists():
        data.write_openings(out)
    path = out / "openings.jsonl"
    if not path.exists():
        lines = (out / "sft.jsonl").read_text("utf-8").splitlines()[:OPENINGS]
        runs.atomic_write(path, "".join(json.dumps({"prompt": json.loads(x)["prompt"]}) + "\n" for x in lines))
    return path, out / "held-out.jsonl"


def trained(out: Path, name: str, method: str, **settings: Any) -> Path:
    """The run ``out/name``: started, resumed, or reused if finished."""
    folder = out / name
    common = {"device": "cpu", "eval_fraction": 0.1, "out": str(folder), "save_every_minutes": 2.0}
    return recipes.train(config.make(method, **{**common, **settings}), resume=(folder / "run.json").exists())


def tune(out: Path, reference: str, openings: Path) -> Path:
    """The demonstrator, tuned for valence by RLOO."""
    size = {"batch_size": 32, "n": 4, "iterations": 60, "sample_tokens": TOKENS, "max_tokens": 128}
    return trained(out, "tuned", "rloo", model=reference, data=str(openings), reward=GOLD, lr=1e-4, kl_coef=1.0, **size)


def infer(out: Path, name: str, reference: str, shown: Path, samples: Path) -> Path:
    """The reward model of one estimator."""
    where = {"model": reference, "data": str(shown), "samples": str(samples), "objective": name}
    stop = {"eval_every_steps": 8, "early_stop_patience": 3}  # by held-out demonstrations, without looking at valence
    return trained(out, f"irl-{name}", "irl", **where, **stop, lr=1e-3, epochs=4.0, batch_size=16, max_tokens=128)


def improve(out: Path, reference: str, reward: Path, openings: Path) -> Path:
    """PPO on the untuned model with an inferred reward."""
    size = {"batch_size": 64, "iterations": 40, "minibatches": 2, "sample_tokens": TOKENS, "max_tokens": 128}
    where = {"model": reference, "data": str(openings), "reward": str(reward)}
    return trained(out, "ppo", "ppo", **where, lr=1e-4, kl_coef=0.2, ppo_epochs=2, **size)


def drawn(out: Path, name: str, model: str, prompts: Path, n: int, seed: int) -> Path:
    """File of a model's answers, generated if missing."""
    path = out / f"{name}.jsonl"
    if not path.exists():
        settings = {"model": model, "prompts": str(prompts), "n": n, "max_new_tokens": TOKENS, "batch_size": 256}
        settings |= {"seed": seed, "out": str(path)}
        generate(config.build(config.GenerateConfig, [config.Setting(k, v) for k, v in settings.items()]))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def worth(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean valence of the answers to each prompt."""
    by_prompt: dict[str, list[float]] = {}
    for row in answers:
        by_prompt.setdefault(row["prompt"], []).append(valence.summed(row["prompt"], row["completion"]))
    return {prompt: float(np.mean(values)) for prompt, values in by_prompt.items()}


def gained(out: Path, model: str, name: str, held_out: Path, start: Mapping[str, float]) -> dict[str, float]:
    return difference(worth(rows(drawn(out, f"{name}-answers", model, held_out, 16, seed=4))), start)


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {prompt: value - before[prompt] for prompt, value in after.items()}


def figure(by_prompt: Mapping[str, float]) -> dict[str, float]:
    """The mean over prompts with its 95% interval."""
    known = mean(clustered(list(by_prompt), list(by_prompt.values())))
    low, high = known.ends
    return {"value": known.mean, "low": low, "high": high, "prompts": len(by_prompt)}


def compare_with_valence(model: Path, texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the inferred rewards of held-out answers with their valence."""
    keys, answers = [row["prompt"] for row in texts], [row["completion"] for row in texts]
    truth = np.array([valence.summed(k, a) for k, a in zip(keys, answers, strict=True)])
    inferred = np.array(reward_source(str(model), max_tokens=128)(keys, answers))
    order = ordering(truth, inferred, keys)
    parts = {"spearman": order.spearman, "kendall": order.kendall, "accuracy": order.accuracy}
    parts |= {"epic": epic(truth, inferred, keys), "pooled_spearman": pooled_spearman(truth, inferred, keys)}
    ends = lambda i: {"value": i.value, "low": i.low, "high": i.high, "prompts": i.n}  # noqa: E731
    return {name: ends(known) for name, known in parts.items() if known is not None}


def page(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    cell = lambda f: f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"  # noqa: E731
    v, about = results["valence"], results["about"]
    lines = [
        "# Inverse RL on stories",
        "",
        f"{about['date']}, {about['device']}, one thread, {about['minutes']} minutes, not counting "
        f"reused stages; made by `{about['command']}`. Intervals are 95% over held-out openings.",
        "",
        "Valence of answers to held-out openings, summed over their words:",
        "",
        "| policy | mean valence | gain over the start |",
        "|---|---|---|",
        f"| start | {cell(v['start'])} | |",
        f"| demonstrator (RLOO on valence) | | {cell(v['demonstrator'])} |",
        f"| PPO with the inferred reward | {cell(v['ppo'])} | {cell(v['ppo_gain'])} |",
        "",
        "Inferred reward compared with valence, on 16 held-out answers of the start to each opening:",
        "",
        "| estimator | Spearman within openings | Spearman, all answers | pairwise accuracy | EPIC | effective share |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in results["estimators"].items():
        cells = [cell(f[key]) for key in ("spearman", "pooled_spearman", "accuracy", "epic")]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {cell(f['run']['effective'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
