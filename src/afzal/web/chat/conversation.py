"""A conversation with one or two models as a state machine, without terminal and HTTP.

With visible names, each model continues its own conversation. In a blind comparison, answers come in random order and
the models share one conversation, which continues with the better answer: both answers of a vote then have the same
prompt, as training needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Literal, Protocol

from afzal.errors import AfzalError
from afzal.media import Media, MediaKind, media_part
from afzal.records import Message, Outcome

Stop = Literal["eos", "length", "stopped"]
Verdict = Outcome | Literal["skip"]
TextListener = Callable[[int, str], None]
"""Called as an answer grows, with the number of characters that stay and the text that follows them."""


class Answer(Protocol):
    """A model's answer."""

    @property
    def text(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    @property
    def stop(self) -> Stop:
        """Why it ended; ``stopped``: the person stopped it."""
        ...


class Partner(Protocol):
    """A model to talk to."""

    @property
    def name(self) -> str:
        """The name shown to people."""
        ...

    @property
    def reads(self) -> frozenset[MediaKind]:
        """The kinds of media that a message to the model can have."""
        ...

    def answer(self, turns: Sequence[Message], number: int, on_text: TextListener, stop: Event) -> Answer:
        """Continue a conversation that ends with the person's turn.

        Args:
            number: number of the answer, which its random draws depend on.
            stop: set when the person stops the answer.
        """
        ...


@dataclass(slots=True)
class Round:
    """One turn of the person, the answers to it, and the vote.

    Attributes:
        prompts: each model's conversation up to and including the person's turn; the same one in a blind comparison.
        shown: the number of the model in each place on the screen.
        answers: one per model, by model number.
        verdict: the person's verdict on the places shown; None until they vote.
        vote: the id of the saved vote.
    """

    prompts: list[tuple[Message, ...]]
    shown: tuple[int, ...]
    answers: list[Answer | None] = field(default_factory=list)
    verdict: Verdict | None = None
    vote: str | None = None

    @property
    def can_be_judged(self) -> bool:
        """Whether every model has finished its answer, and not all in the same words."""
        finished = [answer for answer in self.answers if answer is not None and answer.stop != "stopped"]
        return len(finished) == len(self.answers) and len({answer.text for answer in finished}) > 1


class Conversation:
    """A conversation, which can be started anew.

    Args:
        partners: one or two models.
        system: text of the system turn; empty for none.
        rng: draws the order shown in a blind comparison; None shows the names.

    Raises:
        AfzalError: a blind conversation has fewer than two models.
    """

    def __init__(self, partners: Sequence[Partner], system: str, rng: random.Random | None = None) -> None:
        if rng is not None and len(partners) != 2:
            raise AfzalError("a blind comparison needs two models", remedy="--against OTHER")
        self.partners, self._rng = tuple(partners), rng
        self._opening = (Message("system", system),) if system else ()
        self._turn_count = 0
        self.reset()

    @property
    def is_blind(self) -> bool:
        return self._rng is not None

    @property
    def reads(self) -> frozenset[MediaKind]:
        """The kinds of media that all models read."""
        return frozenset.intersection(*(partner.reads for partner in self.partners))

    @property
    def waits(self) -> Literal["say", "vote"]:
        """What the person should do next, once no model is answering."""
        last = self.rounds[-1] if self.rounds else None
        return "vote" if self.is_blind and last is not None and last.verdict is None and last.can_be_judged else "say"

    def reset(self) -> None:
        """Forget the conversation."""
        self.rounds: list[Round] = []
        self._turns: list[tuple[Message, ...]] = [self._opening for _ in self.partners]

    def check_readable(self, kind: MediaKind) -> None:
        """Check that all models read such media.

        Raises:
            AfzalError: one does not. A blind comparison does not tell which one.
        """
        if kind in self.reads:
            return
        names = [partner.name for partner in self.partners if kind not in partner.reads]
        who = " and ".join(names)
        if self.is_blind:
            who = "one of the models" if len(names) == 1 else "the models"
        what = "images" if kind == "image" else "sounds"
        raise AfzalError(f"{who} cannot read {what}", remedy="send text only")

    def say(self, text: str, media: Sequence[Media] = ()) -> Round:
        """Add the person's turn; the models then answer it through :meth:`answer`.

        Args:
            media: images and sounds, which come before the text in the message.

        Raises:
            AfzalError: the message is empty, a model cannot read it, or a vote is due first.
        """
        for medium in media:
            self.check_readable(medium.kind)
        if not text.strip() and not media:
            raise AfzalError("there is nothing to answer", remedy="type a message")
        if self.waits == "vote":
            raise AfzalError(
                "the last answers have not been compared yet", remedy="1, 2, 0 (equal), 9 (both bad) or s (skip)"
            )
        shown = list(range(len(self.partners)))
        if self._rng is not None:
            self._rng.shuffle(shown)
        prompts = [(*turns, _message(text, media)) for turns in self._turns]
        round_ = Round(prompts, tuple(shown), [None] * len(shown))
        self.rounds.append(round_)
        self._turn_count += 1
        return round_

    def answer(self, place: int, on_text: TextListener, stop: Event) -> Answer:
        """The answer to the last turn from the model in this place on the screen."""
        round_ = self.rounds[-1]
        number = round_.shown[place]
        answer = self.partners[number].answer(round_.prompts[number], self._turn_count - 1, on_text, stop)
        round_.answers[number] = answer
        return answer

    def close(self) -> None:
        """Add the answers of the last round to the conversation, if no vote is due.

        Blind answers that were stopped or are identical get no vote: the first one shown continues the conversation.
        """
        if self.waits == "say":
            self._continue_with(self.rounds[-1].shown[0] if self.is_blind else None)

    def judge(self, verdict: Verdict) -> Round:
        """Record which place is better. The better answer continues the conversation, else the one shown first.

        Raises:
            AfzalError: there is nothing to compare.
        """
        if self.waits != "vote":
            raise AfzalError("there are no answers to compare", remedy="type a message first")
        round_ = self.rounds[-1]
        round_.verdict = verdict
        self._continue_with(round_.shown[1 if verdict == "second" else 0])
        return round_

    def undo_verdict(self) -> Round | None:
        """Undo the last vote of this conversation, so that its answers can be compared again; None if there is none."""
        if not self.rounds or self.rounds[-1].verdict is None:
            return None
        round_ = self.rounds[-1]
        round_.verdict = None
        self._turns = [turns[:-1] for turns in round_.prompts]
        return round_

    def drop_round(self) -> None:
        """Forget the last turn, which could not be answered."""
        self.rounds.pop()

    def _continue_with(self, number: int | None) -> None:
        """Continue every conversation with the answer of one model, or (None) each with its own model's answer."""
        round_ = self.rounds[-1]
        for k, prompts in enumerate(round_.prompts):
            answer = round_.answers[k if number is None else number]
            self._turns[k] = (*prompts, Message("assistant", answer.text if answer else ""))


def _message(text: str, media: Sequence[Media]) -> Message:
    if not media:
        return Message("user", text)
    texts = [{"type": "text", "text": text}] if text.strip() else []
    return Message("user", (*map(media_part, media), *texts))
