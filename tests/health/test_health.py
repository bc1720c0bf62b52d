"""The health checks: every planted disease fires its own alarm and no other, and healthy curves stay silent."""

import math
import re

import helpers_report as rr
import numpy as np
import pytest

from afzal.health import CHECKS, alarms, diagnose, not_checked, start, verdict
from afzal.health.curves import Curves, accuracy_interval, interval_of
from afzal.stats.intervals import wilson


def codes(metrics, facts=None):
    return [d.code for d in alarms(diagnose(metrics, facts or told()))]


def told(method="dpo", **changes):
    return rr.facts(method) | {"config": rr.config(method)} | changes


CONTROLS = {
    "dpo": lambda seed: (rr.dpo_metrics(seed), told()),
    "long dpo": lambda seed: (rr.dpo_metrics(seed, steps=1000, every=100, n=500), told()),
    "weak preference": lambda seed: (
        rr.dpo_metrics(
            seed,
            n=600,
            accuracy=lambda t: 0.5 + 0.08 * t,
            margin=lambda t: 0.15 * t,
            loss=lambda t: rr.LN2 - 0.03 * t,
            kl=lambda t: 1.5 * t,
        ),
        told(),
    ),
    "kto": lambda seed: (rr.kto_metrics(seed), told("kto")),
    "sft": lambda seed: (rr.sft_metrics(seed), told("sft")),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CONTROLS)
def test_healthy_curves_raise_no_alarm(name, seed):
    metrics, facts = CONTROLS[name](seed)
    assert codes(metrics, facts) == []
    assert verdict(diagnose(metrics, facts)).word == "healthy"


def early(t):
    return 1 - math.exp(-8 * t)


PLANTED = {
    "first_loss_off": lambda s: rr.dpo_metrics(s, loss=lambda t: 0.7188 - 0.25 * early(t)),
    "nothing_moved": lambda s: rr.dpo_metrics(
        s,
        noise=0.0,
        loss=lambda t: rr.LN2 - 1e-4 * t,
        margin=lambda t: 2e-3 * t,
        chosen_fall=lambda t: 0.0,
        gap=lambda t: 0.02 * t,
        kl=lambda t: 0.0,
        accuracy=lambda t: 0.5,
    ),
    "not_learning": lambda s: rr.dpo_metrics(s, n=800, accuracy=lambda t: 0.5 + 0.01 * t),
    "backwards": lambda s: rr.dpo_metrics(s, accuracy=lambda t: 0.5 - 0.3 * t),
    "few_rows": lambda s: rr.dpo_metrics(s, n=12),
    "held_out_loss_rises": lambda s: rr.dpo_metrics(s, held_out_loss=lambda t: rr.LN2 - 0.8 * t + 0.85 * t * t),
    "over_optimised": lambda s: rr.dpo_metrics(s, chosen_fall=lambda t: 158 * t, gap=lambda t: 91 * t),
    "displacement": lambda s: rr.dpo_metrics(s, chosen_fall=lambda t: 25 * t),
    "overfit": lambda s: rr.dpo_metrics(
        s,
        accuracy=lambda t: 0.5 + 0.2 * early(t),
        train_accuracy=lambda t: 0.5 + 0.5 * early(3 * t) if t < 0.5 else 1.0,
        loss=lambda t: rr.LN2 * math.exp(-8 * t),
        held_out_loss=lambda t: rr.LN2 - 0.08 * early(t),
    ),
    "kl_large": lambda s: rr.dpo_metrics(s, kl=lambda t: 60 * t),
    "length_drift": lambda s: rr.dpo_metrics(s, length=lambda t: 48 + 30 * t),
    "eos_collapsed": lambda s: rr.dpo_metrics(s, eos=lambda t: 0.9 - 0.7 * t),
    "gradient_spikes": lambda s: rr.dpo_metrics(s, grad=lambda t: 60.0 if abs(t - 0.5) < 0.001 else 3.0),
    "always_clipped": lambda s: rr.dpo_metrics(s, grad=lambda t: 400.0),
    "diverged": lambda s: rr.dpo_metrics(s, loss=lambda t: rr.LN2 + 2 * t, held_out_loss=lambda t: rr.LN2 - 0.1 * t),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("disease", PLANTED)
def test_a_planted_disease_fires_exactly_its_alarm(disease, seed):
    fired = alarms(diagnose(PLANTED[disease](seed), told()))
    assert [d.code for d in fired] == [disease]
    assert fired[0].remedy
    assert fired[0].explanation
    assert fired[0].rule
    assert verdict(fired).word == ("not healthy" if fired[0].severity == "bad" else "watch")


def test_the_alarm_names_the_step_of_the_best_held_out_loss():
    metrics = PLANTED["held_out_loss_rises"](0)
    best = min((m for m in metrics if m["kind"] == "eval"), key=lambda m: m["loss"])
    alarm = alarms(diagnose(metrics, told()))[0]
    assert alarm.step == best["step"] == 50
    assert "step 50" in alarm.title
    assert alarm.severity == "bad"  # it ended above its start


def test_sft_that_overfits_is_recognised_by_the_held_out_loss():
    metrics = rr.sft_metrics()
    for m in metrics:
        if m["kind"] == "eval" and m["step"] > 60:
            m["loss"] += 0.01 * (m["step"] - 60)
    assert codes(metrics, told("sft")) == ["held_out_loss_rises"]


def test_the_rise_does_not_count_when_the_earlier_weights_were_kept():
    metrics = PLANTED["held_out_loss_rises"](0)
    assert codes(metrics, told(kept_step=50)) == []


def test_a_gap_that_grows_at_the_cost_of_both_is_displacement_even_when_small_per_token():
    metrics = rr.dpo_metrics(chosen_fall=lambda t: 8 * t, gap=lambda t: 2 * t)
    assert codes(metrics) == ["displacement"]
    assert codes(rr.dpo_metrics(chosen_fall=lambda t: 8 * t, gap=lambda t: 12 * t)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "stopped", "stop_reason": "SIGINT", "step": 40}, ["unfinished"]),
        ({"status": "running", "stop_reason": ""}, ["unfinished"]),
        ({"status": "failed", "stop_reason": "OSError: disk"}, ["failed"]),
        ({"stop_reason": "held-out loss did not improve; kept the weights of step 40"}, []),
    ],
)
def test_how_the_run_ended(changes, expected):
    assert codes(rr.dpo_metrics(), told(**changes)) == expected


