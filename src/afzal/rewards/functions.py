"""User-defined Python functions, named by a setting as ``module:function`` or ``file.py:function``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afzal.data.column_requests import ColumnRequest, column_request
from afzal.data.turns import assistant_turn, full_text
from afzal.errors import AfzalError
from afzal.objectives import load_function
from afzal.records import Turns, turns_to_row

CONTRACT = "function(prompt, answer) returns a number, and can take further columns of the row by name"


def own_function(spec: str, key: str, contract: str) -> Callable[..., Any]:
    """The function of ``module:function`` or ``file.py:function``.

    Args:
        key: the setting that names it.
        contract: the required signature, for the error message.

    Raises:
        AfzalError: there is no such module, file or function, or its code fails on import.
    """
    try:
        return load_function(spec)
    except ValueError as error:
        remedy = f"write module:function or file.py:function, where {contract}"
        raise AfzalError(str(error), where=key, remedy=remedy) from error


def by_text(fn: Callable[..., Any], name: str = "the reward function") -> Callable[..., list[float]]:
    """A rewarder (:class:`afzal.rewards.source.Rewarder`) that calls ``fn`` for answers.

    Args:
        fn: ``(prompt, answer) -> reward`` for one answer; a conversation's prompt is its text. Further parameters
            receive the row's columns of the same names, and ``**columns`` all of them. A function with a parameter
            ``completions`` is called like TRL's reward functions: once for many answers, with lists by name, and with
            messages if the rows are conversations.

    Raises:
        AfzalError: (when called) ``fn`` fails, does not return a number, or asks for a column that no row has.
    """
    request = column_request(fn)

    def reward(
        prompts: Sequence[Turns],
        answers: Sequence[str],
        ended: Sequence[bool] | None = None,
        columns: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float]:
        rows = [{}] * len(answers) if columns is None else [request.select(row) for row in columns]
        if answers:
            request.refuse_missing({key for row in rows for key in row}, name)
        if request.takes_lists:
            return _call_with_lists(fn, request, name, prompts, answers, rows)
        return [_call_with_texts(fn, name, *call) for call in zip(prompts, answers, rows, strict=True)]

    return reward


def call_about(
    fn: Callable[..., Any], request: ColumnRequest, prompt: str, answer: str, row: Mapping[str, Any]
) -> float:
    """The value of ``fn`` for one answer to a text prompt.

    Raises:
        AfzalError: ``fn`` fails or does not return a number.
    """
    name = getattr(fn, "__name__", "the function")
    if not request.takes_lists:
        return _call_with_texts(fn, name, prompt, answer, request.select(row))
    return _call_with_lists(fn, request, name, [prompt], [answer], [request.select(row)])[0]


def _call_with_texts(fn: Callable[..., Any], name: str, prompt: Turns, answer: str, row: Mapping[str, Any]) -> float:
    try:
        return float(fn(full_text(prompt), answer, **row))
    except Exception as error:
        raise AfzalError(
            f"{name} failed: {type(error).__name__}: {error}",
            where=place(prompt, answer),
            remedy="it must return a number for every prompt and answer, including empty answers",
        ) from error


def _call_with_lists(
    fn: Callable[..., Any],
    request: ColumnRequest,
    name: str,
    prompts: Sequence[Turns],
    answers: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> list[float]:
    """The rewards of a function in TRL's style."""
    lists: dict[str, list[Any]] = {
        key: [row.get(key) for row in rows] for key in dict.fromkeys(k for r in rows for k in r)
    }
    if request.takes_prompts:
        lists["prompts"] = [turns_to_row(prompt) for prompt in prompts]
    completions = [
        a if isinstance(p, str) else turns_to_row(assistant_turn(a)) for p, a in zip(prompts, answers, strict=True)
    ]
    try:
        rewards = [float(value) for value in fn(completions=completions, **lists)]
    except Exception as error:
        raise AfzalError(
            f"{name} failed: {type(error).__name__}: {error}",
            where=f"{len(answers)} answers",
            remedy="a function with a parameter completions gets lists, and returns a number for each completion",
        ) from error
    if len(rewards) != len(answers):
        raise AfzalError(
            f"{name} returned {len(rewards)} rewards for {len(answers)} completions", remedy="return one for each"
        )
    return rewards


def place(prompt: Turns, answer: str) -> str:
    """The prompt and the answer that a message is about."""
    return f"prompt {_short(full_text(prompt))}, answer {_short(answer)}"


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
