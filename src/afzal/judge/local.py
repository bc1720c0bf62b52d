"""A local model as a judge by the log-probs of the verdicts: there is no reply to parse, and the verdict is soft.

The model reads the question up to ``VERDICT:``. The probabilities of the possible next words (first, second, tie) are
normalised to sum to 1. So there is always a verdict, and no text in an answer can be mistaken for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from afzal.errors import AfzalError
from afzal.judge.games import Game, Judge, Ruling, in_pair_order
from afzal.judge.prompting import PromptBuilder, PromptSettings
from afzal.judge.verdicts import Outcome, from_probability
from afzal.records import Message, Turns

if TYPE_CHECKING:
    from afzal.tokens import Speaker

LEAD = "VERDICT:"


def by_log_probs(
    settings: PromptSettings, choices: Mapping[str, Outcome], model: Any, speaker: Speaker, layout: Any
) -> Judge:
    """A judge from a loaded language model.

    Args:
        choices: the outcome of each word after ``VERDICT:``.
        speaker: the model's. A question too long for the context gives no verdict, since cutting it would hide an
            answer.
        layout: a :class:`afzal.train.feed.Layout`, which turns trees into forward passes.

    Raises:
        AfzalError: (at creation) the tokenizer cannot write the verdict words as a continuation.
    """
    builder = PromptBuilder(settings)
    continuations = speaker.codec.continuations([f"{LEAD} {word}" for word in choices], markers=False)
    if any(ids is None for ids in continuations):
        raise AfzalError(
            "the tokenizer cannot write the judge's verdict words", where="verdict.choices", remedy="plain words: A, B"
        )
    endings: list[list[int]] = [list(ids) for ids in continuations if ids is not None]

    def judge(games: Sequence[Game]) -> list[Ruling]:
        questions = [_turns(builder, game, speaker) for game in games]
        logps, lengths = _score_endings(model, speaker, layout, questions, endings)
        return [
            _ruling(game, row, n, list(choices.values())) for game, row, n in zip(games, logps, lengths, strict=True)
        ]

    return judge


def _turns(builder: PromptBuilder, game: Game, speaker: Speaker) -> Turns:
    prompt, first, second = game.turns
    if game.pair.media and (speaker.reader is None or not speaker.tokenizer.chat_template):
        raise AfzalError(
            "the judge's model reads only text, and a row has images or sounds",
            remedy="a model with a processor and a chat template, or a judge on a server that reads them",
        )
    messages = builder.messages(prompt=prompt, first=first, second=second, transcript=game.transcript)
    if speaker.tokenizer.chat_template:
        return tuple(Message(m["role"], m["content"]) for m in messages)
    return "\n\n".join(m["content"] for m in messages) + "\n"


def _score_endings(
    model: Any, speaker: Speaker, layout: Any, questions: Sequence[Turns], endings: Sequence[Sequence[int]]
) -> tuple[list[list[float] | None], list[int]]:
    """Summed log-probs of each ending after each question (None if it does not fit), and the questions' token
    counts."""
    import numpy as np
    import torch

    from afzal.model.logprobs import score
    from afzal.tokens import ENDLESS, Branch

    prompts = speaker.prompt_trees(questions)
    limit = speaker.limit_tokens(ENDLESS)
    longest = max(map(len, endings))
    trees = []
    for number, t in enumerate(prompts):
        if len(t.prompt) + longest <= limit:
            branches = tuple(Branch(np.asarray(e, np.int32), np.ones(len(e), dtype=bool)) for e in endings)
            trees.append(replace(t, item_id=str(number), branches=branches))
    by_question: dict[int, list[float]] = {int(t.item_id): [0.0] * len(endings) for t in trees}
    with torch.no_grad():
        for batch in layout.batches(trees):
            values = score(model, batch).logps.double().tolist()
            for (t, k), value in zip(batch.sources, values, strict=True):
                by_question[int(t.item_id)][k] = value
    return [by_question.get(number) for number in range(len(prompts))], [len(t.prompt) for t in prompts]


def _ruling(game: Game, logps: Sequence[float] | None, n_tokens: int, meanings: Sequence[Outcome]) -> Ruling:
    if logps is None:
        return Ruling("none", why="the question is longer than the model's context", tokens=(n_tokens, 0))
    p = shares(logps, meanings)
    p_first = p["first"] + 0.5 * p["tie"]
    outcome, p = in_pair_order(game, from_probability(p_first), p_first)
    return Ruling(outcome, p, tokens=(n_tokens, 0))


def shares(logps: Sequence[float], meanings: Sequence[Outcome]) -> Mapping[Outcome, float]:
    """Probabilities of first, second and tie, renormalised over the words; several words may have the same meaning."""
    import math

    top = max(logps)
    weights = [math.exp(value - top) for value in logps]
    total = sum(weights)
    by_meaning: dict[Outcome, float] = {"first": 0.0, "second": 0.0, "tie": 0.0}
    for weight, meaning in zip(weights, meanings, strict=True):
        by_meaning[meaning] += weight / total
    return by_meaning
