"""People as a round's judges: the file to label, and the labels they give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from afzal import data
from afzal.errors import AfzalError
from afzal.iterate.pairing import Candidate, Rejection, answer, split_rejected
from afzal.records import Item, Response, Turns, preferences, turns_to_json

TO_LABEL, LABELLED = "to_label.jsonl", "labelled.jsonl"


class LabelsNeeded(Exception):  # noqa: N818 - a request, not a fault
    """Labels are needed before the run can continue; the text says which file and what to do."""


def questionnaire(
    item_id: str, prompt: Turns, candidates: Sequence[Candidate], *, require_eos: bool
) -> tuple[Item | None, list[Rejection]]:
    """One prompt with the answers to ask about; None if fewer than two are left."""
    usable, rejections = split_rejected(candidates, require_eos=require_eos)
    if len(usable) < 2:
        return None, [*rejections, Rejection("too_few", f"{len(usable)} of {len(candidates)} answers are left", "item")]
    responses = tuple(Response(answer(prompt, candidates[k].text), f"answer {k}") for k in usable)
    return Item(item_id, prompt, responses), rejections


def labelled_items(
    folder: Path, questions: Sequence[Item], go_on: str
) -> tuple[list[Item], list[tuple[str, Rejection]]]:
    """The labelled items with at least one opinion that orders two answers, and those without (``undecided``).

    The labelled file may have any training data format and need not cover every prompt.

    Raises:
        Waiting: there is no labelled file yet.
        AfzalError: the file holds an answer that was not asked about.
    """
    path = folder / LABELLED
    if not path.exists():
        raise LabelsNeeded(
            f"{folder / TO_LABEL} holds {len(questions)} prompts with answers to label; "
            f"save the labelled file as {path}, then: {go_on}"
        )
    known = {_key(item.prompt, response.turns): item.extra for item in questions for response in item.responses}
    labelled: list[Item] = []
    undecided: list[tuple[str, Rejection]] = []
    for item in data.read(str(path)).items:
        unknown = [r for r in item.responses if _key(item.prompt, r.turns) not in known]
        if unknown:
            raise AfzalError(
                f"this answer was not asked about: {str(unknown[0].turns)[:80]!r}",
                where=item.where or item.id,
                remedy=f"label the answers of {TO_LABEL} without changing them",
            )
        if any(p.p != 0.5 and p.weight > 0 for p in preferences(item)):
            # a file of labels need not repeat the prompt's fields for the chat template
            labelled.append(replace(item, extra={**item.extra, **known[_key(item.prompt, item.responses[0].turns)]}))
        else:
            undecided.append((item.id, Rejection("undecided", "no opinion orders two answers", "item")))
    return labelled, undecided


def _key(prompt: Turns, answer: Turns) -> str:
    """Identifies an answer: its text and its prompt's, in which images and sounds are named by their bytes."""
    return json.dumps([turns_to_json(prompt), turns_to_json(answer)], sort_keys=True)
