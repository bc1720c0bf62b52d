"""Who is asked what next: overlap, leases, sides, repeats and gold, as a function of the journal lines.

Nothing here reads a clock, a file or a network. Times are passed in, in seconds. Journal lines are replayed with
:meth:`Queue.apply`, so a restarted page is in the same state as the killed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from afzal.web.questions import Question
from afzal.web.random_draws import bernoulli, is_swapped, random_bits, shuffled

LEASE_SECONDS = 15 * 60.0
REPEAT_GAP = 20


@dataclass(frozen=True, slots=True)
class Rules:
    """How questions are assigned.

    Attributes:
        overlap: annotators per question; never exceeded.
        repeat: share of a person's answers that are asked again, swapped, at least ``REPEAT_GAP`` answers later.
        practice: number of gold questions that come first and give feedback.
        order: ``file``; ``random``, a separate order for each annotator; or ``ask``, as :meth:`Queue.prefer` sets it.
    """

    seed: int = 0
    overlap: int = 1
    repeat: float = 0.0
    practice: int = 0
    order: Literal["file", "random", "ask"] = "random"


@dataclass(frozen=True, slots=True)
class Answer:
    """A journal line that was not retracted: a vote or a skip.

    ``repeat_of`` is the id of the earlier answer to the same question.
    """

    id: str
    question: int
    shown: tuple[int, ...]
    is_skip: bool
    repeat_of: str | None
    line: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question as it is shown to a person: their vote number ``position``, and the responses in the order shown."""

    question: int
    position: int
    shown: tuple[int, ...]
    repeat_of: str | None = None
    is_practice: bool = False


Pause = Literal["wait", "done"]
"""Why there is no question: the remaining ones are leased to others (``wait``), or all are answered (``done``)."""


@dataclass(slots=True)
class _Person:
    """``position`` is the number of votes that count, ``chosen`` those (with their numbers) to be repeated; ``order``
    is empty until the first question is looked up."""

    name: str
    gold: list[int]
    order: list[int] = field(default_factory=list)
    cursor: int = 0
    position: int = 0
    stack: list[Answer] = field(default_factory=list)
    chosen: list[tuple[int, Answer]] = field(default_factory=list)
    answered: set[int] = field(default_factory=set)
    repeated: set[str] = field(default_factory=set)
    redo: list[int] = field(default_factory=list)
    current: Turn | None = None


