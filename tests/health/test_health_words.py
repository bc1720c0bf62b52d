"""A report's statements about a run are true: cases that were once described wrongly, with the correct words."""

from __future__ import annotations

import math
from typing import Any

import helpers_report as rr
import pytest

from afzal.health import Diagnosis, alarms, diagnose, verdict
from afzal.health.curves import Curves
from afzal.health.facts import referenced
from afzal.report import page
from afzal.report.run_files import enriched_facts, load

LN2 = math.log(2)
Lines = list[dict[str, Any]]


def told(method: str = "dpo", **changes: Any) -> dict[str, Any]:
    return rr.facts(method) | {"config": rr.config(method)} | changes


def by_check(metrics: Lines, facts: dict[str, Any] | None = None) -> dict[str, Diagnosis]:
    return {d.check: d for d in diagnose(metrics, facts or told())}


def curve(name: str, first: float, last: float, n: int = 7) -> Lines:
    """``n`` evaluations of a loss that goes from the first to the last value, with a training line for each."""
    at = [first + (last - first) * k / (n - 1) for k in range(n)]
    train = [{"kind": "train", "step": k + 1, "loss": v, "grad_norm": 0.5} for k, v in enumerate(at[:-1])]
    return [*({"kind": "eval", "step": k, "n": 24.0, name: v} for k, v in enumerate(at)), *train]


def test_nothing_learned_in_few_steps_is_called_so():
    """The README's old DPO example: seven updates, a loss from .6931 to .6925, a margin of .0013."""
    metrics = curve("loss", LN2, 0.6925)
    for m in metrics:
        if m["kind"] == "eval":
            moved = 0.0013 * m["step"] / 6
            m |= {
                "rewards/margins": moved,
                "rewards/accuracies": 0.5 if not moved else 0.9,
                "logps/chosen": -30 + moved,
            }
    diagnoses = diagnose(metrics, told())
    assert [d.code for d in alarms(diagnoses)] == ["nothing_moved"]
    assert verdict(diagnoses).word == "not healthy"
    assert verdict(diagnoses).sentence.startswith("Nothing was learned")
    assert diagnoses[0].change == {"lr": 1e-3}  # tenfold
    assert "about tenfold" in diagnoses[0].remedy


def test_a_rate_that_was_far_too_small_is_raised_by_more_than_tenfold():
    """As in the note before the run: 6 updates at 1e-6 on 10,000 weights have a pace of 6e-4, and need 1."""
    metrics = [{**m, **({"lr": 1e-6} if m["kind"] == "train" else {})} for m in curve("loss", LN2, 0.6925)]
    facts = told(config=rr.config("dpo", lr=1e-6), model={"trainable": 10_000}, step=6)
    unmoved = [d for d in diagnose(metrics, facts) if d.code == "nothing_moved"]
    assert unmoved[0].change == {"lr": 2e-3}
    assert "raise lr (now 1e-6) to about 0.002" in unmoved[0].remedy


def test_weights_that_did_not_move_are_called_so():
    metrics = curve("loss", LN2, LN2)
    for m in metrics:
        if m["kind"] == "eval":
            m |= {"rewards/margins": 0.0, "rewards/accuracies": 0.5, "logps/chosen": -30.0, "kl": 0.0}
    still = told(config=rr.config("dpo", lr=0.0))
    (alarm,) = alarms(diagnose(metrics, still))
    assert alarm.code == "weights_unmoved"
    assert alarm.title == "nothing was learned: the weights did not move"
    assert alarm.remedy == "set lr above 0"
    metrics[-8]["kl"] = 1e-9  # the last evaluation
    assert alarms(diagnose(metrics, still))[0].code == "nothing_moved"


def test_a_loss_that_fell_a_little_is_not_called_unchanged():
    """SFT from 1.958 to 1.953, down at all seven evaluations."""
    metrics = curve("loss", 1.958, 1.953)
    for m in metrics:
        if m["kind"] == "eval":
            m["logps/chosen"] = -40 * m["loss"]
    learning = by_check(metrics, told("sft"))["learning"]
    assert (learning.code, learning.severity) == ("little_learned", "watch")
    assert learning.title == "little was learned: the held-out loss fell only from 1.958 to 1.953"


