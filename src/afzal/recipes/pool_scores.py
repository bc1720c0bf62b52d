"""The model work of ``afzal ask``: scores and hidden states of the responses in a pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from afzal.config import AskConfig, ScoreConfig
from afzal.data.column_requests import column_values
from afzal.data.turns import answer_text
from afzal.errors import AfzalError
from afzal.objectives import names_function
from afzal.quality.ask import ScoredItems
from afzal.quality.ask.features import row_features
from afzal.records import Item
from afzal.rewards.score import heads, hidden_states
from afzal.rewards.source import reward_source


def score_pool(config: AskConfig, items: Sequence[Item]) -> ScoredItems:
    """Scores and features of every response, by the scorers and features in the settings.

    D-optimal choices with given scorers use the hidden states of the first reward model among them, or the scores
    themselves if all are functions and policies. A row with a response that a model cannot read is dropped.

    Raises:
        AfzalError: a model cannot be read, a function gives no finite number, or no row could be read.
    """
    parts = [_scores(config, spec, items) for spec in config.scorers]
    members = [np.concatenate(of_item, axis=1) for of_item in zip(*parts, strict=True)] if parts else None
    source = _source(config)
    features = members if source == "scores" else row_features(items) if source == "rows" else None
    hidden = source not in ("scores", "rows", "words")
    if hidden:
        features = hidden_states(_score_config(config, model=source), items)
    columns = [values for values in (members, features) if values is not None]
    readable = [k for k in range(len(items)) if not any(np.isnan(values[k]).all(1).any() for values in columns)]
    if items and not readable:
        raise AfzalError("the models could not read any row", remedy="afzal check --model shows the rows as tokens")
    select = lambda values: None if values is None else [values[k] for k in readable]  # noqa: E731
    return ScoredItems(
        [items[k] for k in readable], select(members), select(features), hidden, len(items) - len(readable)
    )


def _source(config: AskConfig) -> str:
    """``words``, ``rows``, ``scores``, or the model whose hidden states are the features."""
    if config.features is not None or config.by != "d_optimal" or not config.scorers:
        return config.features or "words"
    return next((spec for spec in config.reward or () if not names_function(spec)), "scores")


def _scores(config: AskConfig, spec: str, items: Sequence[Item]) -> list[np.ndarray]:
    """Scores ``[K, M]`` per item by one reward model, function or policy."""
    if spec in (config.policy or ()):
        return heads(_score_config(config, policy=spec, reference=config.reference, beta=config.beta), items)
    if not names_function(spec):
        return heads(_score_config(config, model=spec), items)
    rows = column_values(items, sorted({name for item in items for name in item.extra}))
    triples = [(item, row, r) for item, row in zip(items, rows, strict=True) for r in item.responses]
    prompts, answers = [item.prompt for item, _, _ in triples], [answer_text(r.turns) for _, _, r in triples]
    flat = iter(reward_source(spec)(prompts, answers, None, [row for _, row, _ in triples]))
    return [np.array([[next(flat)] for _ in item.responses]) for item in items]


def _score_config(config: AskConfig, **what: Any) -> ScoreConfig:
    shared = {key: getattr(config, key) for key in ("data", "max_tokens", "tokens_per_forward", "device")}
    return ScoreConfig(**what, **shared)
