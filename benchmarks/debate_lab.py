"""Debate and recursive reward modelling on the enumerable language, where the better answer is known.

    python -m benchmarks.debate_lab OUT [--quick]

1. A judge who sees 2 of 4 positions of two answers: positions drawn at random, shown by a consultant, or shown by two
   debaters.
2. Debaters trained by DPO on arguments ranked by the judge, in rounds of self-play.
3. A ladder: a judge who sees 2 positions labels pairs; a reward model and a policy are trained on the labels; the
   reward model answers the judge's question on the next level. Controls: an assistant that lies, and the judge alone.

Finished runs are reused, so running the command again resumes. Writes OUT/debate-lab.json and OUT/debate-lab.md.
Intervals are 95% over held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afzal.lab import exact, language, toy_debate
from afzal.lab.toy_debate import PROTOCOLS, Evidence
from afzal.rewards.source import reward_source
from afzal.stats.intervals import clustered, mean
from benchmarks import lab_world as world
from benchmarks.lab_world import HELD_OUT, TRAIN

K, CASES, LEVELS, ROUNDS = 2, 20_000, 3, 2
Cases = tuple[np.ndarray, np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a quarter of the updates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    start, less = world.make_world(options.out, 600), 4 if options.quick else 1
    results: dict[str, Any] = {"toy": toy_debate.toy(), "protocols": protocols(start)}
    results["debaters"] = self_play(start, 1000 // less)
    results["ladder"] = ladder(start, 300 // less)
    command = "python -m benchmarks.debate_lab OUT" + " --quick" * options.quick
    results["about"] = world.about(command, (time.monotonic() - began) / 60)
    (options.out / "debate-lab.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "debate-lab.md").write_text(page(results))
    print(page(results))


def cases(prompts: np.ndarray, log_policy: np.ndarray, n: int, seed: int) -> tuple[Cases, np.ndarray]:
    """Pairs of the reference's responses with different gold rewards, and the reward gaps ``[N]``."""
    pairs = language.sample_pairs(np.exp(log_policy), n, np.random.default_rng(seed))
    rewards = language.reward(prompts)
    gaps = rewards[pairs[0], pairs[1]] - rewards[pairs[0], pairs[2]]
    different = gaps != 0
    return (pairs[0][different], pairs[1][different], pairs[2][different]), gaps[different]


def figure(keys: np.ndarray, values: np.ndarray) -> dict[str, float]:
    known = mean(clustered(keys.tolist(), values.tolist()))
    low, high = known.ends
    return {"value": known.mean, "low": low, "high": high, "prompts": known.prompts}


def protocols(start: world.World) -> dict[str, Any]:
    """Accuracy of a naive and an aware judge under each protocol, and paired differences between protocols."""
    past, past_gaps = cases(TRAIN, start.log_ref_train, 4 * CASES, 1)
    now, gaps = cases(HELD_OUT, start.log_ref, CASES, 2)
    right, results = {}, {}
    for number, protocol in enumerate(PROTOCOLS):
        rng = np.random.default_rng(number)
        before = toy_debate.show_evidence(toy_debate.positions(TRAIN, past), K, protocol, rng)
        seen = toy_debate.show_evidence(toy_debate.positions(HELD_OUT, now), K, protocol, rng)
        right[protocol] = toy_debate.accuracy(toy_debate.count_judge(before, past_gaps, seen), gaps)
        naive = toy_debate.accuracy(toy_debate.naive_judge(seen), gaps)
        results[protocol] = {"naive": figure(now[0], naive), "aware": figure(now[0], right[protocol])}
    results["consultant less alone"] = figure(now[0], right["consultant"] - right["random"])
    results["debate less consultant"] = figure(now[0], right["debate"] - right["consultant"])
    return results


def self_play(start: world.World, steps: int) -> dict[str, Any]:
    """The judge's accuracy with debaters who argue at random, after each round of training, and optimally.

    An argument names one position, which the judge then sees. A debater reads the prompt and both answers.
    """
    past, past_gaps = cases(TRAIN, start.log_ref_train, 6_000, 3)
    now, gaps = cases(HELD_OUT, start.log_ref, 6_000, 4)
    texts, rng = _debater_texts(TRAIN, past), np.random.default_rng(5)
    rows = [{"prompt": t, "completion": f"{rng.integers(4)}."} for side in texts for t in side]
    data = _rows(rows, start.out, "arguments-start")
    settings = {"max_tokens": 20, "sample_tokens": 2, "lr": 1e-3, "batch_size": 64}
    blank = start.out / "runs" / "start"
    policy = world.train(start.out, "sft", blank, data, "debater-0", steps=steps, rows=len(rows), **settings)
    results: dict[str, Any] = {"at random": _debated(policy, now, gaps, past, past_gaps)}
    for number in range(1, ROUNDS + 1):
        rows = _ranked(policy, past, np.random.default_rng(5 + number))
        data = _rows(rows, start.out, f"arguments-{number}")
        about = settings | {"beta": 0.1}
        name = f"debater-{number}"
        policy = world.train(start.out, "dpo", policy, data, name, steps=steps, rows=len(rows), **about)
        results[f"round {number}"] = _debated(policy, now, gaps, past, past_gaps)
    pieces, before = toy_debate.positions(HELD_OUT, now), toy_debate.positions(TRAIN, past)
    best = [toy_debate.show_evidence(p, 2, "debate", rng) for p in (before, pieces)]
    judged = toy_debate.count_judge(best[0], past_gaps, best[1])
    results["best arguments"] = {"accuracy": figure(now[0], toy_debate.accuracy(judged, gaps))}
    return results


