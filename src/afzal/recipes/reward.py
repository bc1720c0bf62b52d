"""Training of reward models: the starting model, bootstrap weights of its heads, and the final assessment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from afzal import runs
from afzal.config import TrainConfig
from afzal.config.sections import ScorerSettings
from afzal.errors import AfzalError
from afzal.folders.classifiers import has_classifier
from afzal.model.reward import (
    blank_reward_model,
    choose_pad,
    ensemble,
    head_scores,
    is_reward_model,
    load_reward_model,
    n_heads,
)
from afzal.prepare import Prepared
from afzal.recipes import parallel
from afzal.report import Section
from afzal.rewards.assess import assess, lines, score_items, sections
from afzal.rewards.identifiability import identifiability, section
from afzal.tokens import Tree
from afzal.tokens.batch import Batch
from afzal.train import ranks
from afzal.train.feed import Layout

_SHIFT_TREES = 512  # items whose better responses determine the zero: enough for two digits


def start(
    config: TrainConfig, settings: ScorerSettings, prepared: Prepared, device: torch.device, model: Any
) -> parallel.StartingModel:
    """The model to train: ``model``, or the trunk or reward model of ``config.model``, with a padding token.

    Raises:
        AfzalError: the given model has no scalar head, or another number of heads.
    """
    tokenizer = prepared.tokenizer
    ends = {int(b.ids[-1]) for t in (*prepared.train, *prepared.evaluation) for b in t.branches}
    starting = parallel.StartingModel(model)
    if model is None:
        options = {"heads": settings.heads, "seed": config.seed}
        if ranks.world() > 1:
            starting = parallel.open_blank(
                partial(blank_reward_model, config.model, **options), parallel.why_unsharded(config)
            )
        if starting.model is None:
            starting = replace(starting, model=load_reward_model(config.model, device=device, **options))
    elif not is_reward_model(model) or n_heads(model) != settings.heads:
        raise AfzalError(
            f"a {type(model).__name__} is not a reward model of {settings.heads} heads",
            remedy="pass a folder, or a model of AutoModelForSequenceClassification with num_labels=heads",
        )
    choose_pad(starting.model, tokenizer, ends, starting.unread)
    return starting


def bootstrap(config: TrainConfig) -> Callable[[Batch], Batch]:
    """A function that gives each head of an ensemble its own weights on a batch's pairs; no change for other models."""
    if config.scorer is not None and config.scorer.heads > 1:
        return partial(ensemble, heads=config.scorer.heads, seed=config.seed)
    return lambda batch: batch


def assess_held_out(
    settings: ScorerSettings, run: runs.Run, model: Any, prepared: Prepared, layout: Layout
) -> tuple[list[Section], float]:
    """Assess the model on the held-out items: sections for its report, and the mean score of better answers."""
    model.eval()
    shift = _shift(model, prepared.train, layout) if settings.shift == "chosen" else 0.0
    extra: list[Section] = []
    facts = {"shift": shift, "heads": settings.heads, "transformers_class": has_classifier(model.config.model_type)}
    if prepared.evaluation_items:
        score = lambda batch: head_scores(model, batch) - shift  # noqa: E731
        scored, _ = score_items(
            score, prepared.evaluation_items, prepared.speaker, layout, max_tokens=prepared.max_tokens
        )
        assessment = assess(scored)
        run.update(reward={**facts, **assessment.facts()})
        extra = [_summary(lines(assessment)), *sections(assessment)]
        if settings.inferred_at is not None and (known := identifiability(scored, settings.inferred_at)) is not None:
            run.update(identified=known.facts())
            extra[1:1] = [section(known)]
    else:
        run.update(reward=facts)
    return extra, shift


def _summary(sentences: Sequence[str]) -> Section:
    return Section(
        "The reward model on held-out data", "\n\n".join(line[:1].upper() + line[1:] + "." for line in sentences)
    )


def _shift(model: Any, trees: Sequence[Tree], layout: Layout) -> float:
    """Mean score of the preferred responses of the first training items."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in layout.batches(trees[:_SHIFT_TREES]):
            rows = batch.preferences
            better = rows[rows[:, 2] > 0.5, 0].long()
            scores = head_scores(model, batch).mean(1)[better].double()
            total, count = total + float(scores.sum()), count + len(better)
    return total / count if count else 0.0
