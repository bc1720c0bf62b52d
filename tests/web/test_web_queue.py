"""Who is asked what: overlap, leases, sides, repeats, gold and undo, as a function of the journal lines."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from afzal.web.questions import Question
from afzal.web.queue import LEASE_SECONDS, REPEAT_GAP, Queue, Rules, Turn
from afzal.web.random_draws import bernoulli, is_swapped


def questions(n: int, gold: int = 0) -> list[Question]:
    """Questions on n items, then on gold ones."""
    return [Question(f"key{k}", k, f"item{k}", (0, 1), None, k >= n, 0 if k >= n else None) for k in range(n + gold)]


def queue(n: int, people: str = "a", gold: int = 0, **rules) -> Queue:
    return Queue(questions(n, gold), Rules(**rules), people.split())


class AnnotationSession:
    """A queue with a journal and a clock."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.lines, self.now = queue, [], 0.0

    def turn(self, name: str) -> Turn:
        turn = self.queue.next(name, self.now)
        assert isinstance(turn, Turn), turn
        return turn

    def write(self, **line) -> str:
        line = {"id": f"id{len(self.lines)}", "axis": None, "seconds": 1.0, **line}
        self.lines.append(line)
        self.queue.apply(line, self.now)
        return line["id"]

    def vote(self, name: str, kind: str = "pair") -> Turn:
        turn = self.turn(name)
        item = self.queue.questions[turn.question].item_id
        self.write(
            kind=kind, annotator=name, item=item, shown=list(turn.shown), repeat_of=turn.repeat_of, outcome="first"
        )
        return turn

    def undo(self, name: str) -> None:
        last = self.queue.last(name)
        assert last is not None
        self.write(kind="undo", annotator=name, retracts=last.id)