def _debater_texts(prompts: np.ndarray, pairs: Cases) -> tuple[list[str], list[str]]:
    """Each side's input for every case: ``413|own|other|``, with short answers padded with full stops."""
    text = lambda y: language.response_text(language.RESPONSES[y]).ljust(4, ".")  # noqa: E731
    heads = [language.prompt_text(prompts[x]) for x in pairs[0]]
    both = [
        [f"{h}{text(a)}|{text(b)}|" for h, a, b in zip(heads, *ab, strict=True)] for ab in (pairs[1:], pairs[2:0:-1])
    ]
    return both[0], both[1]


def _argued(policy: Path, texts: list[str], rng: np.random.Generator, n: int = 1) -> np.ndarray:
    """``[N, n]`` positions that a debater names, sampled from the four."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    ids = torch.tensor([[language.VOCABULARY.index(c) for c in t] for t in texts])
    with torch.inference_mode():
        logits = torch.cat([model(input_ids=part).logits[:, -1, :4] for part in ids.split(1024)])
    edges = torch.softmax(logits.double(), -1).cumsum(-1).numpy()
    return np.minimum((rng.random((len(texts), n, 1)) > edges[:, None]).sum(-1), 3)


def _debated(policy: Path, now: Cases, gaps: np.ndarray, past: Cases, past_gaps: np.ndarray) -> dict[str, Any]:
    """The aware judge's accuracy, and how often an argument is its side's best."""
    rng, seen, best = np.random.default_rng(9), [], []
    for prompts, pairs in ((TRAIN, past), (HELD_OUT, now)):
        pieces = toy_debate.positions(prompts, pairs)
        chosen = np.concatenate([_argued(policy, side, rng) for side in _debater_texts(prompts, pairs)], 1)
        values = np.take_along_axis(pieces, chosen, 1)
        seen.append(Evidence(chosen, values, np.zeros(len(values))))
        best = 0.5 * ((values[:, 0] == pieces.max(1)).astype(float) + (values[:, 1] == pieces.min(1)))
    judged = toy_debate.count_judge(seen[0], past_gaps, seen[1])
    return {"accuracy": figure(now[0], toy_debate.accuracy(judged, gaps)), "best argument": figure(now[0], best)}


def _ranked(policy: Path, pairs: Cases, rng: np.random.Generator) -> list[dict[str, str]]:
    """Pairs of arguments of each side; the chosen one moves the judge further."""
    pieces, rows = toy_debate.positions(TRAIN, pairs), []
    for sign, texts in zip((1, -1), _debater_texts(TRAIN, pairs), strict=True):
        two = _argued(policy, texts, rng, 2)
        worth = sign * np.take_along_axis(pieces, two, 1)
        for text, (i, j), (u, v) in zip(texts, two.tolist(), worth.tolist(), strict=True):
            if u != v:
                chosen, rejected = (i, j) if u > v else (j, i)
                rows.append({"prompt": text, "chosen": f"{chosen}.", "rejected": f"{rejected}."})
    return rows


def _rows(rows: list[dict[str, str]], out: Path, name: str) -> Path:
    path = out / "runs" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ladder(start: world.World, steps: int) -> dict[str, Any]:
    """Agreement with gold of labels, reward models and policies by level, and of the two controls."""
    train, _ = cases(TRAIN, start.log_ref_train, 8_000, 11)
    held_out, held_gaps = cases(HELD_OUT, start.log_ref, 4_000, 12)
    levels, policy, assistant = [], start.sft, None
    for level in range(LEVELS):
        labels = {name: _labels(p, pairs, assistant, 1, seed) for name, p, pairs, seed in _sides(train, held_out)}
        line: dict[str, Any] = {"labels": figure(held_out[0], toy_debate.accuracy(labels["held"], held_gaps))}
        if assistant is not None:
            line |= _controls(held_out, held_gaps, assistant)
        rows = language.pair_items(TRAIN, train, (labels["train"] > 0).astype(float), f"level-{level}")
        data = world.write(rows, start.out, f"ladder-{level}")
        about = {"steps": steps, "rows": len(rows), "batch_size": 64}
        model = world.train(start.out, "reward", start.sft, data, f"ladder-reward-{level}", **about)
        policy = world.train(start.out, "dpo", policy, data, f"ladder-policy-{level}", beta=0.5, **about)
        line["reward model"] = figure(held_out[0], toy_debate.accuracy(_gaps(model, HELD_OUT, held_out), held_gaps))
        known = exact.evaluate(world.policy(policy), start.log_ref, world.REWARDS)
        line["policy"] = {"reward": known.reward, "kl": known.kl, "share": known.share}
        levels.append(line)
        assistant = model
    gain = _labels(HELD_OUT, held_out, assistant, 1, 14)
    last = toy_debate.accuracy(gain, held_gaps)
    alone = toy_debate.accuracy(_labels(HELD_OUT, held_out, None, 1, 14), held_gaps)
    rewards = float(exact.expected(start.log_ref, world.REWARDS))
    return {"levels": levels, "start reward": rewards, "assisted less alone": figure(held_out[0], last - alone)}


def _sides(train: Cases, held_out: Cases) -> tuple[tuple[str, np.ndarray, Cases, int], ...]:
    return ("train", TRAIN, train, 13), ("held", HELD_OUT, held_out, 14)


def _labels(prompts: np.ndarray, pairs: Cases, assistant: Path | None, honest: int, seed: int) -> np.ndarray:
    """``[N]`` judgements: the sum of two random positions, plus the assistant's answer to how much better the first is;
    a coin flip if there is no difference. ``honest`` is -1 for an assistant that lies."""
    rng = np.random.default_rng(seed)
    judged = toy_debate.naive_judge(toy_debate.show_evidence(toy_debate.positions(prompts, pairs), K, "random", rng))
    coin = 1e-6 * rng.choice([-1, 1], len(judged))
    return judged + coin + (0 if assistant is None else honest * _gaps(assistant, prompts, pairs))


def _controls(held_out: Cases, gaps: np.ndarray, assistant: Path) -> dict[str, Any]:
    """Accuracy of the judge alone and with a lying assistant, and paired differences from the judge alone."""
    alone, honest, lying = (
        toy_debate.accuracy(_labels(HELD_OUT, held_out, a, sign, 14), gaps)
        for a, sign in ((None, 1), (assistant, 1), (assistant, -1))
    )
    figures = {"alone": alone, "lying": lying, "honest less alone": honest - alone, "lying less alone": lying - alone}
    return {name: figure(held_out[0], values) for name, values in figures.items()}


_SCORED: dict[tuple[Path, int], np.ndarray] = {}


def _gaps(model: Path, prompts: np.ndarray, pairs: Cases) -> np.ndarray:
    """``[N]`` the reward model's score of the first response minus that of the second."""
    key = (model, len(pairs[0]))
    if key not in _SCORED:
        heads = [language.prompt_text(prompts[x]) for x in pairs[0]]
        texts = [[language.response_text(language.RESPONSES[y]) for y in ys] for ys in pairs[1:]]
        rewards = reward_source(str(model), max_tokens=8, eos_token=".")
        one, other = (np.array(rewards(heads, side)) for side in texts)
        _SCORED[key] = one - other
    return _SCORED[key]


