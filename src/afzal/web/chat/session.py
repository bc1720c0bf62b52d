"""A conversation together with the votes on it: what the terminal and the page do."""

from __future__ import annotations

from dataclasses import dataclass

from afzal.web.chat.talk import Judged, Round, Talk
from afzal.web.chat.votes import Votes


@dataclass(slots=True)
class Session:
    """A conversation; ``votes`` is where blind votes are kept, None of a conversation that is not blind."""

    talk: Talk
    votes: Votes | None = None

    def begin(self) -> None:
        """A new conversation."""
        self.talk.begin()
        if self.votes is not None:
            self.votes.begin()

    def judge(self, judged: Judged, seconds: float | None) -> Round:
        """Say which place on the screen is better. The vote is on the disk when this returns; a skip is none.

        Raises:
            AfzalError: there is nothing to compare, or the disk refuses: then the answers are still to be compared.
        """
        round_ = self.talk.judge(judged)
        if self.votes is not None and judged != "skip":
            try:
                round_.vote = self.votes.add(round_, seconds)
            except BaseException:
                self.talk.take_back()
                raise
        return round_

    def undo(self) -> Round | None:
        """Take the last vote of this conversation back; None where there is none.

        Raises:
            AfzalError: the disk refuses; then the vote stands.
        """
        last = self.talk.rounds[-1] if self.talk.rounds else None
        if last is not None and last.vote is not None and self.votes is not None:
            self.votes.retract(last.vote)
            last.vote = None
        return self.talk.take_back()
