"""The table of formats. To add one: write ``parse(row) -> Item`` and add an entry below; nothing else.

An entry applies to a row that holds all fields of ``requires`` (``"a|b"`` means either) and passes ``accepts``. When
several apply, the one whose required fields contain the other's wins; of equal ones the first listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from afzal.data import native
from afzal.data import parse_others as others
from afzal.data import parse_pairs as pairs
from afzal.data.fields import ANNOTATOR, PROBABILITY, Row, UnusableError, alternatives, has, looks_like_flag, name_of
from afzal.data.turns import looks_like_messages, transcript
from afzal.records import Item

Parsed = Item | Iterator[Item | UnusableError]
Family = Literal["preference", "unpaired", "plain", "refused"]


@dataclass(frozen=True, slots=True)
class Format:
    """One way people write preferences down.

    Attributes:
        name: what ``--format`` takes.
        requires: fields a row must hold with a value.
        parse: one row to an item (or several); raises RowError or UnusableError. For a refused format: None.
        reads: what is taken from which field, in words, for the person who checks.
        family: preference (which is better), unpaired (labels), plain (nothing to compare), refused.
        accepts: a further condition on the row's values.
        optional: fields that are read when present.
        refusal: why the format is refused, and what to do.
    """

    name: str
    requires: tuple[str, ...]
    parse: Callable[[Row], Parsed] | None
    reads: Mapping[str, str]
    family: Family = "preference"
    accepts: Callable[[Row], bool] = lambda row: True
    optional: tuple[str, ...] = ()
    refusal: str = ""

    def applies(self, row: Row) -> bool:
        return all(has(row, field) for field in self.requires) and self.accepts(row)

    def used(self) -> frozenset[str]:
        """The top-level fields that the parser reads (the rest of a row is kept aside)."""
        return _COMMON.union(*map(alternatives, (*self.requires, *self.optional)))


_COMMON = frozenset(
    {*PROBABILITY, *ANNOTATOR, "id", "weight", "margin", "strength"}
    | {f"{side}_{what}" for side in ("chosen", "rejected") for what in ("score", "rating", "avg_rating", "model")}
    | {"score_chosen", "score_rejected", "chosen-model", "rejected-model"}
)


def _texts(*fields: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row[name_of(row, field)], str) for field in fields)


def _turns(*fields: str) -> Callable[[Row], bool]:
    return lambda row: all(looks_like_messages(row[name_of(row, field)]) for field in fields)


def _list(field: str) -> Callable[[Row], bool]:
    return lambda row: isinstance(row[name_of(row, field)], list | tuple)


def _label(field: str) -> Callable[[Row], bool]:
    return lambda row: looks_like_flag(row[name_of(row, field)])


def _is_transcript(row: Row) -> bool:
    return all(isinstance(row[f], str) and transcript(row[f][:2000]) is not None for f in ("chosen", "rejected"))


def _repeats_prompt(row: Row) -> bool:
    return _texts("prompt", "chosen", "rejected")(row) and all(
        row["prompt"].strip() and row[f].startswith(row["prompt"]) for f in ("chosen", "rejected")
    )


def _either_turns(row: Row) -> bool:
    return (
        looks_like_messages(row["chosen"]) or looks_like_messages(row["rejected"]) or looks_like_messages(row["prompt"])
    )


def _no_prompt(row: Row) -> bool:
    return not has(row, "prompt") and _texts("chosen|accepted", "rejected")(row)


_ANSWERS = "completion|response|output|answer|target"
_IDS = "prompt_ids|prompt_input_ids|chosen_ids|chosen_input_ids|rejected_ids|rejected_input_ids|input_ids|token_ids"

FORMATS: tuple[Format, ...] = (
    Format(
        "tokenised",
        (_IDS,),
        None,
        {},
        family="refused",
        accepts=_list(_IDS),
        refusal="The rows hold token ids ({fields}). Ids belong to one tokenizer and their prompt boundary cannot be "
        "checked: give the texts in prompt, chosen and rejected instead.",
    ),
    Format(
        "stepwise",
        ("prompt", "completions", "labels"),
        None,
        {},
        family="refused",
        accepts=lambda row: _list("completions")(row) and _list("labels")(row),
        refusal="The rows hold one label per step of an answer ({fields}): process supervision, which Afzal does not "
        "train yet. A label per whole answer works: prompt, completion, label.",
    ),
    Format(
        "afzal",
        ("afzal", "prompt", "responses"),
        native.from_row,
        {"everything": "afzal's own records"},
        optional=("votes", "group", "extra", "where"),
    ),
    Format(
        "standard",
        ("prompt", "chosen", "rejected"),
        pairs.standard,
        {"prompt": "prompt", "better": "chosen", "worse": "rejected"},
        accepts=lambda row: _texts("prompt", "chosen", "rejected")(row) and not _repeats_prompt(row),
    ),
    Format(
        "standard_full",
        ("prompt", "chosen", "rejected"),
        pairs.standard_full,
        {"prompt": "prompt", "better": "chosen without the prompt", "worse": "rejected without the prompt"},
        accepts=_repeats_prompt,
    ),
    Format(
        "conversational",
        ("prompt", "chosen", "rejected"),
        pairs.conversational,
        {"prompt": "prompt", "better": "chosen", "worse": "rejected"},
        accepts=_either_turns,
        optional=("tools", "chat_template_kwargs"),
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
        accepts=_turns("chosen_messages", "rejected_messages"),
    ),
    Format(
        "sharegpt",
        ("conversations", "chosen", "rejected"),
        pairs.sharegpt_pair,
        {"prompt": "conversations", "better": "chosen", "worse": "rejected"},
        accepts=_turns("conversations", "chosen", "rejected"),
        optional=("system",),
    ),
    Format(
        "ms_swift",
        ("messages", "rejected_response|rejected_messages"),
        pairs.ms_swift,
        {"prompt": "messages up to the last user turn", "better": "last answer of messages", "worse": "rejected_*"},
        accepts=_turns("messages"),
    ),
    Format(
        "alpaca_ranking",
        ("instruction", "chosen", "rejected"),
        pairs.instruction_pair,
        {"prompt": "instruction + input", "better": "chosen", "worse": "rejected"},
        accepts=_no_prompt,
        optional=("input", "system", "system_prompt", "history"),
    ),
    Format(
        "question_pair",
        ("question|query|problem|input", "chosen|accepted", "rejected"),
        pairs.question_pair,
        {"prompt": "question", "better": "chosen", "worse": "rejected"},
        accepts=lambda row: _no_prompt(row) and not has(row, "instruction"),
        optional=("system", "system_prompt"),
    ),
    Format(
        "stack_exchange",
        ("question", "response_j", "response_k"),
        pairs.question_pair,
        {"prompt": "question", "better": "response_j", "worse": "response_k"},
    ),
    Format(
        "argilla",
        ("instruction", "chosen_response", "rejected_response"),
        pairs.argilla_pair,
        {"prompt": "instruction", "better": "chosen_response", "worse": "rejected_response"},
        optional=("input", "system", "system_prompt"),
    ),
    Format(
        "ratings",
        ("instruction|input", "generations", "ratings"),
        others.rated_generations,
        {"prompt": "instruction", "answers": "generations", "scores": "ratings (larger is better, equal is a tie)"},
        accepts=_list("generations"),
        optional=("instruction", "input", "generation_models", "models"),
    ),
    Format(
        "scored_responses",
        ("prompt", "responses", "scores|rewards"),
        others.rated_generations,
        {"prompt": "prompt", "answers": "responses", "scores": "scores (larger is better, equal is a tie)"},
        accepts=_list("responses"),
        optional=("models",),
    ),
    Format(
        "indexed",
        ("prompt", "responses", "i", "j"),
        pairs.indexed,
        {"prompt": "prompt", "answers": "responses", "better": "number i", "worse": "number j"},
        accepts=_list("responses"),
    ),
    Format(
        "indexed",
        ("prompt", "responses", "pairs"),
        pairs.indexed,
        {"prompt": "prompt", "answers": "responses", "better, worse": "numbers in pairs"},
        accepts=_list("responses"),
    ),
    Format(
        "ultrafeedback",
        ("instruction", "completions"),
        others.ultrafeedback,
        {"prompt": "instruction", "answers": "completions", "scores": "the mean of the aspects rated"},
        accepts=_list("completions"),
    ),
    Format(
        "nectar",
        ("prompt", "answers"),
        others.nectar,
        {"prompt": "prompt", "answers": "answers", "ranks": "rank (1 is best)"},
        accepts=_list("answers"),
    ),
    Format(
        "helpsteer3",
        ("context", "response1", "response2", "overall_preference"),
        pairs.helpsteer3,
        {"prompt": "context", "A": "response1", "B": "response2", "vote": "overall_preference (below 0: A better)"},
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
    ),
    Format(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        pairs.shp,
        {"prompt": "history", "A": "human_ref_A", "B": "human_ref_B", "vote": "labels (1: A better)"},
        optional=("score_A", "score_B"),
    ),
    Format(
        "arena",
        ("conversation_a", "conversation_b", "winner"),
        pairs.arena,
        {"prompt": "common beginning", "A": "conversation_a", "B": "conversation_b", "vote": "winner"},
        optional=("model_a", "model_b", "judge"),
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
    ),
    Format(
        "summarize_from_feedback",
        ("info", "summaries", "choice"),
        pairs.summarize_from_feedback,
        {"prompt": "info (post or article)", "answers": "summaries", "vote": "choice (index of the better)"},
        accepts=_list("summaries"),
    ),
    Format(
        "webgpt",
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        pairs.webgpt,
        {"prompt": "question", "A": "answer_0", "B": "answer_1", "vote": "score_0 against score_1 (larger is better)"},
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
        optional=("instruction", "input"),
    ),
    Format(
        "pandalm",
        ("instruction", "response1", "response2", "annotator1"),
        pairs.pandalm,
        {"prompt": "instruction + input", "A": "response1", "B": "response2", "votes": "annotator1, 2, ... (0: tie)"},
        optional=("input", *(f"annotator{n}" for n in range(2, 10))),
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
        accepts=_texts("question", "answer_matching_behavior", "answer_not_matching_behavior"),
        optional=("label_confidence",),
    ),
    Format(
        "label_studio",
        ("data", "annotations|completions"),
        pairs.label_studio,
        {"prompt": "data.prompt", "A": "data.answer1", "B": "data.answer2", "votes": "annotations (left: A better)"},
        accepts=lambda row: isinstance(row["data"], Mapping) and has(row["data"], "answer1"),
    ),
    Format(
        "oasst",
        ("prompt", "message_tree_id"),
        others.oasst,
        {"prompt": "the path to each question", "answers": "its replies", "ranks": "rank (0 is best)"},
        accepts=lambda row: isinstance(row["prompt"], Mapping) and "replies" in row["prompt"],
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
        accepts=_is_transcript,
    ),
    Format(
        "conversational_implicit",
        ("chosen", "rejected"),
        pairs.conversational_implicit,
        {"prompt": "common beginning", "better": "rest of chosen", "worse": "rest of rejected"},
        accepts=_turns("chosen", "rejected"),
        optional=("tools", "chat_template_kwargs"),
    ),
    Format(
        "implicit",
        ("chosen", "rejected"),
        pairs.implicit,
        {"prompt": "common beginning", "better": "rest of chosen", "worse": "rest of rejected"},
        accepts=_no_prompt,
    ),
    Format(
        "unpaired",
        ("prompt", "completion|response", "label"),
        others.unpaired,
        {"prompt": "prompt", "answer": "completion", "good or bad": "label"},
        family="unpaired",
        accepts=_label("label"),
    ),
    Format(
        "unpaired_messages",
        ("messages|conversations", "label|kto_tag"),
        others.unpaired_messages,
        {"prompt": "messages before the last", "answer": "last message", "good or bad": "label"},
        family="unpaired",
        accepts=lambda row: _turns("messages|conversations")(row) and _label("label|kto_tag")(row),
    ),
    Format(
        "unpaired_alpaca",
        ("instruction", "output", "label|kto_tag"),
        others.unpaired_alpaca,
        {"prompt": "instruction + input", "answer": "output", "good or bad": "label or kto_tag"},
        family="unpaired",
        accepts=_label("label|kto_tag"),
        optional=("input", "system", "system_prompt"),
    ),
    Format(
        "messages",
        ("messages|conversations",),
        others.dialogue,
        {"prompt": "messages before the first answer", "answer": "the rest; assistant turns are learned"},
        family="plain",
        accepts=_turns("messages|conversations"),
        optional=("tools", "chat_template_kwargs", "system"),
    ),
    Format(
        "prompt_completion",
        ("prompt", _ANSWERS),
        others.prompt_completion,
        {"prompt": "prompt", "answer": "completion"},
        family="plain",
    ),
    Format(
        "alpaca",
        ("instruction|question|query|problem|input", _ANSWERS),
        others.alpaca,
        {"prompt": "instruction + input", "answer": "output"},
        family="plain",
        accepts=_texts("instruction|question|query|problem|input", _ANSWERS),
        optional=("input", "system", "system_prompt", "history"),
    ),
    Format("text", ("text",), others.plain_text, {"answer": "text"}, family="plain", accepts=_texts("text")),
    Format(
        "prompts",
        ("prompt",),
        others.prompt_only,
        {"prompt": "prompt"},
        family="plain",
        accepts=lambda row: isinstance(row["prompt"], str) or looks_like_messages(row["prompt"]),
    ),
)


def named(name: str) -> list[Format]:
    """The entries of this name."""
    return [entry for entry in FORMATS if entry.name == name]