@pytest.mark.parametrize(
    ("last", "code"),
    [(1.9805, "little_learned"), (1.9795, "learning"), (2.001, "not_learning"), (2.0, "not_learning")],
)
def test_a_hundredth_of_the_first_loss_is_learning(last: float, code: str):
    metrics = curve("loss", 2.0, last)
    for m in metrics:
        if m["kind"] == "eval":
            m["logps/chosen"] = -1000.0 + m["step"]
    assert by_check(metrics, told("sft"))["learning"].code == code


@pytest.mark.parametrize(("margin", "logp", "stuck"), [(0.019, 0.09, True), (0.021, 0.09, False), (0.019, 0.11, False)])
def test_what_counts_as_moved(margin: float, logp: float, stuck: bool):
    metrics = curve("loss", LN2, LN2 * 0.9905)
    for m in metrics:
        if m["kind"] == "eval":
            t = m["step"] / 6
            m |= {"rewards/margins": margin * t, "logps/chosen": -30 - logp * t, "rewards/accuracies": 0.9}
    assert ("nothing_moved" in [d.code for d in diagnose(metrics, told())]) is stuck


def fitted(train: float, held_out: float, accuracy: float = 0.9) -> Lines:
    """A run whose losses end at these values, from ln 2, with quiet batches."""
    metrics = rr.dpo_metrics(
        noise=0.0,
        loss=lambda t: LN2 + (train - LN2) * min(1.0, 2 * t),
        held_out_loss=lambda t: LN2 + (held_out - LN2) * t,
    )
    return [m | {"rewards/accuracies": accuracy} if m["kind"] == "train" else m for m in metrics]


def test_rows_that_are_fitted_far_better_than_held_out_rows_are_reported():
    overfitting = by_check(fitted(0.068, 0.292))["overfitting"]
    assert (overfitting.code, overfitting.severity) == ("rows_fitted", "watch")
    assert "0.068" in overfitting.title
    assert "0.292" in overfitting.title
    assert by_check(fitted(0.15, 0.292))["overfitting"].title == "no sign of memorised rows"


@pytest.mark.parametrize(
    ("train", "held_out", "code"),
    [(0.199, 0.4, "rows_fitted"), (0.201, 0.4, "fit"), (0.09, 0.19, "fit"), (0.09, 0.2, "rows_fitted")],
)
def test_half_the_held_out_loss_and_a_sixth_of_the_first_are_fitting_rows(train: float, held_out: float, code: str):
    """0.15 ln 2 = 0.104 nats."""
    assert by_check(fitted(train, held_out))["overfitting"].code == code


def test_gradients_that_were_all_clipped_are_not_called_even():
    metrics = rr.dpo_metrics(steps=56, grad=lambda t: 60.0)  # six times the limit of 10
    gradients = by_check(metrics)["gradients"]
    assert gradients.title == "no gradient spikes, and 100% of the steps were clipped"
    assert gradients.severity == "good"
    quiet = by_check(rr.dpo_metrics(steps=56, grad=lambda t: 2.0))["gradients"]
    assert quiet.title == "no gradient spikes"


def test_a_run_without_a_limit_clipped_nothing():
    """max_grad_norm=0 means no limit, and nothing is divided by it."""
    unlimited = rr.facts("dpo") | {"config": rr.config("dpo") | {"max_grad_norm": 0.0}}
    (gradients,) = [d for d in diagnose(rr.dpo_metrics(grad=lambda t: 400.0), unlimited) if d.check == "gradients"]
    assert gradients.title == "no gradient spikes"


@pytest.mark.parametrize(("size", "code"), [(19.0, "gradients"), (21.0, "always_clipped")])
def test_twenty_times_the_limit_is_a_limit_that_decides(size: float, code: str):
    metrics = rr.dpo_metrics(noise=0.0, grad=lambda t: size * 10)
    assert by_check(metrics)["gradients"].code == code


