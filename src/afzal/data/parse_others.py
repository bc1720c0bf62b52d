"""Rows with ranked, scored, labelled or single answers, one function per format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from afzal.data.fields import (
    Row,
    RowError,
    UnusableError,
    array,
    flag,
    has,
    index,
    mapping,
    number,
    optional_number,
    optional_text,
    text,
    value,
    weight,
)
from afzal.data.parse_pairs import instruction
from afzal.data.turns import Messages, ask, messages, reply, transcript
from afzal.records import Comparison, Item, Message, Rating, Response, Turns


def ultrafeedback(row: Row) -> Item:
    """K completions rated on aspects, each an axis; a Rating of "N/A" is no rating.

    The published ``overall_score`` has known slips (10 for answers rated 1 on every aspect), so it counts only where
    no aspect was rated.
    """
    done = [_object(entry, "completions") for entry in array(row, "completions")]
    votes = [Rating(k, v, "score", axis=axis) for k, entry in enumerate(done) for axis, v in _aspects(entry)]
    if not votes:
        scores = [(k, optional_number(entry, "overall_score")) for k, entry in enumerate(done)]
        votes = [Rating(k, score, "score", axis="overall") for k, score in scores if score is not None]
    responses = tuple(Response(reply(text(e, "response")), optional_text(e, "model") or None) for e in done)
    return Item("", ask(text(row, "instruction")), responses, tuple(votes))


def nectar(row: Row) -> Item:
    """K answers ranked from 1, the best."""
    given = text(row, "prompt")
    turns = transcript(given)
    prompt = tuple(m for m in turns if m.content) if turns else ask(given)
    done = [_object(entry, "answers") for entry in array(row, "answers")]
    votes = tuple(Rating(k, number(entry, "rank") - 1, "rank") for k, entry in enumerate(done))
    responses = tuple(Response(reply(text(e, "answer")), optional_text(e, "model") or None) for e in done)
    return Item("", prompt, responses, votes)


def rated_generations(row: Row) -> Item:
    """K generations with a rating each, larger better, equal ratings a tie; null is no rating."""
    texts = array(row, "generations|responses")
    ratings = array(row, "ratings|scores|rewards")
    if len(texts) != len(ratings):
        raise RowError("bad_value", "ratings", f"has {len(ratings)} values for {len(texts)} responses")
    chat = not has(row, "prompt")
    wrap = reply if chat else str
    votes = tuple(Rating(k, number({"ratings": v}, "ratings"), "score") for k, v in enumerate(ratings) if v is not None)
    if not all(isinstance(t, str) for t in texts):
        raise RowError("wrong_type", "generations" if chat else "responses", "holds something other than text")
    sources = array(row, "generation_models|models") if has(row, "generation_models|models") else [None] * len(texts)
    responses = tuple(Response(wrap(t), s) for t, s in zip(texts, sources, strict=False))
    return Item("", ask(instruction(row)) if chat else text(row, "prompt"), responses, votes)


def oasst(row: Row) -> Iterator[Item | UnusableError]:
    """A conversation tree: every question with two or more ranked replies is an item; rank 0 is the best reply."""
    root = mapping(row, "prompt")
    yield from _oasst_node(root, (), str(row.get("message_tree_id") or root.get("message_id") or ""))


def multiple_choice(row: Row) -> Item:
    """``option_1`` to ``option_K`` with the number of the right one, and people's votes per option when there are.

    The right option beats every other (axis ``answer``, together one vote); ``num_voters`` become scores on the axis
    ``voters``, given for the first options only when the list is shorter.
    """
    names = [name for name in (f"option_{k}" for k in range(1, 27)) if row.get(name)]
    right = index(row, "answer", len(names), base=1)
    others = [k for k in range(len(names)) if k != right]
    votes = [Comparison(right, k, "first", axis="answer", weight=weight(row) / len(others)) for k in others]
    counts = array(row, "num_voters") if has(row, "num_voters") else []
    if len(counts) > len(names):
        raise RowError("bad_value", "num_voters", f"has {len(counts)} counts for {len(names)} options")
    scores = [Rating(k, number({"num_voters": n}, "num_voters"), "score", axis="voters") for k, n in enumerate(counts)]
    responses = tuple(Response(reply(text(row, name))) for name in names)
    return Item("", ask(text(row, "question")), responses, (*votes, *scores))


def unpaired(row: Row) -> Item:
    """One answer with a label: 1 good, 0 bad."""
    prompt, answer = value(row, "prompt"), value(row, "completion|response")
    if isinstance(prompt, str) and isinstance(answer, str):
        return _labelled(row, prompt, answer)
    asked = ask(prompt) if isinstance(prompt, str) else messages(prompt, "prompt")
    said = reply(answer) if isinstance(answer, str) else messages(answer, "completion")
    return _labelled(row, asked, said)


def unpaired_messages(row: Row) -> Item:
    """A dialogue whose last answer is labelled."""
    turns = messages(value(row, "messages|conversations"), "messages")
    cut = _last_answer(turns)
    return _labelled(row, turns[:cut], turns[cut:])


def unpaired_alpaca(row: Row) -> Item:
    """Instruction, input and one labelled output."""
    prompt = ask(instruction(row), system=optional_text(row, "system|system_prompt"))
    return _labelled(row, prompt, reply(text(row, "output")))


def prompt_completion(row: Row) -> Item:
    """A prompt and the answer to learn, as texts or messages."""
    prompt, answer = value(row, "prompt"), value(row, "completion|response|output|answer|target")
    if isinstance(prompt, str) and isinstance(answer, str):
        return Item("", prompt, (Response(answer),))
    asked = ask(prompt) if isinstance(prompt, str) else messages(prompt, "prompt")
    return Item("", asked, (Response(reply(answer) if isinstance(answer, str) else messages(answer, "completion")),))


def dialogue(row: Row) -> Item:
    """A whole dialogue: all from the first answer on is the response, its assistant turns to be learned.

    Answers with ``loss_weight`` 0 at the beginning belong to the prompt.
    """
    raw = value(row, "messages|conversations")
    turns = messages(raw, "messages")
    learned = [n for n, m in enumerate(turns) if m.role == "assistant" and _weight(raw, n) > 0]
    if not learned:
        raise UnusableError("no_answer", "no assistant message to learn from")
    start = learned[0]
    if any(m.role == "assistant" and n > start and n not in learned for n, m in enumerate(turns)):
        raise UnusableError("mixed_loss_weight", "an answer with loss_weight 0 follows one that is to be learned")
    if start == 0:
        raise UnusableError("empty_prompt", "the dialogue begins with the assistant")
    head = optional_text(row, "system")
    lead = (Message("system", head),) if head and turns[0].role != "system" else ()
    return Item("", (*lead, *turns[:start]), (Response(turns[start : learned[-1] + 1]),))


def alpaca(row: Row) -> Item:
    """Instruction and input, or a question, and the output to learn."""
    history = array(row, "history") if has(row, "history") else []
    asked = instruction(row) if has(row, "instruction|input") else text(row, "question|query|problem")
    prompt = ask(asked, system=optional_text(row, "system|system_prompt"), history=history)
    return Item("", prompt, (Response(reply(text(row, "completion|response|output|answer|target"))),))


def plain_text(row: Row) -> Item:
    """Text to be learned from its first word on: an empty prompt."""
    return Item("", "", (Response(text(row, "text")),))


def prompt_only(row: Row) -> Item:
    """A prompt without answers, for generation."""
    given = value(row, "prompt")
    prompt: Turns = given if isinstance(given, str) else messages(given, "prompt")
    if not prompt:
        raise UnusableError("empty_prompt", "the prompt is empty")
    return Item("", prompt, ())


def _labelled(row: Row, prompt: Turns, answer: Turns) -> Item:
    good = 1.0 if flag(row, "label|kto_tag") else 0.0
    return Item("", prompt, (Response(answer),), (Rating(0, good, "label", weight=weight(row)),))


def _last_answer(turns: Messages) -> int:
    if len(turns) < 2 or turns[-1].role != "assistant":
        raise UnusableError("no_answer", "the dialogue does not end with an answer to something")
    return len(turns) - 1


def _oasst_node(node: Row, before: Messages, tree: str) -> Iterator[Item | UnusableError]:
    path = (*before, _oasst_message(node))
    replies = [_object(entry, "replies") for entry in array(node, "replies")] if has(node, "replies") else []
    if path[-1].role == "user" and replies:
        ranked = [entry for entry in replies if entry.get("rank") is not None]
        if len(ranked) > 1:
            yield _oasst_item(node, path, ranked, tree)
        else:
            yield UnusableError(
                "unranked_replies", f"message {node.get('message_id')} has {len(ranked)} ranked replies"
            )
    for entry in replies:
        yield from _oasst_node(entry, path, tree)


def _oasst_item(node: Row, path: Messages, ranked: list[Row], tree: str) -> Item:
    responses = tuple(Response((_oasst_message(e),), optional_text(e, "model_name") or None) for e in ranked)
    votes = tuple(Rating(k, number(entry, "rank"), "rank") for k, entry in enumerate(ranked))
    return Item(str(node.get("message_id") or ""), path, responses, votes, group=tree)


def _oasst_message(node: Row) -> Message:
    return messages({"role": node.get("role"), "content": text(node, "text")}, "replies")[0]


def _aspects(entry: Row) -> Iterator[tuple[str, float]]:
    for axis, said in mapping(entry, "annotations").items() if has(entry, "annotations") else ():
        rating = said.get("Rating") if isinstance(said, dict) else None
        if rating is not None and str(rating).strip().upper() not in ("N/A", ""):
            yield axis, number({"Rating": rating}, "Rating")


def _object(entry: Any, name: str) -> Row:
    if not isinstance(entry, dict):
        raise RowError("wrong_type", name, "holds something other than objects")
    return entry


def _weight(raw: Any, at: int) -> float:
    entry = raw[at] if isinstance(raw, list) else raw
    got = optional_number(entry, "loss_weight") if isinstance(entry, dict) else None
    return 1.0 if got is None else got
