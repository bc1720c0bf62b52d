"""Assessment of scores against preferences: by hand, over prompts, with weighted pairs."""

import math

import numpy as np
import pytest

from afzal.records import Comparison, Item, Rating, Response
from afzal.rewards.assess import ScoredItem, assess, lines, sections
from afzal.stats.intervals import wilson


def scored(name, prompt, scores, *votes):
    """An item whose responses have these scores; the first has 3 tokens, each further one has one more."""
    responses = tuple(Response(f"answer {k}") for k in range(len(scores)))
    lengths = np.arange(3, 3 + len(scores))
    return ScoredItem(Item(name, prompt, responses, votes), np.array(scores, float), np.zeros(len(scores)), lengths)


FIRST = Comparison(0, 1, "first")


def test_accuracy_is_over_prompts():
    """40 prompts, three rows each, all three alike; three of four prompts are right."""
    rows = [
        scored(f"{k}-{n}", f"Q{k}", (1.0, 0.0) if k % 4 else (0.0, 1.0), FIRST) for k in range(40) for n in range(3)
    ]
    accuracy = assess(rows).accuracy
    assert accuracy is not None
    assert (accuracy.value, accuracy.n, accuracy.prompts) == (0.75, 120, 40)
    assert accuracy.interval == pytest.approx(wilson(30, 40), abs=0.012)
    facts = assess(rows).facts()
    assert facts["accuracy"] == {
        "value": 0.75, "low": accuracy.interval[0], "high": accuracy.interval[1], "n": 120, "prompts": 40
    }  # fmt: skip
    assert facts["calibration"]["n"] == 120
    assert facts["calibration"]["prompts"] == 40


def test_pairs_count_by_their_weight_and_equal_scores_half():
    """A pair of weight 1; three pairs of ratings that weigh a third each: 2 right, 1 wrong; a tie in score; a tie in
    opinion that does not count. (1 + 2/3 + 1/2) / 3."""
    ratings = tuple(Rating(k, 3.0 - k, "score") for k in range(3))
    rows = [
        scored("a", "A", (1.0, 0.0), FIRST),
        scored("b", "B", (2.0, 0.0, 1.0), *ratings),
        scored("c", "C", (1.0, 1.0), FIRST),
        scored("d", "D", (5.0, 1.0), Comparison(0, 1, "tie")),
    ]
    accuracy = assess(rows).accuracy
    assert accuracy is not None
    assert accuracy.value == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert (accuracy.n, accuracy.prompts) == (5, 3)


def test_a_score_that_goes_against_people_is_told_so():
    """Signs: the score falls with length and agrees with no vote."""
    rows = [scored(f"{k}", f"Q{k}", (2.0 + 0.1 * k, 1.0), Comparison(0, 1, "second")) for k in range(12)]
    result = assess(rows)
    assert result.accuracy is not None
    assert result.accuracy.value == 0.0
    assert result.length is not None
    assert result.length.slope < 0
    assert result.length.slope == pytest.approx(1.0 - (2.0 + 0.1 * 5.5))


def test_annotators_agreement_is_over_prompts():
    votes = [Comparison(0, 1, "first", annotator="ada") for _ in range(5)]
    rows = [scored(f"{k}", f"Q{k}", (1.0, 0.0) if k else (0.0, 1.0), *votes) for k in range(4)]
    agreement = assess(rows).annotators["ada"]
    assert (agreement.value, agreement.n, agreement.prompts) == (0.75, 20, 4)
    assert agreement.interval[1] - agreement.interval[0] > np.subtract(*wilson(15, 20)[::-1]) + 0.2


def test_a_small_sample_is_not_called_a_bad_model():
    """20 pairs of a perfectly calibrated model: the page and the lines report the error due to chance."""
    rng = np.random.default_rng(1)
    gaps = rng.normal(0, 1.5, 20)
    right = rng.random(20) < 1 / (1 + np.exp(-gaps))
    rows = [
        scored(f"{k}", f"Q{k}", (g, 0.0), Comparison(0, 1, "first" if ok else "second"))
        for k, (g, ok) in enumerate(zip(gaps, right, strict=True))
    ]
    result = assess(rows)
    assert result.calibration is not None
    assert result.calibration.null == pytest.approx(0.21, abs=0.03)
    words = [line for line in lines(result) if line.startswith("calibration")] + [sections(result)[0].text]
    for said in words:
        assert "on 20 pairs" in said
        assert f"would show about {result.calibration.null:.3f} here" in said
        assert "within what chance explains" in said
        assert f"({result.calibration.ece_low:.3f} to {result.calibration.ece_high:.3f})" in said
    assert math.isfinite(result.calibration.brier)
