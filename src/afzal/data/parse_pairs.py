"""Parse rows that say which of two answers is better: one function per format, from a row to an :class:`Item`.

In every item, response 0 is the better one, unless the format itself has A and B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from afzal.data.fields import (
    Row,
    RowError,
    ScaleError,
    UnusableError,
    array,
    flag,
    has,
    index,
    is_missing,
    kind,
    mapping,
    name_of,
    number,
    opinion,
    optional_number,
    optional_text,
    text,
    value,
    weight,
)
from afzal.data.format import DIALOGUES
from afzal.data.turns import (
    Messages,
    assistant_turn,
    chat_prompt,
    merge_same_role,
    messages,
    split_dialogues,
    split_texts,
    transcript,
    unmarked,
)
from afzal.records import Comparison, Item, Message, Outcome, Response, Turns


def pair(row: Row, prompt: Turns, better: Turns, worse: Turns) -> Item:
    """An item of two responses, the first preferred, with the row's strength, probability and weight."""
    if row.keys().isdisjoint(_MODELS):
        responses = Response(better), Response(worse)
    else:
        sources = (optional_text(row, "chosen_model|chosen-model"), optional_text(row, "rejected_model|rejected-model"))
        responses = (Response(better, sources[0] or None), Response(worse, sources[1] or None))
    stated = opinion(row)
    return Item("", prompt, responses, (Comparison(0, 1, "first", **stated),) if stated else FIRST_IS_BETTER)


FIRST_IS_BETTER = (Comparison(0, 1, "first"),)
"""The votes of every row that states only the order: one shared object, so that derived values are computed once."""

_MODELS = frozenset({"chosen_model", "chosen-model", "rejected_model", "rejected-model"})


def versus(prompt: Turns, a: Turns, b: Turns, *votes: Comparison, sources: tuple[Any, Any] = (None, None)) -> Item:
    """An item of two responses in the source's order."""
    return Item("", prompt, (Response(a, sources[0]), Response(b, sources[1])), votes)


def standard(row: Row) -> Item:
    """Three texts, unchanged: white space stays in the field where it is."""
    return pair(row, text(row, "prompt"), text(row, "chosen"), text(row, "rejected"))


def standard_full(row: Row) -> Item:
    """Both answers begin with the prompt, which is removed from them."""
    prompt, better, worse = text(row, "prompt"), text(row, "chosen"), text(row, "rejected")
    return pair(row, prompt, better.removeprefix(prompt), worse.removeprefix(prompt))


def implicit(row: Row) -> Item:
    """Two complete texts: their common beginning, up to the last word boundary, is the prompt."""
    return pair(row, *split_texts(text(row, "chosen"), text(row, "rejected")))


def hh_rlhf(row: Row) -> Item:
    """Complete transcripts: everything before the last Assistant turn must agree."""
    better, worse = _dialogue(row, "chosen"), _dialogue(row, "rejected")
    if better[:-1] != worse[:-1]:
        raise UnusableError("prefix_differs", "the transcripts differ before the last answer")
    prompt, answers = merge_same_role(better[:-1]), (better[-1:], worse[-1:])
    if prompt and prompt[-1].role == "assistant":
        prompt, answers = (
            prompt[:-1],
            (merge_same_role(prompt[-1:] + answers[0]), merge_same_role(prompt[-1:] + answers[1])),
        )
    if not prompt:
        raise UnusableError("empty_prompt", "the transcript holds nothing before the last answer")
    return pair(row, prompt, *answers)


def conversational(row: Row) -> Item:
    """A prompt of messages (or a text) and answers of messages (or texts); complete dialogues are cut to the answer."""
    raw_prompt = value(row, "prompt")
    prompt = chat_prompt(raw_prompt) if isinstance(raw_prompt, str) else messages(raw_prompt, "prompt")
    better, worse = _answer(row, "chosen"), _answer(row, "rejected")
    if better[: len(prompt)] == prompt and worse[: len(prompt)] == prompt:
        better, worse = better[len(prompt) :], worse[len(prompt) :]
    elif better[0].role != "assistant" or worse[0].role != "assistant":
        return pair(row, *split_dialogues(better, worse))
    if not better or not worse:
        raise UnusableError("empty_response", "no answer follows the prompt")
    return pair(row, prompt, better, worse)