def test_a_run_that_finished_says_how():
    said = lambda **facts: start.run_ended(Curves([{"step": 1}], [], told(**facts))).explanation  # noqa: E731
    assert said(stop_reason="held-out loss did not improve").startswith("Ended")
    assert said(stop_reason="held-out loss did not improve").endswith("held-out loss did not improve.")
    assert re.fullmatch(r"All \d+ steps were taken.*", said(stop_reason=""))


def test_no_steps_and_no_evaluation_are_named():
    assert codes([], told()) == ["no_steps"]
    assert codes([m for m in rr.dpo_metrics() if m["kind"] == "train"]) == ["no_evaluation"]
    assert diagnose([], {})  # nothing known at all still gives a verdict
    assert verdict(diagnose([], {})).word == "watch"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "NaN"])
def test_a_number_that_is_not_finite_is_reported(value):
    metrics = rr.dpo_metrics()
    broken = next(m for m in metrics if m["kind"] == "train" and m["step"] == 30)
    broken["grad_norm"] = value
    fired = alarms(diagnose(metrics, told()))
    assert [(d.code, d.step) for d in fired] == [("diverged", 30)]


def test_another_model_as_reference_has_no_known_first_loss():
    metrics = rr.dpo_metrics(loss=lambda t: 0.72 - 0.2 * t)
    assert "first_loss_off" not in codes(metrics, told(reference="the model other/model"))
    assert "first_loss_off" in codes(metrics)


def test_few_samples_do_not_prove_a_drift():
    metrics = rr.dpo_metrics(length=lambda t: 48 + 30 * t)
    noisy = {
        "before": {"n": 8, "length": 48.0, "length_se": 12.0, "eos_rate": 0.5, "eos_rate_se": 0.17},
        "after": {"n": 8, "length": 70.0, "length_se": 14.0, "eos_rate": 0.2, "eos_rate_se": 0.14},
    }
    assert codes(metrics, told(samples=noisy)) == []
    sure = {stage: {**values, "length_se": 2.0} for stage, values in noisy.items()}
    assert codes(metrics, told(samples=sure)) == ["length_drift"]