def page(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    cell = lambda f: f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"  # noqa: E731
    p, ladder = results["protocols"], results["ladder"]
    lines = [
        "# Debate and recursive reward modelling on the enumerable language",
        "",
        world.about_line(results["about"]),
    ]
    lines += [
        "Intervals are 95% over 32 held-out prompts.",
        "",
        "## The toy: seven pieces of N(0, 1)",
        "",
    ]
    lines += ["| protocol | naive judge | aware judge |", "|---|---|---|"]
    lines += [f"| {name} | {t['naive']:.3f} | {t['aware']:.3f} |" for name, t in results["toy"].items()]
    lines += ["", "## A judge who sees two of four positions", "", "| positions | naive judge | aware judge |"]
    lines += [
        "|---|---|---|",
        *(f"| {name} | {cell(p[name]['naive'])} | {cell(p[name]['aware'])} |" for name in PROTOCOLS),
    ]
    lines += ["", f"Aware judge, consultant minus drawn positions: {cell(p['consultant less alone'])}; "]
    lines[-1] += f"debate minus consultant: {cell(p['debate less consultant'])}."
    lines += ["", "## Debaters trained by DPO in self-play", "", "| debaters | aware judge | share of best arguments |"]
    lines += ["|---|---|---|"]
    for name, f in results["debaters"].items():
        lines.append(
            f"| {name} | {cell(f['accuracy'])} | {cell(f['best argument']) if 'best argument' in f else '1'} |"
        )
    lines += ["", "## The ladder", "", "| level | labels agree with gold | reward model |"]
    lines[-1] += " lying assistant minus alone | policy: reward, KL |"
    lines += ["|---|---|---|---|---|"]
    for level, line in enumerate(ladder["levels"]):
        lying = cell(line["lying less alone"]) if "lying less alone" in line else ""
        policy = f"{line['policy']['reward']:.3f}, {line['policy']['kl']:.2f} nats"
        lines.append(f"| {level} | {cell(line['labels'])} | {cell(line['reward model'])} | {lying} | {policy} |")
    lines += ["", f"The start's reward is {ladder['start reward']:.3f}. Assisted by the last reward model "]
    lines[-1] += f"minus alone: {cell(ladder['assisted less alone'])}."
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
