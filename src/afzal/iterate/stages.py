"""The stages of a round: generate, score, reject and pair, train, measure. Each writes a file, or finds it done.

A file is either complete or absent, so that a stopped stage starts over and a finished one is not repeated. A round's
training resumes from its own checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from afzal import data, runs
from afzal.config import CONFIGS, PEOPLE, IterateConfig, TrainConfig, make
from afzal.config.serving import ServerConfig
from afzal.data.native import from_row, to_row
from afzal.generate import Sampling
from afzal.generate.with_server import ServerQuery, answers_from, refuse_unsupported, reload
from afzal.iterate import round_figures
from afzal.iterate.answers import Policy, rows_of, sequence_kl, served_rows
from afzal.iterate.pairing import (
    Candidate,
    Rejection,
    dual_steps,
    paired_item,
    pairs_of,
    spin_item,
    split_rejected,
    uniforms,
)
from afzal.iterate.people import TO_LABEL, labelled_items, questionnaire
from afzal.iterate.prompts import Question, Questions, round_groups
from afzal.iterate.round_figures import Round
from afzal.judging.rewards import by_model
from afzal.prepare import Recipe, recipe_of
from afzal.recipes.train import train
from afzal.recipes.training_stage import train_unless_finished
from afzal.records import Item, Turns, preferences
from afzal.rewards.source import Rewarder
from afzal.runs.stage import Row, read_rows, run_stage, write_rows
from afzal.servers.cache import REPLIES
from afzal.tokens import Speaker
from afzal.train import ranks
from afzal.train.callbacks import Callbacks
from afzal.train.coordinator import Coordinator

SAMPLES, SCORES, REJECTED, PAIRS = "samples.jsonl", "scores.jsonl", "rejected.jsonl", "pairs.jsonl"
TRAIN, MEASURED, FRESH = "train.jsonl", "measured.jsonl", "measured-fresh.jsonl"

# A round's training inherits every setting that it shares with the rounds, except those that a round decides itself:
# where it starts and writes, its reference, how its rows are read, and how many of them are held out.
_OF_THE_ROUND = {"model", "out", "reference", "columns", "data_format", "eval_fraction", "eval_every_steps"}
_OF_THE_FIRST = {"adapter", "lora_rank", "lora_alpha", "lora_targets"}  # later rounds train on its adapter


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that all rounds share.

    Attributes:
        coordinator: runs the functions of ``WORKS``, which are divided among ranks.
    """

    config: IterateConfig
    run: runs.Run
    questions: Questions
    speaker: Speaker
    recipe: Recipe
    reward: Rewarder | None
    watch: Rewarder | None
    cost: Rewarder | None = None
    generator: ServerConfig | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)
    coordinator: Coordinator = field(default_factory=lambda: Coordinator(WORKS))

    @property
    def sources(self) -> dict[str, Rewarder]:
        """The reward sources by the names of their settings."""
        by_setting = {"reward": self.reward, "watch_reward": self.watch, "cost": self.cost}
        return {name: source for name, source in by_setting.items() if source is not None}

    def load(self, policy: str) -> Policy:
        """Load a policy of the run. Answers end by the rule of the run's start model."""
        return Policy.load(policy, self.config, self.speaker.ends(chat=self.questions.chat))

    def folder(self, number: int) -> Path:
        """The folder of a round's files; round 0 is the policy that the run starts from."""
        return self.run.path / "rounds" / f"{number:03d}"

    def policy(self, number: int) -> str:
        """The model of round ``number``; that of round 0 is the run's start model."""
        return str(self.folder(number) / "run") if number else self.config.model


