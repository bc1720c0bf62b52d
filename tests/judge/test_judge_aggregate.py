"""Annotators and aggregation: planted annotators are found, doubtful answers refused, and rows keep their votes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from afzal import api, data, judge
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.judge import aggregate, annotators, groups, labels
from afzal.records import Comparison, Item, Ranking, Rating, Response, preferences


def vote(outcome: str, who: str, first: int = 0, second: int = 1, **more) -> Comparison:
    return Comparison(first, second, outcome, annotator=who, **more)


def item(number: int, *votes, answers: tuple[str, str] = ("a", "b")) -> Item:
    said = tuple(Response(f"{text} {number}") for text in answers)
    return Item(f"i{number}", f"prompt {number}", said, votes)


def crowd(n: int = 120, seed: int = 0, **right: float) -> tuple[list[Item], list[Item]]:
    """Rows on which each named person is right with a given probability, and gold rows with the truth."""
    generator, rows, gold = np.random.default_rng(seed), [], []
    for k in range(n):
        truth = "first" if generator.random() < 0.5 else "second"
        other = "second" if truth == "first" else "first"
        votes = [vote(truth if generator.random() < p else other, who) for who, p in right.items()]
        rows.append(item(k, *votes))
        gold.append(item(k, vote(truth, "truth")))
    return rows, gold


def test_the_same_pair_named_in_the_other_order_is_the_same_label():
    said = labels.of_items([item(0, vote("first", "ali"), vote("second", "dil", 1, 0), vote("tie", "umi"))])
    assert said.annotators == ("ali", "dil", "umi")
    assert said.table.tolist() == [[0, 0, 2]]


def test_what_was_shown_first_follows_the_numbering():
    said = labels.of_items([item(0, vote("first", "ali", shown_first=1), vote("first", "ali", 1, 0, shown_first=1))])
    assert [s.first_shown_first for s in said.entries] == [False, False]


def test_ratings_are_no_labels():
    with pytest.raises(AfzalError, match="no comparisons"):
        labels.of_items([Item("x", "p", (Response("a"), Response("b")), (Rating(0, 1.0, "score"),))])


def test_the_last_label_counts_and_repeats_are_remembered():
    rows = [item(0, vote("first", "ali"), vote("second", "ali"), vote("first", "dil"))]
    said = labels.of_items(rows)
    assert said.table[0].tolist() == [1, 0]
    people = {p.name: p for p in annotators.annotator_reports(said)}
    assert people["ali"].consistent == 0.0
    assert people["dil"].consistent is None


def test_shares_by_hand():
    said = labels.of_items(
        [item(0, vote("first", "a"), vote("first", "b"), vote("tie", "c")), item(1, vote("tie", "a"))]
    )
    assert aggregate.aggregate(said, "mean").p_first.tolist() == pytest.approx([2.5 / 3, 0.5])
    assert aggregate.aggregate(said, "majority").p_first.tolist() == [1.0, 0.5]


def test_the_majority_is_the_one_most_frequent_label():
    said = labels.of_items(
        [
            item(0, vote("first", "a"), vote("tie", "b")),
            item(1, vote("second", "a"), vote("tie", "b")),
            item(2, vote("tie", "a"), vote("tie", "b"), vote("first", "c")),
        ]
    )
    assert aggregate.aggregate(said, "majority").p_first.tolist() == [0.5, 0.5, 0.5]


def test_half_of_the_votes_for_both_bad_leave_an_answer():
    """A pair has no answer only if a majority says that both are bad."""
    said = labels.of_items(
        [
            item(0, vote("first", "a"), vote("both_bad", "b")),
            item(1, vote("first", "a"), vote("both_bad", "b"), vote("both_bad", "c")),
        ]
    )
    assert aggregate.aggregate(said, "mean").p_first.tolist() == pytest.approx([1.0, np.nan], nan_ok=True)


def test_a_soft_answer_is_right_if_its_side_is():
    said, truth = np.array([0.75, 0.25, 0.5, 0.75, 1.0]), np.array([1.0, 1.0, 1.0, 0.5, 1.0])
    assert aggregate.credit(said, truth).tolist() == [1.0, 0.0, 0.5, 0.5, 1.0]


def test_agreement_on_classes_and_on_their_scale_by_hand():
    """Four pairs: first and tie, first twice, second twice, second and tie.

    Half of the labels differ from their partner, by one step. Of all pairs of the eight labels 3/4 differ, and their
    mean squared distance on the scale is 12/7.
    """
    pairs = [("first", "tie"), ("first", "first"), ("second", "second"), ("second", "tie")]
    said = labels.of_items([item(k, vote(one, "a"), vote(two, "b")) for k, (one, two) in enumerate(pairs)])
    known = annotators.overall_agreement(said, resamples=10)
    assert known is not None
    assert (known.raw.value, known.alpha.value) == pytest.approx((1 / 2, 1 - (1 / 2) / (3 / 4)))
    assert known.alpha_scale.value == pytest.approx(1 - (1 / 2) / (12 / 7))
    assert known.fleiss is not None


def test_a_majority_is_more_than_half_and_fleiss_needs_as_many_labels_on_every_pair():
    said = labels.of_items(
        [
            item(0, vote("first", "a"), vote("first", "b")),
            item(1, vote("first", "a"), vote("first", "b"), vote("second", "c")),
            item(2, vote("first", "a"), vote("second", "b")),
            item(3, vote("first", "a")),
        ]
    )
    known = annotators.overall_agreement(said, resamples=10)
    assert known is not None
    assert known.fleiss is None
    facts = dict(annotators.as_plain(said, known, annotators.annotator_reports(said), "here")["facts"])
    assert [facts[name] for name in ("of them unanimous", "with a majority", "without one")] == ["1", "1", "1"]


def test_of_two_who_always_disagree_each_is_the_reverse_of_the_other():
    """A person's own label is not part of the others' majority."""
    rows = [
        item(k, vote("first" if k % 2 else "second", "a"), vote("second" if k % 2 else "first", "b")) for k in range(30)
    ]
    people = annotators.annotator_reports(labels.of_items(rows))
    assert [any("reversed?" in remark for remark in person.remarks) for person in people] == [True, True]


def test_the_more_annotators_the_surer_a_habit_must_be():
    """17 of 20 winners shown first: p = .0026, which is below .01 / 2, and above .01 / 4."""

    def rows(others: int) -> list[Item]:
        votes = lambda k: [vote("first" if k < 17 else "second", "ali", shown_first=0)]  # noqa: E731
        silent = [vote("first", f"other {n}") for n in range(others)]
        return [item(k, *votes(k), *(silent if k == 0 else ())) for k in range(20)]

    def remarked(others: int) -> bool:
        (ali,) = (p for p in annotators.annotator_reports(labels.of_items(rows(others))) if p.name == "ali")
        return any("prefers what is shown first" in remark for remark in ali.remarks)

    assert remarked(1)
    assert not remarked(3)


def test_votes_on_several_axes_of_one_prompt_are_one_piece_of_evidence_for_a_slot():
    """16 of 24 prompts went to the slot shown first, each on five axes: 80 of 120 votes (p = .0003), but p = .15."""
    pairs = tuple((k, 0, 1, axis) for k in range(24) for axis in "abcde")
    own = tuple(labels.Label(n, 0, 0, pair[0] < 16) for n, pair in enumerate(pairs))
    said = labels.Labels(pairs, tuple(str(pair[0]) for pair in pairs), ("ann",), own, np.full(len(pairs), -1))
    (person,) = annotators.annotator_reports(said)
    assert person.first_slot == pytest.approx(2 / 3)
    assert person.first_slot_p == pytest.approx(scipy.stats.binomtest(16, 24).pvalue)
    assert not any("shown first" in remark for remark in person.remarks)


def test_a_prompt_whose_votes_are_split_between_the_slots_shows_no_preference():
    pairs = ((0, 0, 1, "a"), (0, 0, 1, "b"))
    own = (labels.Label(0, 0, 0, True), labels.Label(1, 0, 0, False))
    (person,) = annotators.annotator_reports(labels.Labels(pairs, ("p", "p"), ("ann",), own, np.full(2, -1)))
    assert (person.first_slot, person.first_slot_p) == (0.5, 1.0)


def test_an_even_split_is_a_tie_and_both_bad_orders_nothing():
    said = labels.of_items(
        [
            item(0, vote("first", "a"), vote("second", "b")),
            item(1, vote("both_bad", "a"), vote("both_bad", "b"), vote("first", "c")),
            item(2, vote("both_bad", "a"), vote("first", "b"), vote("first", "c")),
        ]
    )
    p_first = aggregate.aggregate(said, "majority").p_first
    assert p_first[0] == 0.5
    assert np.isnan(p_first[1])
    assert p_first[2] == 1.0


def test_a_reversed_annotator_is_found_and_used():
    rows, gold = crowd(400, ali=0.85, dil=0.85, umi=0.15)
    said = labels.of_items(rows, gold)
    people = {p.name: p for p in annotators.annotator_reports(said)}
    assert people["umi"].right.high < 0.3
    assert "reversed?" in people["umi"].remarks[0]
    assert not people["ali"].remarks
    few = labels.of_items(rows, gold[:10])
    truth = said.gold == labels.FIRST
    by_gold = (aggregate.aggregate(few, "gold").p_first > 0.5) == truth
    by_majority = (aggregate.aggregate(few, "majority").p_first > 0.5) == truth
    assert by_gold.mean() > by_majority.mean() + 0.05


def test_gold_rows_match_by_their_texts_in_either_order():
    rows = [item(0, vote("first", "ali"))]
    turned = Item("g", "prompt 0", (Response("b 0"), Response("a 0")), (vote("first", "truth"),))
    assert labels.of_items(rows, [turned]).gold.tolist() == [labels.SECOND]
    assert labels.of_items(rows, [item(1, vote("first", "truth"))]).gold.tolist() == [-1]


def test_gold_without_gold_is_an_error():
    with pytest.raises(AfzalError, match="no labelled pair has a known truth"):
        aggregate.aggregate(labels.of_items([item(0, vote("first", "ali"))]), "gold")


def test_habits_get_remarks():
    rows = []
    for k in range(60):
        better = "first" if k % 2 else "second"
        slot = vote("first", "left", shown_first=0, seconds=9.0)
        rows.append(
            item(
                k,
                vote(better, "ali", seconds=10.0),
                vote(better, "dil", seconds=8.0),
                slot,
                vote("tie", "lazy", seconds=1.0),
            )
        )
    people = {p.name: p for p in annotators.annotator_reports(labels.of_items(rows))}
    assert people["left"].first_slot == 1.0
    assert "prefers what is shown first" in " ".join(people["left"].remarks)
    assert "says 'tie' 100%" in " ".join(people["lazy"].remarks)
    assert "takes 1.0 s" in " ".join(people["lazy"].remarks)
    assert people["ali"].remarks == people["dil"].remarks == ()


def test_a_fair_person_rarely_gets_a_remark():
    """Two hundred fair people with 40 votes each: at most 2% get a remark on habits or agreement."""
    remarked = 0
    for seed in range(200):
        generator, rows = np.random.default_rng(seed), []
        for k in range(40):
            truth, shown = int(generator.integers(2)), int(generator.integers(2))
            said = truth if generator.random() < 0.8 else 1 - truth
            other = truth if generator.random() < 0.8 else 1 - truth
            fair = vote(("first", "second")[said], "fair", shown_first=shown, seconds=float(generator.uniform(5, 15)))
            rows.append(
                item(k, fair, vote(("first", "second")[other], "other", seconds=float(generator.uniform(5, 15))))
            )
        people = annotators.annotator_reports(labels.of_items(rows))
        remarked += any(p.name == "fair" and p.remarks for p in people)
    assert remarked <= 4


def forty_votes(seed: int, left: float) -> list[labels.Label]:
    """40 votes with evenly drawn sides by a person who votes left with a given probability, else for the better one."""
    generator = np.random.default_rng(seed)
    first_shown, truth = generator.integers(2, size=(2, 40)) == 1
    said = np.where(generator.random(40) < left, first_shown, truth)
    return [
        labels.Label(k, 0, int(not first), bool(shown))
        for k, (first, shown) in enumerate(zip(said, first_shown, strict=True))
    ]


@pytest.mark.parametrize(("left", "least", "most"), [(1.0, 1.0, 1.0), (0.9, 0.95, 1.0), (0.0, 0.0, 0.02)])
def test_a_left_only_habit_gets_a_remark_after_forty_votes_and_a_fair_person_does_not(left, least, most):
    pairs = tuple((k, 0, 1, None) for k in range(40))
    flagged = []
    for seed in range(200):
        own = tuple(forty_votes(seed, left))
        said = labels.Labels(pairs, tuple(map(str, range(40))), ("ann",), own, np.full(40, -1))
        (person,) = annotators.annotator_reports(said)
        wanted = "what is shown first" if left > 0 else ""  # a fair person gets no remark of any kind
        flagged.append(any(wanted in remark for remark in person.remarks))
    assert least <= np.mean(flagged) <= most


def test_changing_sides_each_time_gets_a_remark():
    generator, rows = np.random.default_rng(0), []
    for k in range(40):
        shown = int(generator.integers(2))
        # the first slot on even votes, the second on odd ones
        rows.append(item(k, vote(("first", "second")[(shown + k) % 2], "zigzag", shown_first=shown)))
    (person,) = annotators.annotator_reports(labels.of_items(rows))
    assert person.remarks == ("changes the slot 39 times in 39 steps: left, right, left, right?",)


def test_pairs_of_one_prompt_that_take_turns_are_no_habit():
    """Two prompts take turns, and one answer of each is better wherever it is: nothing is changed by habit."""
    rows = [replace(item(k, vote("first", "ann", shown_first=k % 2)), prompt=f"prompt {k % 2}") for k in range(40)]
    (person,) = annotators.annotator_reports(labels.of_items(rows))
    assert not any("changes the slot" in remark for remark in person.remarks)


def test_changing_sides_once_is_not_changing_each_time():
    rows = [item(k, vote(("first", "second")[k >= 20], "ann", shown_first=0)) for k in range(40)]
    (person,) = annotators.annotator_reports(labels.of_items(rows))
    assert person.first_slot == 0.5
    assert person.remarks == ()


def test_crowd_bt_finds_the_reversed_annotator_and_mirrors_the_votes():
    rows, gold = crowd(400, ali=0.9, dil=0.85, eve=0.8, umi=0.15)
    turned = [replace(i, votes=tuple(v if v.annotator != "umi" else turn(v) for v in i.votes)) for i in rows]
    given, mirrored = (aggregate.aggregate(labels.of_items(r), "crowd_bt") for r in (rows, turned))
    assert given.eta[3] < 0.5 < given.eta[2]
    assert mirrored.eta[3] == pytest.approx(1 - given.eta[3], abs=1e-4)
    assert mirrored.eta[:3] == pytest.approx(given.eta[:3], abs=1e-4)
    assert mirrored.p_first == pytest.approx(given.p_first, abs=1e-3)
    truth = labels.of_items(rows, gold).gold == labels.FIRST
    majority = aggregate.aggregate(labels.of_items(rows), "majority").p_first
    right = ((given.p_first > 0.5) == truth).mean()
    assert right > (np.where(majority == 0.5, 0.5, (majority > 0.5) == truth)).mean() + 0.03


def turn(v: Comparison) -> Comparison:
    return replace(v, outcome={"first": "second", "second": "first"}[v.outcome])


def test_dawid_skene_is_anchored_by_known_truth_and_says_what_that_is_worth():
    """Seven who err independently, and four with a shared error, as below: known truth corrects the answer."""
    rows, truth = shared_errors(300)
    free = aggregate.aggregate(labels.of_items(rows), "dawid_skene")
    held = aggregate.aggregate(labels.of_items(rows, truth[:80]), "dawid_skene")
    known = np.array([i.votes[0].outcome == "first" for i in truth])
    assert ((held.p_first > 0.5) == known)[80:].mean() > ((free.p_first > 0.5) == known)[80:].mean() + 0.1
    assert held.p_first[:80].round().astype(bool).tolist() == known[:80].tolist()
    n, anchored, majority = held.held_out
    assert (n, free.held_out) == (80, None)
    assert majority < anchored < 1.0  # held-out truth is not known
    assert (free.refused, held.refused) == (True, False)
    # a few truths do not overrule the majority, nor do many that do not support the answer
    assert [replace(held, held_out=c).refused for c in ((19, 0.9, 0.5), (20, 0.9, 0.5), (20, 0.5, 0.5))] == [
        True,
        False,
        True,
    ]


def shared_errors(n: int) -> tuple[list[Item], list[Item]]:
    generator, rows, truths, names = np.random.default_rng(3), [], [], ("first", "second")
    for k in range(n):
        truth = int(generator.integers(2))
        shared = truth if generator.random() < 0.3 else 1 - truth
        votes = [vote(names[truth if generator.random() < 0.7 else 1 - truth], f"good {j}") for j in range(7)]
        rows.append(item(k, *votes, *(vote(names[shared], f"like {j}") for j in range(4))))
        truths.append(item(k, vote(names[truth], "truth")))
    return rows, truths


def test_rankings_are_aggregated_pair_by_pair():
    said = (Ranking(((0,), (1,), (2,)), annotator="ali"), Ranking(((0,), (1, 2)), None, 1.0, "dil", seconds=9.0))
    row = Item("x", "p", tuple(map(Response, "abc")), (*said, Rating(0, 5.0, "score")))
    labelled = labels.of_items([row])
    assert labelled.pairs == ((0, 0, 1, None), (0, 0, 2, None), (0, 1, 2, None))
    assert labelled.table.tolist() == [[0, 0], [0, 0], [0, 2]]
    assert [s.seconds for s in labelled.entries if s.annotator == 1] == [9.0, None, None]
    told = labels.of_items([replace(row, votes=(replace(said[1], shown=(2, 1, 0)),))]).entries
    assert [s.first_shown_first for s in told] == [False, False, False]
    (kept,) = aggregate.as_items([row], labelled, aggregate.aggregate(labelled), "mean")
    assert [(q.i, q.j, q.p) for q in preferences(kept)] == [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 0.75)]
    assert kept.votes[-1] == Rating(0, 5.0, "score")


def test_rows_with_one_preference_per_pair():
    rows = [item(0, vote("first", "a"), vote("first", "b"), vote("second", "c")), item(1, vote("both_bad", "a"))]
    said = labels.of_items(rows)
    kept = aggregate.as_items(rows, said, aggregate.aggregate(said), "mean")
    assert preferences(kept[0]) == preferences(rows[0])  # training turns votes into soft labels
    (one,) = kept[0].votes
    assert (one.probability, one.annotator) == (pytest.approx(2 / 3), "mean of 3")
    assert kept[1].votes == ()


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_is_what_training_makes_of_the_same_votes(seed):
    """Stated probabilities and weights count, whichever answer a vote names first."""
    generator, rows = np.random.default_rng(seed), []
    for k in range(20):
        votes = []
        for who in "abcd"[: generator.integers(1, 5)]:
            outcome = str(generator.choice(["first", "second", "tie", "both_bad"]))
            stated = float(generator.random()) if outcome != "both_bad" and generator.random() < 0.5 else None
            weight = float(generator.choice([0.0, 0.5, 1.0, 3.0]))
            votes.append(vote(outcome, who, *generator.permutation(2).tolist(), probability=stated, weight=weight))
        rows.append(item(k, *votes))
    said = labels.of_items(rows)
    made = aggregate.aggregate(said)
    for before, after, p in zip(rows, aggregate.as_items(rows, said, made, "mean"), made.p_first, strict=True):
        if math.isnan(p):
            assert after.votes == ()  # most say that both are bad
            continue
        (was,), (kept,) = preferences(before) or [None], preferences(after) or [None]
        assert (was is None) == (kept is None)  # weight 0 trains nothing, before and after
        if was is not None and kept is not None and was.p != 0.5:
            assert (kept.i, kept.j) == (was.i, was.j)
            assert (kept.p, kept.weight) == (pytest.approx(was.p), pytest.approx(was.weight))


def test_a_judge_counts_with_the_mean_probability_of_its_two_orders():
    stated = [
        vote("first", "j", probability=0.9, shown_first=0),
        vote("second", "j", 1, 0, probability=0.3, shown_first=1),
    ]
    said = labels.of_items([item(0, *stated)])
    assert aggregate.aggregate(said).p_first == pytest.approx([0.8])
    assert aggregate.aggregate(said, "jeffreys").p_first == pytest.approx([(0.8 + 0.5) / 2])
    assert aggregate.aggregate(said, "majority").p_first.tolist() == [1.0]
    verdicts = [
        judge.Verdict("q", "q", "x", "y", "first", "j", 0, 0.9),
        judge.Verdict("q", "q", "y", "x", "second", "j", 1, 0.3),
    ]
    assert aggregate.aggregate(labels.of_verdicts(judge.Verdicts(verdicts))).p_first == pytest.approx([0.8])


def test_only_rows_with_a_judges_verdict_name_the_aggregate_as_one():
    """gpt judged the first row; in the others it only rated an answer, or gave nothing."""
    judged = {"judged_by": ["gpt"]}
    rows = [
        replace(item(0, vote("first", "gpt"), vote("first", "ann")), extra=judged),
        replace(item(1, vote("first", "ann"), Rating(0, 3.0, "score", annotator="gpt")), extra=judged),
        replace(item(2, vote("first", "ann")), extra=judged),
    ]
    for items in (rows, rows[1:]):  # with and without gpt among the annotators
        said = labels.of_items(items)
        made = aggregate.as_items(items, said, aggregate.aggregate(said), "mean")
        assert [row.extra for row in made[-2:]] == [judged, judged]
    said = labels.of_items(rows)
    made = aggregate.as_items(rows, said, aggregate.aggregate(said), "mean")
    assert made[0].extra == {"judged_by": ["gpt", "mean of 2"]}


def test_a_tie_is_an_outcome_and_no_probability():
    rows = [item(0, vote("first", "ann"), vote("second", "bob")), item(1, vote("tie", "ann"))]
    said = labels.of_items(rows)
    made = aggregate.as_items(rows, said, aggregate.aggregate(said), "mean")
    assert [(v.outcome, v.probability) for row in made for v in row.votes] == [("tie", None)] * 2


def test_many_people_with_few_votes_each_do_not_share_errors():
    """Dawid-Skene has too little to go by, and the report does not blame the people."""
    generator, rows = np.random.default_rng(1), []
    for k in range(200):
        who = generator.choice(400, 5, replace=False)
        rows.append(item(k, *(vote("first" if generator.random() < 0.7 else "second", f"p{n}") for n in who)))
    (warning,) = aggregate.aggregate(labels.of_items(rows)).warnings
    assert "with a median of" in warning
    assert "share errors" not in warning


def test_weighted_labels_name_the_likelier_answer_and_weigh_by_its_certainty():
    rows = [
        item(0, vote("first", "a"), vote("second", "b"), vote("second", "c")),
        item(1, vote("first", "a"), vote("second", "b")),
        item(2, vote("first", "a"), vote("first", "b"), vote("first", "c")),
    ]
    said = labels.of_items(rows)
    kept = aggregate.as_items(rows, said, aggregate.aggregate(said), "mean", "weighted")
    (split,) = preferences(kept[0])
    assert (split.i, split.j, split.p, split.weight) == (1, 0, 1.0, pytest.approx(1 / 3))
    assert preferences(kept[1]) == ()  # a tie says nothing
    (sure,) = preferences(kept[2])
    assert (sure.i, sure.j, sure.p, sure.weight) == (0, 1, 1.0, 1.0)


def test_weighted_labels_need_rows(tmp_path, capsys):
    source = write(tmp_path / "votes.jsonl", crowd(4, ali=0.9, dil=0.9)[0])
    assert main(["aggregate", source, "--labels", "weighted"]) == 2
    assert "no rows are written" in capsys.readouterr().err
    assert main(["aggregate", source, "--labels", "weighted", "--out", str(tmp_path / "out.jsonl")]) == 0
    (weights,) = {v.weight for one in data.read(str(tmp_path / "out.jsonl")).items for v in one.votes} or ({1.0},)
    assert weights == 1.0  # two people agree or tie


def write(path: Path, rows: list[Item]) -> str:
    data.write(rows, path, "afzal")
    return str(path)


def test_the_command(tmp_path, capsys):
    rows, gold = crowd(40, ali=0.9, dil=0.9, umi=0.9)
    source, truth = write(tmp_path / "votes.jsonl", rows), write(tmp_path / "gold.jsonl", gold[:12])
    out = tmp_path / "one.jsonl"
    assert (
        main(
            ["aggregate", source, "--by", "gold", "--gold", truth, "--out", str(out), "--page", str(tmp_path / "page")]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "pairs of known truth 12" in said
    assert f"{out}: 40 rows by gold" in said
    assert len(data.read(str(out)).items) == 40
    assert "Agreement" in (tmp_path / "page" / "annotators.html").read_text()
    assert main(["aggregate", source, "--out", str(out)]) == 2
    assert "--force" in capsys.readouterr().err


def rows_of_a_bloc(n, seed):
    """Four judges with a shared error agree with each other and outweigh seven who err independently."""
    generator, rows, names = np.random.default_rng(seed), [], ("first", "second")
    for k in range(n):
        truth = int(generator.integers(2))
        shared = truth if generator.random() < 0.45 else 1 - truth
        votes = [vote(names[truth if generator.random() < 0.7 else 1 - truth], f"good {j}") for j in range(7)]
        rows.append(item(k, *votes, *(vote(names[shared], f"like {j}") for j in range(4))))
    return rows


def test_a_doubtful_answer_is_not_written(tmp_path, capsys):
    rows = rows_of_a_bloc(200, seed=3)
    source, out = write(tmp_path / "votes.jsonl", rows), tmp_path / "one.jsonl"
    aggregated = aggregate.aggregate(labels.of_items(rows), "dawid_skene")
    assert aggregated.doubtful
    assert aggregated.overturned == aggregated.dawid_skene_overturned > 0.05 * aggregated.decided
    asked = ["aggregate", source, "--by", "dawid_skene", "--out", str(out), "--resamples", "10"]
    assert (main(asked), out.exists()) == (1, False)
    assert "--gold FILE" in capsys.readouterr().out
    assert (main([*asked, "--force"]), out.exists()) == (0, True)


@pytest.mark.parametrize(("n", "says"), [(19, "it cannot tell who errs"), (20, "the annotators share errors")])
def test_twenty_labels_each_are_enough_to_say_that_annotators_share_errors(n, says):
    rows = rows_of_a_bloc(20, seed=1)
    (warning,) = aggregate.aggregate(labels.of_items(rows[:n])).warnings
    assert says in warning


def test_people_on_pandalm_and_judges_on_llmbar(shared, capsys):
    assert main(["aggregate", str(shared / "data/annot/pandalm_human3.json"), "--resamples", "50"]) == 0
    said = capsys.readouterr().out
    assert "Dawid-Skene moves 0 of 502 decided pairs." in said
    assert "raw agreement                             0.921" in said
    source = str(shared / "data/annot/llmbar_gold_vs_judges.jsonl")
    assert main(["aggregate", source, "--by", "dawid_skene", "--resamples", "10"]) == 1
    assert "share errors" in capsys.readouterr().out


def test_judges_are_heard_if_their_games_agree(shared):
    said = labels.of_verdicts(judge.read([str(shared / "data/annot/llmbar_gold_vs_judges.jsonl")]))
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["llmbar"]["jury"]
    assert int((said.table >= 0).sum()) == reference["votes"]
    vote_of = aggregate.aggregate(said, "majority").p_first
    credit = np.where(vote_of == 0.5, 0.5, (vote_of > 0.5) == (said.gold == labels.FIRST))
    assert credit.mean() == pytest.approx(reference["majority_acc"], abs=1e-4)


def test_agreement_of_everybody_still_has_a_width():
    """20 prompts without disagreement: Wilson's interval of 20 of 20 starts at 20 / (20 + 1.96^2)."""
    low = 20 / (20 + 1.959964**2)
    words = ["first", "second"] * 10
    said = labels.of_items([item(k, vote(word, "a"), vote(word, "b")) for k, word in enumerate(words)])
    known = annotators.overall_agreement(said, resamples=20)
    assert known is not None
    (row,) = groups.by_field(
        [replace(item(k), extra={"subset": "x"}) for k in range(20)], said, "subset", resamples=20
    )["rows"]
    assert row[3] == "1.000 [0.839, 1.000]"
    for raw in (known.raw, known.without_ties):
        assert (raw.value, raw.low, raw.high, raw.n) == (1.0, pytest.approx(low, abs=1e-6), 1.0, 20)
    for coefficient in (known.alpha, known.alpha_scale, known.gwet, known.fleiss):
        assert (coefficient.value, coefficient.low, coefficient.high) == (1.0, None, None)


