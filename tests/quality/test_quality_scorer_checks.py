"""Pairs that scores contradict or cannot tell apart; a calibrated scorer of sound labels raises no alarm."""

import math
import random

import pytest

from afzal.quality import scored_findings
from afzal.records import Comparison, Item, Response

GAP = math.log(9)  # nats: favoured with 90%


def item(n, first_better=True, weight=1.0):
    vote = Comparison(0, 1, "first" if first_better else "second", weight=weight)
    return Item(str(n), f"Q{n}", (Response("a"), Response("b")), (vote,))


def by_code(scored):
    return {f.code: f for f in scored_findings(scored)}


def test_planted_contradictions_are_counted_the_most_contradicted_first():
    rows = [(item(n), (3.0, 0.0)) for n in range(60)] + [(item(n, False), (3.0 + n, 0.0)) for n in range(60, 100)]
    suspicious = by_code(rows)["suspicious_pairs"]
    assert (suspicious.severity, suspicious.count, suspicious.total, suspicious.value) == ("minor", 40, 100, 0.4)
    assert suspicious.ids[:3] == ["99", "98", "97"]


def test_a_share_that_chance_explains_raises_no_alarm():
    suspicious = by_code([(item(n, n != 0), (3.0, 0.0)) for n in range(5)])["suspicious_pairs"]
    assert (suspicious.severity, suspicious.value, suspicious.count) == ("ok", 0.2, 1)
    assert suspicious.low < 0.1


def test_the_bounds_are_90_and_60_percent():
    rows = [(item(0), (GAP + 1e-9, 0.0)), (item(1), (0.0, GAP - 1e-9)), (item(2), (0.0, GAP + 1e-9))]
    flagged = by_code(rows)["suspicious_pairs"]
    assert (flagged.count, flagged.total) == (1, 2)
    close = math.log(1.5)
    rows = [(item(0), (close - 1e-9, 0.0)), (item(1), (0.0, close - 1e-9)), (item(2), (close + 1e-9, 0.0))]
    flagged = by_code(rows)["ambiguous_pairs"]
    assert (flagged.count, flagged.total) == (2, 3)
    assert "suspicious_pairs" not in by_code(rows)


def test_a_constant_scorer_makes_every_pair_ambiguous_and_none_suspicious():
    findings = by_code([(item(n), (1.0, 1.0)) for n in range(50)])
    assert findings.keys() == {"ambiguous_pairs"}
    assert (findings["ambiguous_pairs"].severity, findings["ambiguous_pairs"].value) == ("minor", 1.0)


def test_what_has_no_score_and_no_order_is_left_out():
    tie = Item("t", "Q", (Response("a"), Response("b")), (Comparison(0, 1, "tie"),))
    assert scored_findings([(tie, (3.0, 0.0)), (item(1), (math.nan, 0.0))]) == []


def test_labels_drawn_from_the_scores_raise_no_alarm():
    alarms = 0
    for seed in range(200):
        rng = random.Random(seed)
        rows = []
        for n in range(150):
            gap = rng.gauss(0, 3)
            rows.append((item(n, rng.random() < 1 / (1 + math.exp(-gap))), (gap, 0.0)))
        alarms += any(f.severity != "ok" for f in scored_findings(rows))
    assert alarms <= 4  # 2%


@pytest.mark.parametrize("scores", [(3.0, 0.0), (0.0, 3.0)])
def test_which_answer_stands_first_changes_nothing(scores):
    rows = [(item(n, n % 3 > 0), scores) for n in range(30)]
    swapped = [(item(n, n % 3 == 0), scores[::-1]) for n in range(30)]
    assert scored_findings(rows) == scored_findings(swapped)