def run_round(job: Job, number: int, first: Sequence[Row]) -> Round:
    """Run one round from its current state on disk; without pairs it ends before its training.

    Args:
        first: the first policy's answers to the held-out prompts, from :func:`measure`.

    Raises:
        Waiting: people have not labelled its answers yet.
    """
    config, folder, start = job.config, job.folder(number), job.policy(number - 1)
    questions = _questions(job, number)
    samples = run_stage(folder / SAMPLES, lambda: _samples(job, number, start, questions))
    scores: Sequence[Row] = ()
    if job.reward is not None and config.pairing != "spin":
        scores = run_stage(folder / SCORES, lambda: _scores(job, samples, number))
    if not (folder / PAIRS).exists():
        items, rejected_rows = _pairs(job, number, questions, samples, _pairing_values(scores, multiplier(job, number)))
        write_rows(folder / REJECTED, rejected_rows)
        write_rows(folder / PAIRS, _data_rows(items, folder))
    if not (folder / PAIRS).stat().st_size:
        return round_of(job, number, (), first)
    _train(job, number, start)
    is_due = number % config.measure_every == 0 or number == config.rounds
    return round_of(job, number, measure(job, number) if is_due else (), first)


def _questions(job: Job, number: int) -> list[Question]:
    """The questions of a round, in order."""
    groups = round_groups(job.questions.groups, number, job.questions.per_round, reuse=job.config.reuse_prompts)
    return [question for group in groups for question in group]


def multiplier(job: Job, number: int) -> float | None:
    """The reward subtracted per unit of cost in a round; None without a cost.

    There is one dual step per round: lambda <- max(0, lambda + dual_lr (mean cost - cost_bound)), with the mean over
    the answers of the policy that the round starts from (Liu et al. 2024, arXiv 2403.02475). It is computed from the
    rounds' files.
    """
    if job.cost is None:
        return None
    rounds = [read_rows(job.folder(k) / SCORES) for k in range(1, number + 1)]
    means = [fmean(row["cost"] for row in rows) for rows in rounds if rows]
    bound = job.config.cost_bound
    assert bound is not None
    return dual_steps(means, bound, job.config.dual_lr, job.config.dual_start)


def _pairing_values(scores: Sequence[Row], multiplier: float | None) -> list[float]:
    """The values by which answers are compared: reward less multiplier times cost."""
    return [row["reward"] - (0.0 if multiplier is None else multiplier * row["cost"]) for row in scores]


def _samples(job: Job, number: int, policy: str, questions: Sequence[Question]) -> list[Row]:
    if job.generator is None:
        return list(chain(*job.coordinator.run_parts("answers", job, number=number)))
    options = job.config.n, *_sampling(job.config, number)
    query = ServerQuery([q.prompt for q in questions], *options, job.speaker, [q.ids for q in questions])
    folder = str(Path(policy).resolve()) if Path(policy).exists() else policy
    reload(job.generator, folder)
    answers = answers_from(job.generator, query, folder, job.folder(number) / REPLIES)
    return served_rows(answers, questions, job.speaker)


def refuse_generator(generator: ServerConfig, config: IterateConfig, questions: Questions, speaker: Speaker) -> None:
    """Refuse a server that cannot answer the prompts of the rounds, before anything is measured.

    Raises:
        AfzalError: names what the server does not support.
    """
    prompts = [question.prompt for group in questions.groups for question in group]
    refuse_unsupported(generator, ServerQuery(prompts, config.n, *_sampling(config, 1), speaker))


def _answers(job: Job, number: int) -> list[Row]:
    """This rank's part of a round's answers. A tensor-parallel group draws its part together; its first rank returns
    it."""
    questions, config = _questions(job, number), job.config
    policy = job.load(job.policy(number - 1))
    samples = policy.draw(questions, config.n, *_sampling(config, number), ranks.data_portion(len(questions)))
    return rows_of(samples, questions, job.speaker) if ranks.leads_tensor_group() else []


def _sampling(config: IterateConfig, number: int) -> tuple[Sampling, int]:
    """A round's sampling settings and seed."""
    limits = config.max_new_tokens, config.temperature, config.top_p, config.top_k or 0, config.min_new_tokens
    return Sampling(*limits), _seed(config.seed, f"round-{number}")


