"""Preference formats that many data sets share."""

from __future__ import annotations

from afzal.data import native
from afzal.data import parse_others as others
from afzal.data import parse_pairs as pairs
from afzal.data.fields import has
from afzal.data.format import (
    DIALOGUES,
    Format,
    either_turns,
    follows_dialogue,
    is_list,
    is_transcript,
    no_prompt,
    repeats_prompt,
    texts,
    turns,
)

QUESTIONS = "question|query|problem|input|context"

_ASKED = "instruction|input|messages"
_RATINGS = {
    "prompt": "instruction (or input, messages)",
    "answers": "generations",
    "scores": "ratings (larger is better, equal is a tie)",
}
_OF_RATINGS = ("instruction", "input", "messages", others.SOURCES)
_OF_PAIR = tuple(f"{side}_{what}" for side in ("chosen", "rejected") for what in ("model", "rating", "score"))

LAYOUTS: tuple[Format, ...] = (
    Format(
        "afzal",
        ("afzal", "prompt", "responses"),
        native.from_row,
        {"everything": "afzal's own records"},
        optional=("votes", "gold", "group", "extra", "where"),
        system=False,
        annotations="none",
        keeps_empty=True,
    ),
    Format(
        "standard",
        ("prompt", "chosen", "rejected"),
        pairs.standard,
        {"prompt": "prompt", "better": "chosen", "worse": "rejected"},
        accepts=lambda row: texts("prompt", "chosen", "rejected")(row) and not repeats_prompt(row),
    ),
    Format(
        "standard_full",
        ("prompt", "chosen", "rejected"),
        pairs.standard_full,
        {"prompt": "prompt", "better": "chosen without the prompt", "worse": "rejected without the prompt"},
        accepts=repeats_prompt,
    ),
    Format(
        "conversational",
        ("prompt", "chosen", "rejected"),
        pairs.conversational,
        {"prompt": "prompt", "better": "chosen", "worse": "rejected"},
        accepts=either_turns,
    ),
    Format(
        "openai",
        ("input", "preferred_output", "non_preferred_output"),
        pairs.openai_preference,
        {"prompt": "input.messages", "better": "preferred_output", "worse": "non_preferred_output"},
    ),
    Format(
        "message_lists",
        ("chosen_messages", "rejected_messages"),
        pairs.message_lists,
        {"prompt": "common beginning", "better": "chosen_messages", "worse": "rejected_messages"},
        accepts=turns("chosen_messages", "rejected_messages"),
    ),
    Format(
        "sharegpt",
        (DIALOGUES, "chosen", "rejected"),
        pairs.sharegpt_pair,
        {"prompt": "conversations or messages", "better": "chosen", "worse": "rejected"},
        accepts=follows_dialogue,
    ),
    Format(
        "ms_swift",
        ("messages", "rejected_response|rejected_messages"),
        pairs.ms_swift,
        {"prompt": "messages up to the last user turn", "better": "last answer of messages", "worse": "rejected_*"},
        accepts=turns("messages"),
    ),
    Format(
        "alpaca_ranking",
        ("instruction", "chosen", "rejected"),
        pairs.instruction_pair,
        {"prompt": "instruction + input", "better": "chosen", "worse": "rejected"},
        accepts=no_prompt,
        optional=("input", "context", "history"),
    ),
    Format(
        "question_pair",
        (QUESTIONS, "chosen|accepted", "rejected"),
        pairs.question_pair,
        {"prompt": "question + input or context", "better": "chosen", "worse": "rejected"},
        accepts=lambda row: no_prompt(row) and not has(row, "instruction") and texts(QUESTIONS)(row),
        optional=("input", "context"),
    ),
    Format(
        "stack_exchange",
        ("question", "response_j", "response_k"),
        pairs.question_pair,
        {"prompt": "question", "better": "response_j", "worse": "response_k"},
        optional=("input", "context"),
    ),
    Format(
        "argilla",
        ("instruction", "chosen_response", "rejected_response"),
        pairs.argilla_pair,
        {"prompt": "instruction", "better": "chosen_response", "worse": "rejected_response"},
        optional=("input", "context"),
    ),
    Format(
        "ratings",
        (_ASKED, "generations", "ratings|rating"),
        others.rated_generations,
        _RATINGS,
        accepts=lambda row: is_list("generations")(row) and not (has(row, "chosen") and has(row, "rejected")),
        optional=_OF_RATINGS,
        annotations="none",
    ),
    *(
        Format(
            "ratings",
            (*asked, "generations", "chosen", "rejected"),
            others.rated_pair,
            _RATINGS | {"better, worse": "chosen and rejected of rows without ratings"},
            accepts=others.fits_rated_pair,
            optional=(*_OF_RATINGS, "ratings|rating", *_OF_PAIR),
            annotations="none",
        )
        for asked in ((_ASKED,), ("prompt", _ASKED))
    ),
    Format(
        "scored_responses",
        ("prompt", "responses", "scores|rewards"),
        others.rated_generations,
        {"prompt": "prompt", "answers": "responses", "scores": "scores (larger is better, equal is a tie)"},
        accepts=is_list("responses"),
        optional=("models",),
        annotations="none",
    ),
    Format(
        "indexed",
        ("prompt", "responses", "i", "j"),
        pairs.indexed,
        {"prompt": "prompt", "answers": "responses", "better": "number i", "worse": "number j"},
        accepts=is_list("responses"),
    ),
    Format(
        "indexed",
        ("prompt", "responses", "pairs"),
        pairs.indexed,
        {"prompt": "prompt", "answers": "responses", "better, worse": "numbers in pairs"},
        accepts=is_list("responses"),
    ),
    Format(
        "hh_rlhf",
        ("chosen", "rejected"),
        pairs.hh_rlhf,
        {
            "prompt": "all before the last Assistant turn",
            "better": "last turn of chosen",
            "worse": "last turn of rejected",
        },
        accepts=is_transcript,
    ),
    Format(
        "conversational_implicit",
        ("chosen", "rejected"),
        pairs.conversational_implicit,
        {"prompt": "common beginning", "better": "rest of chosen", "worse": "rest of rejected"},
        accepts=turns("chosen", "rejected"),
    ),
    Format(
        "implicit",
        ("chosen", "rejected"),
        pairs.implicit,
        {"prompt": "common beginning", "better": "rest of chosen", "worse": "rest of rejected"},
        accepts=no_prompt,
        system=False,
    ),
)