def test_length_correlation_is_a_separate_alarm():
    metrics = rr.dpo_metrics()
    for m in metrics:
        if m["kind"] == "eval":
            m |= {f"rewards/length_correlation{end}": v for end, v in (("", 0.7), ("_low", 0.6), ("_high", 0.8))}
    assert codes(metrics) == ["length_drift"]
    turned = [m | {k: -v for k, v in m.items() if "correlation" in k} for m in metrics]
    assert codes(turned) == ["length_drift"]
    wide = [m | ({"rewards/length_correlation_low": 0.45} if "kl" in m else {}) for m in metrics]
    assert codes(wide) == []


def test_samples_that_all_ran_into_the_limit_say_nothing_about_length():
    diagnoses = diagnose(rr.dpo_metrics(length=lambda t: 64.0, eos=lambda t: 0.0), told())
    assert {"length of responses", "endings of responses"} <= set(not_checked(diagnoses))


def test_remedies_name_the_setting_and_its_value():
    alarm = alarms(diagnose(PLANTED["over_optimised"](0), told()))[0]
    assert "lower lr from 1e-4 to about 3e-5" in alarm.remedy
    assert "beta (now 0.1)" in alarm.remedy
    bare = alarms(diagnose(PLANTED["over_optimised"](0), {"method": "dpo", "status": "finished"}))[0]
    assert "lower lr," in bare.remedy


def test_not_checked_lists_what_lacked_numbers():
    missing = not_checked(diagnose(rr.sft_metrics(), told("sft")))
    assert missing == ["first loss", "likelihood of the chosen", "distance to the start"]
    assert not_checked([]) == list(CHECKS)
    of_scores = not_checked(diagnose(rr.dpo_metrics(), told()), {"method": "reward"})
    assert not {"distance to the start", "endings of responses", "first loss"} & set(of_scores)


def test_diagnose_changes_nothing_and_repeats_itself():
    metrics, facts = rr.dpo_metrics(), told()
    before = repr((metrics, facts))
    assert diagnose(metrics, facts) == diagnose(metrics, facts)
    assert repr((metrics, facts)) == before


def test_intervals_prefer_what_the_run_measured():
    assert accuracy_interval({"rewards/accuracies": 0.8, "n": 100}) == wilson(80, 100)
    stated = {"rewards/accuracies": 0.8, "rewards/accuracies_low": 0.7, "rewards/accuracies_high": 0.9, "n": 100}
    assert accuracy_interval(stated) == (0.7, 0.9)
    assert interval_of({"kl": 2.0, "kl_se": 0.5}, "kl") == pytest.approx((1.02, 2.98), abs=1e-4)
    assert interval_of({"loss": 2.0}, "loss") is None


def test_change_without_evaluations_comes_from_the_ends_of_the_training_curve():
    train = [{"kind": "train", "step": k, "loss": float(k)} for k in range(1, 101)]
    assert Curves(train, [], {}).change("loss") == (5.5, 95.5)


# ---------------------------------------------------------------- real dynamics, small enough to be exact


def train_dpo(features, pairs, seed, *, steps=50, lr=0.5, beta=0.1, lengths=None):
    """DPO by gradient descent on log-linear policies ``softmax(features @ theta)``, a theta per prompt; exact metrics.

    Args:
        features: ``[Y, D]``; pairs: ``[X, 2]`` indices (chosen, rejected), one pair per prompt.
    """
    theta = np.zeros((len(pairs), features.shape[1]))
    reference = None
    chosen, rejected = pairs[:, 0], pairs[:, 1]
    rows = np.arange(len(pairs))
    delta = features[chosen] - features[rejected]
    lines = []
    for step in range(steps + 1):
        logits = theta @ features.T
        logps = (
            logits
            - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
            - logits.max(1, keepdims=True)
        )
        reference = logps if reference is None else reference
        reward = beta * (logps - reference)
        margin = reward[rows, chosen] - reward[rows, rejected]
        record = {
            "loss": float(np.log1p(np.exp(-margin)).mean()),
            "rewards/margins": float(margin.mean()),
            "rewards/accuracies": float(((margin > 0) + 0.5 * (margin == 0)).mean()),
            "logps/chosen": float(logps[rows, chosen].mean()),
            "logps/rejected": float(logps[rows, rejected].mean()),
            "lengths/chosen": 1.0,
        }
        if lengths is not None:
            record["samples/length"] = float((np.exp(logps) * lengths).sum(1).mean())
        if step:
            lines.append({"kind": "train", "step": step, **record})
        if step % 10 == 0:
            lines.append({"kind": "eval", "step": step, "n": float(len(pairs)), **record})
        theta += lr * beta * (1 / (1 + np.exp(margin)))[:, None] * delta / 1.0
    return lines