def _scores(job: Job, samples: Sequence[Row], number: int) -> list[Row]:
    rewards = _values(job, "reward", samples, number)
    rows = [
        {"prompt_index": row["prompt_index"], "sample": row["sample"], "reward": value}
        for row, value in zip(samples, rewards, strict=True)
    ]
    if job.cost is None:
        return rows
    return [{**row, "cost": value} for row, value in zip(rows, _values(job, "cost", samples, number), strict=True)]


def _values(job: Job, source: str, rows: Sequence[Row], number: int | None) -> list[float]:
    """The values of a reward source (``reward``, ``watch_reward`` or ``cost``) for answers: a model runs on all ranks;
    a function or a server on this one, with all answers in one call.

    Args:
        number: the round whose questions the rows answer; None for the held-out ones.
    """
    if by_model(getattr(job.config, source)):
        facts = [{key: row[key] for key in ("prompt_index", "text", "stop")} for row in rows]
        return list(chain(*job.coordinator.run_parts("values", job, source=source, rows=facts, number=number)))
    questions = _answered(job, number)
    return job.sources[source](*_texts(rows, questions), _ended_flags(rows), _columns(rows, questions))


def _values_of_part(job: Job, source: str, rows: Sequence[Row], number: int | None) -> list[float]:
    """A model's values for this rank's part of the answers."""
    local_rows = [rows[k] for k in ranks.portion(len(rows))]
    return job.sources[source](*_texts(local_rows, _answered(job, number)), _ended_flags(local_rows))


def _answered(job: Job, number: int | None) -> Sequence[Question]:
    return job.questions.held_out if number is None else _questions(job, number)


def _texts(rows: Sequence[Row], questions: Sequence[Question]) -> tuple[list[Turns], list[str]]:
    return [questions[row["prompt_index"]].prompt for row in rows], [row["text"] for row in rows]


def _ended_flags(rows: Sequence[Row]) -> list[bool]:
    return [row["stop"] == "eos" for row in rows]


def _columns(rows: Sequence[Row], questions: Sequence[Question]) -> list[Mapping[str, Any]]:
    return [questions[row["prompt_index"]].columns for row in rows]


def _pairs(
    job: Job, number: int, questions: Sequence[Question], samples: Sequence[Row], values: Sequence[float]
) -> tuple[list[Item], list[Row]]:
    """The round's pairs, and a row per rejection; ``values`` is empty if people judge."""
    by_prompt: dict[int, list[Candidate]] = {}
    for k, row in enumerate(samples):
        reward = values[k] if values else float("nan")
        withheld = "" if row["stop"] in ("eos", "length") else row["stop"]
        candidate = Candidate(row["text"], reward, row["stop"] == "eos", withheld)
        by_prompt.setdefault(row["prompt_index"], []).append(candidate)
    if job.config.reward == PEOPLE:
        return _by_people(job, number, questions, by_prompt)
    items, rejected_rows = [], []
    for index, candidates in by_prompt.items():
        item_id = f"r{number:03d}-{index:05d}"
        item, why = _pair(job.config, item_id, questions[index], candidates)
        items += [replace(item, extra=questions[index].template_fields)] if item else []
        rejected_rows += [_rejection_row(item_id, rejection) for rejection in why]
    return items, rejected_rows


def _pair(
    config: IterateConfig, item_id: str, question: Question, candidates: Sequence[Candidate]
) -> tuple[Item | None, list[Rejection]]:
    pairing = config.pairing
    repeats = "keep" if pairing == "rso" else "reject"
    usable, rejections = split_rejected(candidates, require_eos=config.require_eos, repeats=repeats)
    if pairing == "spin":
        item, more_rejections = spin_item(item_id, question.prompt, question.demonstration, candidates, usable)
        return item, [*rejections, *more_rejections]
    pairs, more_rejections = pairs_of(
        candidates,
        usable,
        pairing,
        uniforms(f"{config.seed}/{item_id}"),
        min_margin=config.min_margin,
        rso_beta=config.rso_beta,
        rso_accepted=config.rso_accepted,
    )
    item = paired_item(item_id, question.prompt, candidates, pairs) if pairs else None
    return item, [*rejections, *more_rejections]