def test_agreement_of_nobody_and_of_one_word():
    """Never the same label: the mirror image. Always the same word: the coefficients are undefined."""
    never = labels.of_items([item(k, vote("first", "a"), vote("second", "b")) for k in range(20)])
    known = annotators.overall_agreement(never, resamples=20)
    assert (known.raw.value, known.raw.low) == (0.0, 0.0)
    assert known.raw.high == pytest.approx(1 - 20 / (20 + 1.959964**2), abs=1e-6)
    same = labels.of_items([item(k, vote("first", "a"), vote("first", "b")) for k in range(20)])
    known = annotators.overall_agreement(same, resamples=20)
    assert known.raw.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)
    assert math.isnan(known.alpha.value)
    assert (known.alpha.low, known.alpha.high) == (None, None)


def test_one_disagreement_is_resampled_as_before():
    words = ["first", "second"] * 10
    votes = [item(k, vote(word, "a"), vote(word if k else "tie", "b")) for k, word in enumerate(words)]
    known = annotators.overall_agreement(labels.of_items(votes), resamples=200)
    assert known.raw.value == pytest.approx(19 / 20)
    assert known.raw.high == 1.0
    assert known.raw.low == pytest.approx(0.85, abs=0.05 + 1e-9)
    assert (known.without_ties.value, known.without_ties.n) == (1.0, 19)


def test_aggregate_shows_what_was_not_counted(tmp_path):
    row = {"prompt": "q", "response_1": "x", "response_2": "y", "preference.responses.users": ["u1", "u2"]}
    row |= {"preference.responses": ["response_1", "tie"], "preference.responses.status": ["submitted", "draft"]}
    (tmp_path / "records.jsonl").write_text(json.dumps(row) + "\n")
    result = api.aggregate(str(tmp_path / "records.jsonl"), resamples=5)
    assert "Not counted, since they are not votes or cannot be used: draft (part) 1." in result["findings"]
