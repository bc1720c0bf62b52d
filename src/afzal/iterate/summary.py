"""The results of a run of rounds: the summary, the metrics and samples for its page, and the policy to use."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain

from afzal import drops, report, runs
from afzal.data.turns import content_text
from afzal.iterate import round_figures
from afzal.iterate.round_figures import Round
from afzal.iterate.stages import MEASURED, REJECTED, Job, measure_fresh
from afzal.recipes.previews import keep_previews
from afzal.runs.stage import Row, read_rows, write_rows
from afzal.stats.intervals import Estimate
from afzal.text import plural


def finish(job: Job, rounds: Sequence[Round], status: str, reason: str) -> list[str]:
    """Write summary, metrics, samples and page, all rebuilt from the rounds' files, and return the lines to print.

    A finished run measures its recommended policy again, since the figures that selected it are biased upwards, and the
    first policy with it: both answer the same prompts with the same random numbers, scored by the same reward.
    """
    bound = job.config.cost_bound
    path, best = job.run.path, round_figures.best_round(rounds, job.config.kl_budget, bound)
    policy = str(path / best.policy) if best.number else job.config.model
    body = {"rounds": [round_figures.to_json(r) for r in rounds], "best": best.number, "stop_reason": reason}
    fresh: dict[str, Estimate] = {}
    gain: Estimate | None = None
    if status == "finished" and best.number:
        first = read_rows(job.folder(0) / MEASURED)
        first_fresh, best_fresh = measure_fresh(job, 0), measure_fresh(job, best.number)
        # the win rate needs independent answers of the first policy: its earlier ones
        fresh = round_figures.figures(best_fresh, first, common=False)
        body["best_fresh"] = {name: round_figures.plain(e) for name, e in fresh.items()}
        again = round_figures.figures(first_fresh, ())
        body["first_fresh"] = {name: round_figures.plain(e) for name, e in again.items()}
        gain = round_figures.change(first_fresh, best_fresh, "reward") if "reward" in fresh else None
        body |= {} if gain is None else {"fresh_gain": round_figures.plain_with_interval(gain)}
    runs.atomic_write(path / "rounds.json", json.dumps(body, indent=2) + "\n")
    runs.atomic_write(path / "rounds.csv", round_figures.csv(rounds))
    write_rows(path / "metrics.jsonl", _metrics(job, rounds))
    last = next(r for r in reversed(rounds) if r.measured)
    stages = [("before", 0), *([("after", last.number)] if last.number else [])]
    previews = _previews(job)
    write_rows(path / "samples.jsonl", [row for stage, k in stages for row in _page_samples(job, stage, k, previews)])
    write_rows(path / drops.FILE, [row for r in rounds for row in _rejected_rows(job, r.number)])
    runs.atomic_write(path / "data.json", json.dumps({"notes": job.questions.notes}, indent=2) + "\n")
    steps = sum(r.steps for r in rounds)
    trained = [runs.open_run(job.folder(r.number) / "run").facts() for r in rounds if r.steps]
    run_facts = {key: trained[0].get(key) for key in ("objective", "chat")} if trained else {}
    job.run.update(
        status=status, stop_reason=reason, best=policy, step=steps, steps=steps, finished=utc_now(), **run_facts
    )
    best = replace(best, measured=fresh or best.measured)
    words = _outcome_sentence(rounds, best, gain, policy, reason, bound)
    report.build(path, round_figures.sections(rounds, words, bound))
    return [*round_figures.alarms(rounds), words]


def _rejected_rows(job: Job, number: int) -> list[Row]:
    where = f"round {number}"
    return [{"where": where, **row} for row in read_rows(job.folder(number) / REJECTED)]


_REASONS = {
    "finished": "all rounds are done",
    "kl_budget": "the KL to the first policy is above kl_budget",
    "parted": "the reward rose while the watched one fell (on_parting)",
    "plateau": "the held-out reward stopped rising (patience)",
    "no_pairs": "no pair was left in the last round",
    "no_prompts": "there are no fresh prompts left",
    "callback": "a callback asked to stop",
    "labels": "people have not labelled the answers yet",
}


def _outcome_sentence(
    rounds: Sequence[Round], best: Round, gain: Estimate | None, policy: str, reason: str, bound: float | None
) -> str:
    """The outcome in a few words; ``gain`` is the fresh reward less the first policy's."""
    training = f"{plural(sum(bool(r.steps) for r in rounds), 'round')} of training"
    end_reason = f", ended because {_REASONS[reason]}"
    kl, reward = best.mean("kl") or 0.0, best.mean("reward")
    measured = "" if reward is None else f" reward {reward:.3f}{'' if gain is None else _gain(gain)},"
    over = bound is not None and (best.mean("cost") or 0.0) > bound
    broken = f" It does not keep the mean cost at {bound:g}, and no sound policy does." if over else ""
    if bound is not None and best.number:
        measured += f" cost {best.mean('cost') or 0.0:.3f} (bound {bound:g}),"
    later = [r for r in rounds if r.measured and r.number > best.number]
    hacked = bool(later) and bool(round_figures.alarms(rounds))
    if not best.number:
        none = " No round is sound: the first policy is the one to use." if hacked else ""
        none = none or (" No round is better than the first policy." if len(rounds) > 1 else "")
        return f"{training}{end_reason}.{none}{broken}"
    text = f"{training}{end_reason}. The policy to use is {policy}: held out, on fresh answers,{measured} KL {kl:.3f} "
    text += "nats to the first policy."
    text += broken
    return text + (" The rounds after it are not recommended, whatever their reward." if hacked else "")