def conversational_implicit(row: Row) -> Item:
    """Complete dialogues: their common beginning is the prompt. A redundant ``prompt`` text is ignored."""
    better, worse = _answer(row, "chosen"), _answer(row, "rejected")
    if better[0].role == worse[0].role == "assistant":
        raise RowError("missing_field", "prompt", "is missing: the answers begin with the assistant")
    return pair(row, *split_dialogues(better, worse))


def message_lists(row: Row) -> Item:
    """``chosen_messages`` and ``rejected_messages`` with typed parts; the answers' ``loss_weight`` weights the pair."""
    better, worse = value(row, "chosen_messages"), value(row, "rejected_messages")
    dialogues = messages(better, "chosen_messages"), messages(worse, "rejected_messages")
    split = split_dialogues(*map(unmarked, dialogues))
    weights = {_loss_weight(better[-1]), _loss_weight(worse[-1])}
    if len(weights) > 1:
        raise UnusableError("mixed_loss_weight", "chosen and rejected have different loss_weight")
    return pair({"weight": weights.pop()} | dict(row), *split)


def openai_preference(row: Row) -> Item:
    """The preference format of OpenAI, Azure, Fireworks and Together."""
    request = mapping(row, "input")
    prompt = messages(value(request, "messages"), "input.messages")
    better = messages(value(row, "preferred_output"), "preferred_output")
    worse = messages(value(row, "non_preferred_output"), "non_preferred_output")
    return replace(pair(row, prompt, better, worse), extra={"tools": request["tools"]} if request.get("tools") else {})


def instruction_pair(row: Row) -> Item:
    """An instruction and two texts; the prompt is ``history``, then instruction, newline, input."""
    prompt = chat_prompt(instruction(row), history=history(row))
    return pair(row, prompt, assistant_turn(text(row, "chosen|accepted")), assistant_turn(text(row, "rejected")))


def question_pair(row: Row) -> Item:
    """A question and two texts (Orca pairs, StackExchange, code pairs)."""
    prompt = chat_prompt(instruction(row))
    better, worse = text(row, "chosen|accepted|response_j"), text(row, "rejected|response_k")
    return pair(row, prompt, assistant_turn(better), assistant_turn(worse))


def argilla_pair(row: Row) -> Item:
    """Argilla's and distilabel's pair of responses; their ratings give the strength."""
    prompt = chat_prompt(instruction(row))
    return pair(
        row, prompt, assistant_turn(text(row, "chosen_response")), assistant_turn(text(row, "rejected_response"))
    )


def sharegpt_pair(row: Row) -> Item:
    """A dialogue in ShareGPT form or as messages, and two answers (messages or texts) to it."""
    name = name_of(row, DIALOGUES)
    turns = messages(value(row, DIALOGUES), name)
    return pair(row, turns, _answer(row, "chosen"), _answer(row, "rejected"))


def ms_swift(row: Row) -> Item:
    """The last assistant message is chosen; each rejected answer replaces everything after the last user turn."""
    turns = messages(value(row, "messages"), "messages")
    cut = max((n for n, m in enumerate(turns) if m.role in ("user", "tool")), default=-1) + 1
    if not cut or cut == len(turns):
        raise RowError("bad_value", "messages", "does not end with a user turn and its answer")
    worse = _rejected(row)
    shared = opinion(row)
    responses = tuple(Response(turns_) for turns_ in (turns[cut:], *worse))
    votes = tuple(Comparison(0, k, "first", **shared) for k in range(1, len(responses)))
    return Item("", turns[:cut], responses, votes)


