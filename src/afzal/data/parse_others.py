"""Parse rows with ranked, scored, labelled or single answers: one function per format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from afzal.data.fields import (
    Row,
    RowError,
    UnusableError,
    array,
    has,
    index,
    label,
    mapping,
    name_of,
    number,
    optional_number,
    optional_text,
    text,
    value,
    weight,
)
from afzal.data.judged_by import only_judge
from afzal.data.parse_pairs import history, instruction
from afzal.data.turns import Messages, WeightedMessage, answer_text, assistant_turn, chat_prompt, messages, transcript
from afzal.records import Comparison, Item, Message, Rating, Response, Turns

ANSWERS = "completion|response|output|answer|target"


def ultrafeedback(row: Row) -> Item:
    """K completions rated on several aspects, each an axis; a Rating of "N/A" is not a rating.

    The published ``overall_score`` has known errors (10 for answers rated 1 on every aspect), so it counts only if no
    aspect was rated.
    """
    entries = [_object(entry, "completions") for entry in array(row, "completions")]
    votes = [Rating(k, v, "score", axis=axis) for k, entry in enumerate(entries) for axis, v in _aspects(entry)]
    if not votes:
        scores = [(k, optional_number(entry, "overall_score")) for k, entry in enumerate(entries)]
        votes = [Rating(k, score, "score", axis="overall") for k, score in scores if score is not None]
    responses = tuple(Response(assistant_turn(text(e, "response")), optional_text(e, "model") or None) for e in entries)
    return Item("", chat_prompt(text(row, "instruction")), responses, tuple(votes))


def nectar(row: Row) -> Item:
    """K answers ranked from 1, the best."""
    raw_prompt = text(row, "prompt")
    turns = transcript(raw_prompt)
    prompt = tuple(m for m in turns if m.content) if turns else chat_prompt(raw_prompt)
    entries = [_object(entry, "answers") for entry in array(row, "answers")]
    votes = tuple(Rating(k, number(entry, "rank") - 1, "rank") for k, entry in enumerate(entries))
    responses = tuple(Response(assistant_turn(text(e, "answer")), optional_text(e, "model") or None) for e in entries)
    return Item("", prompt, responses, votes)


SOURCES = "generation_models|models|model_names|generation_model"
"""Fields of distilabel with the models of ``generations``."""

_RATINGS = "ratings|scores|rewards|rating"


def rated_generations(row: Row) -> Item:
    """K generations with one rating each; larger is better, equal ratings are a tie, null is not a rating."""
    if not has(row, _RATINGS) and any(name in row for name in _RATINGS.split("|")):
        raise UnusableError("no_ratings", "the ratings are null")
    field = name_of(row, _RATINGS) or "ratings"
    texts, ratings = array(row, "generations|responses"), array(row, _RATINGS)
    if len(texts) != len(ratings):
        raise RowError("bad_value", field, f"has {len(ratings)} values for {len(texts)} responses")
    chat = has(row, "generations")
    wrap = assistant_turn if chat else str
    given = [(k, v) for k, v in enumerate(ratings) if v is not None and str(v).strip().upper() != "N/A"]
    votes = tuple(Rating(k, number({field: v}, field), "score") for k, v in given)
    if not all(isinstance(t, str) for t in texts):
        raise RowError("wrong_type", "generations" if chat else "responses", "holds something other than text")
    named = name_of(row, SOURCES)
    sources = row[named] if named and isinstance(row[named], list) and len(row[named]) == len(texts) else None
    responses = tuple(Response(wrap(t), s) for t, s in zip(texts, sources or [None] * len(texts), strict=True))
    return Item("", _asked(row) if chat else text(row, "prompt"), responses, votes)


def fits_rated_pair(row: Row) -> bool:
    """Whether the row has generations and a field for their ratings, which may be null."""
    return isinstance(row["generations"], list | tuple) and not row.keys().isdisjoint(("ratings", "rating"))


def rated_pair(row: Row) -> Item:
    """As :func:`rated_generations`, next to the pair that was made from the ratings; ratings that are equal are a tie,
    whatever the pair says. Without ratings, ``chosen`` is better.

    Raises:
        RowError: ``rejected`` is rated above ``chosen``.
    """
    pair = [_answer(row, name) for name in ("chosen", "rejected")]
    if not has(row, "ratings|rating"):
        return Item("", _asked(row), tuple(map(Response, pair)), (Comparison(0, 1, "first"),))
    item = rated_generations(row)
    rating_of = {answer_text(item.responses[v.response].turns).strip(): v for v in item.votes if isinstance(v, Rating)}
    chosen, rejected = (rating_of.get(answer_text(turns).strip()) for turns in pair)
    if chosen is not None and rejected is not None and chosen.value < rejected.value:
        problem = f"is rated {chosen.value:g}, below rejected, {rejected.value:g}"
        raise RowError("bad_value", "chosen", problem)
    return item


def _answer(row: Row, name: str) -> Turns:
    """The answer at the end of a text or a conversation."""
    raw = value(row, name)
    if isinstance(raw, str):
        return assistant_turn(raw)
    turns = messages(raw, name)
    if not turns or turns[-1].role != "assistant":
        raise UnusableError("no_answer", f"'{name}' does not end with an answer")
    return turns[-1:]


def _asked(row: Row) -> Turns:
    """The prompt of ``generations``: a dialogue, or an instruction."""
    if has(row, "messages") and not has(row, "instruction|input"):
        return messages(row["messages"], "messages")
    return chat_prompt(instruction(row))


def prometheus(row: Row) -> Item:
    """One answer inside the wrapped instruction, with the scores of one judge asked several times (``gpt4_score``).

    Rows on the same instruction are joined; the repeats become annotators named ``gpt4_score 1`` and so on.
    """
    parts = _WRAPPED.search(text(row, "instruction"))
    if parts is None:
        raise RowError("bad_value", "instruction", "does not wrap an instruction and a response to evaluate")
    values = array(row, "gpt4_score")
    scores = [(k, number({"gpt4_score": v}, "gpt4_score")) for k, v in enumerate(values, 1) if v is not None]
    votes = tuple(Rating(0, v, "score", annotator=f"gpt4_score {k}") for k, v in scores)
    answer = Response(assistant_turn(parts[2]), optional_text(row, "response_source") or None)
    return Item("", chat_prompt(parts[1]), (answer,), votes)


_WRAPPED = re.compile(
    r"###The instruction to evaluate:\n(.*?)\n\n###Response to evaluate:\n(.*?)\n\n###Reference Answer", re.S
)


def oasst(row: Row) -> Iterator[Item | UnusableError]:
    """A conversation tree: every question with two or more ranked replies is an item; rank 0 is the best reply."""
    root = mapping(row, "prompt")
    yield from _oasst_node(root, (), str(row.get("message_tree_id") or root.get("message_id") or ""))


def multiple_choice(row: Row) -> Item:
    """``option_1`` to ``option_K`` with the number of the right one and, if there are any, people's votes per option.

    The right option beats every other (axis ``answer``, together one vote). ``num_voters`` become scores on the axis
    ``voters``; a shorter list covers only the first options.
    """
    numbers = [k for k in range(1, 27) if row.get(f"option_{k}") not in (None, "")]
    chosen = index(row, "answer", max(numbers, default=0), base=1) + 1
    if chosen not in numbers:
        raise RowError("bad_value", "answer", f"names option_{chosen}, which the row lacks")
    place = {number: k for k, number in enumerate(numbers)}
    right = place[chosen]
    wrong_options = [k for k in range(len(numbers)) if k != right]
    votes = [Comparison(right, k, "first", axis="answer", weight=weight(row)) for k in wrong_options]
    counts = array(row, "num_voters") if has(row, "num_voters") else []
    scores = []
    for option, count in enumerate(counts, 1):
        voters = number({"num_voters": count}, "num_voters")
        if option in place:
            scores.append(Rating(place[option], voters, "score", axis="voters"))
        elif voters:
            raise RowError("bad_value", "num_voters", f"counts votes for option_{option}, which the row lacks")
    responses = tuple(Response(assistant_turn(text(row, f"option_{k}"))) for k in numbers)
    return Item("", chat_prompt(text(row, "question")), responses, (*votes, *scores))


def unpaired(row: Row) -> Item:
    """One answer with a label: 1 good, 0 bad."""
    prompt, answer = value(row, "prompt"), value(row, "completion|response")
    if isinstance(prompt, str) and isinstance(answer, str):
        return _labelled(row, prompt, answer)
    question = chat_prompt(prompt) if isinstance(prompt, str) else messages(prompt, "prompt")
    reply_turns = assistant_turn(answer) if isinstance(answer, str) else messages(answer, "completion")
    return _labelled(row, question, reply_turns)


def unpaired_messages(row: Row) -> Item:
    """A dialogue whose last answer is labelled."""
    turns = messages(value(row, "messages|conversations"), "messages")
    cut = _last_answer(turns)
    return _labelled(row, turns[:cut], turns[cut:])


def unpaired_alpaca(row: Row) -> Item:
    """Instruction, input and one labelled output."""
    return _labelled(row, chat_prompt(instruction(row), history=history(row)), assistant_turn(text(row, ANSWERS)))


def prompt_completion(row: Row) -> Item:
    """A prompt and the answer to learn, as texts or messages."""
    prompt, answer = value(row, "prompt"), value(row, ANSWERS)
    if isinstance(prompt, str) and isinstance(answer, str):
        return Item("", prompt, (Response(answer),))
    question = chat_prompt(prompt) if isinstance(prompt, str) else messages(prompt, "prompt")
    return Item(
        "", question, (Response(assistant_turn(answer) if isinstance(answer, str) else messages(answer, "completion")),)
    )


def dialogue(row: Row) -> Item:
    """A dialogue: everything from the first answer on is the response, and its assistant turns are learned.

    Answers marked as not to be learned at the beginning belong to the prompt.
    """
    turns = messages(value(row, "messages|conversations"), "messages")
    learned = [n for n, m in enumerate(turns) if m.role == "assistant" and _is_learned(m)]
    if not learned:
        raise UnusableError(
            "no_answer", "no assistant message to learn from; --columns prompt=messages reads prompts alone"
        )
    start = learned[0]
    if any(m.role == "assistant" and n > start and n not in learned for n, m in enumerate(turns)):
        raise UnusableError("mixed_loss_weight", "an answer marked as not to be learned follows one that is")
    if start == 0:
        raise UnusableError("empty_prompt", "the dialogue begins with the assistant")
    return Item("", turns[:start], (Response(turns[start : learned[-1] + 1]),))


def alpaca(row: Row) -> Item:
    """Instruction and input, or a question, and the output to learn."""
    return Item(
        "", chat_prompt(instruction(row), history=history(row)), (Response(assistant_turn(text(row, ANSWERS))),)
    )


def plain_text(row: Row) -> Item:
    """A text to learn from its first word on; the prompt is empty."""
    return Item("", "", (Response(text(row, "text")),))


def prompt_only(row: Row) -> Item:
    """A prompt without answers, for generation."""
    raw_prompt = value(row, "prompt")
    prompt: Turns = raw_prompt if isinstance(raw_prompt, str) else messages(raw_prompt, "prompt")
    if not prompt:
        raise UnusableError("empty_prompt", "the prompt is empty")
    return Item("", prompt, ())


def _labelled(row: Row, prompt: Turns, answer: Turns) -> Item:
    label_value = 1.0 if label(row, "label|kto_tag") else 0.0
    vote = Rating(0, label_value, "label", weight=weight(row), annotator=only_judge(row))
    return Item("", prompt, (Response(answer),), (vote,))


def _last_answer(turns: Messages) -> int:
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise UnusableError("no_answer", "the dialogue does not end with an answer to something")
    return len(turns) - 1


def _oasst_node(node: Row, before: Messages, tree: str) -> Iterator[Item | UnusableError]:
    path = (*before, _oasst_message(node))
    replies = [_object(entry, "replies") for entry in array(node, "replies")] if has(node, "replies") else []
    if path[-1].role == "user" and replies:
        ranked_replies = [entry for entry in replies if entry.get("rank") is not None]
        if len(ranked_replies) > 1:
            yield _oasst_item(node, path, ranked_replies, tree)
        else:
            yield UnusableError(
                "unranked_replies", f"message {node.get('message_id')} has {len(ranked_replies)} ranked replies"
            )
    for entry in replies:
        yield from _oasst_node(entry, path, tree)


def _oasst_item(node: Row, path: Messages, ranked_replies: list[Row], tree: str) -> Item:
    responses = tuple(Response((_oasst_message(e),), optional_text(e, "model_name") or None) for e in ranked_replies)
    votes = tuple(Rating(k, number(entry, "rank"), "rank") for k, entry in enumerate(ranked_replies))
    return Item(str(node.get("message_id") or ""), path, responses, votes, group=tree)


def _oasst_message(node: Row) -> Message:
    return messages({"role": node.get("role"), "content": text(node, "text")}, "replies")[0]


def _aspects(entry: Row) -> Iterator[tuple[str, float]]:
    for axis, annotation in mapping(entry, "annotations").items() if has(entry, "annotations") else ():
        rating = annotation.get("Rating") if isinstance(annotation, dict) else None
        if rating is not None and str(rating).strip().upper() not in ("N/A", ""):
            yield axis, number({"Rating": rating}, "Rating")


def _object(entry: Any, name: str) -> Row:
    if not isinstance(entry, dict):
        raise RowError("wrong_type", name, "holds something other than objects")
    return entry


def _is_learned(turn: Message) -> bool:
    return not isinstance(turn, WeightedMessage) or turn.learned > 0