def kl(value: float, **more: float) -> Diagnosis:
    metrics = rr.dpo_metrics(noise=0.0, kl=lambda t: value * t)
    told_of = [
        m | ({"kl_tokens": 40.0, "samples/eos_rate": 1.0} | more if m["kind"] == "eval" else {}) for m in metrics
    ]
    return by_check([{k: v for k, v in m.items() if k != "kl_se"} for m in told_of])["distance to the start"]


def test_a_kl_below_zero_is_not_known():
    diagnosis = kl(-20.0)
    assert (diagnosis.code, diagnosis.severity) == ("kl_unknown", "open")
    assert "within bounds" not in diagnosis.title


def test_a_kl_of_cut_answers_is_a_lower_bound_and_never_within_bounds():
    diagnosis = kl(2.0, kl_cut=0.25)
    assert (diagnosis.code, diagnosis.severity) == ("kl_of_cut_answers", "open")
    assert diagnosis.title == "KL to the reference is 2.00 nats or more: 25% of the answers were cut"
    assert kl(2.0, kl_cut=0.0).title.endswith("within bounds")
    assert kl(30.0, kl_cut=0.25).code == "kl_large"


@pytest.mark.parametrize(
    ("value", "low", "code", "severity"),
    [
        (21.0, 19.9, "kl", "good"),  # 0.4975 a token
        (21.0, 20.1, "kl_large", "watch"),
        (49.0, 49.9, "kl_large", "watch"),
        (51.0, 50.1, "kl_large", "bad"),  # 1.25 a token
    ],
)
def test_the_lower_end_of_the_interval_decides(value: float, low: float, code: str, severity: str):
    diagnosis = kl(value, kl_low=low, kl_high=2 * value - low, kl_cut=0.0)
    assert (diagnosis.code, diagnosis.severity) == (code, severity)


def test_ten_nats_are_not_far_however_short_the_answers():
    assert kl(9.9, kl_tokens=2.0, kl_cut=0.0).code == "kl"
    assert kl(10.1, kl_tokens=2.0, kl_cut=0.0).code == "kl_large"


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({}, "KL to the reference"),
        ({"reference_is_start": True}, "KL to the start"),
        ({"reference_is_start": None}, "KL to the start"),
        ({"reference_is_start": False}, "KL to the start"),
        ({"reference_is_start": False, "method": "ppo"}, "KL to the reference"),
        ({"reference_is_start": True, "method": "ppo"}, "KL to the start"),
    ],
)
def test_the_reference_of_the_kl_is_named(facts: dict[str, Any], name: str):
    diagnoses = by_check(rr.dpo_metrics(noise=0.0), told(**facts))
    assert diagnoses["distance to the start"].title.startswith(name)


@pytest.mark.parametrize(
    "facts",
    [
        {"starts_at_reference": False},
        {"model": {"path": "m", "adapter": "prompt"}},  # from before that fact existed
        {"reference": "the model other/model"},
    ],
)
def test_a_policy_that_starts_elsewhere_has_no_known_first_loss(facts: dict[str, Any]):
    metrics = rr.dpo_metrics(loss=lambda t: 0.72 - 0.2 * t)
    assert "first loss" not in by_check(metrics, told(**facts))
    known = {"starts_at_reference": True, "reference": "the model that training starts from"}
    assert by_check(metrics, told(**known))["first loss"].code == "first_loss_off"


@pytest.mark.parametrize(
    ("first", "code"), [(LN2 + 4e-4, "first_loss"), (LN2 - 4e-4, "first_loss"), (LN2 + 6e-4, "first_loss_off")]
)
def test_how_far_the_first_loss_may_be_off(first: float, code: str):
    metrics = curve("loss", first, 0.5)
    assert by_check(metrics, told(starts_at_reference=True))["first loss"].code == code