def indexed(row: Row) -> Item:
    """``responses`` with the index ``i`` of the better and ``j`` of the worse one, or ``pairs`` of such."""
    responses = tuple(Response(_turns(r, "responses")) for r in array(row, "responses"))
    index_pairs = array(row, "pairs") if has(row, "pairs") else [[value(row, "i"), value(row, "j")]]
    votes = []
    for entry in index_pairs:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise RowError("wrong_type", "pairs", "holds something other than [better, worse] indices")
        i, j = (index({name: position}, name, len(responses)) for name, position in zip("ij", entry, strict=True))
        if i == j:
            raise RowError("bad_value", "j", f"equals i ({i}): a response cannot be better than itself")
        votes.append(Comparison(i, j, "first", **opinion(row)))
    return Item("", _prompt_like(value(row, "prompt"), responses), responses, tuple(votes))


def helpsteer3(row: Row) -> Item:
    """``overall_preference`` from -3 to 3: below 0, response1 is better; 0 is a tie; the absolute value is the
    strength."""
    context = value(row, "context")
    prompt = chat_prompt(context) if isinstance(context, str) else messages(context, "context")
    liking = optional_number(row, "overall_preference")
    if liking is None:
        raise RowError("missing_field", "overall_preference", "is empty")
    if abs(liking) > 3:
        raise ScaleError("bad_value", "overall_preference", f"is {liking:g}, not from -3 to 3")
    vote = Comparison(0, 1, _by_sign(-liking), strength=abs(liking), weight=weight(row))
    return versus(prompt, assistant_turn(text(row, "response1")), assistant_turn(text(row, "response2")), vote)


def pku_saferlhf(row: Row) -> Item:
    """Two axes: ``better`` (helpful) from better_response_id, ``safer`` from safer_response_id."""
    votes = []
    for axis in ("better", "safer"):
        if has(row, f"{axis}_response_id"):
            winner = index(row, f"{axis}_response_id", 2)
            votes.append(Comparison(0, 1, "first" if winner == 0 else "second", axis=axis, weight=weight(row)))
    sources = (row.get("response_0_source"), row.get("response_1_source"))
    answers = (assistant_turn(text(row, "response_0")), assistant_turn(text(row, "response_1")))
    return versus(chat_prompt(text(row, "prompt")), *answers, *votes, sources=sources)


def shp(row: Row) -> Item:
    """``labels`` 1 means that A is better, 0 that B is; the strength is the gap of the two scores."""
    outcome: Outcome = "first" if flag(row, "labels") else "second"
    scores = (optional_number(row, "score_A"), optional_number(row, "score_B"))
    gap = None if scores[0] is None or scores[1] is None else abs(scores[0] - scores[1])
    vote = Comparison(0, 1, outcome, strength=gap, weight=weight(row))
    return versus(
        chat_prompt(text(row, "history")),
        assistant_turn(text(row, "human_ref_A")),
        assistant_turn(text(row, "human_ref_B")),
        vote,
    )


ARENA: dict[str, Outcome] = {
    "model_a": "first",
    "model_b": "second",
    "tie": "tie",
    "tie (bothbad)": "both_bad",
    "bothbad": "both_bad",
    "both_bad": "both_bad",
}


def arena(row: Row) -> Item:
    """Two dialogues and a winner; "tie (bothbad)" says nothing about the order and is not a tie."""
    winner = text(row, "winner").strip().lower()
    if winner not in ARENA:
        raise RowError("bad_value", "winner", f"is {winner[:40]!r}, not one of {', '.join(ARENA)}")
    a, b = (messages(value(row, f"conversation_{side}"), f"conversation_{side}") for side in "ab")
    judge_field = name_of(row, "judge|annotator")
    judge = str(row[judge_field]) if judge_field else None
    vote = Comparison(0, 1, ARENA[winner], annotator=judge, weight=weight(row))
    return versus(*split_dialogues(a, b), vote, sources=(row.get("model_a"), row.get("model_b")))


def arena_columns(row: Row) -> Item:
    """Like :func:`arena`, with one column per outcome and turns as JSON lists of texts."""
    flags = [flag(row, f"winner_{name}") for name in ("model_a", "model_b", "tie")]
    if sum(flags) != 1:
        raise RowError("bad_value", "winner_model_a", "and the other winner columns name no winner, or several")
    outcome: Outcome = ("first", "second", "tie")[flags.index(True)]  # pyright: ignore[reportAssignmentType]
    questions = array(row, "prompt")
    a, b = (_alternate(questions, array(row, f"response_{side}"), f"response_{side}") for side in "ab")
    vote = Comparison(0, 1, outcome, weight=weight(row))
    return versus(*split_dialogues(a, b), vote, sources=(row.get("model_a"), row.get("model_b")))


