"""Scores of the responses of a file, by a reward model or by a policy's implicit rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from afzal import data, runs
from afzal.config import ScoreConfig
from afzal.errors import AfzalError
from afzal.model.load import context_of, pick_device
from afzal.model.probe import choose_sharing
from afzal.model.reward import (
    load_reward_model,
    states_at_ends,
)
from afzal.records import Item, turns_to_row
from afzal.rewards.assess import ScoreBatch, ScoredItem, assess, lines, score_heads, score_items
from afzal.rewards.source import implicit_scorer, reward_scorer, speaker_as_trained
from afzal.tokens import Speaker
from afzal.train.feed import Layout


def score(config: ScoreConfig) -> list[str]:
    """Lines that summarise the scores of ``config.data``; see :func:`scored_rows`."""
    return scored_rows(config)[1]


def scored_rows(config: ScoreConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """Score every response of ``config.data``, write the scores to ``config.out``, and return them with summary lines.

    A reward model's scores are less its stated shift. A policy's are its implicit rewards beta (log pi - log pi_ref),
    summed over the scored tokens (Rafailov et al. 2023, arXiv 2305.18290, eq. 5, up to a constant per prompt).

    Raises:
        AfzalError: data or model cannot be read, no response can be scored, or ``config.out`` exists or is being
            written by another process.
    """
    with runs.sole_file(config.out):
        return _scored_rows(config)


def _scored_rows(config: ScoreConfig) -> tuple[list[dict[str, Any]], list[str]]:
    items = data.read(config.data, columns=config.columns or None, format=config.data_format).items
    scorer, speaker, layout = _open_scorer(config)
    longest = speaker.limit_tokens(config.max_tokens)
    scored, losses = score_items(scorer, items, speaker, layout, max_tokens=longest, cut=_cut(items))
    lost = [loss for loss in losses if loss.action == "dropped"]
    if not any(math.isfinite(x) for s in scored for x in s.scores):
        why = lost[0].reason if lost else "no row"
        raise AfzalError("no response could be scored", where=config.data, why=why, remedy="afzal check shows the rows")
    records = _records(scored)
    if config.out:
        runs.write_jsonl(config.out, records)
    head = f"{sum(len(s.scores) for s in scored)} responses of {len(items)} items scored"
    head += f"; {len(lost)} items could not be read" if lost else ""
    short = {loss.item_id for loss in losses if loss.action == "cut"}
    head += f"; {len(short)} items were cut to {longest} tokens" if short else ""
    return records, [head, *lines(assess(scored))]


def heads(config: ScoreConfig, items: Sequence[Item]) -> list[np.ndarray]:
    """Per item ``[K, N]`` the scores of its responses by every head of the reward model, or by the policy (N = 1); NaN
    for an unreadable response.

    Raises:
        AfzalError: the model cannot be read.
    """
    scorer, speaker, layout = _open_scorer(config)
    return score_heads(scorer, items, speaker, layout, max_tokens=speaker.limit_tokens(config.max_tokens))


def hidden_states(config: ScoreConfig, items: Sequence[Item]) -> list[np.ndarray]:
    """Per item ``[K, d]`` the last hidden state of ``config.model``, a language model or a reward model, at the end of
    each response, which is what a reward head reads. NaN for an unreadable response.

    Raises:
        AfzalError: the model cannot be read.
    """
    assert config.model is not None
    device = pick_device(config.device)
    model = load_reward_model(config.model, device=device)
    layout = Layout(choose_sharing(model, config.max_tokens)[0], config.tokens_per_forward, device)
    speaker = speaker_as_trained(config.model)
    speaker = replace(speaker, context=context_of(model.config))
    return score_heads(
        partial(states_at_ends, model), items, speaker, layout, max_tokens=speaker.limit_tokens(config.max_tokens)
    )


def _open_scorer(config: ScoreConfig) -> tuple[ScoreBatch, Speaker, Layout]:
    """The scorer, its speaker, and its batch layout."""
    source = config.model or config.policy
    assert source is not None
    speaker = speaker_as_trained(source)
    device = pick_device(config.device)
    if config.model:
        scorer, sharing, context = reward_scorer(config.model, "model", config.max_tokens, device)
    else:
        assert config.policy is not None
        assert config.reference is not None
        pair = (config.policy, config.reference)
        scorer, sharing, context = implicit_scorer(*pair, config.beta, config.max_tokens, device, speaker.tokenizer)
    layout = Layout(sharing, config.tokens_per_forward, device)
    return scorer, replace(speaker, context=context), layout


def _cut(items: Sequence[Item]) -> set[tuple[int, int]]:
    """The answers cut at the token limit, according to the column ``stop`` that ``afzal generate`` writes."""
    return {(k, 0) for k, i in enumerate(items) if len(i.responses) == 1 and i.extra.get("stop") == "length"}


def _records(scored: Sequence[ScoredItem]) -> list[dict[str, Any]]:
    return [_record(s.item, s, k) for s in scored for k in range(len(s.scores))]


def _record(item: Item, s: ScoredItem, k: int) -> dict[str, Any]:
    finite = math.isfinite(s.scores[k])
    return {
        "item": item.id,
        "response_index": k,
        "prompt": turns_to_row(item.prompt),
        "response": turns_to_row(item.responses[k].turns),
        "score": float(s.scores[k]) if finite else None,
        "score_sd": float(s.spread[k]) if finite else None,
        "tokens": int(s.lengths[k]),
    }
