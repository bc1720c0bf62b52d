"""The edges of the rules about over-training, on curves made by hand: the side of a limit that counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from afzal.health import overtraining as rules
from afzal.health.curves import Curves

Record = Mapping[str, Any]
LN3 = math.log(3.0)


def curves(held_out: Sequence[Record], train: Sequence[Record] | None = None, **facts: Any) -> Curves:
    """Evaluations every 10 steps from step 0, and training records from step 1."""
    evaluations: list[Record] = [{"kind": "eval", "step": 10 * k, **r} for k, r in enumerate(held_out)]
    records: list[Record] = [{"kind": "train", "step": k + 1, **r} for k, r in enumerate(train or [])]
    return Curves(records, evaluations, facts)


def losses(*values: float) -> list[Record]:
    return [{"loss": v} for v in values]


# ---------------------------------------------------------------- the held-out loss


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ((1.0, 0.5), None),  # two evaluations are too few
        ((1.0, 0.9, 0.5), "held_out_loss"),
        ((1.0, 0.5, 0.56, 0.56), "held_out_loss_rises"),  # by more than a tenth of the fall of 0.5
        ((1.0, 0.5, 0.54, 0.54), "held_out_loss"),
        ((1.0, 0.9, 0.94, 0.94), "held_out_loss_rises"),  # by more than 3% of the first
        ((1.0, 0.9, 0.92, 0.92), "held_out_loss"),
        ((1.0, 0.5, 0.52, 0.9), "held_out_loss"),  # one evaluation may be above by chance
        ((1.0, 0.5, 0.9, 0.52), "held_out_loss"),
        ((1.0, 0.9, 0.5, 0.9), "held_out_loss_rises"),  # unless it is the only one after the minimum
        ((2.0, 1.9, 1.95, 1.95), "held_out_loss"),
        ((2.0, 1.9, 1.97, 1.97), "held_out_loss_rises"),
        ((0.5, 0.8, 0.8), "held_out_loss_rises"),  # from the start on
        ((-1.0, -1.5, -1.4, -1.4), "held_out_loss_rises"),  # a loss may be negative
        ((-1.0, -1.5, -1.46, -1.46), "held_out_loss"),
    ],
)
def test_how_far_a_held_out_loss_may_rise(values, code):
    diagnosis = rules.held_out_loss(curves(losses(*values)))
    assert (diagnosis.code if diagnosis else None) == code


def test_the_first_of_equal_minima_counts_and_the_end_tells_how_bad_it_is():
    rose = rules.held_out_loss(curves(losses(1.0, 0.5, 0.5, 0.8, 1.0)))
    assert rose
    assert (rose.severity, rose.step, rose.evidence) == ("watch", 10, {"minimum": 0.5, "last": 1.0})
    assert rose.change == {"early_stop_patience": 2}
    worse = rules.held_out_loss(curves(losses(1.0, 0.5, 0.8, 1.01)))
    assert worse
    assert worse.severity == "bad"
    good = rules.held_out_loss(curves(losses(1.0, 0.8, 0.7)))
    assert good
    assert (good.step, good.severity) == (20, "good")


def test_a_training_loss_that_rose_too_explains_the_held_out_loss():
    rises = losses(1.0, 0.5, 0.8, 0.8)
    falls, grows = ([{"loss": 1 + sign * k / 100} for k in range(40)] for sign in (-1, 1))

    def code(train: Sequence[Record], **facts: Any) -> str:
        diagnosis = rules.held_out_loss(curves(rises, train, **facts))
        assert diagnosis
        return diagnosis.code

    assert code(falls) == "held_out_loss_rises"
    assert code(grows) == "held_out_loss"
    assert code(grows[:1]) == "held_out_loss_rises"  # one value has no direction
    assert code(grows, reference_moves=True) == "held_out_loss_rises"  # each loss is to another reference
    # the level around the minimum is what the last values are compared with, not the start
    dips = losses(*[2.0 - k / 10 for k in range(10)], *[1.0] * 15, *[1.5] * 15)
    assert code(dips) == "held_out_loss"
    assert code(losses(*[1.0] * 40)) == "held_out_loss_rises"  # it stayed the same


@pytest.mark.parametrize(("n", "size"), [(40, 4), (28, 3)])
def test_a_training_loss_rose_if_its_end_is_above_by_more_than_chance(n, size):
    """Two standard errors of the mean of the last tenth, and of at least three values."""
    noisy = [1.0 + (0.1 if k % 2 else -0.1) for k in range(n)]
    sure = 2 * 0.2 / (0.67449 * 2**0.5) / size**0.5
    level = sum(noisy[10 - size : 10]) / size - sum(noisy[-size:]) / size  # the minimum is at step 10
    for extra, expected in ((0.99, "held_out_loss_rises"), (1.01, "held_out_loss")):
        train = losses(*noisy[:-size], *(v + level + sure * extra for v in noisy[-size:]))
        diagnosis = rules.held_out_loss(curves(losses(1.0, 0.5, 0.8, 0.8), train))
        assert diagnosis
        assert diagnosis.code == expected


def test_a_minimum_before_the_first_training_step_is_compared_with_that_step():
    rises = losses(0.5, 0.8, 0.8)
    codes = [
        d.code for d in (rules.held_out_loss(curves(rises, losses(*v))) for v in ([1, 2, 3, 9, 9, 9], [9] * 6)) if d
    ]
    assert codes == ["held_out_loss", "held_out_loss_rises"]


# ---------------------------------------------------------------- the log-probs of the chosen


def moved(chosen: float, rejected: float, *, tokens: float | None = 10.0, margin: float = 1.0) -> Curves:
    """Log-probs of both responses that change by so many nats; a reward margin that changes from 0.5."""
    lengths, later = ({}, {}) if tokens is None else ({"lengths/chosen": tokens}, {"lengths/chosen": 99.0})
    first = {"logps/chosen": -50.0, "logps/rejected": -60.0, "rewards/margins": 0.5, **lengths}
    last = {"logps/chosen": -50.0 + chosen, "logps/rejected": -60.0 + rejected, "rewards/margins": 0.5 + margin}
    return curves([first, last | later], config={"lr": 3e-4, "beta": 0.1})


@pytest.mark.parametrize(
    ("chosen", "rejected", "more", "code"),
    [
        (-10 * LN3 - 0.001, -40.0, {}, "over_optimised"),  # three times as perplexing
        (-10 * LN3 + 0.001, -40.0, {}, "displacement"),
        (-11.0, -40.0, {"margin": 0.0}, "displacement"),  # the margin did not grow
        (-11.0, -40.0, {"margin": -0.2}, "displacement"),
        (-11.0, -40.0, {"tokens": None}, "log_probs"),  # of unknown length: no perplexity
        (-11.0, -40.0, {"tokens": 0.0}, "log_probs"),
        (-10 * math.log(1.5) - 0.001, -9.0, {}, "displacement"),  # half as perplexing again
        (-10 * math.log(1.5) + 0.001, -9.0, {}, "log_probs"),
        (-6.0, 1.0, {}, "log_probs"),  # the rejected rose
        (-6.0, 0.0, {}, "log_probs"),
        (-3.0, -4.0, {}, "displacement"),  # three times the gain of the gap
        (-3.0, -4.1, {}, "log_probs"),
        (-3.0, -2.0, {}, "displacement"),
        (-3.0, -1.9, {}, "log_probs"),
        (-2.0, -2.1, {}, "displacement"),  # two nats at least
        (-1.9, -2.0, {}, "log_probs"),
        (2.0, -3.0, {}, "log_probs"),
        (-0.5, -0.5, {"tokens": 1.0}, "displacement"),
    ],
)
def test_how_far_chosen_responses_may_fall(chosen, rejected, more, code):
    diagnosis = rules.log_probs(moved(chosen, rejected, **more))
    assert diagnosis
    assert diagnosis.code == code


def test_what_is_said_about_chosen_responses_that_fell():
    bad = rules.log_probs(moved(-20.0, -40.0))
    assert bad
    assert bad.severity == "bad"
    assert bad.evidence == {"chosen_fall": 20.0, "rejected_fall": 40.0, "perplexity_ratio": pytest.approx(math.e**2)}
    assert bad.explanation.startswith(
        "Chosen responses changed by −20.00 nats (−2.0 per token), rejected ones by −40.00. "
    )
    assert (bad.step, bad.change) == (10, {"lr": 1e-4})
    assert "7.4 times" in bad.title
    watch = rules.log_probs(moved(-6.0, -9.0))
    assert watch
    assert watch.evidence == {
        "chosen_fall": 6.0,
        "rejected_fall": 9.0,
        "perplexity_ratio": pytest.approx(math.exp(0.6)),
    }
    assert (watch.severity, watch.step) == ("watch", None)
    assert "lost 6.00 nats, rejected ones 9.00" in watch.title
    assert "per token" not in rules.log_probs(moved(-6.0, -9.0, tokens=None)).explanation  # pyright: ignore[reportOptionalMemberAccess]
    good = rules.log_probs(moved(-1.0, -9.0))
    assert good
    assert good.evidence["perplexity_ratio"] == pytest.approx(math.exp(0.1))
    far = rules.log_probs(moved(-600.0, -900.0))
    assert far
    assert far.evidence["perplexity_ratio"] == pytest.approx(math.exp(50))  # no larger
    titles = [d.title for d in (rules.log_probs(moved(fall, -9.0)) for fall in (1.0, 0.0, -1.0)) if d]
    assert titles == ["chosen responses kept their likelihood"] * 2 + ["chosen responses kept most of their likelihood"]


@pytest.mark.parametrize("name", ["logps/chosen", "logps/rejected", "rewards/margins"])
def test_without_both_log_probs_and_a_margin_nothing_is_said(name):
    told = moved(-20.0, -40.0)
    assert rules.log_probs(Curves([], [{k: v for k, v in r.items() if k != name} for r in told.held_out], {})) is None


def test_the_step_is_the_first_evaluation_past_the_limit():
    told = [
        {"logps/chosen": -50.0 - fall, "logps/rejected": -90.0 - fall, "lengths/chosen": 10.0}
        for fall in (0, 10, 12, 20)
    ]
    for k, record in enumerate(told):
        record["rewards/margins"] = float(k)
    diagnosis = rules.log_probs(curves(told))
    assert diagnosis
    assert diagnosis.step == 20
    untested = rules.log_probs(curves([], [r for r in told for _ in range(3)]))
    assert untested
    assert (untested.code, untested.step) == ("over_optimised", None)  # it shows in the training curve only


# ---------------------------------------------------------------- memorised rows


def fit(
    train: float,
    held_out: float,
    *,
    first: float = 1.0,
    share: float = 1.0,
    high: float = 0.8,
    n: int = 20,
    start: float = 1.0,
) -> Curves:
    """Training losses that fall at once from ``start`` to ``train`` without noise, and three evaluations."""
    records = [{"loss": start if k == 0 else train, "rewards/accuracies": share} for k in range(n)]
    last = {"loss": held_out, "rewards/accuracies": high - 0.1, "rewards/accuracies_low": high - 0.2}
    return curves(
        [{"loss": first}, {"loss": 9.0}, last | {"rewards/accuracies_high": high}], records, config={"lr": 3e-4}
    )


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (fit(0.049, 0.8), "overfit"),
        (fit(0.051, 0.8), "rows_fitted"),  # not collapsed
        (fit(0.049, 0.8, share=0.98, high=0.87), "overfit"),
        (fit(0.049, 0.8, share=0.97, high=0.7), "rows_fitted"),  # not every row is right
        (fit(0.049, 0.8, high=0.91), "rows_fitted"),  # held-out pairs follow
        (fit(0.049, 0.06, high=0.8), "overfit"),
        (fit(0.399, 0.8), "rows_fitted"),  # half of the held-out loss
        (fit(0.41, 0.8), "fit"),
        (fit(0.1, 0.251), "rows_fitted"),  # lower by 15% of the first held-out loss
        (fit(0.1, 0.249), "fit"),
        (fit(0.1, 0.4, first=-2.1), "fit"),
        (fit(0.099, 0.8, start=2.0), "overfit"),
        (fit(0.101, 0.8, start=2.0), "rows_fitted"),
        (fit(0.1, 0.4, n=9), None),
        (fit(0.1, 0.4, n=10), "rows_fitted"),
    ],
)
def test_when_rows_count_as_memorised(told, code):
    diagnosis = rules.overfit(told)
    assert (diagnosis.code if diagnosis else None) == code


def test_what_is_said_about_memorised_rows():
    bad = rules.overfit(fit(0.025, 0.75))
    assert bad
    assert bad.evidence == {
        "train_loss": pytest.approx(0.025),
        "held_out_loss": 0.75,
        "train_accuracy": 1.0,
        "held_out_high": 0.8,
    }
    assert (bad.severity, bad.change) == ("bad", {"lr": 1e-4})
    watch = rules.overfit(fit(0.25, 0.75))
    assert watch
    assert (watch.severity, watch.evidence["held_out_loss"]) == ("watch", 0.75)
    assert watch.explanation.startswith(
        "Training loss ends at 0.2500, held-out loss at 0.7500; training accuracy at 1.00, held out at most 0.800."
    )
    good = rules.overfit(fit(0.5, 0.75))
    assert good
    assert (good.severity, good.evidence["train_loss"]) == ("good", 0.5)


def test_without_accuracies_no_row_is_called_memorised():
    told = fit(0.049, 0.8)
    bare: list[Record] = [{k: v for k, v in r.items() if "accuracies" not in k} for r in told.train]
    diagnosis = rules.overfit(Curves(bare, told.held_out, told.facts))
    assert diagnosis
    assert diagnosis.code == "rows_fitted"
    assert "accuracy" not in diagnosis.explanation
    assert diagnosis.evidence["train_accuracy"] == 0.0
    one_sided = rules.overfit(Curves(told.train, [{"step": 0, "loss": 1.0}, {"step": 10, "loss": 0.8}], told.facts))
    assert one_sided
    assert one_sided.code == "rows_fitted"
    assert "accuracy" not in one_sided.explanation
    assert rules.overfit(Curves(told.train, [], told.facts)) is None
    assert rules.overfit(Curves(told.train, told.held_out, {"reference_moves": True})) is None


@pytest.mark.parametrize(("n", "size"), [(40, 4), (28, 3)])
def test_a_gap_within_the_noise_of_the_training_loss_is_none(n, size):
    """Four standard errors of the mean of the last tenth, and of at least three values; the gap is 0.4."""

    def code(spread: float) -> str:
        values = [spread if k % 2 else -spread for k in range(n)]
        level = 0.2 - sum(values[-size:]) / size
        diagnosis = rules.overfit(curves(losses(1.0, 0.6), losses(*(level + v for v in values))))
        assert diagnosis
        return diagnosis.code

    limit = 0.4 / 4 * size**0.5 * 0.67449 * 2**0.5 / 2
    assert (code(0.99 * limit), code(1.01 * limit)) == ("rows_fitted", "fit")


# ---------------------------------------------------------------- the KL


@pytest.mark.parametrize(
    ("record", "code", "severity"),
    [
        ({"kl": 10.1, "kl_tokens": 10}, "kl_large", "watch"),
        ({"kl": 9.9, "kl_tokens": 10}, "kl", "good"),
        ({"kl": 10.0, "kl_tokens": 10}, "kl", "good"),
        ({"kl": 20.0, "kl_tokens": 40}, "kl", "good"),
        ({"kl": 50.0, "kl_tokens": 25}, "kl_large", "watch"),
        ({"kl": 60.0, "kl_tokens": 60}, "kl_large", "watch"),
        ({"kl": 10.1, "kl_tokens": 20}, "kl_large", "watch"),
        ({"kl": 10.1, "kl_tokens": 21}, "kl", "good"),  # fewer than 0.5 nats a token
        ({"kl": 10.1, "kl_tokens": 10, "samples/length": 40}, "kl_large", "watch"),  # the KL's own tokens
        ({"kl": 10.1, "samples/length": 40}, "kl", "good"),
        ({"kl": 10.1, "kl_tokens": 0}, "kl_large", "watch"),
        ({"kl": 10.1}, "kl_large", "watch"),
        ({"kl": 50.1, "kl_tokens": 50}, "kl_large", "bad"),
        ({"kl": 49.9, "kl_tokens": 40}, "kl_large", "watch"),
        ({"kl": 50.1, "kl_tokens": 51}, "kl_large", "watch"),
        ({"kl": 60.0, "kl_low": 9.0, "kl_high": 90.0, "kl_tokens": 10}, "kl", "good"),  # the lower end counts
        ({"kl": 60.0, "kl_low": 11.0, "kl_high": 90.0, "kl_tokens": 10}, "kl_large", "watch"),
        ({"kl": -0.1}, "kl_unknown", "open"),
        ({"kl": 0.0}, "kl", "good"),
        ({"kl": 5.0, "kl_cut": 0.01}, "kl_of_cut_answers", "open"),
        ({"kl": 5.0, "kl_cut": 0.0, "samples/eos_rate": 0.5}, "kl", "good"),  # of the answers that the KL is of
        ({"kl": 5.0, "samples/eos_rate": 0.5}, "kl_of_cut_answers", "open"),
        ({"kl": 5.0, "samples/eos_rate": 1.0}, "kl", "good"),
    ],
)
def test_when_a_kl_is_too_large_unknown_or_a_lower_bound(record, code, severity):
    diagnosis = rules.distance(curves([{"kl": 0.0}, record, {"loss": 1.0}]))
    assert diagnosis
    assert (diagnosis.code, diagnosis.severity, diagnosis.step) == (code, severity, 10)
    assert diagnosis.evidence == {"kl": record["kl"], "kl_low": record.get("kl_low", record["kl"])}


def test_what_is_said_about_a_kl():
    assert rules.distance(curves(losses(1.0))) is None
    large = rules.distance(
        curves([{"kl": 20.0, "kl_low": 18.0, "kl_high": 22.0, "kl_tokens": 20}], config={"lr": 3e-4})
    )
    assert large
    assert large.title.endswith("is 20.0 [18.0, 22.0] nats")
    assert "n of about 10⁸ to move" in large.explanation  # e^19, by the lower end
    assert large.change == {"lr": 1e-4}
    assert large.remedy.endswith("(early_stop_patience)")
    rounds = rules.distance(curves([{"kl": 20.0}], config={"rounds": 3}))
    assert rounds
    assert rounds.remedy.endswith("(kl_budget)")
    cut = rules.distance(curves([{"kl": 5.0, "kl_cut": 0.25, "kl_tokens": 12}]))
    assert cut
    assert "25% of the answers were cut" in cut.title
    assert "the first 12 tokens" in cut.explanation
    assert cut.remedy == "raise sample_tokens"
    by_rate = rules.distance(curves([{"kl": 5.0, "samples/eos_rate": 0.9, "samples/length": 12}], config={"rounds": 3}))
    assert by_rate
    assert "10% of the answers were cut" in by_rate.title
    assert by_rate.remedy == "raise max_new_tokens"
    good = rules.distance(curves([{"kl": 5.0, "kl_tokens": 10}]))
    assert good
    assert good.explanation == "Per answer, 0.50 per token."
    for record in ({"kl": 5.0}, {"kl": 5.0, "kl_tokens": 0}):
        plain = rules.distance(curves([record]))
        assert plain
        assert plain.explanation == "Per answer."
