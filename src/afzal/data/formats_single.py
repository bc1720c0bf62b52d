"""Formats of single answers, labelled good or bad or without a label."""

from __future__ import annotations

from afzal.data import parse_others as others
from afzal.data.format import Format, is_label, texts, turns
from afzal.data.turns import looks_like_messages

_QUESTIONS = "instruction|question|query|problem|input"

SINGLE: tuple[Format, ...] = (
    Format(
        "unpaired",
        ("prompt", "completion|response", "label"),
        others.unpaired,
        {"prompt": "prompt", "answer": "completion", "good or bad": "label"},
        family="unpaired",
        accepts=is_label("label"),
    ),
    Format(
        "unpaired_messages",
        ("messages|conversations", "label|kto_tag"),
        others.unpaired_messages,
        {"prompt": "messages before the last", "answer": "last message", "good or bad": "label"},
        family="unpaired",
        accepts=lambda row: turns("messages|conversations")(row) and is_label("label|kto_tag")(row),
    ),
    Format(
        "unpaired_alpaca",
        (_QUESTIONS, others.ANSWERS, "label|kto_tag"),
        others.unpaired_alpaca,
        {"prompt": "instruction + input", "answer": "output", "good or bad": "label or kto_tag"},
        family="unpaired",
        accepts=lambda row: texts(_QUESTIONS, others.ANSWERS)(row) and is_label("label|kto_tag")(row),
        optional=("input", "context", "history"),
    ),
    Format(
        "messages",
        ("messages|conversations",),
        others.dialogue,
        {"prompt": "messages before the first answer", "answer": "the rest; assistant turns are learned"},
        family="plain",
        accepts=turns("messages|conversations"),
    ),
    Format(
        "prompt_completion",
        ("prompt", others.ANSWERS),
        others.prompt_completion,
        {"prompt": "prompt", "answer": "completion"},
        family="plain",
    ),
    Format(
        "alpaca",
        (_QUESTIONS, others.ANSWERS),
        others.alpaca,
        {"prompt": "instruction + input", "answer": "output"},
        family="plain",
        accepts=texts(_QUESTIONS, others.ANSWERS),
        optional=("input", "context", "history"),
    ),
    Format(
        "text",
        ("text",),
        others.plain_text,
        {"answer": "text"},
        family="plain",
        accepts=texts("text"),
        system=False,
    ),
    Format(
        "prompts",
        ("prompt",),
        others.prompt_only,
        {"prompt": "prompt"},
        family="plain",
        accepts=lambda row: isinstance(row["prompt"], str) or looks_like_messages(row["prompt"]),
    ),
)
