"""Recursive reward modelling: a judge labels, a reward model and a policy learn, and one assists the next judge.

Leike et al. 2018, arXiv 1811.07871. Every stage is a file or a run that is either complete or absent, so that a stopped
program repeats at most one stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from afzal import runs
from afzal.compare.folder import claimed, study_date
from afzal.config import CONFIGS, LadderConfig, TrainConfig, dump, make
from afzal.config.judging import JudgeConfig
from afzal.data import without_verdicts
from afzal.errors import AfzalError
from afzal.hashes import content_hash
from afzal.judge.outputs import ROWS, SUMMARY
from afzal.judging.run import read_items, run_judges
from afzal.ladder.page import LABELS, MEASURED, level_name, line, lying_name, report_body
from afzal.recipes.training_stage import train_once
from afzal.records import Item, comparisons, prompt_key
from afzal.report import write_board
from afzal.runs import torchrun
from afzal.runs.stage import key_of, read_stage, write_stage
from afzal.servers.cache import REPLIES
from afzal.text import plural

Say = Callable[[str], None]
SETTINGS, REPORT = "ladder-settings.json", "ladder"
_FREE = {"out", "levels", "resamples"}  # settings that do not change finished stages


@dataclass(frozen=True, slots=True)
class Job:
    """Shared by all levels: settings, pairs to be labelled, and pairs of known truth."""

    config: LadderConfig
    pairs: Sequence[Item]
    truth: Sequence[Item]
    say: Say

    def folder(self, level: int) -> Path:
        """The folder of a level."""
        return Path(self.config.out) / f"level-{level}"


def ladder(config: LadderConfig, *, say: Say = print) -> Path:
    """Climb to ``config.levels`` and return the page; finished levels are not repeated.

    Raises:
        AfzalError: a fault of the input, or the folder holds a ladder with other settings;
            :class:`~afzal.recipes.train.Stopped` when a signal ended a training.
    """
    torchrun.require_one_process("afzal ladder")
    with study_date(config.out) as date:
        job, out = _job(config, say), Path(config.out)
        with claimed(out, "ladder.yaml", dump(config), date):
            _claim_settings(config, out)
            for level in range(config.levels + 1):
                _run_level(job, level)
                say(line(job.folder(level) / MEASURED, level, job.truth))
            folders = [job.folder(level) for level in range(config.levels + 1)]
            return write_board(out, report_body(config, folders, job.pairs, job.truth), REPORT)


def plan(config: LadderConfig) -> list[str]:
    """The stages of a ladder and whether each is done; judges and trains nothing."""
    lines = []
    for level in range(config.levels + 1):
        folder = Path(config.out) / f"level-{level}"
        stages = {LABELS: SUMMARY, "reward": "report.html", "policy": "report.html", MEASURED: SUMMARY}
        states = (
            f"{name} {'there' if (folder / name / file).exists() else 'to be made'}" for name, file in stages.items()
        )
        lines.append(f"level {level}: {', '.join(states)}")
    return lines


def _job(config: LadderConfig, say: Say) -> Job:
    """The job with the pairs of both files.

    Raises:
        AfzalError: a file holds no pairs, no vote says which answer is better, or all prompts are held out.
    """
    truth = _truth(config, say)
    held_out, rows = {prompt_key(item) for item in truth}, read_items(config.data)
    pairs = [replace(item, votes=()) for item in rows if prompt_key(item) not in held_out]
    if not pairs:
        raise AfzalError(
            "no pair is left to be labelled: all its prompts are also in eval_data",
            where=config.data,
            remedy="other prompts in one of the two files",
        )
    if len(pairs) < len(rows):
        say(f"note: {plural(len(rows) - len(pairs), 'row')} of {config.data} left out: the prompts are in eval_data")
    n_voted = sum(bool(item.votes) for item in rows)
    if n_voted:
        say(f"note: the votes in {config.data} are not used: the judge labels its pairs")
    return Job(config, pairs, truth, say)


def _truth(config: LadderConfig, say: Say) -> list[Item]:
    """The pairs of ``eval_data`` whose better answer is known, or was named by people; verdicts of judges are neither.

    Raises:
        AfzalError: there is none.
    """
    trusted = without_verdicts(read_items(config.eval_data))
    for note in trusted.notes(config.eval_data):
        say(note)
    labelled = [replace(item, votes=item.gold or item.votes) for item in trusted.items]
    truth = [item for item in labelled if any(True for _ in comparisons(item.votes))]
    if not truth:
        verdicts = f"; {trusted.in_words} are not taken for the truth" if trusted.verdicts else ""
        raise AfzalError(
            "no vote says which answer of a pair is better",
            where=config.eval_data,
            why=f"every level is measured by how often it names the better answer{verdicts}",
            remedy="rows with trusted votes, such as prompt, chosen, rejected",
        )
    return truth


def _claim_settings(config: LadderConfig, out: Path) -> None:
    """Claim the folder for these settings and inputs.

    Raises:
        AfzalError: it holds a ladder with other settings or inputs.
    """
    settings = config.model_dump(mode="json", exclude=_FREE)
    judge = config.judge.judge
    judge_sources = [] if judge is None or judge.kind == "http" else [judge.model or judge.function or ""]
    sources = [config.model, config.data, config.eval_data, *judge_sources]
    key, path = key_of(settings, [content_hash(source) for source in sources]), out / SETTINGS
    if read_stage(path, key) is not None:
        return
    if path.exists():
        raise AfzalError(
            "the folder holds a ladder with other settings, pairs, judge or model",
            where=str(out),
            remedy="another out=, or the same settings as before to resume or to add levels",
        )
    write_stage(path, key, {"settings": settings})


def _run_level(job: Job, level: int) -> None:
    """Run the missing stages of one level."""
    config, folder = job.config, job.folder(level)
    previous = job.folder(level - 1) if level else None
    runs.make_folder(folder)
    judges = [_judge_file(folder / "judge.yaml", _judge(config, previous), level_name(level))]
    _judge_into(job, folder / LABELS, job.pairs, judges, f"level {level}: labels")
    rows = str(folder / LABELS / ROWS)
    train_once(_training(config, "reward", config.model, rows, folder / "reward"))
    start = config.model if previous is None else str(previous / "policy")
    train_once(_training(config, "policy", start, rows, folder / "policy"))
    if previous is not None:
        judges.append(_judge_file(folder / "lying.yaml", _judge(config, previous, swapped=True), lying_name(level)))
    trained = {"reward": {"kind": "reward"}, "policy": {"kind": "policy", "reference": config.model}}
    for kind, name in (("reward", f"reward model {level}"), ("policy", f"policy {level}")):
        judge = JudgeConfig.model_validate({**trained[kind], "model": str(folder / kind)})
        judges.append(_judge_file(folder / f"{kind}.yaml", judge, name))
    _judge_into(job, folder / MEASURED, job.truth, judges, f"level {level}: measuring")


def _judge(config: LadderConfig, previous: Path | None, *, swapped: bool = False) -> JudgeConfig:
    """The judge of a level; with ``swapped``, its assistant says of each answer what is true of the other."""
    if previous is None:
        return config.alone()
    return config.assisted(str(previous), swapped=swapped)


def _judge_file(path: Path, judge: JudgeConfig, name: str) -> str:
    """Write a judge to a file that ``afzal judge --judge`` can read too; return its path."""
    values: dict[str, Any] = judge.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    runs.atomic_write(path, yaml.safe_dump({"name": name, **values}, sort_keys=False, allow_unicode=True))
    return str(path)


def _judge_into(job: Job, out: Path, items: Sequence[Item], judges: Sequence[str], title: str) -> None:
    """Judge pairs into a folder in the layout of ``afzal judge``; the summary is written last."""
    if (out / SUMMARY).exists():
        return
    job.say(title)
    truth = items if items is job.truth else None
    run_judges(
        items,
        judges,
        out,
        voted=truth,
        cache=Path(job.config.out) / REPLIES,
        resamples=job.config.resamples,
        say=job.say,
    )


def _training(config: LadderConfig, kind: str, model: str, data: str, out: Path) -> TrainConfig:
    """The settings of a level's reward model or policy."""
    method = {"reward": "reward", "policy": "dpo"}[kind]
    common = {k: v for k, v in config.common.items() if k in CONFIGS[method].model_fields}
    settings = {**common, **getattr(config, f"train_{kind}"), "seed": config.seed}
    return make(method, model=model, data=data, out=str(out), **settings)