def summarize_from_feedback(row: Row) -> Item:
    """Two summaries of a post; ``choice`` is the index of the better one. Texts have the paper's layout."""
    summaries = [text(entry, "text") if isinstance(entry, dict) else str(entry) for entry in array(row, "summaries")]
    if len(summaries) != 2:
        raise RowError("bad_value", "summaries", f"holds {len(summaries)} texts, not 2")
    outcome: Outcome = "first" if index(row, "choice", 2) == 0 else "second"
    info, worker = mapping(row, "info"), row.get("worker")
    vote = Comparison(0, 1, outcome, annotator=None if worker is None else str(worker), weight=weight(row))
    first, second = (f" {summary.lstrip()}" for summary in summaries)
    return versus(_post(info), first, second, vote)


def webgpt(row: Row) -> Item:
    """Two answers with one score each; equal scores are a tie."""
    question = value(row, "question")
    prompt = chat_prompt(text(question, "full_text") if isinstance(question, dict) else text(row, "question"))
    scores = [optional_number(row, f"score_{k}") for k in (0, 1)]
    if scores[0] is None or scores[1] is None:
        raise RowError("missing_field", "score_0", "or score_1 is missing")
    gap = scores[0] - scores[1]
    vote = Comparison(0, 1, _by_sign(gap), strength=abs(gap), weight=weight(row))
    return versus(prompt, assistant_turn(text(row, "answer_0")), assistant_turn(text(row, "answer_1")), vote)


def alpaca_farm(row: Row) -> Item:
    """``preference`` (or ``label``) 1 means output_1 is better, 2 means output_2, 1.5 a draw.

    In AlpacaEval's annotations, which name generators, a number between 1 and 2 is 1 + P(output_2 is better), 0 is an
    old form of a draw, and null means no verdict.
    """
    is_eval = has(row, "generator_1")
    if is_eval and not has(row, "preference|label"):
        raise UnusableError("no_votes", "'preference' is null: no verdict")
    stated, name = number(row, "preference|label"), name_of(row, "preference|label")
    if name == "preference" and has(row, "label") and (label_value := number(row, "label")) != stated:
        raise RowError(
            "bad_value", "label", f"is {label_value:g}, but 'preference' is {stated:g}: one row states one vote"
        )
    if not (stated in (1, 1.5, 2) or (is_eval and (stated == 0 or 1 <= stated <= 2))):
        raise RowError("bad_value", name, f"is {stated:g}, not one of 1 to 2")
    p = 0.5 if stated == 0 else 2 - stated
    outcome: Outcome = "tie" if p == 0.5 else "first" if p > 0.5 else "second"
    annotator_field = name_of(row, "annotator|annotator_id")
    facts: dict[str, Any] = {"annotator": str(row[annotator_field]) if annotator_field else None, "weight": weight(row)}
    facts |= {"seconds": optional_number(row, "time_per_example"), "probability": None if p in (0, 0.5, 1) else p}
    sources = (row.get("generator_1"), row.get("generator_2"))
    a, b = assistant_turn(text(row, "output_1")), assistant_turn(text(row, "output_2"))
    return versus(chat_prompt(instruction(row)), a, b, Comparison(0, 1, outcome, **facts), sources=sources)


def pandalm(row: Row) -> Item:
    """One vote per annotator: 1 or 2 is the better response, 0 a tie; null, an empty cell or NaN is no vote.
    ``cmp_key`` names the models, as a_b."""
    votes = []
    for name in sorted(key for key in row if key.startswith("annotator") and not is_missing(row[key])):
        outcome: Outcome = ("tie", "first", "second")[index(row, name, 3)]  # pyright: ignore[reportAssignmentType]
        votes.append(Comparison(0, 1, outcome, annotator=name, weight=weight(row)))
    models = str(row.get("cmp_key", "")).split("_")
    sources = (models[0], models[1]) if len(models) == 2 else (None, None)
    a, b = assistant_turn(text(row, "response1")), assistant_turn(text(row, "response2"))
    return versus(chat_prompt(instruction(row)), a, b, *votes, sources=sources)


