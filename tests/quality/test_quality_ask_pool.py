"""Pools, votes and the choice of questions: odd inputs, and changes that must not affect a choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afzal.errors import AfzalError
from afzal.quality import ask
from afzal.quality.ask import linear
from afzal.quality.ask.choose import belief_of
from afzal.records import Comparison, Item, Message, Ranking, Rating, Response

WORDS = "a bird cat dog egg fish good happy ill joy kite".split()  # noqa: SIM905


def item(k: int, *texts: str, votes=(), sources=(), prompt: str = "") -> Item:
    names = [*sources, *[None] * len(texts)]
    responses = tuple(Response(text, name) for text, name in zip(texts, names, strict=False))
    return Item(f"r{k}", prompt or f"prompt {k}", responses, tuple(votes), where=f"pool.jsonl:{k + 1}")


def some(n: int, seed: int = 0) -> list[Item]:
    rng = np.random.default_rng(seed)
    say = lambda: " ".join(rng.choice(WORDS, 6)) + f" {rng.integers(10**9)}"  # noqa: E731
    return [item(k, say(), say()) for k in range(n)]


def first(who: str | None = None, **more) -> Comparison:
    return Comparison(0, 1, "first", annotator=who, **more)


def second(who: str | None = None) -> Comparison:
    return Comparison(0, 1, "second", annotator=who)


def picked(items, votes=None, n=10, rule="d_optimal", **more):
    pool = ask.pool_of(items)
    return ask.next_questions(pool, votes or {}, n, rule, **more)


def test_a_pool_counts_each_pair_once_whatever_its_order_and_leaves_out_equal_answers():
    rows = [item(0, "x", "y"), item(1, "y", " x ", prompt="prompt 0"), item(2, "z", "z "), item(3, "alone"), item(4)]
    pool = ask.pool_of(rows)
    assert [(p.item, p.first, p.second) for p in pool.pairs] == [(0, 0, 1)]
    assert (pool.repeated, pool.identical, pool.short) == (1, 1, 2)


def test_votes_of_a_repeated_pair_are_added_in_its_own_orientation():
    rows = [item(0, "x", "y", votes=[first("ann")]), item(1, "y", "x", votes=[first("bob")], prompt="prompt 0")]
    votes = ask.votes_of(ask.pool_of(rows))
    assert votes.points.tolist() == [1]
    assert votes.weight.tolist() == [2]
    assert votes.disagree.tolist() == [True]
    agree = ask.votes_of(ask.pool_of([rows[0], replace(rows[1], votes=(second("bob"),))]))
    assert agree.points.tolist() == [2]
    assert agree.disagree.tolist() == [False]


def test_ties_alone_are_no_disagreement_and_both_bad_orders_nothing():
    tie, bad = Comparison(0, 1, "tie"), Comparison(0, 1, "both_bad")
    votes = ask.votes_of(ask.pool_of([item(0, "x", "y", votes=[tie, tie]), item(1, "x", "y", votes=[bad])]))
    assert votes.p_first.tolist() == [0.5, 0.5]
    assert votes.disagree.tolist() == [False, False]
    assert votes.weight.tolist() == [2, 0]
    assert votes.cast.tolist() == [True, True]


def test_scores_order_pairs_where_nothing_was_compared():
    rated = item(0, "x", "y", "z", votes=[Rating(k, v, "score") for k, v in enumerate((1.0, 3.0, 3.0))])
    votes = ask.votes_of(ask.pool_of([rated]))
    assert votes.p_first.tolist() == [0, 0, 0.5]


def test_a_row_of_a_pair_of_many_holds_its_two_answers_and_keeps_the_prompt_together():
    pool = ask.pool_of([replace(item(0, "x", "y", "z", sources=["A", "B", "C"]), extra={"topic": "birds"})])
    (row,) = ask.question_rows(pool, [ask.Question(2, "bald", 0.25)])
    assert [r.turns for r in row.responses] == ["y", "z"]
    assert [r.source for r in row.responses] == ["B", "C"]
    assert (row.id, row.group) == ("r0/1-2", "r0")
    assert row.extra == {"topic": "birds", "asked": {"rule": "bald", "score": 0.25}}
    assert row.votes == ()


def test_what_was_voted_on_is_not_asked_again_also_where_the_votes_stand_in_other_rows():
    rows = some(6)
    voted = [item(9, rows[2].responses[1].turns, rows[2].responses[0].turns, prompt="prompt 2", votes=[first()])]
    pool, votes = ask.pool_of(rows), ask.votes_of(ask.pool_of(voted))
    assert ask.places_in(pool, votes).tolist() == [-1, -1, 0, -1, -1, -1]
    chosen = ask.choose(pool, votes, ask.words_of(pool, votes), 10, "d_optimal", seed=0, random_share=0.1)
    assert sorted(q.pair for q in chosen) == [0, 1, 3, 4, 5]


def test_votes_on_pairs_outside_the_pool_still_teach_the_model():
    votes = ask.votes_of(ask.pool_of([item(k, "good good", "ill", votes=[first()]) for k in range(20)]))
    pool = ask.pool_of([item(50, "good", "ill"), item(51, "bird", "cat")])
    chosen = ask.choose(pool, votes, ask.words_of(pool, votes), 2, "entropy", seed=0, random_share=0)
    assert [q.pair for q in chosen] == [1, 0]
    assert chosen[0].score == pytest.approx(np.log(2))
    assert chosen[1].score < np.log(2) - 0.01


def test_repeat_asks_where_people_disagree_the_most_doubtful_first():
    split = [[first("a"), second("b")], [first("a")], [first("a"), first("b"), second("c")], []]
    rows = [replace(row, votes=tuple(votes)) for row, votes in zip(some(4), split, strict=True)]
    pool = ask.pool_of(rows)
    chosen = ask.choose(pool, ask.votes_of(pool), None, 10, "repeat", seed=0, random_share=0)
    assert [(q.pair, q.score) for q in chosen] == [(0, 0.5), (2, pytest.approx(5 / 16))]
    with pytest.raises(AfzalError, match="no pair to ask about again"):
        ask.choose(ask.pool_of(some(3)), ask.votes_of(ask.pool_of(some(3))), None, 5, "repeat", seed=0, random_share=0)


@pytest.mark.slow
def test_the_random_share_is_drawn_from_all_pairs_alike_and_spread():
    counts = np.zeros(20)
    pool = ask.pool_of(some(20))
    for seed in range(400):
        chosen = ask.next_questions(pool, {}, 10, "d_optimal", seed, random_share=0.2)
        assert [at for at, q in enumerate(chosen) if q.rule == "random"] == [2, 7]
        for q in chosen:
            counts[q.pair] += q.rule == "random"
    # 800 draws over 20 pairs: 40 each, with a standard deviation of about 6
    assert counts.min() > 15
    assert counts.max() < 65


@pytest.mark.slow
def test_a_share_that_is_not_whole_is_kept_on_average():
    pool = ask.pool_of(some(5))
    single = [ask.next_questions(pool, {}, 1, "d_optimal", seed, random_share=0.3)[0].rule for seed in range(500)]
    assert 110 < single.count("random") < 190


@pytest.mark.parametrize("rule", ["entropy", "max_margin", "d_optimal", "bald"])
def test_constant_scorers_give_exactly_the_questions_of_random(rule):
    pool = ask.pool_of(some(30))
    votes = ask.votes_of(pool)
    zeros = np.zeros((2, 30))
    seen = ask.RuleInputs((zeros.T, zeros.T), (zeros, zeros))
    for seed in range(20):
        how = {"seed": seed, "random_share": 0.1}
        ours = ask.choose(pool, votes, seen, 12, rule, **how)
        chance = ask.choose(pool, votes, None, 12, "random", **how)
        assert [q.pair for q in ours] == [q.pair for q in chance]


@given(seed=st.integers(0, 1000), flips=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=20, deadline=None)
def test_swapping_responses_and_votes_changes_no_question(seed, flips):
    rows = some(12, seed)
    votes = {k: [first() if k % 3 else second()] for k in range(0, 12, 2)}
    turned, turned_votes = list(rows), dict(votes)
    for k, flip in enumerate(flips):
        if flip:
            turned[k] = replace(rows[k], responses=rows[k].responses[::-1])
            if k in votes:
                turned_votes[k] = [_turned(v) for v in votes[k]]
    for rule in ("d_optimal", "bald", "entropy"):
        ours = picked(rows, votes, 6, rule, seed=seed)
        theirs = picked(turned, turned_votes, 6, rule, seed=seed)
        assert [q.pair for q in ours] == [q.pair for q in theirs]


def _turned(vote: Comparison) -> Comparison:
    return Comparison(0, 1, "second" if vote.outcome == "first" else "first")


@given(
    n=st.integers(1, 40),
    size=st.integers(1, 15),
    rule=st.sampled_from(["d_optimal", "bald", "entropy", "random", "max_margin"]),
    share=st.floats(0.01, 1),
    voted=st.sets(st.integers(0, 14)),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_any_pool_gives_distinct_unvoted_questions_as_many_as_there_are(n, size, rule, share, voted, seed):
    votes = {k: [first()] for k in voted if k < size}
    chosen = picked(some(size), votes, n, rule, seed=seed, random_share=share)
    pairs = [q.pair for q in chosen]
    assert len(set(pairs)) == len(pairs) == min(n, size - len(votes))
    assert not set(pairs) & votes.keys()
    assert all(np.isfinite(q.score) for q in chosen)
    assert {q.rule for q in chosen} <= {rule, "random"}
    assert picked(some(size), votes, n, rule, seed=seed, random_share=share) == chosen


def test_information_settles_what_is_least_known_and_asks_each_answer_once():
    names = ["A", "B", "C"]
    rows = []
    for k in range(30):
        a, b = [("A", "B"), ("A", "C"), ("B", "C")][k % 3]
        rows.append(item(k, f"{a} {k}", f"{b} {k}", sources=[a, b]))
    pool = ask.pool_of(rows)
    votes = ask.votes_of(pool, {k: [first() if k % 2 else second()] for k in range(0, 30, 3)})  # only A against B
    known = ask.matches_of(pool, votes)
    assert known.names == tuple(names)
    assert known.weight.tolist() == [10, 0, 0]
    chosen = ask.choose(pool, votes, None, 6, "information", seed=0, random_share=0)
    of = [int(known.match_of_pair[q.pair]) for q in chosen]
    assert sorted(of[:2]) == [1, 2]
    assert 0 not in of[:4]
    assert len({q.pair for q in chosen}) == 6
    closest = ask.choose(pool, votes, None, 6, "closest", seed=0, random_share=0)
    assert len({int(known.match_of_pair[q.pair]) for q in closest}) < 3


def test_votes_count_for_the_models_of_their_own_row_also_where_the_texts_are_equal():
    rows = [
        item(0, "yes", "no", sources=["A", "B"], votes=[first()], prompt="p"),
        item(1, "no", "yes", sources=["C", "D"], votes=[first()], prompt="p"),
    ]
    pool = ask.pool_of(rows)
    known = ask.matches_of(pool, ask.votes_of(pool))
    at = {("A", "B"): 0, ("C", "D"): 5}
    assert known.points[[at["A", "B"], at["C", "D"]]].tolist() == [1, 1]
    assert known.weight.sum() == 2


def test_rules_of_models_need_the_names_of_models():
    pool = ask.pool_of(some(3))
    with pytest.raises(AfzalError, match="no pair of answers is by two models"):
        ask.choose(pool, ask.votes_of(pool), None, 2, "information", seed=0, random_share=0)


def test_bald_needs_two_scorers_that_can_disagree():
    pool = ask.pool_of(some(4))
    votes, one = ask.votes_of(pool), np.ones((1, 4))
    with pytest.raises(AfzalError, match="single scorer"):
        ask.choose(pool, votes, ask.RuleInputs((one.T, one.T), (one, one)), 2, "bald", seed=0, random_share=0)


def test_a_score_that_is_no_number_is_refused_by_its_row():
    pool = ask.pool_of(some(3))
    scores = [np.zeros((2, 1)) for _ in range(3)]
    scores[1][1, 0] = np.nan
    with pytest.raises(AfzalError, match=r"pool.jsonl:2: the score of response 1 is nan"):
        pool.differences(scores)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (None, "the row has no features"),
        ([[1.0]], "one list for each of the 2 responses"),
        ([[1.0], [float("nan")]], "feature of response 1 is nan"),
        ([[1.0], ["2"]], "feature of response 1 is '2'"),
        ([[1.0], [True]], "feature of response 1 is True"),
        ([[1.0], [1.0, 2.0]], "different numbers of features"),
        ([[], []], "different numbers of features, or none"),
    ],
)
def test_features_of_rows_are_checked_by_name(features, said):
    row = some(1)[0]
    bad = replace(row, extra={} if features is None else {"features": features})
    with pytest.raises(AfzalError, match=r"pool\.jsonl:1") as caught:
        ask.with_row_features([bad])
    assert said in str(caught.value)


def test_features_of_rows_must_have_one_width():
    rows = [replace(r, extra={"features": [[1.0] * w, [2.0] * w]}) for r, w in zip(some(2), (2, 3), strict=True)]
    with pytest.raises(AfzalError, match=r"pool.jsonl:2: a response has 3 features, but 2"):
        ask.with_row_features(rows)


def test_a_pool_of_nothing_to_ask_is_refused_with_counts():
    pool = ask.pool_of([item(0, "x", "x"), item(1, "alone")])
    with pytest.raises(AfzalError, match="no row has two different responses") as caught:
        ask.refuse_nothing_to_ask(pool, "pool.jsonl")
    assert "1 rows have fewer than two; 1 pairs" in str(caught.value)


def test_words_of_conversations_of_uzbek_and_of_chinese():
    chat = lambda *texts: tuple(Response((Message("assistant", t),)) for t in texts)  # noqa: E731
    prompt = (Message("user", "?"),)
    pool = ask.pool_of([Item("a", prompt, chat("oʻzbek Oʻzbek 12", "")), Item("b", prompt, chat("你好 你", "好"))])
    assert (pool.words[0] ** 2).sum() == pytest.approx(2)  # one word twice, no digits
    assert np.abs(pool.words[0]).max() == pytest.approx(np.sqrt(2))
    assert (pool.words[1] ** 2).sum() == pytest.approx(2)  # 你 twice, 好 on both sides


def test_a_row_of_known_truth_teaches_and_is_never_asked_about():
    rows = some(5)
    rows[1] = replace(rows[1], gold=(first(),))
    rows[2] = replace(rows[2], gold=(first(),), votes=(first("a"), second("b")))
    rows[3] = replace(rows[3], votes=(first("a"), second("b")))
    pool = ask.pool_of(rows)
    votes = ask.votes_of(pool)
    assert votes.weight.tolist() == [0, 1, 3, 2, 0]
    how = {"seed": 0, "random_share": 0}
    assert sorted(q.pair for q in ask.choose(pool, votes, ask.words_of(pool, votes), 9, "d_optimal", **how)) == [0, 4]
    assert [q.pair for q in ask.choose(pool, votes, None, 9, "repeat", **how)] == [3]


def test_rankings_count_as_their_pairs_and_votes_without_weight_do_not():
    ranked = item(0, "x", "y", "z", votes=[Ranking(((2,), (0, 1)), annotator="ann")])
    votes = ask.votes_of(ask.pool_of([ranked, item(1, "x", "y", votes=[first(weight=0.0)])]))
    assert votes.p_first.tolist() == [0.5, 0, 0, 0.5]
    assert votes.weight.tolist() == [1, 1, 1, 0]
    assert votes.cast.tolist() == [True, True, True, False]


def test_votes_on_one_axis_can_be_told_from_the_others():
    votes = [first(axis="helpful"), Comparison(0, 1, "second", axis="safe")]
    pool = ask.pool_of([item(0, "x", "y", votes=votes)])
    assert ask.votes_of(pool).p_first.tolist() == [0.5]
    assert ask.votes_of(pool, axis="helpful").p_first.tolist() == [1]
    assert not ask.votes_of(pool, axis="kind").cast.any()


def test_single_answers_to_one_prompt_are_put_together_with_their_votes_and_features():
    rows = [
        replace(item(0, "x", prompt="p"), extra={"features": [[1.0]], "n": 1}),
        item(1, "y", "z"),
        replace(item(2, "w", prompt="p", votes=[Rating(0, 5.0, "score")]), extra={"features": [[2.0]], "n": 2}),
        item(3, "alone"),
    ]
    made = ask.join_answers(rows)
    assert [i.id for i in made] == ["r0", "r1", "r3"]
    assert [r.turns for r in made[0].responses] == ["x", "w"]
    assert made[0].votes == (Rating(1, 5.0, "score"),)
    assert made[0].extra == {"features": [[1.0], [2.0]], "n": 1}
    assert made[1:] == [rows[1], rows[3]]


def test_what_is_asked_at_random_counts_as_known_to_a_batch():
    """Pairs 0 and 1 are alike: if one was asked at random, the rule does not need the other."""
    pool = ask.pool_of(some(3))
    x = np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    seen, votes = ask.RuleInputs((x, x)), ask.votes_of(pool)
    hit = 0
    for seed in range(30):
        one, two = sorted(
            ask.choose(pool, votes, seen, 2, "d_optimal", seed=seed, random_share=0.5), key=lambda q: q.rule != "random"
        )
        if one.pair in (0, 1):
            hit += 1
            assert two.pair == 2
    assert hit > 5


def test_what_was_voted_on_lowers_the_worth_of_its_like_also_under_given_scorers():
    rows = [replace(row, votes=(first("a"), first("b"))) if k == 0 else row for k, row in enumerate(some(3))]
    pool = ask.pool_of(rows)
    votes = ask.votes_of(pool)
    x = np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    margins = np.zeros((1, 3))
    how = {"seed": 0, "random_share": 0}
    chosen = ask.choose(pool, votes, ask.RuleInputs((x, x), (margins, margins)), 2, "d_optimal", **how)
    assert [q.pair for q in chosen] == [2, 1]
    # A = 1 + 2 votes x 1/4 x 9 in that direction
    assert chosen[1].score == pytest.approx(np.log1p(0.25 * 9 / (1 + 2 * 0.25 * 9)))


def test_the_linear_model_counts_every_vote():
    rows = [replace(row, votes=(first("a"),) * n) for row, n in zip(some(2), (1, 5), strict=True)]
    pool = ask.pool_of(rows)
    votes = ask.votes_of(pool)
    x = np.array([[1.0], [2.0]])
    belief = belief_of(votes, ask.RuleInputs((x, x)), "entropy", 1.0)
    theta = linear.fit(x, np.ones(2), np.array([1.0, 5.0]), 1.0).theta
    assert belief.margins[0] == pytest.approx(x @ theta)