def _by_people(
    job: Job, number: int, questions: Sequence[Question], by_prompt: Mapping[int, Sequence[Candidate]]
) -> tuple[list[Item], list[Row]]:
    """The pairs from people's labels; until they exist, write a file to be labelled and wait."""
    items, rejected_rows = [], []
    for index, candidates in by_prompt.items():
        item_id = f"r{number:03d}-{index:05d}"
        item, why = questionnaire(item_id, questions[index].prompt, candidates, require_eos=job.config.require_eos)
        items += [replace(item, extra=questions[index].template_fields)] if item else []
        rejected_rows += [_rejection_row(item_id, rejection) for rejection in why]
    folder = job.folder(number)
    run_stage(folder / TO_LABEL, lambda: _data_rows(items, folder))
    if not items:
        return [], rejected_rows
    labelled, undecided = labelled_items(folder, items, resume_command(job.run))
    return labelled, [*rejected_rows, *(_rejection_row(item_id, rejection) for item_id, rejection in undecided)]


def _train(job: Job, number: int, start: str) -> None:
    """Run or resume the round's training, unless it is done."""
    out, data = job.folder(number) / "run", job.folder(number) / PAIRS
    if job.config.accumulate and number > 1:
        data = job.folder(number) / TRAIN
        run_stage(data, lambda: _pairs_so_far(job, number))
    several = len({json.dumps(row["prompt"]) for row in read_rows(data)}) > 1
    options: dict[str, Any] = {"number": number, "start": start, "data": str(data), "out": str(out)}
    train_unless_finished(
        str(out),
        lambda resume: job.coordinator.run_collective("training", job, **options, held_out=several, resume=resume),
    )


def _train_part(job: Job, *, resume: bool, **options: Any) -> None:
    """This rank's part of a round's training."""
    train(training(job.config, **options), resume=resume, callbacks=job.callbacks)


def _pairs_so_far(job: Job, number: int) -> list[Row]:
    """The pairs of all rounds up to this one; with a cost, relabelled with this round's multiplier."""
    rounds = range(1, number + 1)
    if job.cost is None:
        for k in rounds[:-1]:
            data.share_media(job.folder(k), job.folder(number))
        return [row for k in rounds for row in read_rows(job.folder(k) / PAIRS)]
    current, rows = multiplier(job, number), []
    for k in rounds:
        values = _pairing_values(read_rows(job.folder(k) / SCORES), current)
        items, _ = _pairs(job, k, _questions(job, k), read_rows(job.folder(k) / SAMPLES), values)
        rows += _data_rows(items, job.folder(number))
    return rows


def _data_rows(items: Sequence[Item], folder: Path) -> list[Row]:
    """The rows of a data file in ``folder``; images and sounds are copied next to it."""
    return [to_row(item) for item in data.with_copied_media(items, folder)]


def training(
    config: IterateConfig, number: int, start: str, data: str, out: str, *, held_out: bool = True
) -> TrainConfig:
    """The training settings of one round; without ``held_out`` all pairs are trained on."""
    common = (IterateConfig.model_fields.keys() & CONFIGS["prefer"].model_fields.keys()) - _OF_THE_ROUND
    settings = {key: getattr(config, key) for key in sorted(common if number == 1 else common - _OF_THE_FIRST)}
    if held_out:
        settings |= {"eval_fraction": config.eval_fraction, "eval_every_steps": config.eval_every_steps}
    else:
        settings |= {"eval_fraction": 0.0}
    if config.reference == "initial" and number > 1 and _needs_reference(config):
        settings["reference"] = config.model
    # Prompts are ordered by the key that splits use (prompts.place). A split with the same seed would find nearly all
    # its held-out prompts in the first round or in no round, and hardly any in the others.
    settings["seed"] = _seed(config.seed, "training") % 2**32
    return make("prefer", model=start, data=data, out=out, clean=False, sample_tokens=config.max_new_tokens, **settings)


