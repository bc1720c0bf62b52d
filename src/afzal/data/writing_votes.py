"""Write single votes as vote files of other tools: AlpacaEval's annotations, FastChat's human votes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal

from afzal.data.grouping import group_by_content
from afzal.data.judged_by import JUDGED_BY, judges_of
from afzal.data.turns import content_text
from afzal.records import Comparison, Item, Ranking, Rating, Turns, Vote, comparisons, turns_to_row

VoteTarget = Literal["alpaca_eval", "fastchat"]
_WRITTEN_AGAIN = ("question_id", "turn", "tstamp")  # columns of FastChat's own rows
_WINNERS = {"first": "model_a", "second": "model_b", "tie": "tie", "both_bad": "tie (bothbad)"}


def vote_rows(item: Item, target: VoteTarget) -> Iterator[dict[str, Any] | tuple[str, str]]:
    """One row per vote on two responses, in the order shown; (reason, detail) for votes that the target cannot hold.

    The response shown first, if recorded, is the first of the row. A ranking counts as the votes on its pairs. Votes of
    weight 0 are not trained on and are left out.
    """
    if not item.is_chat:
        yield "plain_text", "a text to be continued is not a dialogue"
        return
    if target == "alpaca_eval" and len(item.prompt) != 1:
        yield "dialogue", "an instruction is one turn of the user; fastchat holds dialogues"
        return
    counted = [vote for vote in item.votes if vote.weight > 0]
    if not any(isinstance(vote, Comparison | Ranking) for vote in counted):
        yield "no_comparison", "no vote compares two responses"
    for vote in comparisons(counted):
        yield _row(item, _as_shown(vote), target)


def left_out(item: Item, target: VoteTarget) -> Iterator[str]:
    """Facts that the rows of an item leave out."""
    facts: Mapping[str, bool] = {
        "scores, ranks and labels of single responses": any(isinstance(v, Rating) for v in item.votes),
        "votes of weight 0 (repeats, votes on known truth)": any(v.weight == 0 for v in item.votes),
        "weights": any(v.weight not in (0, 1) for v in item.votes),
        "which axis a vote is on": any(v.axis for v in item.votes),
        "strengths": any(isinstance(v, Comparison) and v.strength is not None for v in item.votes),
        "known truths": bool(item.gold),
        "how long votes took": target == "fastchat" and any(v.seconds is not None for v in item.votes),
        "times of votes": target == "alpaca_eval" and any(v.at is not None for v in item.votes),
        "ids of votes": any(v.id for v in item.votes),
        "groups that stay on one side of a split": item.group not in ("", group_by_content(item)),
        "other columns": bool(item.extra.keys() - {JUDGED_BY, *_WRITTEN_AGAIN}),
        "names of models (the responses have none)": any(r.source is None for r in item.responses),
    }
    yield from (name for name, holds in facts.items() if holds)


def _as_shown(vote: Comparison) -> Comparison:
    """The vote with the response shown first as its first; the lower index if that is not recorded."""
    first = min(vote.first, vote.second) if vote.shown_first is None else vote.shown_first
    return vote if vote.first == first else vote.swap()


def _row(item: Item, vote: Comparison, target: VoteTarget) -> dict[str, Any] | tuple[str, str]:
    row = _alpaca_eval(item, vote) if target == "alpaca_eval" else _fastchat(item, vote)
    if isinstance(row, tuple):
        return row
    # neither layout has a field that tells judges from people; other readers ignore this one
    row[JUDGED_BY] = [vote.annotator] if vote.annotator in judges_of(item) else None
    return {k: v for k, v in row.items() if v is not None}


def _alpaca_eval(item: Item, vote: Comparison) -> dict[str, Any] | tuple[str, str]:
    """``preference`` is 1 + P(the second is better): 1 means the first, 2 the second, 1.5 a draw."""
    if vote.p_first is None:
        return "both_bad", "two bad answers have no order"
    first, second = item.responses[vote.first], item.responses[vote.second]
    preference = 2.0 - vote.p_first
    return {
        "instruction": _words_of(item.prompt),
        "output_1": _words_of(first.turns),
        "generator_1": first.source,
        "output_2": _words_of(second.turns),
        "generator_2": second.source,
        "annotator": vote.annotator,
        "preference": int(preference) if preference in (1.0, 2.0) else preference,
        "time_per_example": vote.seconds,
    }


def _fastchat(item: Item, vote: Comparison) -> dict[str, Any] | tuple[str, str]:
    if vote.probability is not None and vote.probability not in (0.0, 0.5, 1.0):
        return "soft_label", "a probability is not a winner"
    sides = [item.responses[k] for k in (vote.first, vote.second)]
    outcome = vote.outcome if vote.probability is None else {1.0: "first", 0.0: "second", 0.5: "tie"}[vote.probability]
    prompt = turns_to_row(item.prompt)
    a, b = ([*prompt, *turns_to_row(side.turns)] for side in sides)
    return {
        "question_id": item.id,
        "model_a": sides[0].source,
        "model_b": sides[1].source,
        "winner": _WINNERS[outcome],
        "judge": vote.annotator,
        "turn": sum(message.role == "user" for message in item.prompt if not isinstance(message, str)),
        "conversation_a": a,
        "conversation_b": b,
        "tstamp": _seconds_since_1970(vote),
    }


def _words_of(turns: Turns) -> str:
    return turns if isinstance(turns, str) else "\n".join(content_text(message.content) for message in turns)


def _seconds_since_1970(vote: Vote) -> float | None:
    try:
        return None if vote.at is None else datetime.fromisoformat(vote.at).timestamp()
    except ValueError:
        return None
