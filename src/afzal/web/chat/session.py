"""A conversation and the votes on it, as used by the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass

from afzal.web.chat.conversation import Conversation, Round, Verdict
from afzal.web.chat.votes import Votes


@dataclass(slots=True)
class Session:
    """A conversation; ``votes`` stores blind votes, None if the conversation is not blind."""

    conversation: Conversation
    votes: Votes | None = None

    def begin(self) -> None:
        """Start a new conversation."""
        self.conversation.reset()
        if self.votes is not None:
            self.votes.begin()

    def judge(self, judged: Verdict, seconds: float | None) -> Round:
        """Record which place on the screen is better. The vote is on disk when this returns; a skip is not saved.

        Raises:
            AfzalError: there is nothing to compare, or the write failed: then the vote is still due.
        """
        round_ = self.conversation.judge(judged)
        if self.votes is not None and judged != "skip":
            try:
                round_.vote = self.votes.add(round_, seconds)
            except BaseException:
                self.conversation.undo_verdict()
                raise
        return round_

    def undo(self) -> Round | None:
        """Undo the last vote of this conversation; None if there is none.

        Raises:
            AfzalError: the write failed; then the vote still counts.
        """
        last = self.conversation.rounds[-1] if self.conversation.rounds else None
        if last is not None and last.vote is not None and self.votes is not None:
            self.votes.retract(last.vote)
            last.vote = None
        return self.conversation.undo_verdict()
