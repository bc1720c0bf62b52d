"""``--order ask``: the most informative questions come first, chosen again after every ten answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from afzal.records import Comparison, Item
from afzal.web.questions import Question
from afzal.web.queue import Answer

if TYPE_CHECKING:
    from afzal.quality.ask import By

REFRESH_EVERY = 10
SELECTION_SIZE = 50
Selection = Mapping[int, "By"]
"""Questions in the order to ask them, each with the rule that chose it."""


class QuestionSelector:
    """Choose questions in a separate thread: a choice among 10,000 takes tenths of a second, and votes must not wait
    for it. Until it is made, the previous choice holds.

    Args:
        seed: seeds the share of questions that is drawn at random.
    """

    def __init__(self, items: Sequence[Item], questions: Sequence[Question], seed: int) -> None:
        from afzal.quality.ask import pool_of

        self._pool, self._questions, self._seed = pool_of(items), questions, seed
        self._of_pair: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            pair = None if question.is_gold else self._pool.find(question.item, *question.responses)
            if pair is not None:
                self._of_pair.setdefault(pair, []).append(number)
        self._thread = ThreadPoolExecutor(1, "afzal-ask")
        self._running: Future[Selection] | None = None
        self._lines_at_selection = 0

    def select(self, answers: Iterable[Answer], n_lines: int) -> Selection:
        """The questions to ask first, given the answers that count and the number of journal lines."""
        from afzal.quality.ask import next_questions

        self._lines_at_selection = n_lines
        votes: dict[int, list[Comparison]] = {}
        for answer in answers:
            question = self._questions[answer.question]
            if not answer.is_skip and answer.repeat_of is None:
                first, second = answer.shown
                votes.setdefault(question.item, []).append(Comparison(first, second, answer.line["outcome"]))
        selected = next_questions(self._pool, votes, SELECTION_SIZE, seed=self._seed + n_lines)
        return {number: q.rule for q in selected for number in self._of_pair.get(q.pair, ())}

    def refresh(self, answers: Iterable[Answer], n_lines: int) -> Selection | None:
        """The choice made since the last call, or None. Ten further journal lines start a new one."""
        if self._running is not None and self._running.done():
            running, self._running = self._running, None
            return running.result()
        if self._running is None and n_lines - self._lines_at_selection >= REFRESH_EVERY:
            self._running = self._thread.submit(self.select, list(answers), n_lines)
        return None
