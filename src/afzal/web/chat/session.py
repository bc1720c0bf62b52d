"""A conversation and the votes on it, as used by the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass, field

from afzal.web.chat.attachments import Attachment
from afzal.web.chat.conversation import Conversation, Round, Verdict
from afzal.web.chat.votes import Votes


@dataclass(slots=True)
class Session:
    """A conversation.

    Attributes:
        votes: stores blind votes; None if the conversation is not blind.
        attached: images and sounds for the next message.
    """

    conversation: Conversation
    votes: Votes | None = None
    attached: list[Attachment] = field(default_factory=list)
    _sent: list[Attachment] = field(default_factory=list, init=False)  # with the last message

    def attach(self, attachment: Attachment) -> None:
        """Send an image or a sound with the next message; the same one twice is attached once.

        Raises:
            AfzalError: a model cannot read it.
        """
        self.conversation.check_readable(attachment.media.kind)
        self.detach(attachment.media.sha256)
        self.attached.append(attachment)

    def detach(self, sha256: str) -> None:
        """Do not send the medium with these bytes."""
        self.attached = [one for one in self.attached if one.media.sha256 != sha256]

    def say(self, text: str) -> Round:
        """Add the person's turn with everything attached: see :meth:`Conversation.say`."""
        round_ = self.conversation.say(text, [one.media for one in self.attached])
        self._sent, self.attached = self.attached, []
        return round_

    def drop_round(self) -> None:
        """Forget the last turn, which could not be answered; its images and sounds are attached again."""
        self.conversation.drop_round()
        again = {one.media.sha256 for one in self.attached}
        self.attached = [*(one for one in self._sent if one.media.sha256 not in again), *self.attached]

    def begin(self) -> None:
        """Start a new conversation."""
        self.attached = []
        self.conversation.reset()
        if self.votes is not None:
            self.votes.begin()

    def judge(self, verdict: Verdict, seconds: float | None) -> Round:
        """Record which place on the screen is better. The vote is on disk when this returns; a skip is not saved.

        Raises:
            AfzalError: there is nothing to compare, or the write failed: then the vote is still due.
        """
        round_ = self.conversation.judge(verdict)
        if self.votes is not None and verdict != "skip":
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
