"""Formats of preferences that single data sets and tools have."""

from __future__ import annotations

from collections.abc import Mapping

from afzal.data import parse_others as others
from afzal.data import parse_pairs as pairs
from afzal.data import parse_votes as votes
from afzal.data.fields import has
from afzal.data.format import Format, is_list, texts

DATASETS: tuple[Format, ...] = (
    Format(
        "ultrafeedback",
        ("instruction", "completions"),
        others.ultrafeedback,
        {"prompt": "instruction", "answers": "completions", "scores": "the mean of the aspects rated"},
        accepts=is_list("completions"),
        beside="none",
    ),
    Format(
        "nectar",
        ("prompt", "answers"),
        others.nectar,
        {"prompt": "prompt", "answers": "answers", "ranks": "rank (1 is best)"},
        accepts=is_list("answers"),
        beside="none",
    ),
    Format(
        "helpsteer3",
        ("context", "response1", "response2", "overall_preference"),
        pairs.helpsteer3,
        {"prompt": "context", "A": "response1", "B": "response2", "vote": "overall_preference (below 0: A better)"},
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "pku_saferlhf",
        ("prompt", "response_0", "response_1", "better_response_id|safer_response_id"),
        pairs.pku_saferlhf,
        {
            "prompt": "prompt",
            "A": "response_0",
            "B": "response_1",
            "votes": "better_response_id (axis better), safer_response_id (axis safer)",
        },
        optional=("better_response_id", "safer_response_id", "response_0_source", "response_1_source"),
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        pairs.shp,
        {"prompt": "history", "A": "human_ref_A", "B": "human_ref_B", "vote": "labels (1: A better)"},
        optional=("score_A", "score_B"),
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "arena",
        ("conversation_a", "conversation_b", "winner"),
        pairs.arena,
        {"prompt": "common beginning", "A": "conversation_a", "B": "conversation_b", "vote": "winner"},
        optional=("model_a", "model_b", "judge", "annotator"),
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "arena_columns",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        pairs.arena_columns,
        {
            "prompt": "prompt",
            "A": "response_a",
            "B": "response_b",
            "vote": "winner_model_a, winner_model_b, winner_tie",
        },
        optional=("model_a", "model_b"),
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "summarize_from_feedback",
        ("info", "summaries", "choice"),
        pairs.summarize_from_feedback,
        {"prompt": "info (post or article)", "answers": "summaries", "vote": "choice (index of the better)"},
        accepts=is_list("summaries"),
        optional=("worker",),
        beside="weight",
    ),
    Format(
        "webgpt",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        pairs.webgpt,
        {"prompt": "question", "A": "answer_0", "B": "answer_1", "vote": "score_0 against score_1 (larger is better)"},
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "alpaca_farm",
        ("instruction|input", "output_1", "output_2", "preference|label"),
        pairs.alpaca_farm,
        {
            "prompt": "instruction + input",
            "A": "output_1",
            "B": "output_2",
            "vote": "preference or label (1: A better)",
        },
        optional=("instruction", "input", "context"),
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "pandalm",
        ("instruction", "response1", "response2", "annotator1"),
        pairs.pandalm,
        {"prompt": "instruction + input", "A": "response1", "B": "response2", "votes": "annotator1, 2, ... (0: tie)"},
        optional=("input", "context", *(f"annotator{n}" for n in range(2, 10))),
        beside="weight",
        keeps_empty=True,
    ),
    Format(
        "anthropic_evals",
        ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
        pairs.anthropic_evals,
        {
            "prompt": "question",
            "better": "answer_matching_behavior",
            "worse": "answer_not_matching_behavior",
            "probability": "label_confidence",
        },
        accepts=texts("question", "answer_matching_behavior", "answer_not_matching_behavior"),
        optional=("label_confidence",),
    ),
    Format(
        "label_studio",
        ("data", "annotations|completions"),
        pairs.label_studio,
        {"prompt": "data.prompt", "A": "data.answer1", "B": "data.answer2", "votes": "annotations (left: A better)"},
        accepts=lambda row: isinstance(row["data"], Mapping) and has(row["data"], "answer1"),
        keeps_empty=True,
        beside="none",
    ),
    Format(
        "oasst",
        ("prompt", "message_tree_id"),
        others.oasst,
        {"prompt": "the path to each question", "answers": "its replies", "ranks": "rank (0 is best)"},
        accepts=lambda row: isinstance(row["prompt"], Mapping) and "replies" in row["prompt"],
        beside="none",
    ),
    Format(
        "multiple_choice",
        ("question", "option_1", "option_2", "answer"),
        others.multiple_choice,
        {
            "prompt": "question",
            "answers": "option_1, option_2, ...",
            "better": "number answer (axis answer)",
            "scores": "num_voters (axis voters)",
        },
        optional=("num_voters", *(f"option_{n}" for n in range(3, 27))),
        beside="weight",
    ),
    Format(
        "votes",
        (votes.PROMPTS,),
        votes.vote,
        {
            "prompt": "prompt",
            "A": "response_a",
            "B": "response_b",
            "vote": "winner (a, b, tie or both_bad); rows on the same answers are one item",
        },
        family="votes",
        accepts=votes.fits,
        also=votes.fields_read,
        keeps_empty=True,
    ),
)
