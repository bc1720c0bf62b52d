"""The page's logic without HTTP: a person's requests come in as plain values, replies and journal lines go out.

HTTP is in :mod:`afzal.web.app`. A step changes the queue immediately and returns the lines that must be on disk
before its reply is sent.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from afzal._version import __version__
from afzal.records import Item
from afzal.web.display import Display
from afzal.web.questions import Mode, Question
from afzal.web.queue import Answer, Queue, Rules, Turn
from afzal.web.selection import QuestionSelector, Selection
from afzal.web.validation import (
    RequestError,
    parse_comparison,
    parse_id,
    parse_note,
    parse_ranking,
    parse_rating,
    parse_timing,
)

Line = dict[str, Any]
Reply = dict[str, Any]
SKIP_REASONS = ("cannot_judge", "broken", "offensive")
RECENT = 20


@dataclass(frozen=True, slots=True)
class AnnotationTask:
    """The questions and their items: everything that does not change while the page runs.

    Attributes:
        hashes: SHA-256 of each item's content.
        axes: axis name to the question it asks; a single axis may have the name None.
        display: how texts, images and sounds are shown.
        scale: the best rating; the worst is 1.
    """

    title: str
    mode: Mode
    items: Sequence[Item]
    hashes: Sequence[str]
    questions: Sequence[Question]
    axes: Mapping[str | None, str]
    rules: Rules
    display: Display
    guideline: str = ""
    scale: int = 5


@dataclass(frozen=True, slots=True)
class PendingReply:
    """A reply, and the lines that must be on disk before it is sent."""

    reply: Reply
    lines: list[Line] = field(default_factory=list)


class AnnotationSession:
    """The page's state: the queue, and the tab that each person answers from.

    Args:
        task: the questions and their items.
        people: names of annotators.
        lines: the journal so far.
        clock: seconds since the epoch.

    Raises:
        KeyError: a line of the journal is about an item that the task does not have.
    """

    def __init__(
        self,
        task: AnnotationTask,
        people: Sequence[str],
        lines: Sequence[Mapping[str, Any]],
        clock: Callable[[], float],
    ) -> None:
        self.task, self.clock = task, clock
        self.queue = Queue(task.questions, task.rules, people)
        self._tabs: dict[str, str] = {}
        self._passed, self._read_at = 0.0, clock()
        for line in lines:
            self.queue.apply(line)
        self._selector: QuestionSelector | None = None
        self._selection: Selection = {}
        if task.rules.order == "ask":
            self._selector = QuestionSelector(task.items, task.questions, task.rules.seed)
            self._prefer(self._selector.select(self._answers(), len(self.queue.ids)))

    def join(self, name: str) -> None:
        """Register a person."""
        self.queue.join(name)

    # --- requests ------------------------------------------------------------------------------------------------

    def about(self) -> Reply:
        """The parts of the page that never change."""
        task = self.task
        return {
            "title": task.title,
            "mode": task.mode,
            "axes": [{"name": name, "question": question} for name, question in task.axes.items()],
            "guideline": task.guideline,
            "scale": task.scale,
            "version": __version__,
        }

    def next(self, name: str, tab: str | None = None, *, take_over: bool = False) -> Reply:
        """This person's question, or why there is none. One tab at a time: ``take_over`` moves the work to this one."""
        if tab is not None:
            if self._tabs.get(name, tab) != tab and not take_over:
                return {"state": "elsewhere"}
            self._tabs[name] = tab
        if self._selector is not None:
            self._prefer(self._selector.refresh(self._answers(), len(self.queue.ids)))
        turn = self.queue.next(name, self._elapsed())
        if isinstance(turn, Turn):
            return self._question_reply(name, turn)
        if turn == "wait":
            return {"state": "wait", "progress": self._progress(name)}
        return {"state": "done", "progress": self._progress(name), "summary": self._summary(name)}

    def leave(self, name: str, tab: str) -> Reply:
        """Note that the tab was closed: another tab may continue, and its question is free for other people."""
        if name and self._tabs.get(name) == tab:
            del self._tabs[name]
            self.queue.leave(name)
        return {}

    def vote(self, name: str, body: Mapping[str, Any]) -> PendingReply:
        """Take an answer. An answer with the same id is acknowledged again but never counted twice.

        Raises:
            RequestError: the answer is malformed, or the question is no longer this person's.
        """
        turn, repeated = self._turn(name, body)
        if turn is None:
            return self._repeat_reply(name, repeated)
        line = self._journal_line(name, turn, body) | self._verdict(turn, body) | parse_note(body)
        line |= parse_timing(body)
        return self._record(name, turn, line)

    def skip(self, name: str, body: Mapping[str, Any]) -> PendingReply:
        """Skip a question, with a reason."""
        turn, repeated = self._turn(name, body)
        if turn is None:
            return self._repeat_reply(name, repeated)
        reason = body.get("reason")
        if reason not in SKIP_REASONS:
            raise RequestError(400, "bad_reason", f"reason must be one of {', '.join(SKIP_REASONS)}")
        line = (
            self._journal_line(name, turn, body)
            | {"kind": "skip", "reason": reason}
            | parse_note(body)
            | parse_timing(body)
        )
        return self._record(name, turn, line)

    def undo(self, name: str, body: Mapping[str, Any]) -> PendingReply:
        """Take the newest answer back. It stays in the journal; a further line retracts it."""
        ident = parse_id(body)
        self._refuse_other_tab(name, body)
        recorded = self.queue.ids.get(ident)
        if recorded is not None:
            return self._repeat_reply(name, recorded)
        last = self.queue.last(name)
        if last is None:
            raise RequestError(409, "nothing_to_undo", "there is nothing to undo")
        line = {"id": ident, "at": self._now(), "annotator": name, "kind": "undo", "retracts": last.id}
        line["page"] = __version__
        self.queue.apply(line, self._elapsed())
        return PendingReply({"undone": _verdict_of(last.line), "next": self.next(name)}, [line])

    def counts(self) -> dict[str, int]:
        """Number of votes and skips of all people, without retracted ones; ``gold`` votes never train."""
        answers = list(self._answers())
        votes = [a for a in answers if not a.is_skip]
        gold = sum(bool(a.line.get("gold")) for a in votes)
        return {"votes": len(votes), "gold": gold, "skips": len(answers) - len(votes)}

    def _answers(self) -> Iterator[Answer]:
        """All answers, as an iterator: most requests never read it."""
        return (answer for name in self.queue.people for answer in self.queue.answers(name))

    def _prefer(self, selection: Selection | None) -> None:
        if selection is not None:
            self._selection = selection
            self.queue.prefer(selection)

    # --- parts ---------------------------------------------------------------------------------------------------

    def _turn(self, name: str, body: Mapping[str, Any]) -> tuple[Turn | None, Mapping[str, Any]]:
        """The turn that a body answers; or None, and the journal line that already has this id."""
        ident = parse_id(body)
        recorded = self.queue.ids.get(ident)
        if recorded is not None:
            if recorded["annotator"] != name:
                raise RequestError(409, "id_taken", "this id belongs to another answer")
            return None, recorded
        self._refuse_other_tab(name, body)
        position = body.get("position")
        if not isinstance(body.get("question"), str) or type(position) is not int:
            raise RequestError(400, "bad_question", "question and position must be those of the question that was sent")
        turn = self.queue.turn_for(name, body["question"], position, self._elapsed())
        if turn is None:
            raise RequestError(409, "stale", "this question was answered in the meantime, or given to somebody else")
        return turn, {}

    def _verdict(self, turn: Turn, body: Mapping[str, Any]) -> Line:
        if self.task.mode == "pair":
            return parse_comparison(body)
        return (
            parse_ranking(body, turn.shown)
            if self.task.mode == "rank"
            else parse_rating(body, turn.shown, self.task.scale)
        )

    def _refuse_other_tab(self, name: str, body: Mapping[str, Any]) -> None:
        tab = body.get("tab")
        if isinstance(tab, str) and self._tabs.get(name, tab) != tab:
            raise RequestError(409, "elsewhere", "you are continuing in another tab")

    def _journal_line(self, name: str, turn: Turn, body: Mapping[str, Any]) -> Line:
        question = self.task.questions[turn.question]
        line: Line = {
            "id": body["id"],
            "at": self._now(),
            "item": question.item_id,
            "item_sha256": self.task.hashes[question.item],
            "annotator": name,
            "axis": question.axis,
            "kind": self.task.mode,
            "shown": list(turn.shown),
            "repeat_of": turn.repeat_of,
            "gold": question.is_gold,
            "practice": turn.is_practice,
            "retracts": None,
            "page": __version__,
        }
        return line if self._selector is None else line | {"asked": self._selection.get(turn.question)}

    def _record(self, name: str, turn: Turn, line: Line) -> PendingReply:
        self.queue.apply(line, self._elapsed())
        reply: Reply = {"saved": self._confirmation(name, line)}
        if turn.is_practice and line["kind"] != "skip":
            reply["feedback"] = self._feedback(line)
        return PendingReply(reply | {"next": self.next(name)}, [line])

    def _repeat_reply(self, name: str, line: Mapping[str, Any]) -> PendingReply:
        """The reply to a request that was already carried out: its first reply was lost on the way."""
        if line["kind"] == "undo":
            retracted = self.queue.ids.get(line["retracts"], {})
            return PendingReply({"undone": _verdict_of(retracted), "next": self.next(name)})
        reply: Reply = {"saved": self._confirmation(name, line)}
        if line.get("practice") and line["kind"] != "skip":
            reply["feedback"] = self._feedback(line)
        return PendingReply(reply | {"next": self.next(name)})

    def _confirmation(self, name: str, line: Mapping[str, Any]) -> Reply:
        return {"id": line["id"], "number": len(self.queue.answers(name)), "kind": line["kind"]} | _verdict_of(line)

    def _feedback(self, line: Mapping[str, Any]) -> Reply:
        question = self.task.questions[self.queue.question_of(line)]
        better = "first" if line["shown"][0] == question.truth else "second"
        why = self.task.items[question.item].extra.get("feedback")
        reply: Reply = {"right": line.get("outcome") == better, "better": better}
        return reply | ({"why": why} if isinstance(why, str) else {})

    def _question_reply(self, name: str, turn: Turn) -> Reply:
        question = self.task.questions[turn.question]
        item, show = self.task.items[question.item], self.task.display.turns
        return {
            "state": "ask",
            "question": question.key,
            "position": turn.position,
            "axis": question.axis,
            "ask": self.task.axes[question.axis],
            "practice": turn.is_practice,
            "prompt": show(item.prompt),
            "responses": [show(item.responses[k].turns) for k in turn.shown],
            "progress": self._progress(name),
        }

    def _progress(self, name: str) -> Reply:
        answers = self.queue.answers(name)
        recent = [a.line["seconds"] for a in answers[-RECENT:] if a.line.get("seconds") is not None]
        remaining = self.queue.remaining(name)
        minutes = remaining * statistics.median(recent) / 60 if recent else None
        return {"done": len(answers), "left": remaining, "minutes_left": minutes}

    def _summary(self, name: str) -> Reply:
        answers = self.queue.answers(name)
        pairs = self._repeated_pairs(answers)
        return {
            "votes": sum(not a.is_skip for a in answers),
            "skips": sum(a.is_skip for a in answers),
            "repeats": len(pairs),
            "consistent": sum(same_verdict(first.line, second.line) for first, second in pairs),
            "seconds": sum(a.line.get("seconds") or 0.0 for a in answers),
        }

    @staticmethod
    def _repeated_pairs(answers: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
        by_id = {a.id: a for a in answers}
        return [(by_id[a.repeat_of], a) for a in answers if a.repeat_of in by_id and not a.is_skip]

    def _elapsed(self) -> float:
        """Seconds since the session began, for leases: setting the clock back makes nobody wait longer."""
        now = self.clock()
        self._passed += max(0.0, now - self._read_at)
        self._read_at = now
        return self._passed

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_VERDICT = ("outcome", "strength", "groups", "values", "reason")


def _verdict_of(line: Mapping[str, Any]) -> Reply:
    return {key: line[key] for key in _VERDICT if key in line}


def same_verdict(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two lines on one question give the same verdict on its responses, whatever the order shown."""
    return _by_response(first) == _by_response(second)


def _by_response(line: Mapping[str, Any]) -> Any:
    if line["kind"] == "pair":
        shown, outcome = line["shown"], line["outcome"]
        return shown[outcome == "second"] if outcome in ("first", "second") else outcome
    if line["kind"] == "rank":
        return [sorted(group) for group in line["groups"]]
    return sorted(zip(line["shown"], line["values"], strict=True))