def anthropic_evals(row: Row) -> Item:
    """Texts continued verbatim (" Yes"); ``label_confidence`` is the probability that the label is right."""
    sure = optional_number(row, "label_confidence")
    better, worse = text(row, "answer_matching_behavior"), text(row, "answer_not_matching_behavior")
    facts = {"p": sure} if sure is not None else {}
    return pair(facts | dict(row), text(row, "question"), better, worse)


def instruction(row: Row) -> str:
    """``instruction`` (or ``question``, ...), ``input`` and ``context``, each on a new line; at least one is
    required."""
    parts = [optional_text(row, name) for name in ("instruction|question|query|problem", "input", "context")]
    if not any(part.strip() for part in parts):
        raise RowError("missing_field", "instruction", "is missing or empty, and so is 'input'")
    return "\n".join(part for part in parts if part.strip())


def _dialogue(row: Row, name: str) -> Messages:
    turns = transcript(text(row, name))
    if turns is None or turns[-1].role != "assistant":
        raise UnusableError("no_transcript", f"'{name}' is not a Human/Assistant transcript that ends with an answer")
    return turns


def _answer(row: Row, name: str) -> Messages:
    raw = value(row, name)
    turns = assistant_turn(raw) if isinstance(raw, str) else messages(raw, name)
    if not turns:
        raise UnusableError("empty_response", f"'{name}' holds no message")
    return turns


def _turns(raw: Any, name: str) -> Turns:
    if isinstance(raw, str):
        return raw
    if raw is None or isinstance(raw, bool | int | float):
        raise RowError("wrong_type", name, f"holds {kind(raw)} instead of a text or messages")
    return messages(raw, name)


def _prompt_like(raw: Any, responses: tuple[Response, ...]) -> Turns:
    """The prompt as text or messages, like the responses; RowError for a mixture."""
    prompt = _turns(raw, "prompt")
    if any(isinstance(r.turns, str) is not isinstance(prompt, str) for r in responses):
        raise RowError("wrong_type", "responses", "are texts although the prompt is messages, or the other way round")
    return prompt


def history(row: Row) -> list[Any]:
    """Earlier [question, answer] pairs; empty if the row has none."""
    return array(row, "history") if has(row, "history") else []


def _loss_weight(raw: Any) -> float:
    weight = optional_number(raw, "loss_weight") if isinstance(raw, dict) else None
    return 1.0 if weight is None else weight


def _rejected(row: Row) -> list[Messages]:
    if has(row, "rejected_messages"):
        turns = messages(value(row, "rejected_messages"), "rejected_messages")
        return [turns[max((n for n, m in enumerate(turns) if m.role in ("user", "tool")), default=-1) + 1 :]]
    raw = value(row, "rejected_response")
    answers = [raw] if isinstance(raw, str) else array(row, "rejected_response")
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise RowError("wrong_type", "rejected_response", "is not a text or a list of texts")
    return [assistant_turn(answer) for answer in answers]


def _alternate(questions: list[Any], answers: list[Any], name: str) -> Messages:
    if len(questions) != len(answers) or not all(isinstance(turn, str) for turn in questions + answers):
        raise RowError("bad_value", name, "does not hold one text per turn of 'prompt'")
    return tuple(
        m for q, a in zip(questions, answers, strict=True) for m in (Message("user", q), Message("assistant", a))
    )


def _post(info: Row) -> str:
    """The prompt layout of Stiennon et al. 2020 (appendix B.1): Reddit posts, or news articles."""
    if has(info, "article"):
        return f"Article: {text(info, 'article')}\n\nTL;DR:"
    head = f"SUBREDDIT: r/{text(info, 'subreddit')}\n\n" if has(info, "subreddit") else ""
    return f"{head}TITLE: {optional_text(info, 'title')}\n\nPOST: {text(info, 'post')}\n\nTL;DR:"


def _by_sign(gap: float) -> Outcome:
    return "tie" if gap == 0 else "first" if gap > 0 else "second"
