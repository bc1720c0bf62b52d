"""Agreement by hand, against published examples, and on real annotations with reference values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from afzal.stats import agreement
from afzal.stats.resampling import resampled

# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", example C: 4 observers, 12 units, missing data.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def example() -> np.ndarray:
    labels = np.array([[-1 if v is None else v - 1 for v in row] for row in OBSERVERS]).T
    return agreement.counts(labels, 5)


def test_alpha_equals_the_published_worked_example():
    assert agreement.krippendorff(example()) == pytest.approx(0.743, abs=5e-4)
    assert agreement.krippendorff(example(), "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert agreement.krippendorff(example(), "interval", [1, 2, 3, 4, 5]) == pytest.approx(0.849, abs=5e-4)


def test_kappa_by_hand():
    # 10 items: 4 both yes, 3 both no, 2 yes/no, 1 no/yes: observed 0.7, expected 0.6 * 0.5 + 0.4 * 0.5 = 0.5
    first = np.array([0] * 4 + [1] * 3 + [0] * 2 + [1])
    second = np.array([0] * 4 + [1] * 3 + [1] * 2 + [0])
    assert agreement.cohen(first, second) == pytest.approx(0.4)
    assert agreement.cohen(second, first) == pytest.approx(0.4)
    missing = np.append(first, -1), np.append(second, 0)
    assert agreement.cohen(*missing) == pytest.approx(0.4)


@pytest.mark.parametrize("n", range(1, 30))
def test_two_who_always_say_the_same_one_thing_have_no_kappa(n):
    assert np.isnan(agreement.cohen(np.ones(n, int), np.ones(n, int)))


def test_fleiss_and_gwet_by_hand():
    # 2 items of 3 labels: 3:0 and 2:1. Observed (1 + 1/3) / 2 = 2/3; shares 5/6 and 1/6.
    table = np.array([[3.0, 0.0], [2.0, 1.0]])
    expected = (5 / 6) ** 2 + (1 / 6) ** 2
    assert agreement.fleiss(table) == pytest.approx((2 / 3 - expected) / (1 - expected))
    chance = 2 * (5 / 6) * (1 / 6)
    assert agreement.gwet(table) == pytest.approx((2 / 3 - chance) / (1 - chance))
    assert agreement.raw(table) == pytest.approx(2 / 3)


def test_fleiss_refuses_different_numbers_of_labels():
    with pytest.raises(ValueError, match="Krippendorff"):
        agreement.fleiss(np.array([[3.0, 0.0], [1.0, 1.0]]))


def test_an_item_that_counts_twice_is_the_item_twice():
    table = np.array([[3.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
    twice, repeats = np.concatenate([table, table[1:2]]), np.array([1.0, 2.0, 1.0])
    for figure in (agreement.raw, agreement.fleiss, agreement.gwet, agreement.krippendorff):
        assert figure(table, repeats=repeats) == pytest.approx(figure(twice))
    first, second = np.array([0, 1, 1]), np.array([0, 1, 0])
    once = agreement.cohen(first[[0, 1, 1, 2]], second[[0, 1, 1, 2]])
    assert agreement.cohen(first, second, repeats) == pytest.approx(once)


def test_a_missing_label_is_no_class():
    labels = np.array([[0, 0, -1], [1, 1, 1], [0, 1, -1]])
    assert agreement.counts(labels, 2).tolist() == [[2, 0], [0, 3], [1, 1]]
    assert agreement.raw(agreement.counts(labels, 2)) == pytest.approx((2 + 6 + 0) / (2 + 6 + 2))


def test_the_ceiling_leaves_the_person_out():
    labels = np.array([[0, 0, 1], [0, 1, 2]])
    # row 0: the mode of the others is 0 or, for those who said 0, both 0 and 1: half. Row 1: two modes, neither theirs.
    assert agreement.agreement_with_rest(labels, 3).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    alone = agreement.agreement_with_rest(np.array([[0, -1, -1]]), 3)
    assert np.isnan(alone).all()


def test_a_judge_without_a_verdict_agrees_with_nobody():
    labels = np.array([[0, 0, 1], [1, 1, -1]])
    credit = agreement.judge_with_rest(np.array([0, -1]), labels, 2)
    assert credit[0].tolist() == [0.5, 0.5, 1.0]
    assert credit[1][:2].tolist() == [0.0, 0.0]
    assert math.isnan(credit[1][2])


def test_no_verdict_is_not_the_first_class():
    """People say 0 three times: a judge that says 0 agrees with each pair of them, one without a verdict with none."""
    credit = agreement.judge_with_rest(np.array([0, -1]), np.zeros((2, 3), int), 2)
    assert credit.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def pandalm(shared) -> tuple[np.ndarray, list[str], dict]:
    rows = json.loads((shared / "data/annot/pandalm_human3.json").read_text())
    labels = np.array([[row[f"annotator{k}"] for k in (1, 2, 3)] for row in rows])
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())
    return labels, [row["instruction"] + "\0" + row["input"] for row in rows], reference["pandalm"]


def test_three_people_on_pandalm(shared):
    labels, prompts, reference = pandalm(shared)
    table, people = agreement.counts(labels, 3), reference["people"]
    assert agreement.raw(table) == pytest.approx(people["raw_pairwise_mean"], abs=1e-4)
    assert agreement.fleiss(table) == pytest.approx(people["fleiss"], abs=1e-4)
    assert agreement.gwet(table) == pytest.approx(people["gwet_ac1"], abs=1e-4)
    assert agreement.krippendorff(table) == pytest.approx(people["alpha_nominal"], abs=1e-4)
    pairs = {f"{a + 1}-{b + 1}": agreement.cohen(labels[:, a], labels[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))}
    assert pairs == pytest.approx(people["cohen"], abs=1e-4)
    for figure, name in (
        (agreement.raw, "raw_pairwise_mean_interval"),
        (agreement.krippendorff, "alpha_nominal_interval"),
    ):
        interval = resampled(lambda w, f=figure: f(table, repeats=w), prompts, resamples=2000)
        assert [interval.low, interval.high] == pytest.approx(people[name], abs=0.01)
        assert interval.n == reference["n"]["prompts"]


def test_one_person_against_the_others_on_pandalm(shared):
    labels, _, reference = pandalm(shared)
    ceiling = agreement.agreement_with_rest(labels, 3)
    assert ceiling.mean() == pytest.approx(reference["human_ceiling"]["one_vs_mode_of_the_other_two"], abs=1e-4)


def test_ratings_are_on_an_interval_scale(shared):
    lines = (shared / "data/annot/vader_lexicon.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [json.loads(line.split("\t")[-1]) for line in lines if line.count("\t") == 3]
    table = agreement.counts(np.array(rows) + 4, 9)
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["vader_lexicon"]
    assert len(rows) == reference["items"]
    values = list(range(-4, 5))
    assert agreement.krippendorff(table, "interval", values) == pytest.approx(reference["alpha_interval"], abs=1e-4)
    assert agreement.krippendorff(table, "ordinal") == pytest.approx(reference["alpha_ordinal"], abs=1e-4)
    assert agreement.krippendorff(table) == pytest.approx(reference["alpha_nominal_9"], abs=1e-4)


def test_the_credit_of_labels_alone_is_that_of_the_table():
    labels = np.random.default_rng(0).integers(-1, 3, (40, 6))
    table = agreement.agreement_with_rest(labels, 3)
    assert table.shape == labels.shape
    assert np.isnan(table[labels < 0]).all()
    for row, person in zip(*np.nonzero(labels >= 0), strict=True):
        rest = np.delete(labels[row], person)
        sizes = np.bincount(rest[rest >= 0], minlength=3)
        modes = np.flatnonzero(sizes == sizes.max()) if sizes.any() else np.array([], int)
        want = (labels[row, person] in modes) / len(modes) if len(modes) else np.nan
        np.testing.assert_allclose(table[row, person], want)
