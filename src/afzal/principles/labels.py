"""Labels by a judge that sees a principle: averaged over both orders and clamped away from certainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afzal.config.judging import JudgeConfig
from afzal.config.revise import PrinciplesConfig, ReviseConfig
from afzal.data.turns import full_text
from afzal.errors import AfzalError
from afzal.judge.games import Game, Pair, Ruling
from afzal.judge.prompting import PromptBuilder, PromptSettings
from afzal.judge.replies import Reading
from afzal.judge.verdicts import POINTS
from afzal.judging.judges import ResolvedJudge, language_model_judge, resolve_judge
from afzal.principles.word_lists import principle_at_step
from afzal.records import Item
from afzal.runs.stage import Row
from afzal.servers.cache import REPLIES, Cache, Reply


@dataclass(frozen=True, slots=True)
class Labelling:
    """The settings for labelling; a server's replies are kept in ``out``."""

    config: ReviseConfig
    principles: PrinciplesConfig
    out: Path
    say: Callable[[str], None]


def label_rows(labelling: Labelling, items: Sequence[Item], answers: Sequence[Row]) -> list[Row]:
    """One label per prompt's two answers, each under one principle.

    ``p`` is the probability that the first answer is better: the mean over both orders, clamped to ``clamp`` and
    1 - ``clamp``. It is None, with the reason ``why``, if the answers are the same or an order gave no verdict.

    Raises:
        AfzalError: the judge cannot be opened, or its server does not answer; earlier replies are kept.
    """
    config, principles = labelling.config, labelling.principles
    judge = _judge(config)
    settings = _with_principle(judge, principles.label_prompt)
    principle_of = [principle_at_step(principles.principles, config.seed, row["id"], 0) for row in answers]
    games = []
    for k, (item, row, principle) in enumerate(zip(items, answers, principle_of, strict=True)):
        first, second = row["answers"]
        if first.strip() != second.strip():
            pair = Pair(k, 0, 1, full_text(item.prompt), (first, second))
            games += [Game(pair, swapped, transcript=principle.text) for swapped in (False, True)]
    with Cache(labelling.out / REPLIES) as replies:
        rulings = language_model_judge(settings, replies, judge.name, labelling.say)(games)
    ruling_of = {(game.pair.item, game.swapped): ruling for game, ruling in zip(games, rulings, strict=True)}
    builder = PromptBuilder(PromptSettings(settings.system, settings.prompt, _unread))
    rows = []
    for k, (item, row, principle) in enumerate(zip(items, answers, principle_of, strict=True)):
        first, second = row["answers"]
        texts = {"prompt": full_text(item.prompt), "first": first, "second": second, "transcript": principle.text}
        label = combine_rulings(ruling_of.get((k, False)), ruling_of.get((k, True)), config.clamp)
        fields = {"id": row["id"], "principle": principle.id, "judge": judge.name, "model": config.model}
        rows.append({**fields, "prompts": {"label": builder.messages(**texts)[-1]["content"]}, **label})
    return rows


def combine_rulings(first: Ruling | None, swapped: Ruling | None, clamp: float) -> Row:
    """The label from the rulings in both orders, in the numbering of the pair; its ``p`` is None if nothing was asked.

    ``p_shown_first`` and ``p_shown_second`` are the first answer's probabilities when shown first and second. A judge
    that decides by position alone says p and 1 - p, so its label is one half.
    """
    if first is None or swapped is None:
        return {"p": None, "p_shown_first": None, "p_shown_second": None, "why": "the answers are the same"}
    p = [_probability(ruling) for ruling in (first, swapped)]
    why = next((r.why or "no verdict" for r in (first, swapped) if _probability(r) is None), "")
    readings = [value for value in p if value is not None]
    mean = sum(readings) / 2 if len(readings) == 2 else None
    clamped = None if mean is None else min(1 - clamp, max(clamp, mean))
    return {"p": clamped, "p_shown_first": p[0], "p_shown_second": p[1], "why": why}


def _probability(ruling: Ruling) -> float | None:
    return ruling.p_first if ruling.p_first is not None else POINTS.get(ruling.outcome)


def _judge(config: ReviseConfig) -> ResolvedJudge:
    """The named judge, or the model itself.

    Raises:
        AfzalError: the judge is not asked in words about two answers.
    """
    if config.judge is not None:
        judge = resolve_judge(config.judge)
        if judge.settings is None or judge.settings.kind not in ("model", "http") or judge.settings.verdict.score:
            kind = "people or a file" if judge.settings is None else f"of kind {judge.settings.kind}"
            raise AfzalError(
                "the judge cannot be shown a principle",
                where="judge",
                why=f"it is {kind}",
                remedy="a judge of kind model or http that compares two answers",
            )
        return judge
    kind = {"kind": "model"} if config.url is None else {"kind": "http", "url": config.url, "key_env": config.key_env}
    more = {} if config.url is None else {key: getattr(config, key) for key in ("timeout", "attempts", "concurrency")}
    return ResolvedJudge(Path(config.model).name, JudgeConfig(model=config.model, **kind, **more), "")  # pyright: ignore[reportArgumentType]


def _with_principle(judge: ResolvedJudge, prompt: str) -> JudgeConfig:
    """The judge's settings with the prompt for labels, in which a game's transcript is the principle."""
    assert judge.settings is not None
    return judge.settings.model_copy(update={"prompt": "{% set principle = transcript %}" + prompt})


def _unread(reply: Reply) -> Reading:
    raise NotImplementedError("a question that is only recorded has no reply")