def _gain(gain: Estimate) -> str:
    """The gain in reward with its interval over prompts, if there is one."""
    if not math.isfinite(gain.se):
        return f" ({gain.mean:+.3f} over the first policy on the same prompts)"
    low, high = gain.ends
    chance = ", which may be chance" if low <= 0 <= high else ""
    return f" ({gain.mean:+.3f} [{low:+.3f}, {high:+.3f}] over the first policy on the same prompts{chance})"


def _metrics(job: Job, rounds: Sequence[Round]) -> list[Row]:
    """The training records of all rounds by total number of updates, and a held-out record for each policy."""
    rows: list[Row] = []
    step = 0
    for r in rounds:
        if r.steps:
            trained = runs.open_run(job.folder(r.number) / "run").metrics("train")
            rows += [{**line, "step": step + line["step"], "round": r.number} for line in trained]
            step += r.steps
        if r.measured:
            rows.append(_evaluation(r, step, len(job.questions.held_out)))
    return rows


_NAMES = {"length": "samples/length", "ended": "samples/eos_rate"}


def _evaluation(r: Round, step: int, n_prompts: int) -> Row:
    row: Row = {"kind": "eval", "step": step, "round": r.number, "n": n_prompts}
    for name, e in r.measured.items():
        key = _NAMES.get(name, name)
        row |= {key: e.mean, **({f"{key}_se": e.se} if math.isfinite(e.se) else {})}
    return row


def _page_samples(job: Job, stage: str, number: int, previews: Sequence[Row]) -> list[Row]:
    """One answer per held-out prompt, in the page's format."""
    rows = [row for row in read_rows(job.folder(number) / MEASURED) if row["sample"] == 0]
    return [
        {
            "stage": stage,
            "prompt": row["prompt"],
            "completion": row["text"],
            "tokens": row["tokens"],
            "stop": row["stop"],
            "prompt_id": str(row["prompt_index"]),
            "rendered": row["prompt"] if isinstance(row["prompt"], str) else content_text(row["prompt"][-1]["content"]),
            **previews[row["prompt_index"]],
        }
        for row in rows
    ]


def _previews(job: Job) -> list[Row]:
    """For each held-out prompt, small copies of its images and sounds for the page; empty without any."""
    media = [[m.media for m in q.tree.media] if q.tree is not None else [] for q in job.questions.held_out]
    previews = keep_previews(chain.from_iterable(media), job.run.path)
    return [
        {"media": [previews[medium.sha256] for medium in prompt_media]} if prompt_media else {}
        for prompt_media in media
    ]


def utc_now() -> str:
    """The current time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