def near_duplicates(seed):
    """Chosen and rejected have nearly the same features; their difference points towards a third response."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features *= 4
    pairs = []
    for k in range(0, 60, 3):
        features[k + 1] = features[k] - 0.8 * features[k + 2]
        pairs.append((k, k + 1))
    return train_dpo(features, np.array(pairs), seed, lr=8.0)


def distinct(seed):
    """Chosen and rejected are unrelated."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(60, 32))
    return train_dpo(features, np.array([(k, k + 1) for k in range(0, 60, 3)]), seed, lr=1.0)


@pytest.mark.parametrize("seed", range(5))
def test_displacement_fires_within_50_steps_of_training_on_near_duplicates(seed):
    facts = {"status": "finished", "step": 50, "steps": 50}
    assert {"displacement", "over_optimised"} & set(codes(near_duplicates(seed), facts))
    assert codes(distinct(seed), facts) == []


def length_world(seed, by_length):
    """Responses with a length and a quality; people prefer the longer (planted) or the better (control) one."""
    rng = np.random.default_rng(seed)
    lengths, quality = (a.ravel() for a in np.meshgrid(np.arange(1.0, 31.0), np.arange(6.0)))
    features = np.stack([lengths / 10, quality], axis=1)
    liked = lengths if by_length else quality
    first, second = rng.integers(len(lengths), size=(2, 400))
    keep = liked[first] != liked[second]
    first, second = first[keep], second[keep]
    better = liked[first] > liked[second]
    pairs = np.stack([np.where(better, first, second), np.where(better, second, first)], axis=1)
    return train_dpo(features, pairs, seed, lr=0.3, lengths=lengths)


@pytest.mark.parametrize("seed", range(5))
def test_length_alarm_fires_within_50_steps_of_training_on_a_length_biased_set(seed):
    facts = {"status": "finished", "step": 50, "steps": 50}
    assert "length_drift" in codes(length_world(seed, by_length=True), facts)
    assert codes(length_world(seed, by_length=False), facts) == []


# ---------------------------------------------------------------- the edges of the rules


def test_an_uncertain_kl_is_no_alarm():
    def with_error(error):
        metrics = rr.dpo_metrics(kl=lambda t: 30 * t)
        return [m | {"kl_se": error} if "kl" in m else m for m in metrics]

    assert codes(with_error(1.0)) == ["kl_large"]  # 28 nats at least, 0.58 per token
    assert codes(with_error(11.0)) == []  # 8 at least


def test_a_kl_that_is_large_only_because_responses_are_long_is_no_alarm():
    assert codes(rr.dpo_metrics(kl=lambda t: 30 * t, length=lambda t: 400.0)) == []


def test_a_held_out_loss_that_rises_with_the_training_loss_is_no_over_optimisation():
    metrics = rr.dpo_metrics(loss=lambda t: rr.LN2 - 0.4 * t + 0.45 * t * t, noise=0.0)
    assert "held_out_loss_rises" not in codes(metrics)


def test_late_bumps_of_a_converged_run_are_no_spikes():
    """Ten times their tiny neighbours, but no larger than the gradients at the start."""
    assert codes(rr.dpo_metrics(grad=lambda t: 3.0 if t < 0.6 else 3.5 if abs(t - 0.9) < 0.004 else 0.2)) == []


def test_over_optimisation_names_the_evaluation_that_passed_the_limit():
    metrics = rr.dpo_metrics(chosen_fall=lambda t: 158 * t, gap=lambda t: 91 * t)
    limit = 48 * math.log(3.0)  # nats that triple the perplexity of 48 tokens
    expected = next(m["step"] for m in metrics if m["kind"] == "eval" and 158 * m["step"] / 96 >= limit)
    assert alarms(diagnose(metrics, told()))[0].step == expected == 40
