"""A conversation with one or two models as a state machine, without a terminal and without HTTP.

Seen, each model continues its own conversation. Blind, answers come in random order, one conversation is shared, and
the better answer continues it: so both answers of a vote have the same prompt, as training needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Literal, Protocol

from afzal.errors import AfzalError
from afzal.records import Message, Outcome

Stop = Literal["eos", "length", "stopped"]
Judged = Outcome | Literal["skip"]
Heard = Callable[[int, str], None]
"""Called as an answer grows: its first so many characters stay, and this text follows them."""


class Answer(Protocol):
    """What a model said."""

    @property
    def text(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    @property
    def stop(self) -> Stop:
        """Why it ended; ``stopped``: by the person."""
        ...


class Partner(Protocol):
    """A model to talk to."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    def answer(self, turns: Sequence[Message], number: int, heard: Heard, stop: Event) -> Answer:
        """Continue a conversation that ends with the person's turn.

        Args:
            number: of the answer in the conversation, which its random draws depend on.
            stop: set when the person wants no more.
        """
        ...


@dataclass(slots=True)
class Round:
    """One turn of the person and what became of it.

    Attributes:
        before: the conversation of each model up to and with the person's turn; blind, the same one.
        shown: the number of the model in each place on the screen.
        answers: of each model, by its number.
        judged: what the person said of the places shown; None until then.
        vote: the id under which that is kept.
    """

    before: list[tuple[Message, ...]]
    shown: tuple[int, ...]
    answers: list[Answer | None] = field(default_factory=list)
    judged: Judged | None = None
    vote: str | None = None

    @property
    def can_be_judged(self) -> bool:
        """Whether every model has answered to the end, and not all in the same words."""
        whole = [answer for answer in self.answers if answer is not None and answer.stop != "stopped"]
        return len(whole) == len(self.answers) and len({answer.text for answer in whole}) > 1


class Talk:
    """A conversation that goes on, and can begin anew.

    Args:
        partners: one or two models.
        system: text of the system turn; empty for none.
        rng: of the order shown, where ``is_blind``.

    Raises:
        AfzalError: a blind conversation has fewer than two models.
    """

    def __init__(self, partners: Sequence[Partner], system: str, rng: random.Random | None = None) -> None:
        if rng is not None and len(partners) != 2:
            raise AfzalError("a blind comparison needs two models", remedy="--against OTHER")
        self.partners, self._rng = tuple(partners), rng
        self._opening = (Message("system", system),) if system else ()
        self._spoken = 0
        self.begin()

    @property
    def is_blind(self) -> bool:
        return self._rng is not None

    @property
    def waits(self) -> Literal["say", "vote"]:
        """What the person is to do next, once no model is answering."""
        last = self.rounds[-1] if self.rounds else None
        return "vote" if self.is_blind and last is not None and last.judged is None and last.can_be_judged else "say"

    def begin(self) -> None:
        """Forget the conversation."""
        self.rounds: list[Round] = []
        self._turns: list[tuple[Message, ...]] = [self._opening for _ in self.partners]

    def say(self, text: str) -> Round:
        """The person's turn, to which the models are to answer with :meth:`answer`.

        Raises:
            AfzalError: the text is empty, or a vote is due first.
        """
        if not text.strip():
            raise AfzalError("there is nothing to answer", remedy="type a message")
        if self.waits == "vote":
            raise AfzalError(
                "the last answers are not compared yet", remedy="1, 2, 0 (equal), 9 (both bad) or s (skip)"
            )
        shown = list(range(len(self.partners)))
        if self._rng is not None:
            self._rng.shuffle(shown)
        before = [(*turns, Message("user", text)) for turns in self._turns]
        round_ = Round(before, tuple(shown), [None] * len(shown))
        self.rounds.append(round_)
        self._spoken += 1
        return round_

    def answer(self, place: int, heard: Heard, stop: Event) -> Answer:
        """The answer of the model in a place on the screen to the last turn."""
        round_ = self.rounds[-1]
        number = round_.shown[place]
        said = self.partners[number].answer(round_.before[number], self._spoken - 1, heard, stop)
        round_.answers[number] = said
        return said

    def close(self) -> None:
        """Take the answers of the last round into the conversation, where no vote is due.

        Blind answers that were stopped, or are the same, are not compared: the first shown continues the conversation.
        """
        if self.waits == "say":
            self._take(self.rounds[-1].shown[0] if self.is_blind else None)

    def judge(self, judged: Judged) -> Round:
        """Say which place is better; the better answer continues the conversation, else the one shown first.

        Raises:
            AfzalError: there is nothing to compare.
        """
        if self.waits != "vote":
            raise AfzalError("there are no answers to compare", remedy="type a message first")
        round_ = self.rounds[-1]
        round_.judged = judged
        self._take(round_.shown[1 if judged == "second" else 0])
        return round_

    def take_back(self) -> Round | None:
        """Undo the last vote of this conversation, whose answers are compared again; None where there is none."""
        if not self.rounds or self.rounds[-1].judged is None:
            return None
        round_ = self.rounds[-1]
        round_.judged = None
        self._turns = [turns[:-1] for turns in round_.before]
        return round_

    def drop(self) -> None:
        """Forget the last turn, which could not be answered."""
        self.rounds.pop()

    def _take(self, number: int | None) -> None:
        """The answer of one model, or of each its own, continues the conversation."""
        round_ = self.rounds[-1]
        for k, before in enumerate(round_.before):
            said = round_.answers[k if number is None else number]
            self._turns[k] = (*before, Message("assistant", said.text if said else ""))
