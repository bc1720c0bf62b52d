"""Aggregation: planted annotators, symmetries, known truth, and the reference values on real annotations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from afzal.stats import annotators


def planted(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth ``[N]`` of two classes, and five annotators who are right with .9, .8, .7, .6 and .2."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(2, size=n)
    right = generator.random((n, 5)) < np.array([0.9, 0.8, 0.7, 0.6, 0.2])
    return truth, np.where(right, truth[:, None], 1 - truth[:, None])


def test_shares_and_majority():
    labels = np.array([[0, 0, 1], [0, 1, -1], [-1, -1, -1]])
    assert annotators.vote_shares(labels, 2)[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert np.isnan(annotators.vote_shares(labels, 2)[2]).all()
    assert annotators.majority(labels, 2).tolist() == [0, -1, -1]


def test_dawid_skene_finds_who_is_right_how_often():
    truth, labels = planted(2000)
    model = annotators.dawid_skene(labels, 2)
    assert model.accuracy == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.2], abs=0.04)
    better = (model.posterior.argmax(1) == truth).mean()
    assert better > (annotators.majority(labels, 2) == truth).mean() + 0.03
    assert model.confusion.sum(-1) == pytest.approx(np.ones((5, 2)))
    assert model.confusion[4, 0, 1] > 0.7  # the reversed annotator says 1 when the truth is 0


def test_dawid_skene_does_not_mind_names():
    _, labels = planted(100)
    model = annotators.dawid_skene(labels, 2)
    turned = annotators.dawid_skene(1 - labels, 2)
    assert turned.posterior[:, ::-1] == pytest.approx(model.posterior, abs=1e-6)
    shuffled = annotators.dawid_skene(labels[:, [3, 1, 0, 4, 2]], 2)
    assert shuffled.log_likelihood == pytest.approx(model.log_likelihood, abs=1e-6)


def test_gold_items_are_held_at_their_truth():
    truth, labels = planted(100)
    gold = np.where(np.arange(100) < 10, 1 - truth, -1)  # wrong on purpose
    for posterior in (
        annotators.dawid_skene(labels, 2, gold=gold).posterior,
        annotators.log_odds_vote(labels, gold, 2),
    ):
        assert (posterior[:10].argmax(1) == gold[:10]).all()
        assert posterior.sum(1) == pytest.approx(np.ones(100))


def test_gold_items_are_held_at_their_truth_from_the_start():
    """If every truth is known, the first confusion matrices are final: the second iteration has the same likelihood.

    The annotator says 0, 0, 1, 1 of items that are 0, 1, 1, 1: counts (1, 0) and (1, 2), plus .01 each.
    """
    labels, gold = np.array([[0], [0], [1], [1]]), np.array([0, 1, 1, 1])
    model = annotators.dawid_skene(labels, 2, gold=gold, iterations=2)
    assert model.iterations == 2
    assert model.prior.tolist() == [0.25, 0.75]
    assert model.confusion[0] == pytest.approx(np.array([[1.01 / 1.02, 0.01 / 1.02], [1.01 / 3.02, 2.01 / 3.02]]))


def test_weights_from_gold_items_by_hand():
    # annotator 0 is right twice of twice: (2 + 1) / (2 + 2) = 3/4, log odds ln 3; annotator 1 wrong twice: -ln 3
    labels, gold = np.array([[0, 1], [1, 0], [0, 0]]), np.array([0, 1, -1])
    shares = annotators.log_odds_vote(labels, gold, 2)
    assert shares[2] == pytest.approx([0.5, 0.5])
    single = annotators.log_odds_vote(np.array([[0, -1], [1, -1], [0, -1]]), gold, 2)
    assert single[2] == pytest.approx([0.75, 0.25])


def test_no_gold_no_weights():
    with pytest.raises(ValueError, match="known truth"):
        annotators.log_odds_vote(np.array([[0, 1]]), np.array([-1]), 2)


def votes() -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(1)
    first = generator.integers(4, size=2000)
    second = (first + 1 + generator.integers(3, size=2000)) % 4
    who = generator.integers(3, size=2000)
    theta = np.array([0.9, 0.3, -0.3, -0.9])
    won = generator.random(2000) < 1 / (1 + np.exp(-(theta[first] - theta[second])))
    wrong = generator.random(2000) < np.array([0.15, 0.35, 0.75])[who]
    return first, second, (won ^ wrong).astype(float), who


def test_an_annotator_turned_round_is_a_mirror():
    first, second, outcome, who = votes()
    given = {"n_models": 4, "n_annotators": 3}
    as_given = annotators.crowd_bt(first, second, outcome, who, **given)
    mirrored = annotators.crowd_bt(first, second, np.where(who == 2, 1 - outcome, outcome), who, **given)
    assert mirrored.eta[2] == pytest.approx(1 - as_given.eta[2], abs=1e-4)
    assert mirrored.theta == pytest.approx(as_given.theta, abs=1e-4)
    assert mirrored.log_likelihood == pytest.approx(as_given.log_likelihood, abs=1e-6)
    assert as_given.eta[2] < 0.5 < as_given.eta[1] < as_given.eta[0]
    assert as_given.theta.argsort().tolist() == [3, 2, 1, 0]


def test_crowd_bt_needs_a_ridge():
    first, second, outcome, who = votes()
    with pytest.raises(ValueError, match="ridge"):
        annotators.crowd_bt(first, second, outcome, who, n_models=4, n_annotators=3, ridge=0.0)


def test_dawid_skene_moves_nothing_on_pandalm(shared):
    rows = json.loads((shared / "data/annot/pandalm_human3.json").read_text())
    labels = np.array([[row[f"annotator{k}"] for k in (1, 2, 3)] for row in rows])
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["pandalm"]["dawid_skene"]
    model = annotators.dawid_skene(labels, 3)
    assert (model.posterior.argmax(1) != annotators.majority(labels, 3)).sum() == 0
    assert model.prior == pytest.approx(reference["prior"], abs=1e-4)
    assert model.log_likelihood == pytest.approx(reference["loglik"], abs=2e-3)
    diagonal = [[model.confusion[k, c, c] for c in range(3)] for k in range(3)]
    assert np.array(diagonal) == pytest.approx(np.array(list(reference["confusion_diagonal"].values())), abs=1e-4)


def jury(shared) -> tuple[np.ndarray, np.ndarray, dict]:
    """24 judges of LLMBar, each counted if its two games agree."""
    rows = [json.loads(line) for line in (shared / "data/annot/llmbar_gold_vs_judges.jsonl").open()]
    names = list(rows[0]["judges"])
    games = np.array([[[int(v or 0) for v in row["judges"][name]] for name in names] for row in rows])
    agreed = (games[..., 0] > 0) & (games[..., 0] == games[..., 1])
    truth = np.array([int(row["label"]) - 1 for row in rows])
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["llmbar"]["jury"]
    return truth, np.where(agreed, games[..., 0] - 1, -1), reference


def test_dawid_skene_turns_the_answer_round_on_llm_judges(shared):
    truth, labels, reference = jury(shared)
    model = annotators.dawid_skene(labels, 2)
    assert (model.posterior.argmax(1) == truth).mean() == pytest.approx(reference["dawid_skene_acc"], abs=1e-4)
    assert model.log_likelihood == pytest.approx(reference["dawid_skene_loglik"], abs=2e-3)
    vote = annotators.majority(labels, 2)
    credit = np.where(vote < 0, 0.5, vote == truth)
    assert credit.mean() == pytest.approx(reference["majority_acc"], abs=1e-4)


@pytest.mark.parametrize("n_gold", [10, 20, 40, 80])
def test_ten_gold_items_mend_it(shared, n_gold):
    truth, labels, reference = jury(shared)
    right = []
    for seed in range(20):
        gold = np.full(len(truth), -1)
        known = np.random.default_rng(seed).permutation(len(truth))[:n_gold]
        gold[known] = truth[known]
        posterior = annotators.log_odds_vote(labels, gold, 2)
        right.append((posterior.argmax(1) == truth)[gold < 0].mean())
    assert np.mean(right) == pytest.approx(
        reference["log_odds_weights_from_gold_items_20_seeds"][str(n_gold)], abs=1e-3
    )
    assert np.mean(right) >= 0.79


def test_equal_items_count_as_often_as_they_are():
    """A hundred copies of every item: the same result, and a hundred times the log-likelihood apart from smoothing."""
    generator = np.random.default_rng(4)
    labels = np.where(
        generator.random((40, 4)) < 0.8, generator.integers(2, size=(40, 1)), generator.integers(2, size=(40, 4))
    )
    one = annotators.dawid_skene(labels, 2, smoothing=1e-9)
    many = annotators.dawid_skene(np.repeat(labels, 100, 0), 2, smoothing=1e-9)
    assert many.posterior[::100] == pytest.approx(one.posterior, abs=1e-6)
    assert many.log_likelihood == pytest.approx(100 * one.log_likelihood, rel=1e-6)


def test_few_labels_of_many_people_give_what_a_dense_table_gives():
    """The same labels among silent people, so that the table is mostly empty, and without them."""
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 2, 80)
    dense = np.where(generator.random((80, 5)) < 0.8, truth[:, None], 1 - truth[:, None])
    sparse = np.full((80, 100), -1)
    sparse[:, ::20] = dense
    few, many = annotators.dawid_skene(dense, 2), annotators.dawid_skene(sparse, 2)
    np.testing.assert_allclose(many.posterior, few.posterior, atol=1e-9)
    np.testing.assert_allclose(many.confusion[::20], few.confusion, atol=1e-9)
    assert many.log_likelihood == pytest.approx(few.log_likelihood)
    weights = generator.normal(size=100)
    np.testing.assert_allclose(
        annotators.weighted_vote(sparse, weights, 2), annotators.weighted_vote(dense, weights[::20], 2)
    )
