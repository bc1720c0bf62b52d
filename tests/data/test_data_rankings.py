"""Rankings of K responses, data recorded with a vote, and known truths: derived, renumbered, written and read."""

import json
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afzal.data import fingerprint, read, remap, without, write
from afzal.errors import AfzalError
from afzal.quality.clean import duplicate_key
from afzal.records import Comparison, Item, Preference, Ranking, Rating, Response, labels, preferences, scores


def item(n, *votes, **kwargs):
    return Item("x", "P", tuple(Response(f"answer {k}") for k in range(n)), votes, **kwargs)


RANKED = Ranking(
    ((2,), (0, 3), (1,)), shown=(3, 1, 0, 2), annotator="ann", seconds=9.5, id="v1", at="2026-11-28T10:12Z"
)


def test_a_ranking_orders_every_pair_and_counts_as_one_vote():
    pairs = {(q.i, q.j): (q.p, q.weight) for q in preferences(item(4, RANKED))}
    sixth = pytest.approx(1 / 6)
    won = {(2, 0), (2, 3), (2, 1), (0, 1), (3, 1)}
    assert pairs == dict.fromkeys(won, (1.0, sixth)) | {(0, 3): (0.5, sixth)}
    assert scores(item(4, RANKED)) == (-1.5, -3.0, 0.0, -1.5)
    assert labels(item(4, RANKED)) == (None, False, True, None)


def test_the_weight_of_a_ranking_is_that_of_all_its_pairs_together():
    for n in (2, 3, 5):
        heavy = Ranking(tuple((k,) for k in range(n)), weight=3.0)
        assert sum(q.weight for q in preferences(item(n, heavy))) == pytest.approx(3.0)
        assert sum(q.weight for q in preferences(item(n, heavy, replace(heavy, weight=1.0)))) == pytest.approx(2.0)


def test_a_ranking_is_what_ranks_of_its_responses_are():
    ranks = [Rating(k, place, "rank") for k, place in RANKED.places().items()]
    assert RANKED.places() == {2: 0.0, 0: 1.5, 3: 1.5, 1: 3.0}
    said = [(q.i, q.j, q.p, q.weight) for q in preferences(item(4, *ranks))]
    assert sorted(said) == sorted((q.i, q.j, q.p, q.weight) for q in preferences(item(4, RANKED)))
    assert scores(item(4, *ranks)) == scores(item(4, RANKED))


def test_a_ranking_of_some_responses_leaves_the_others_open():
    some = Ranking(((3,), (1,)))
    assert preferences(item(4, some)) == (Preference(3, 1),)
    assert scores(item(4, some)) == (None, -1.0, None, 0.0)
    assert labels(item(4, some)) == (None, False, None, True)


def test_two_rankings_and_a_comparison_are_pooled_pair_by_pair():
    one, other = Ranking(((0,), (1,), (2,))), Ranking(((1,), (0,), (2,)))
    assert scores(item(3, one, other)) == (-0.5, -0.5, -2.0)
    pooled = {(q.i, q.j): q.p for q in preferences(item(3, one, other, Comparison(1, 0, "first")))}
    assert pooled == {(1, 0): pytest.approx(2 / 3), (0, 2): 1.0, (1, 2): 1.0}
    # an extra comparison, or rankings of different responses, give no mean rank
    assert scores(item(3, one, Comparison(0, 1, "first"))) == (2.0, 1.0, 0.0)
    assert scores(item(3, one, Ranking(((1,), (2,))))) == (2.0, 1.0, 0.0)
    assert scores(item(3, one, Ranking(((1,), (0,)), weight=0.0))) == (0.0, -1.0, -2.0)


def test_the_pairs_of_a_ranking_know_which_was_shown_first():
    told = {(c.first, c.second): (c.outcome, c.shown_first) for c in RANKED.comparisons()}
    assert told == {
        (0, 1): ("first", 1),
        (0, 2): ("second", 0),
        (0, 3): ("tie", 3),
        (1, 2): ("second", 1),
        (1, 3): ("second", 3),
        (2, 3): ("first", 3),
    }
    assert {(c.annotator, c.seconds, c.weight, c.id) for c in RANKED.comparisons()} == {("ann", None, 1.0, "v1")}
    assert {c.shown_first for c in replace(RANKED, shown=None).comparisons()} == {None}