def test_each_response_is_first_equally_often_after_every_even_number_of_votes():
    for name in "abcdefgh":
        sides = [is_swapped(3, name, n) for n in range(1000)]
        assert all(sum(sides[:n]) == n // 2 for n in range(0, 1001, 2))


def test_sides_are_no_pattern_that_could_be_learned():
    firsts = [is_swapped(0, "a", 2 * b) for b in range(4000)]
    assert abs(sum(firsts) / 4000 - 0.5) < 0.03
    assert abs(sum(x == y for x, y in pairwise(firsts)) / 3999 - 0.5) < 0.03


def test_a_share_is_drawn():
    assert abs(sum(bernoulli(0.05, 1, k) for k in range(20_000)) / 20_000 - 0.05) < 0.005
    assert not any(bernoulli(0.0, k) for k in range(100))
    assert all(bernoulli(1.0, k) for k in range(100))


def test_orders_are_each_persons_own_and_the_same_again():
    orders = {name: [AnnotationSession(queue(50, "a b")).vote(name).question] for name in "ab"}
    full = {}
    for name in "ab":
        session = AnnotationSession(queue(50, "a b", overlap=2))
        full[name] = [session.vote(name).question for _ in range(50)]
    assert full["a"] != full["b"]
    assert sorted(full["a"]) == sorted(full["b"]) == list(range(50))
    assert orders["a"] == full["a"][:1]
    other = AnnotationSession(queue(50, "a b", overlap=2, seed=1))
    assert [other.vote("a").question for _ in range(50)] != full["a"]


def test_file_order_is_the_files():
    session = AnnotationSession(queue(10, order="file"))
    assert [session.vote("a").question for _ in range(10)] == list(range(10))


def test_a_question_stays_until_it_is_answered():
    session = AnnotationSession(queue(5))
    assert session.turn("a") == session.turn("a")
    first = session.vote("a")
    assert session.turn("a").question != first.question


def test_a_leased_question_is_offered_to_nobody_else_until_the_lease_ends():
    session = AnnotationSession(queue(1, "a b"))
    session.turn("a")
    assert session.queue.next("b", LEASE_SECONDS - 1) == "wait"
    session.now = LEASE_SECONDS
    assert isinstance(session.queue.next("b", session.now), Turn)
    assert session.queue.next("a", session.now) == "wait"


def test_an_answer_after_the_lease_counts_while_nobody_else_has_the_question():
    session = AnnotationSession(queue(1, "a b"))
    turn = session.turn("a")
    late = LEASE_SECONDS * 10
    assert session.queue.turn_for("a", "key0", turn.position, late) == turn
    session.now = late
    assert session.queue.next("b", session.now) == "wait"  # a has it again


def test_an_answer_to_a_question_that_was_passed_on_is_refused():
    session = AnnotationSession(queue(1, "a b"))
    turn = session.turn("a")
    session.now = LEASE_SECONDS
    session.vote("b")
    assert session.queue.turn_for("a", "key0", turn.position, session.now) is None


def test_done_when_all_is_answered_and_wait_while_others_hold_some():
    session = AnnotationSession(queue(2, "a b"))
    session.vote("a")
    held = session.turn("b").question
    assert session.queue.next("a", session.now) == "wait"
    session.vote("b")
    assert session.queue.next("a", session.now) == "done"
    assert session.queue.votes[held] == 1
    assert session.queue.is_done()


def test_undo_any_number_brings_the_same_questions_back_with_the_same_sides():
    session = AnnotationSession(queue(12))
    asked = [session.vote("a") for _ in range(8)]
    for _ in range(8):
        session.undo("a")
    assert session.queue.last("a") is None
    assert [session.vote("a") for _ in range(8)] == asked
    assert len(session.lines) == 24


def test_undo_of_the_first_answer_after_a_later_question_was_shown():
    session = AnnotationSession(queue(5))
    first = session.vote("a")
    second = session.turn("a")
    session.undo("a")
    assert session.vote("a") == first
    assert session.turn("a").question == second.question


def test_a_retracted_question_is_kept_for_its_person():
    session = AnnotationSession(queue(1, "a b"))
    session.vote("a")
    session.undo("a")
    assert session.queue.next("b", session.now) == "wait"
    session.now += LEASE_SECONDS
    assert session.vote("b").question == 0
    assert session.queue.next("a", session.now) == "done"


def test_a_retracted_question_goes_to_somebody_who_had_passed_it():
    session = AnnotationSession(queue(3, "a b", order="file"))
    assert [session.vote(name).question for name in "abb"] == [0, 1, 2]
    assert session.queue.next("b", session.now) == "done"
    session.undo("a")
    assert session.queue.next("b", session.now) == "wait"
    session.now += LEASE_SECONDS
    assert session.vote("b").question == 0


def test_a_skip_is_no_vote_and_the_question_stays_open_for_others():
    session = AnnotationSession(queue(1, "a b"))
    session.vote("a", kind="skip")
    assert session.queue.next("a", session.now) == "done"
    assert not session.queue.is_done()
    assert session.vote("b").question == 0
    assert session.queue.votes[0] == 1


def test_sides_are_balanced_over_votes_with_skips_and_undos_between():
    session, random_ = AnnotationSession(queue(300)), random.Random(0)
    shown = []
    while not isinstance(session.queue.next("a", 0.0), str):
        kind = random_.random()
        if kind < 0.2:
            session.vote("a", kind="skip")
        elif kind < 0.3 and shown:
            while session.queue.last("a").is_skip:
                session.undo("a")
            session.undo("a")
            shown.pop()
        else:
            shown.append(session.vote("a").shown[0])
    assert len(shown) > 150
    assert all(sum(shown[:n]) == n // 2 for n in range(0, len(shown) + 1, 2))


def test_repeats_come_swapped_and_at_least_twenty_answers_later():
    session = AnnotationSession(queue(400, repeat=0.1))
    turns = []
    while isinstance(session.queue.next("a", 0.0), Turn):
        turns.append(session.vote("a"))
    by_id = {f"id{n}": n for n in range(len(turns))}
    repeats = [(n, by_id[turn.repeat_of]) for n, turn in enumerate(turns) if turn.repeat_of]
    assert 25 <= len(repeats) <= 60
    for later, earlier in repeats:
        assert later - earlier >= REPEAT_GAP
        assert turns[later].question == turns[earlier].question
        assert turns[later].shown == turns[earlier].shown[::-1]
    assert len({earlier for _, earlier in repeats}) == len(repeats)
    sides = [turn.shown[0] for turn in turns]
    assert all(sum(sides[:n]) == n // 2 for n in range(0, len(sides) + 1, 2))
    assert sum(session.queue.votes) == 400


def test_a_repeat_that_is_undone_is_asked_again():
    session = AnnotationSession(queue(100, repeat=0.3))
    while (turn := session.vote("a")).repeat_of is None:
        pass
    session.undo("a")
    assert session.turn("a") == turn


def test_gold_is_asked_of_everybody_first_in_practice_then_in_between():
    session = AnnotationSession(queue(40, "a b", gold=10, practice=3))
    for name in "ab":
        turns = []
        while isinstance(session.queue.next(name, 0.0), Turn):
            turns.append(session.vote(name))
            if len(turns) == 30:
                break
        places = [n for n, turn in enumerate(turns) if session.queue.questions[turn.question].is_gold]
        assert places[:3] == [0, 1, 2]
        assert [turn.is_practice for turn in turns] == [True] * 3 + [False] * 27
        assert len(places) == 10
        assert all(later - earlier >= 2 for earlier, later in pairwise(places[3:]))
    assert len({turn.question for turn in turns}) == len(turns)


def test_gold_that_is_left_comes_at_the_end():
    session = AnnotationSession(queue(2, gold=5))
    asked = 0
    while isinstance(session.queue.next("a", 0.0), Turn):
        session.vote("a")
        asked += 1
    assert asked == 7


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_overlap_is_exact_whatever_people_do(overlap):
    """Four people come and go, undo, skip, and let leases run out: no question ever has more votes than the overlap."""
    random_ = random.Random(overlap)
    session = AnnotationSession(queue(60, "a b c d", overlap=overlap))
    for _ in range(6000):
        name, act = random_.choice("abcd"), random_.random()
        if act < 0.02:
            session.now += random_.choice((1.0, LEASE_SECONDS + 1))
        elif act < 0.1 and session.queue.last(name):
            session.undo(name)
        elif isinstance(session.queue.next(name, session.now), Turn) and act > 0.4:
            session.vote(name)
        if random_.random() < 0.05:
            standing = counted(session)
            assert max(standing.values(), default=0) <= overlap
            assert [standing[f"item{k}"] for k in range(60)] == session.queue.votes
    for name in "abcd":
        session.now += LEASE_SECONDS + 1
        while isinstance(session.queue.next(name, session.now), Turn):
            session.vote(name)
    assert session.queue.votes == [overlap] * 60
    assert session.queue.is_done()
    assert len(session.lines) > 300


def counted(session: AnnotationSession) -> Counter[str]:
    """Votes by item, without retracted ones, from the lines alone."""
    retracted = {line["retracts"] for line in session.lines if line["kind"] == "undo"}
    standing = [line for line in session.lines if line["kind"] == "pair" and line["id"] not in retracted]
    assert len({(line["item"], line["annotator"]) for line in standing}) == len(standing)
    return Counter(line["item"] for line in standing)


def test_a_queue_read_from_its_journal_goes_on_as_the_first_one():
    random_ = random.Random(5)
    session = AnnotationSession(queue(80, "a b", overlap=2, repeat=0.2, gold=6, practice=2))
    for _ in range(90):
        name = random_.choice("ab")
        if random_.random() < 0.1 and session.queue.last(name):
            session.undo(name)
        elif isinstance(session.queue.next(name, 0.0), Turn):
            session.vote(name, kind="skip" if random_.random() < 0.1 else "pair")
    again = AnnotationSession(queue(80, "a b", overlap=2, repeat=0.2, gold=6, practice=2))
    for line in session.lines:
        again.queue.apply(line)
    for name in "ab":
        assert again.turn(name) == session.turn(name)
        assert again.queue.remaining(name) == session.queue.remaining(name)
        assert again.queue.answers(name) == session.queue.answers(name)


def test_a_line_that_is_read_twice_counts_once():
    session = AnnotationSession(queue(3, overlap=1))
    session.vote("a")
    session.queue.apply(session.lines[0])
    assert sum(session.queue.votes) == 1


def test_after_a_restart_the_question_on_the_screen_may_be_answered():
    """b had been asked its second choice, since a held the first; nobody holds anything after the restart."""
    first = AnnotationSession(queue(2, "a b", order="file"))
    first.turn("a")
    shown = first.turn("b")
    again = queue(2, "a b", order="file")
    turn = again.turn_for("b", f"key{shown.question}", shown.position, 0.0)
    assert turn == shown


def test_what_is_left_is_shared():
    session = AnnotationSession(queue(10, "a b", gold=1))
    assert session.queue.remaining("a") == 6
    session.vote("a")
    session.vote("a")
    assert session.queue.remaining("a") == 5  # 8 answers shared by two people, and gold
    solo = AnnotationSession(queue(10, "a b", overlap=2))
    solo.vote("a")
    assert (solo.queue.remaining("a"), solo.queue.remaining("b")) == (9, 10)


@pytest.mark.parametrize(("people", "overlap"), [("a b", 2), ("a b c", 2), ("a b c d", 3)])
def test_what_is_left_counts_what_the_others_cannot_answer(people, overlap):
    """One after another: the last person gets all that is left; the count is right from the first question."""
    session = AnnotationSession(queue(12, people, overlap=overlap))
    names = people.split()
    for name in names[: overlap - 1]:
        for n in range(12):
            session.vote(name, kind="skip" if n == 3 else "pair")
    last = names[overlap - 1]
    for name in names[overlap:]:
        for _ in range(3):
            session.vote(name)
    seen = []
    while isinstance(session.queue.next(last, 0.0), Turn):
        seen.append(session.queue.remaining(last))
        session.vote(last)
        session.undo(last)
        session.vote(last)
    if len(names) == overlap:
        assert seen == list(range(12, 0, -1))
    assert session.queue.remaining(last) == 0
    seen = [sum(k in session.queue._people[name].answered for name in names) for k in range(12)]
    assert session.queue._people_per_question == seen
    assert session.queue._people_on_open == sum(seen[k] for k in range(12) if k not in session.queue.full)