class Queue:
    """The state of the page, folded from the lines of its journal.

    Args:
        questions: everybody is asked those with ``is_gold``; ``rules.overlap`` people each of the others.
        people: names of annotators; :meth:`join` adds more.
    """

    def __init__(self, questions: Sequence[Question], rules: Rules, people: Sequence[str] = ()) -> None:
        self.questions, self.rules = questions, rules
        self.main = [k for k, q in enumerate(questions) if not q.is_gold]
        self.gold = [k for k, q in enumerate(questions) if q.is_gold]
        self.by_key = {q.key: k for k, q in enumerate(questions)}
        self._by_question_key = {_question_key(q.item_id, q.responses, q.axis): k for k, q in enumerate(questions)}
        self._vote_count = 0  # on questions that are not gold
        self.votes = [0] * len(questions)
        self._people_per_question = [0] * len(questions)  # people who answered or skipped it
        self._people_on_open = 0  # the same, summed over the open questions
        self.full: set[int] = set()
        self.ids: dict[str, Mapping[str, Any]] = {}
        self._leases: dict[int, dict[str, float]] = {}
        self._people: dict[str, _Person] = {}
        self._preferred: list[int] = []
        for name in people:
            self.join(name)

    def join(self, name: str) -> None:
        """Register a person, with their own order."""
        if name not in self._people:
            gold = sorted(self.gold, key=lambda k: random_bits(self.rules.seed, name, "gold", self.questions[k].key))
            self._people[name] = _Person(name, gold)

    @property
    def people(self) -> list[str]:
        return list(self._people)

    def _personal_order(self, name: str) -> list[int]:
        """Questions in the person's order; those on one item stay together."""
        if self.rules.order == "file":
            return list(self.main)
        first = {self.questions[k].item: k for k in reversed(self.main)}
        place = {item: random_bits(self.rules.seed, name, self.questions[k].key) for item, k in first.items()}
        return sorted(self.main, key=lambda k: (place[self.questions[k].item], k))

    def prefer(self, questions: Iterable[int]) -> None:
        """Ask everybody these questions before all others; questions that still lack some votes come first.

        The questions that people are being asked at the moment do not change.
        """
        started = [k for k in self.main if 0 < self.votes[k] < self.rules.overlap]
        self._preferred = [*started, *questions]

    # --- questions -----------------------------------------------------------------------------------------------

    def next(self, name: str, now: float) -> Turn | Pause:
        """The person's current turn. It stays the same until it is answered or lost; the lease reserves it."""
        person = self._people[name]
        turn = person.current
        if turn is None or not self._is_valid(person, turn, now):
            turn = self._choose(person, now)
        person.current = turn if isinstance(turn, Turn) else None
        if isinstance(turn, Turn) and self._is_shared(turn):
            self._lease(turn.question, name, now)
        for question in person.redo:
            if self._is_open(person, question, now):
                self._lease(question, name, now)
        return turn

    def turn_for(self, name: str, key: str, position: int, now: float) -> Turn | None:
        """The turn that a person answers with this question and vote number; None if they may not answer it.

        After a restart nobody holds a lease: then they may answer any open question at this vote number.
        """
        turn = self.next(name, now)
        person, question = self._people[name], self.by_key.get(key)
        if question is None or position != person.position:
            return None
        if isinstance(turn, Turn) and turn.question == question:
            return turn
        if self.questions[question].is_gold or not self._is_open(person, question, now):
            return None
        return self._fresh(person, question)

    def _choose(self, person: _Person, now: float) -> Turn | Pause:
        if len(self._gold_answers(person)) < min(self.rules.practice, len(person.gold)):
            return self._gold_turn(person)
        repeat = self._due_repeat(person)
        if repeat is not None:
            return repeat
        if self._gold_is_due(person):
            return self._gold_turn(person)
        while person.redo:
            if self._is_open(person, person.redo[-1], now):
                return self._fresh(person, person.redo[-1])
            if self._is_closed(person, person.redo[-1]):
                person.redo.pop()
            else:
                break
        question, pause = self._scan(person, now)
        if question is not None:
            return self._fresh(person, question)
        return self._gold_turn(person) if len(self._gold_answers(person)) < len(person.gold) else pause

    def _scan(self, person: _Person, now: float) -> tuple[int | None, Pause]:
        """The first open question in the person's order, else whether one may open up again."""
        for question in self._preferred:
            if self._is_open(person, question, now):
                return question, "wait"
        order = person.order = person.order or self._personal_order(person.name)
        pause: Pause = "done"
        while person.cursor < len(order) and self._is_closed(person, order[person.cursor]):
            person.cursor += 1
        for place in range(person.cursor, len(order)):
            if self._is_open(person, order[place], now):
                return order[place], "wait"
            if not self._is_closed(person, order[place]):
                pause = "wait"
        return None, pause

    def _fresh(self, person: _Person, question: int) -> Turn:
        return Turn(question, person.position, self._sides(person, question, person.position))

    def _sides(self, person: _Person, question: int, position: int) -> tuple[int, ...]:
        responses = self.questions[question].responses
        if len(responses) == 2:
            swapped = is_swapped(self.rules.seed, person.name, position)
            return responses[::-1] if swapped else responses
        return shuffled(responses, self.rules.seed, person.name, self.questions[question].key)

    def _gold_turn(self, person: _Person) -> Turn:
        done = {answer.question for answer in self._gold_answers(person)}
        question = next(k for k in person.gold if k not in done)
        is_practice = len(done) < min(self.rules.practice, len(person.gold))
        turn = self._fresh(person, question)
        return Turn(question, turn.position, turn.shown, is_practice=is_practice)

    def _gold_answers(self, person: _Person) -> list[Answer]:
        return [a for a in person.stack if self.questions[a.question].is_gold] if person.gold else []

    def _gold_is_due(self, person: _Person) -> bool:
        """Whether a gold question is due: those after practice are spread evenly over a person's expected questions."""
        done, hidden = len(self._gold_answers(person)), len(person.gold) - self.rules.practice
        if done >= len(person.gold):
            return False
        share = min(1.0, self.rules.overlap / max(1, len(self._people)))
        spacing = len(self.main) * share / (hidden + 1)
        return len(person.stack) - done >= (done - self.rules.practice + 1) * spacing

    def _due_repeat(self, person: _Person) -> Turn | None:
        """The earliest chosen answer that is old enough and whose swapped sides keep the balance."""
        position = person.position
        for number, answer in person.chosen:
            if position - number < REPEAT_GAP or answer.id in person.repeated:
                continue
            shown = answer.shown[::-1]
            if len(shown) != 2 or shown == self._sides(person, answer.question, position):
                return Turn(answer.question, position, shown, repeat_of=answer.id)
        return None

    def _is_repeated(self, person: _Person, answer: Answer) -> bool:
        question = self.questions[answer.question]
        is_first = answer.repeat_of is None and not answer.is_skip and not question.is_gold
        return is_first and bernoulli(self.rules.repeat, self.rules.seed, person.name, "again", question.key)

    def leave(self, name: str) -> None:
        """Release the question of a person who has left; they get it again if they return before it is taken."""
        turn = self._people[name].current
        if turn is not None and self._is_shared(turn):
            self._release(turn.question, name)

    # --- leases --------------------------------------------------------------------------------------------------

    def _is_shared(self, turn: Turn) -> bool:
        """Whether only a limited number of people are asked the question."""
        return turn.repeat_of is None and not self.questions[turn.question].is_gold

    def _is_closed(self, person: _Person, question: int) -> bool:
        """Whether this person is never asked the question (again), unless somebody takes an answer back."""
        return question in person.answered or question in self.full

    def _is_open(self, person: _Person, question: int, now: float) -> bool:
        if self._is_closed(person, question):
            return False
        leases = self._leases.get(question)
        other_leases = sum(until > now and name != person.name for name, until in leases.items()) if leases else 0
        return self.votes[question] + other_leases < self.rules.overlap

    def _is_valid(self, person: _Person, turn: Turn, now: float) -> bool:
        return not self._is_shared(turn) or self._is_open(person, turn.question, now)

    def _lease(self, question: int, name: str, now: float) -> None:
        self._leases.setdefault(question, {})[name] = now + LEASE_SECONDS

    def _release(self, question: int, name: str) -> None:
        leases = self._leases.get(question, {})
        leases.pop(name, None)
        if not leases:
            self._leases.pop(question, None)

    # --- answers -------------------------------------------------------------------------------------------------

    def apply(self, line: Mapping[str, Any], now: float | None = None) -> None:
        """Take a journal line into account. ``now`` is passed while the page runs, not when the journal is replayed."""
        if line["id"] in self.ids:
            return
        self.ids[line["id"]] = line
        self.join(line["annotator"])
        person = self._people[line["annotator"]]
        if line["kind"] == "undo":
            self._retract(person, line["retracts"], now)
        else:
            self._add(person, line)

    def question_of(self, line: Mapping[str, Any]) -> int:
        """The number of the question that a vote or a skip answers."""
        return self._by_question_key[_question_key(line["item"], line["shown"], line["axis"])]

    def _add(self, person: _Person, line: Mapping[str, Any]) -> None:
        responses, question = tuple(line["shown"]), self.question_of(line)
        answer = Answer(line["id"], question, responses, line["kind"] == "skip", line.get("repeat_of"), line)
        person.stack.append(answer)
        if self._is_repeated(person, answer):
            person.chosen.append((person.position, answer))
        person.position += not answer.is_skip
        if answer.repeat_of is not None:
            person.repeated.add(answer.repeat_of)
        elif not self.questions[question].is_gold:
            person.answered.add(question)
            self._count(question, 0 if answer.is_skip else 1, 1)
        self._release(question, person.name)
        person.current = None

    def _retract(self, person: _Person, ident: str, now: float | None) -> None:
        if not person.stack or person.stack[-1].id != ident:
            return
        answer = person.stack.pop()
        person.position -= not answer.is_skip
        if person.chosen and person.chosen[-1][1] is answer:
            person.chosen.pop()
        if person.current is not None and self._is_shared(person.current):
            self._release(person.current.question, person.name)
        person.current = None
        if answer.repeat_of is not None:
            person.repeated.discard(answer.repeat_of)
        elif not self.questions[answer.question].is_gold:
            person.answered.discard(answer.question)
            self._count(answer.question, 0 if answer.is_skip else -1, -1)
            person.redo.append(answer.question)
            if now is not None:
                self._lease(answer.question, person.name, now)
        for other in self._people.values():  # their cursors may be past the question
            other.cursor = 0

    def _count(self, question: int, votes: int, people: int) -> None:
        previous = 0 if question in self.full else self._people_per_question[question]
        self.votes[question] += votes
        self._vote_count += votes
        self._people_per_question[question] += people
        if self.votes[question] >= self.rules.overlap:
            self.full.add(question)
        else:
            self.full.discard(question)
        self._people_on_open += (0 if question in self.full else self._people_per_question[question]) - previous

    # --- progress ------------------------------------------------------------------------------------------------

    def last(self, name: str) -> Answer | None:
        """The person's newest answer that was not retracted."""
        stack = self._people[name].stack
        return stack[-1] if stack else None

    def answers(self, name: str) -> list[Answer]:
        """The person's answers in order, without retracted ones."""
        return list(self._people[name].stack)

    def remaining(self, name: str) -> int:
        """Number of questions this person can still expect: their share of the open ones, and gold."""
        person = self._people[name]
        open_count = len(self.main) - len(self.full)  # read with every vote
        open_for_person = open_count - len(person.answered - self.full)
        # what the others could answer at most
        open_for_others = open_count * len(self._people) - self._people_on_open - open_for_person
        slots = self.rules.overlap * len(self.main) - self._vote_count
        fair = max(-(-slots // len(self._people)), slots - open_for_others)
        return min(open_for_person, fair) + len(person.gold) - len(self._gold_answers(person))

    def is_done(self) -> bool:
        """Whether no registered person has anything left to answer."""
        people = self._people.values()
        if any(len(self._gold_answers(person)) < len(person.gold) for person in people):
            return False
        open_ = [k for k in self.main if k not in self.full]
        return all(k in person.answered for k in open_ for person in people)


def _question_key(item: str, responses: Sequence[int], axis: str | None) -> tuple[str, tuple[int, ...], str | None]:
    """The question of a journal line, whatever the order shown."""
    return item, tuple(sorted(responses)), axis
