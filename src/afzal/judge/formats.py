"""Verdict files of other tools: one function per format, from a row to verdicts. To add a format, add it to the table.

Tools differ in which answer a word or a number names, and in whether a pair's second game swaps the answers. Each
function documents its convention, and a fixture pins it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from afzal import data
from afzal.data import files
from afzal.data.annotation_folder import is_annotation_folder
from afzal.data.fields import RowError, UnusableError, is_missing, is_numeral
from afzal.data.json_reader import RawRow
from afzal.data.parse_pairs import ARENA
from afzal.data.turns import answer_text, messages, split_dialogues
from afzal.errors import AfzalError
from afzal.judge.games import category_of
from afzal.judge.verdicts import MIRRORED, Outcome, Verdict, Verdicts, from_probability, outcome_of
from afzal.records import comparisons, prompt_key, turns_to_json
from afzal.text import plural

Row = Mapping[str, Any]
ParsedRow = tuple[list[Verdict], Outcome | None]
"""The verdicts of a row, and the true outcome if it is stated."""


@dataclass(frozen=True, slots=True)
class Format:
    """A verdict format: the fields that identify it, and how a row is read.

    ``group`` is the field that groups rows, for formats in which a verdict needs several of them: ``read`` then
    receives one row whose field ``rows`` holds them.
    """

    name: str
    needs: frozenset[str]
    read: Callable[[Row], ParsedRow]
    group: str = ""


def _alpaca_eval(row: Row) -> ParsedRow:
    """``preference``: 1 the first output, 2 the second, 1.5 or 0 a draw, null no verdict.

    A weighted annotator gives a number in between: 1 + P(the second is better).
    """
    preference = row["preference"]
    names, prompt = (_text(row["generator_1"]), _text(row["generator_2"])), _text(row["instruction"])
    judge, item = _text(row.get("annotator", "")), _key(prompt, *names)
    lengths = _lengths(row["output_1"], row["output_2"]) if {"output_1", "output_2"} <= row.keys() else None
    if is_missing(preference):
        return [Verdict(prompt, item, *names, "none", judge, lengths=lengths)], None
    value = float(preference)
    if not (value == 0 or 1 <= value <= 2):
        raise ValueError(f"preference {preference!r} is not 1, 2, 1.5, 0 (a draw) or between 1 and 2")
    p = 0.5 if value == 0 else 2 - value
    return [Verdict(prompt, item, *names, from_probability(p), judge, probability=p, lengths=lengths)], None


_FASTCHAT: dict[str, Outcome] = {"model_1": "first", "model_2": "second", "tie": "tie", "error": "none"}


def _fastchat_judge(row: Row) -> ParsedRow:
    """``g1_winner`` and ``g2_winner``: two games, the second with the answers swapped; both name the model."""
    names = _text(row["model_1"]), _text(row["model_2"])
    prompt = f"{row['question_id']}/{row.get('turn', 1)}"
    item, judge = _key(prompt, *names), _name(row.get("judge", ""))
    games = (row["g1_winner"], 0), (row["g2_winner"], 1)
    return [Verdict(prompt, item, *names, _outcome(_FASTCHAT, w), judge, first_shown) for w, first_shown in games], None


def _fastchat_people(row: Row) -> ParsedRow:
    """``winner``: model_a, model_b, tie, or tie (bothbad); model_a was shown first."""
    names = _text(row["model_a"]), _text(row["model_b"])
    pair = _text(row["question_id"]) if "question_id" in row else json.dumps(row.get("conversation_a", ""))
    prompt = pair if "question_id" in row else _shared_beginning(row)
    pair, prompt = (f"{key}/{row['turn']}" if "turn" in row else key for key in (pair, prompt))
    judge, lengths = _name(row.get("judge")), _answer_lengths(row.get("conversation_a"), row.get("conversation_b"))
    outcome = _outcome(ARENA, row["winner"])
    return [Verdict(prompt, _key(pair, *names), *names, outcome, judge, 0, lengths=lengths)], None


def _shared_beginning(row: Row) -> str:
    """The prompt of two dialogues: their common beginning; without one, the first dialogue."""
    first = row.get("conversation_a", "")
    try:
        shared, _, _ = split_dialogues(*(messages(row.get(f"conversation_{k}"), f"conversation_{k}") for k in "ab"))
    except (RowError, UnusableError):
        return json.dumps(first)
    return json.dumps(turns_to_json(shared))


def _answer_lengths(first: Any, second: Any) -> tuple[int, int] | None:
    """The lengths of the answers of two dialogues after their common beginning; None if they are not there."""
    try:
        _, one, two = split_dialogues(messages(first, "conversation_a"), messages(second, "conversation_b"))
    except (RowError, UnusableError):
        return None
    return len(answer_text(one)), len(answer_text(two))


_SCORES: dict[str, Outcome] = {
    "A>>B": "first",
    "A>B": "first",
    "A=B": "tie",
    "B=A": "tie",
    "B>A": "second",
    "B>>A": "second",
}


def _arena_hard(row: Row) -> ParsedRow:
    """``games``: in the first the baseline is A, in the second the model is; a score of null is not a verdict."""
    names, prompt = (_text(row["model"]), _text(row.get("baseline") or "baseline")), _text(row["uid"])
    item, judge, verdicts = _key(prompt, *names), _text(row["judge"]), []
    for game, (judged, model_first) in enumerate(zip(row["games"], (False, True), strict=False)):
        score = (judged or {}).get("score")
        verdict: Outcome = "none" if score is None else _outcome(_SCORES, score)
        verdicts.append(Verdict(prompt, item, *names, verdict if model_first else MIRRORED[verdict], judge, 1 - game))
    return verdicts, None


def _judgebench(row: Row) -> ParsedRow:
    """``judgments``: the second was made with the answers swapped. A null decision is no verdict; ``label`` is the
    truth."""
    item = _text(row["pair_id"])
    names, verdicts = ("response_A", "response_B"), []
    for game, judgment in enumerate(row["judgments"][:2]):
        decision = (judgment or {}).get("decision")
        outcome: Outcome = "none" if decision is None else _outcome(_SCORES, decision)
        judge = _text(
            (judgment or {}).get("judgment", {}).get("judge_model", "") if isinstance(judgment, Mapping) else ""
        )
        outcome = outcome if game == 0 else MIRRORED[outcome]
        verdicts.append(Verdict(_text(row["question"]), item, *names, outcome, judge or "judge", game))
    return verdicts, _outcome(_SCORES, row["label"])


def _llmbar(row: Row) -> ParsedRow:
    """``judges``: the winners of two games by judge name, both in the row's numbering; the second game was swapped.

    An ``id`` such as ``Natural/0`` names the subset.
    """
    item, names, verdicts = _text(row.get("id", row["input"])), ("output_1", "output_2"), []
    lengths, subset = _lengths(row["output_1"], row["output_2"]), item.rpartition("/")[0]
    for judge, winners in row["judges"].items():
        for game, winner in enumerate(winners):
            outcome: Outcome = "none" if winner in (None, "", 0) else _outcome(_NUMBERS, str(winner))
            verdicts.append(Verdict(item, item, *names, outcome, judge, game, lengths=lengths, category=subset))
    return verdicts, _outcome(_NUMBERS, str(row["label"]))


_NUMBERS: dict[str, Outcome] = {"1": "first", "2": "second", "0": "tie", "Tie": "tie", "garbage": "none"}


def _pandalm(row: Row) -> ParsedRow:
    """``annotator1`` to ``annotator3``: 1 the first response, 2 the second, 0 a tie; null, an empty cell or NaN is no
    vote. ``cmp_key`` names the models."""
    first, _, second = _text(row["cmp_key"]).partition("_")
    prompt = _text(row["instruction"]) + "\0" + _text(row.get("input", ""))
    item = _key(prompt, first, second)
    people = sorted(name for name in row if name.startswith("annotator") and not is_missing(row[name]))
    lengths = _lengths(row.get("response1", ""), row.get("response2", ""))
    verdicts = [
        Verdict(prompt, item, first, second, _outcome(_NUMBERS, _digits(row[p])), p, 0, lengths=lengths) for p in people
    ]
    return verdicts, None


def _prometheus(row: Row) -> ParsedRow:
    """``gpt4_score``: repeated scores of one answer. Among the answers to one question the larger score wins, repeat by
    repeat; equal scores are a tie, and a null score is no verdict."""
    answers = {_text(r["response_source"]): r["gpt4_score"] for r in row["rows"]}
    prompt, verdicts = _text(row["rows"][0]["idx"]), []
    for first, second in combinations(sorted(answers), 2):
        for k, (a, b) in enumerate(zip(answers[first], answers[second], strict=True), start=1):
            outcome: Outcome = "none" if a is None or b is None else "first" if a > b else "second" if a < b else "tie"
            verdicts.append(Verdict(prompt, _key(prompt, first, second), first, second, outcome, f"gpt4_score {k}"))
    return verdicts, None


def _digits(value: Any) -> str:
    """A whole number without its point, since a column with missing values holds ``1.0`` for 1; else the value."""
    number = isinstance(value, float) or (isinstance(value, str) and is_numeral(value))
    return f"{float(value):g}" if number else str(value)


def _lengths(first: Any, second: Any) -> tuple[int, int]:
    return len(_text(first)), len(_text(second))


FORMATS: tuple[Format, ...] = (
    Format(
        "AlpacaEval annotations", frozenset({"instruction", "generator_1", "generator_2", "preference"}), _alpaca_eval
    ),
    Format(
        "FastChat judgements",
        frozenset({"question_id", "model_1", "model_2", "g1_winner", "g2_winner"}),
        _fastchat_judge,
    ),
    Format("FastChat votes", frozenset({"model_a", "model_b", "winner"}), _fastchat_people),
    Format("Arena-Hard judgements", frozenset({"uid", "model", "judge", "games"}), _arena_hard),
    Format("JudgeBench judgements", frozenset({"pair_id", "question", "label", "judgments"}), _judgebench),
    Format("LLMBar judges", frozenset({"input", "output_1", "output_2", "label", "judges"}), _llmbar),
    Format("PandaLM annotations", frozenset({"instruction", "cmp_key", "annotator1"}), _pandalm),
    Format("Prometheus scores", frozenset({"idx", "response_source", "gpt4_score"}), _prometheus, group="idx"),
)


def read(sources: Sequence[str]) -> Verdicts:
    """Verdicts from one or several files of the same format, or from Afzal rows whose responses name their ``source``.

    Raises:
        AfzalError: a file cannot be read, has no known format, or holds an unreadable verdict (the error names the
            row). Nothing unreadable is ever taken for a tie or a loss.
    """
    parts = [_read_one(source) for source in sources]
    names = sorted({part.format for part in parts})
    if len(names) > 1:
        raise AfzalError(f"the files are of different formats: {', '.join(names)}", remedy="pass them one at a time")
    gold: dict[str, Outcome] = {}
    for part in parts:
        gold |= part.gold
    verdicts = [v for part in parts for v in part.verdicts]
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    return Verdicts(verdicts, gold, names[0], sum(part.rows for part in parts), notes)


def has_known_format(source: str) -> bool:
    """Whether a file has one of the :data:`FORMATS`, by its first row; the folder of an annotation page has none.

    Raises:
        AfzalError: the file cannot be read.
    """
    return not is_annotation_folder(source) and _format_of(next(iter(files.rows(source)), None)) is not None


def _format_of(first: RawRow | None) -> Format | None:
    value = {} if first is None or not isinstance(first.value, Mapping) else first.value
    return next((f for f in FORMATS if f.needs <= value.keys()), None)


def _read_one(source: str) -> Verdicts:
    rows = iter(files.rows(source))
    first = next(rows, None)
    known = _format_of(first)
    if first is None or known is None:
        return _read_rows(source)
    return _read_format(source, known, chain((first,), rows))


def _read_format(source: str, form: Format, rows: Iterable[RawRow]) -> Verdicts:
    verdicts, gold, n = [], {}, 0
    judge = Path(source).stem
    for raw in _grouped(rows, form.group) if form.group else rows:
        n += len(raw.value.get("rows", (0,))) if form.group and isinstance(raw.value, Mapping) else 1
        try:
            if not isinstance(raw.value, Mapping):
                raise ValueError(raw.value.detail)
            row_verdicts, truth = form.read(raw.value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            fault = f"lacks the field {error}" if isinstance(error, KeyError) else str(error)
            raise AfzalError(f"a row of {form.name} {fault}", where=raw.where) from None
        verdicts += (
            row_verdicts
            if row_verdicts[:1] and row_verdicts[0].judge
            else [_with_judge(judge, v) for v in row_verdicts]
        )
        if truth is not None and row_verdicts:
            gold[row_verdicts[0].item] = truth
    return Verdicts(verdicts, gold, form.name, n)


def _grouped(rows: Iterable[RawRow], field: str) -> Iterator[RawRow]:
    """One row per value of a field, located at the group's first row; unreadable rows stay as they are."""
    groups: dict[str, list[RawRow]] = {}
    for raw in rows:
        if not isinstance(raw.value, Mapping):
            yield raw
        else:
            groups.setdefault(_text(raw.value.get(field)), []).append(raw)
    for group in groups.values():
        yield replace(group[0], value={"rows": [raw.value for raw in group]})