def test_renumbering_keeps_the_order_and_merging_takes_the_mean_of_the_groups():
    for new in permutations(range(4)):
        moved = preferences(remap(item(4, RANKED), new))
        back = {(new.index(q.i), new.index(q.j), q.p) for q in moved if q.p != 0.5}
        assert back == {(q.i, q.j, q.p) for q in preferences(item(4, RANKED)) if q.p != 0.5}
    assert without(item(4, RANKED), {0}).votes == (replace(RANKED, groups=((1,), (2,), (0,)), shown=(2, 0, 1)),)
    assert without(item(4, RANKED), {0, 1, 3}).votes == ()
    chain = item(3, Ranking(((0,), (1,), (2,))))
    assert remap(chain, [0, 1, 0]).votes == (Ranking(((0, 1),)),)
    assert remap(chain, [0, 0, 1]).votes == (Ranking(((0,), (1,))),)


def test_tied_responses_may_be_in_any_order_in_a_duplicate():
    turned = replace(RANKED, groups=((2,), (3, 0), (1,)))
    assert duplicate_key(item(4, RANKED)) == duplicate_key(item(4, turned))
    assert duplicate_key(item(4, RANKED)) != duplicate_key(item(4, replace(RANKED, groups=((2,), (0,), (3,), (1,)))))


def test_known_truth_is_no_opinion():
    known = item(3, Comparison(1, 0, "first"), gold=(Comparison(0, 1, "first"), Rating(2, 1.0, "label")))
    assert preferences(known) == (Preference(1, 0),)
    assert labels(known) == (False, True, None)
    assert without(known, {1}).gold == (Rating(1, 1.0, "label"),)
    assert fingerprint([known]) != fingerprint([replace(known, gold=())])


VOTES = (
    RANKED,
    Comparison(0, 1, "tie", seconds=2.0, id="v2", at="2026-11-28T10:13:00+05:00"),
    Rating(1, 4.0, "score", annotator="ann", seconds=3.25, id="v3", at="2026-11-28"),
)


def test_afzal_rows_keep_rankings_times_names_and_truths(tmp_path):
    whole = item(4, *VOTES, gold=(Ranking(((0,), (1,))),))
    write([whole], tmp_path / "rows.jsonl", "afzal")
    (back,) = read(tmp_path / "rows.jsonl").items
    assert (back.votes, back.gold) == (whole.votes, whole.gold)
    (line,) = (json.loads(row) for row in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert line["votes"][0]["groups"] == [[2], [0, 3], [1]]
    for changed in (replace(RANKED, id="v9"), replace(RANKED, at=None), replace(RANKED, seconds=1.0)):
        assert fingerprint([item(4, changed)]) != fingerprint([item(4, RANKED)])


def test_what_was_not_recorded_does_not_enter_the_hash():
    # unchanged since before votes had an id and a time
    plain = item(2, Comparison(0, 1, "first", annotator="a"), Rating(0, 1.0, "score"))
    assert fingerprint([plain]) == ("97fdf0810882cac08d29042b449c6a2e12fe71f1bf9a4742716b64fa098291cb")


@pytest.mark.parametrize(
    ("vote", "why"),
    [
        ({"groups": [[0], [0, 1]]}, "each once"),
        ({"groups": [[0]]}, "two or more"),
        ({"groups": [[0], [4]]}, "groups"),
        ({"groups": [[0], []]}, "groups"),
        ({"groups": [[0], [True]]}, "groups"),
        ({"groups": 3}, "groups"),
        ({"groups": [[0], [1]], "shown": [0]}, "each once"),
        ({"groups": [[0], [1]], "shown": [0, 2]}, "each once"),
        ({"groups": [[0], [1]], "at": 3}, "at"),
        ({"shown": [0, 1]}, "groups"),
    ],
)
def test_rankings_that_make_no_sense_are_refused(tmp_path, vote, why):
    row = {"afzal": 1, "id": "x", "prompt": "P", "responses": [{"turns": t} for t in "abcd"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"votes": [{"vote": "ranking"} | vote]}) + "\n")
    with pytest.raises(AfzalError, match=why):
        read(tmp_path / "rows.jsonl")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.randoms())
def test_preferences_of_a_ranking_do_not_depend_on_the_numbers_of_its_responses(places, shuffle):
    groups = tuple(tuple(k for k, place in enumerate(places) if place == p) for p in sorted(set(places)))
    new = list(range(len(places)))
    shuffle.shuffle(new)
    before, after = (
        preferences(i) for i in (item(len(places), Ranking(groups)), remap(item(len(places), Ranking(groups)), new))
    )
    told = {frozenset({(new[q.i], q.p), (new[q.j], 1 - q.p)}) for q in before}
    assert told == {frozenset({(q.i, q.p), (q.j, 1 - q.p)}) for q in after}
    assert sum(q.weight for q in after) == pytest.approx(1.0)