def test_a_moving_reference_leaves_the_training_loss_unjudged():
    """It returns to ln 2 at every move of the reference, which is neither divergence nor a rising held-out loss."""
    metrics = rr.dpo_metrics(noise=0.0, loss=lambda t: 0.5 + 0.19 * (t > 0.6), held_out_loss=lambda t: LN2 - 0.2 * t)
    diagnoses = by_check(metrics, told(reference_moves=True))
    assert "overfitting" not in diagnoses
    assert diagnoses["finite numbers"].severity == "good"
    risen = rr.dpo_metrics(noise=0.0, loss=lambda t: LN2 + t, held_out_loss=lambda t: LN2 - 0.4 * t + 0.45 * t * t)
    assert by_check(risen, told(reference_moves=True))["held-out loss"].code == "held_out_loss_rises"


def rising(first: float, last: float, n: int = 30) -> Lines:
    """A training loss in two steps, without noise."""
    values = [first] * (n // 2) + [last] * (n - n // 2)
    return [{"kind": "train", "step": k + 1, "loss": v} for k, v in enumerate(values)]


@pytest.mark.parametrize(("last", "code"), [(1.19, "finite"), (1.21, "diverged"), (0.5, "finite")])
def test_a_fifth_above_the_start_is_divergence(last: float, code: str):
    assert by_check(rising(1.0, last), {"method": "sft"})["finite numbers"].code == code


def test_batches_that_differ_are_no_divergence():
    """One easy first batch once made healthy runs count as diverged."""
    metrics = rising(1.0, 1.0)
    metrics[0]["loss"] = 0.7
    assert by_check(metrics, {"method": "sft"})["finite numbers"].code == "finite"


def test_a_run_is_healthy_only_if_something_shows_that_it_learned():
    silent = [m | {k: None for k in m if "/" in k} for m in rr.dpo_metrics(noise=0.0)]
    held_out = [{"kind": "eval", "step": 0, "n": 9.0, "loss": LN2}, *(m for m in silent if m["kind"] == "train")]
    diagnoses = diagnose(held_out, told())
    assert alarms(diagnoses) == []
    assert verdict(diagnoses).word == "watch"
    assert verdict(diagnoses).sentence == "No measurement shows whether anything was learned."


def test_scores_that_ranked_pairs_before_training_prove_nothing():
    """Methods without a reference can start at any accuracy; unless the margin grows, nothing was learned."""
    metrics = rr.dpo_metrics(noise=0.0, margin=lambda t: 0.4 - 0.1 * t, accuracy=lambda t: 0.8)
    learning = by_check(metrics)["learning"]
    assert (learning.code, learning.severity) == ("not_learning", "bad")
    assert learning.title == "the margin did not grow: 0.4000 to 0.3000"


@pytest.mark.parametrize(
    ("before", "after", "shift", "code", "severity"),
    [
        (0.30, 0.36, 0.5, "little_learned", "watch"),  # rises, still below chance: nobody swapped labels
        (0.36, 0.30, -0.5, "backwards", "bad"),
        (0.45, 0.50, 0.5, "little_learned", "watch"),
        (0.50, 0.45, -0.5, "not_learning", "bad"),
        (0.50, 0.45, 0.5, "not_learning", "bad"),  # the margin alone grew
        (0.48, 0.48, -0.5, "not_learning", "bad"),
        (0.90, 0.75, 0.5, "not_learning", "bad"),  # above chance, but clearly worse than the start
        (0.78, 0.75, 0.5, "learning", "good"),  # worse than the start by less than chance explains
        (0.56, 0.75, -0.1, "learning", "good"),  # the head of a new reward model has any scale
        (0.56, 0.75, 0.5, "learning", "good"),
    ],
)
def test_scores_that_rank_before_training_are_compared_with_that(
    before: float, after: float, shift: float, code: str, severity: str
):
    """Reward models start with a random head, and methods without a reference with the order of log-probs."""
    metrics = rr.dpo_metrics(
        noise=0.0, margin=lambda t: 0.2 + shift * t, accuracy=lambda t: before + (after - before) * t
    )
    learning = by_check(metrics)["learning"]
    assert (learning.code, learning.severity) == (code, severity)
    assert f"accuracy {before:.3f} before training" in learning.title
    assert learning.evidence["before"] == before


@pytest.mark.parametrize(
    ("first_margin", "first_step", "compared"),
    [(0.2, 0, True), (-0.2, 0, True), (0.001, 0, True), (1e-6, 0, False), (-1e-6, 0, False), (0.2, 5, False)],
)
def test_only_an_evaluation_before_training_with_a_margin_is_the_start(
    first_margin: float, first_step: int, compared: bool
):
    metrics = rr.dpo_metrics(noise=0.0, margin=lambda t: first_margin + t, accuracy=lambda t: 0.55 + 0.3 * t)
    metrics = [m | {"step": max(m["step"], first_step)} for m in metrics]
    assert ("before" in by_check(metrics)["learning"].evidence) is compared


@pytest.mark.parametrize("method", ["prefer", "reward"])
def test_what_is_still_low_needs_more_training(method: str):
    """A reward model's scores are no log-probs, so no reference would order its start."""
    metrics = rr.dpo_metrics(noise=0.0, margin=lambda t: 0.2 + 0.5 * t, accuracy=lambda t: 0.3 + 0.06 * t)
    learning = by_check(metrics, told() | {"method": method, "reference": "none"})["learning"]
    assert learning.code == "little_learned"
    assert learning.change == {"lr": pytest.approx(3e-4)}
    assert ("log-prob" in learning.explanation) is (method == "prefer")
    assert ("with a reference" in learning.remedy) is (method == "prefer")


def test_a_reward_model_has_no_reference_even_if_its_run_does_not_say():
    assert not referenced({"method": "reward"})
    assert not referenced({"method": "prefer", "reference": "none"})
    assert referenced({"method": "dpo"})


def test_without_accuracies_of_training_rows_the_labels_are_suspected():
    metrics = rr.dpo_metrics(noise=0.0, margin=lambda t: -t, accuracy=lambda t: 0.5 - 0.2 * t)
    metrics = [{k: v for k, v in m.items() if m["kind"] == "eval" or k != "rewards/accuracies"} for m in metrics]
    learning = by_check(metrics)["learning"]
    assert learning.code == "backwards"
    assert "afzal check" in learning.remedy


@pytest.mark.parametrize(("on_training_rows", "named"), [(0.3, "the objective"), (0.8, "the labels")])
def test_training_rows_ranked_backwards_too_are_not_mislabelled(on_training_rows: float, named: str):
    """DiscoPOP lowers the margin near 0, and so does a loss of one's own with the wrong sign."""
    metrics = rr.dpo_metrics(
        noise=0.0,
        margin=lambda t: -t,
        accuracy=lambda t: 0.5 - 0.2 * t,
        train_accuracy=lambda t: 0.5 + (on_training_rows - 0.5) * min(1.0, 2 * t),
    )
    learning = by_check(metrics)["learning"]
    assert learning.code == "backwards"
    assert ("the objective itself lowers" in learning.explanation) is (named == "the objective")
    assert ("afzal check" in learning.remedy) is (named == "the labels")


@pytest.mark.parametrize(("rows", "severity"), [(19, "open"), (20, "bad")])
def test_a_loss_that_rises_on_a_few_held_out_rows_proves_nothing(rows: int, severity: str):
    """One held-out pair once made a run of three updates over-optimised."""
    metrics = rr.dpo_metrics(noise=0.0, n=rows, held_out_loss=lambda t: LN2 + 0.1 * t, loss=lambda t: LN2 - 0.2 * t)
    assert by_check(metrics)["held-out loss"].severity == severity


def test_a_margin_without_a_name_is_the_difference_of_both_sides():
    """KTO's labelled responses have rewards on both sides and no pairs."""
    held_out = [{"step": k, "rewards/chosen": c, "rewards/rejected": r} for k, c, r in ((0, 0.5, 0.25), (9, 2.0, -1.0))]
    assert Curves([], held_out, {}).margin() == (0.25, 3.0)


def test_a_margin_of_rounding_before_training_is_no_order_of_the_start():
    """An objective that reads logits computes the policy differently from the reference: margins of 1e-8."""
    metrics = rr.dpo_metrics(noise=0.0, margin=lambda t: 1e-8 + t, accuracy=lambda t: 0.55 + 0.3 * t)
    learning = by_check(metrics)["learning"]
    assert learning.title.startswith("held-out accuracy 0.85")
    assert "before" not in learning.evidence


def test_a_reward_models_page_speaks_of_no_policy_and_misses_no_samples(tmp_path):
    metrics = [
        {k: v for k, v in m.items() if not k.startswith(("logps", "kl", "samples", "lengths"))}
        for m in rr.dpo_metrics()
    ]
    facts = rr.facts("dpo") | {"method": "reward", "reference": "none", "starts_at_reference": False}
    facts["objective"] = {"name": "bradley_terry", "unit": "pair", "params": {}, "at_reference": None}
    run = rr.write_run(tmp_path / "run", metrics=metrics, facts=facts, config=rr.config("reward"), samples=None)
    page.build(run)
    text = (run / "report.html").read_text("utf-8")
    body = text.partition("<main>")[2]
    for word in ("policy", "policies", "samples before and after", "No samples"):
        assert word not in body, word
    assert "The reward model ranks" in body
    assert 'href="#samples"' not in text
    assert enriched_facts(load(run))["method"] == "reward"


@pytest.mark.parametrize(
    ("before", "after", "error", "code"),
    [
        (40.0, 49.0, 0.1, "length"),
        (40.0, 51.0, 0.1, "length_drift"),
        (40.0, 31.0, 0.1, "length_drift"),
        (40.0, 51.0, 3.0, "length"),  # within three standard errors
    ],
)
def test_how_much_longer_or_shorter_is_a_drift(before: float, after: float, error: float, code: str):
    values = {"length_se": error, "eos_rate": 1.0, "eos_rate_se": 0.01}
    samples = {"before": {"length": before} | values, "after": {"length": after} | values}
    lengths = by_check(rr.dpo_metrics(), told(samples=samples))["length of responses"]
    assert lengths.code == code


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [(0.9, 0.44, "eos_collapsed"), (0.9, 0.46, "endings"), (0.3, 0.12, "endings"), (0.4, 0.9, "endings")],
)
def test_how_many_fewer_endings_are_a_collapse(before: float, after: float, code: str):
    values = {"length": 40.0, "length_se": 0.1, "eos_rate_se": 0.01}
    samples = {"before": {"eos_rate": before} | values, "after": {"eos_rate": after} | values}
    assert by_check(rr.dpo_metrics(), told(samples=samples))["endings of responses"].code == code


@pytest.mark.parametrize(("size", "code"), [(29.0, "gradients"), (31.0, "gradient_spikes")])
def test_ten_times_its_neighbours_is_a_spike(size: float, code: str):
    metrics = rr.dpo_metrics(noise=0.0, grad=lambda t: size if abs(t - 0.5) < 0.001 else 3.0)
    assert by_check(metrics)["gradients"].code == code


@pytest.mark.parametrize(("last", "code"), [(0.513, "held_out_loss"), (0.53, "held_out_loss_rises")])
def test_how_far_above_its_minimum_the_held_out_loss_has_turned(last: float, code: str):
    """Minimum 0.5 from 0.6931: a tenth of the fall is 0.0193, 3% of the first 0.0208."""
    metrics = rr.dpo_metrics(
        noise=0.0, held_out_loss=lambda t: LN2 + (0.5 - LN2) * min(1.0, 2 * t) + (last - 0.5) * (t > 0.7)
    )
    assert by_check(metrics)["held-out loss"].code == code