def _needs_reference(config: IterateConfig) -> bool:
    plain = make("prefer", model="", data="", objective=config.objective, objective_arg=config.objective_arg)
    return recipe_of(plain).needs_reference


def measure(job: Job, number: int) -> list[Row]:
    """The policy's answers to the held-out prompts at temperature 1, with rewards and KL to the first policy.

    Every policy draws with the same random numbers.
    """
    return run_stage(job.folder(number) / MEASURED, lambda: _measured(job, number, "held-out"))


def measure_fresh(job: Job, number: int) -> list[Row]:
    """As :func:`measure` with other random numbers, so that the policy's report is independent of its selection."""
    return run_stage(job.folder(number) / FRESH, lambda: _measured(job, number, "held-out-fresh"))


def _measured(job: Job, number: int, draws: str) -> list[Row]:
    rows = list(chain(*job.coordinator.run_parts("held-out", job, number=number, draws=draws)))
    kl = [row.pop("kl") for row in rows]
    for name in ("reward", "watch_reward", *(["cost"] if job.cost else [])):
        values = _values(job, name, rows, None) if name in job.sources else [None] * len(rows)
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return [{**row, "kl": value} for row, value in zip(rows, kl, strict=True)]


def _held_out(job: Job, number: int, draws: str) -> list[Row]:
    """This rank's part of a policy's answers to the held-out prompts, each with its KL to the first policy."""
    config, questions = job.config, job.questions.held_out
    policy = job.load(job.policy(number))
    plain = Sampling(config.max_new_tokens)  # the policy itself without restrictions, so that its mean KL is unbiased
    seed = _seed(config.seed, draws)
    samples = policy.draw(questions, config.held_out_samples, plain, seed, ranks.data_portion(len(questions)))
    kl = [0.0] * len(samples)
    if number:
        first = job.load(config.model).model
        kl = sequence_kl(policy.model, first, samples, [q.input for q in questions], config.pass_tokens)
    if not ranks.leads_tensor_group():
        return []
    return [{**row, "kl": value} for row, value in zip(rows_of(samples, questions, job.speaker), kl, strict=True)]


# Functions that rank 0 runs on all ranks.
WORKS = {"answers": _answers, "values": _values_of_part, "held-out": _held_out, "training": _train_part}


def round_of(job: Job, number: int, measured: Sequence[Row], first: Sequence[Row]) -> Round:
    """A round, read from its files."""
    folder = job.folder(number)
    samples, items = read_rows(folder / SAMPLES), [from_row(row) for row in read_rows(folder / PAIRS)]
    pairs = [(item.id, p) for item in items for p in preferences(item) if p.p != 0.5]
    gaps = [(name, p.margin) for name, p in pairs if p.margin is not None]
    run = folder / "run"
    return Round(
        number,
        f"rounds/{number:03d}/run" if items else "",
        prompts=len({row["prompt_index"] for row in samples}),
        samples=len(samples),
        pairs=len(pairs),
        steps=int(runs.open_run(run).facts().get("step", 0)) if items else 0,
        rejections=round_figures.rejection_counts(read_rows(folder / REJECTED)),
        margin=round_figures.estimate(gaps) if gaps else None,
        measured=round_figures.figures(measured, first) if measured else {},
        multiplier=multiplier(job, number) if number else None,
    )


def _rejection_row(item_id: str, rejection: Rejection) -> Row:
    header = {"item_id": item_id, "reason": rejection.reason, "detail": rejection.detail}
    return {**header, "stage": "reject", "action": "dropped", "unit": rejection.unit}


def _seed(seed: int, name: str) -> int:
    """A seed for a named use of random numbers, derived from the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def resume_command(run: runs.Run) -> str:
    """The command that resumes a run."""
    return f"afzal iterate {run.path} --resume"
