"""Counts of voters and ranked groups, by hand: missing counts, draws, groups of one, equal ranks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from afzal.judge import tallies
from afzal.records import Comparison, Item, Rating, Response


def voted(k: int, counts: dict[int, float], right: int | None = None) -> Item:
    """A question with three options and the numbers of people who chose them."""
    votes = [Rating(option, n, "score", axis=tallies.VOTERS) for option, n in counts.items()]
    named = [] if right is None else [Comparison(right, (right + 1) % 3, "first", axis="answer")]
    return Item(f"i{k}", f"p{k}", tuple(map(Response, "abc")), (*votes, *named))


def ranked(k: int, ranks: list[float], annotator: str | None = None) -> Item:
    """Answers with these ranks, and one more answer without any."""
    answers = tuple(Response(f"a{n}") for n in range(len(ranks) + 1))
    return Item(
        f"i{k}", f"p{k}", answers, tuple(Rating(n, r, "rank", annotator=annotator) for n, r in enumerate(ranks))
    )


ROWS = [
    voted(0, {0: 3, 1: 1}, right=0),
    voted(1, {0: 2, 1: 2}, right=1),
    voted(2, {0: 1, 1: 2, 2: 1}),
    voted(3, {0: 0}, right=0),
    voted(4, {0: 1, 2: 3}, right=2),
    voted(5, {1: 1}),
]


def facts_of(body: dict) -> dict[str, str]:
    return dict(body["facts"])


def test_counts_of_voters_by_hand():
    body = tallies.of_voters(ROWS, "votes.jsonl", resamples=50)
    assert facts_of(body) == {
        "rows": "6",
        "votes": "17",
        "votes per row": "1 to 4, median 4",
        "rows without votes": "1",
        "options counted": "1 in 2, 2 in 3, 3 in 1",
        "rows that name the right option": "4",
    }
    known = {f["name"]: f["value"] for f in body["figures"]}
    # the row without votes is in no figure, though it names its right option; in a draw, nobody is right
    assert known["most people are right"] == pytest.approx(2 / 3)
    assert known["share of votes on the right option"] == pytest.approx((3 / 4 + 1 / 2 + 3 / 4) / 3)
    split = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    three = -(1 / 2 * math.log(1 / 2) + 2 / 4 * math.log(1 / 4))
    assert known["entropy of a row's votes, nats"] == pytest.approx((2 * split + math.log(2) + three + 0) / 5)
    # pairs of votes within a row that differ: 3, 4, 5 and 3 of 6 each. Of all votes in such rows, 7, 5 and 4 are for
    # one option: 35 + 28 + 20 of 120 pairs differ. One vote alone has no pair.
    assert known["Krippendorff's alpha of the votes"] == pytest.approx(1 - (15 / 24) / (83 / 120))


def test_scores_on_another_axis_and_opinions_are_no_votes():
    (row,) = ROWS[:1]
    more = Item(
        row.id, row.prompt, row.responses, (*row.votes, Rating(1, 9, "score"), Comparison(1, 2, "first", axis="tone"))
    )
    ours, theirs = (tallies.of_voters([rows, ROWS[1]], "v", resamples=5) for rows in (more, row))
    assert ours == theirs


def test_without_any_votes_there_are_no_figures():
    body = tallies.of_voters(ROWS[3:4] * 2, "votes.jsonl", resamples=5)
    assert facts_of(body)["rows without votes"] == "2"
    assert facts_of(body)["votes per row"] == "none"
    assert body["figures"] == []


def test_rows_that_name_no_right_option_are_not_called_wrong():
    names = {f["name"] for f in tallies.of_voters(ROWS[2:3] * 2, "votes.jsonl", resamples=5)["figures"]}
    assert names == {"Krippendorff's alpha of the votes", "entropy of a row's votes, nats"}


def test_a_row_that_names_two_right_options_names_none():
    both = Item(
        "x",
        "p",
        tuple(map(Response, "abc")),
        (*voted(0, {0: 1, 1: 1}, 0).votes, Comparison(1, 2, "first", axis="answer")),
    )
    assert facts_of(tallies.of_voters([both], "v", resamples=5))["rows that name the right option"] == "0"


def test_ranked_groups_by_hand():
    rows = [ranked(0, [1, 2, 3]), ranked(1, [1, 1]), ranked(2, [2, 1]), ranked(3, [1]), ranked(4, [])]
    body = tallies.of_ranks(rows, "ranks.jsonl")
    # one ranked answer is no group: it has nothing to be above or below
    assert facts_of(body) == {
        "ranked groups": "3",
        "groups by size": "2: 2, 3: 1",
        "pairs": "5",
        "groups with equal ranks": "1",
    }
    assert body["figures"] == []


def test_what_is_a_tally_and_what_is_ranked():
    score = Item("x", "p", (Response("a"),), (Rating(0, 1, "score"),))
    compared = Item("y", "p", tuple(map(Response, "ab")), (Comparison(0, 1, "first"),))
    assert tallies.are_tallies([score, ROWS[0]])
    assert not tallies.are_tallies([score, compared])
    assert tallies.are_ranked([ranked(0, [1, 2]), ranked(1, [])])
    assert not tallies.are_ranked([ranked(0, [1, 2]), ranked(1, [1, 2], "ann")])
    assert not tallies.are_ranked([ranked(0, [1, 2]), score])
    assert not tallies.are_ranked([ranked(0, [1, 2]), compared])
    assert not tallies.are_ranked([compared])


def test_rows_of_one_question_are_one_prompt_whatever_their_ids_are():
    """Four rows of two questions: intervals are over the two, however the rows are named."""
    rows = [replace(voted(k, {0: 3 + k, 1: 1}, right=0), prompt=f"p{k // 2}") for k in range(4)]
    name = "share of votes on the right option"
    by_place, same_id = (
        next(f for f in tallies.of_voters(given, "v", resamples=200)["figures"] if f["name"] == name)
        for given in (rows, [replace(row, id="x") for row in rows])
    )
    assert by_place == same_id