def _with_judge(judge: str, v: Verdict) -> Verdict:
    """The verdict with a judge's name."""
    return replace(v, judge=judge)


def _read_rows(source: str) -> Verdicts:
    """Comparisons of Afzal's rows, or of any preference format, between responses that name their model.

    Votes of weight 0 (repeats, votes on known truth) do not count: they would count one person's opinion twice.
    """
    dataset = data.read(source)
    verdicts, unnamed, unweighted = [], 0, 0
    for item in dataset.items:
        prompt = json.dumps(turns_to_json(item.prompt), ensure_ascii=False)
        names = [response.source for response in item.responses]
        lengths = [len(answer_text(response.turns)) for response in item.responses]
        category = category_of(item) or ""
        for vote in comparisons(item.votes):
            if vote.weight == 0:
                unweighted += 1
                continue
            first, second = names[vote.first], names[vote.second]
            if not first or not second or first == second:
                unnamed += 1
                continue
            first_shown = None if vote.shown_first is None else int(vote.shown_first == vote.second)
            key, outcome = _key(prompt, first, second), outcome_of(vote)
            judge = vote.annotator or "votes"
            size = (lengths[vote.first], lengths[vote.second])
            verdicts.append(
                Verdict(
                    prompt_key(item), key, first, second, outcome, judge, first_shown, vote.probability, size, category
                )
            )
    if not verdicts and not unnamed and unweighted:
        raise AfzalError(
            f"{source} holds no verdicts that count",
            why=f"it holds {plural(unweighted, 'comparison')}, all of weight 0: repeats, or votes on known truth",
            remedy="afzal aggregate, which describes annotators by such votes",
        )
    if not verdicts and not unnamed:
        raise AfzalError(
            f"{source} holds no verdicts",
            why=f"read as {dataset.format}: it holds answers, but no comparisons of them",
            remedy="afzal judge FILE --against FILE --judge ...: the leaderboard reads what it writes",
        )
    if not verdicts:
        raise AfzalError(
            f"{source} holds no verdicts on models",
            why=f"read as {dataset.format}: {unnamed} comparisons, but their responses name no models",
            remedy="Afzal rows with a source for each response, or one of: " + ", ".join(f.name for f in FORMATS),
        )
    left_out = {"of answers that do not name two models": unnamed, "of weight 0": unweighted}
    notes = [f"Left out: {plural(n, 'comparison')} {what}." for what, n in left_out.items() if n]
    return Verdicts(verdicts, {}, dataset.format, dataset.rows, notes)


def _outcome(table: Mapping[str, Outcome], word: Any) -> Outcome:
    outcome = table.get(word) if isinstance(word, str) else None
    if outcome is None:
        raise ValueError(f"has the unknown verdict {word!r}; known are {', '.join(map(repr, table))}")
    return outcome


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _name(value: Any) -> str:
    """The judge's name; FastChat writes a pair of model and prompt."""
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else _text(value or "")


def _key(prompt: str, first: str, second: str) -> str:
    """The key of a pair of answers, the same in either order."""
    low, high = sorted((first, second))
    return f"{prompt}\0{low}\0{high}"
