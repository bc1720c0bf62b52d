"""Check whether the preference was learned, as far as held-out data can show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.health.curves import FEW_ROWS, Curves, Diagnosis, step_number, tail_mean
from afzal.health.pace import lr_factor, pace
from afzal.text import interval, is_number, number, plural, setting, signed

CHANCE = 0.5
WIDE_INTERVAL = 0.10  # half width of the accuracy's 95% interval
LEAST_STEPS = 6  # logged updates needed to distinguish start and end
MOVED_MARGIN = 0.02  # reward units (beta times nats)
MOVED_LOGP = 0.1  # nats per sequence
MOVED_LOSS = 0.01  # share of the first loss


def learning(c: Curves) -> Diagnosis | None:
    """Does the policy rank held-out pairs as people did (or, without pairs, did the held-out loss fall)?"""
    if not c.train or (c.rollouts and c.held_out):  # for methods with rewards, other checks use these
        return None
    stuck = None if c.rollouts else _unmoved(c) or _stuck(c)
    if stuck:
        return stuck
    if not c.held_out:
        return Diagnosis(
            "no_evaluation",
            "watch",
            "nothing was held out",
            "Every number is from rows the model was trained on, so nothing can be said about unseen data.",
            "at least one evaluation line",
            "give --eval-data, or set eval_fraction above 0",
        )
    last = c.last_accuracy()
    return _accuracy(c, *last) if last else _falling_loss(c)


def _unmoved(c: Curves) -> Diagnosis | None:
    """A diagnosis if every held-out number that depends only on the weights is unchanged to the last bit."""
    names = [name for name in ("loss", "logps/chosen", "rewards/margins") if len(c.points("eval", name)) > 1]
    if "loss" not in names or any(len({v for _, v in c.points("eval", name)}) > 1 for name in names):
        return None
    if any(v != 0 for _, v in c.points("eval", "kl")):
        return None
    lr = c.setting("lr")
    remedy = "set lr above 0" if lr == 0 else f"raise {c.named('lr')}, or find out what keeps the weights from training"
    return Diagnosis(
        "weights_unmoved",
        "bad",
        "nothing was learned: the weights did not move",
        f"Every held-out number equals its value before training to the last digit{' (lr is 0)' if lr == 0 else ''}.",
        "loss, log-probs and margins of all evaluations are equal, and the KL is 0",
        remedy,
        evidence={"loss": c.points("eval", "loss")[0][1]},
    )


def _stuck(c: Curves) -> Diagnosis | None:
    """A diagnosis if nothing moved noticeably: margin, log-prob and loss all stayed near their first values."""
    loss, margin, logp = c.change("loss"), c.margin(), c.change("logps/chosen")
    if loss is None or (len(c.points("eval", "loss")) < 2 and len(c.train) < LEAST_STEPS):
        return None
    limits = ((loss, MOVED_LOSS * abs(loss[0])), (margin, MOVED_MARGIN), (logp, MOVED_LOGP))
    if any(pair is not None and abs(pair[1] - pair[0]) >= limit for pair, limit in limits):
        return None
    margin_text = f", the margin from {number(margin[0])} to {number(margin[1])}" if margin else ""
    factor = lr_factor(_pace(c))
    change = c.times_lr(factor)
    target = f"to about {setting(change['lr'])}" if change and factor > 10 else "about tenfold"
    updates = c.facts.get("step")
    duration_text = f" in {plural(int(updates), 'update')} at {c.named('lr')}" if is_number(updates) else ""
    return Diagnosis(
        "nothing_moved",
        "bad",
        f"nothing was learned: the {c.subject} has hardly changed",
        f"The loss went from {number(loss[0])} to {number(loss[1])}{margin_text}{duration_text}. "
        "The steps were too few or too small.",
        f"loss changed by less than {MOVED_LOSS:.0%} of its first value, margin by less than {MOVED_MARGIN}, chosen "
        f"log-prob by less than {MOVED_LOGP} nats",
        f"raise {c.named('lr')} {target}, or make more updates (a smaller batch_size, more epochs)",
        evidence={"first": loss[0], "last": loss[1]},
        change=change,
    )


def _pace(c: Curves) -> float:
    """The pace of a run (:mod:`afzal.health.pace`) from its logged learning rates; 0 if unknown."""
    rates, steps, model = [v for _, v in c.points("train", "lr")], c.facts.get("step"), c.facts.get("model")
    weights = model.get("trainable") if isinstance(model, Mapping) else None
    if not (rates and is_number(steps) and is_number(weights)):
        return 0.0
    mean = sum(rates) / len(rates)
    return pace(int(steps), lambda _: mean, int(weights))


def _accuracy(c: Curves, last: Mapping[str, Any], bounds: tuple[float, float]) -> Diagnosis:
    share, n, (low, high) = float(last["rewards/accuracies"]), last.get("n"), bounds
    rows = f" of {plural(int(n), 'held-out pair')}" if is_number(n) else " of held-out pairs"
    before, margin = c.accuracy_before(), c.margin()
    value = f"{number(share, 3)} {interval(low, high)}"
    if before is not None:
        value = f"{number(before, 3)} before training, {value} after"
    evidence = {"accuracy": share, "low": low, "high": high} | ({} if before is None else {"before": before})
    fields = {"step": step_number(last.get("step")), "evidence": evidence}
    rule = f"the 95% interval of the last held-out reward accuracy lies above {CHANCE}"
    if (low <= CHANCE <= high and (high - low) / 2 > WIDE_INTERVAL) or (is_number(n) and n < FEW_ROWS):
        return Diagnosis(
            "few_rows",
            "watch",
            f"too few held-out rows for a conclusion: accuracy {value}",
            f"The {c.subject} ranks {share:.1%}{rows} as people did, but the 95% interval {interval(low, high)} is too "
            "wide to say more.",
            f"the interval includes {CHANCE} and its half width exceeds {WIDE_INTERVAL}, or fewer than {FEW_ROWS} rows",
            "hold out more rows (about 400 give ±0.05): raise eval_fraction or give --eval-data",
            **fields,
        )
    rise = f"; the margin went from {number(margin[0])} to {number(margin[1])}" if margin else ""
    explanation = f"The {c.subject} ranks {share:.1%}{rows} as people did, 95% interval {interval(low, high)}{rise}."
    has_grown = margin is None or margin[1] > margin[0] or (before is not None and share > before)
    if low <= CHANCE and before is not None and share >= before and has_grown:
        return _still_low(c, f"accuracy {value}", f"{explanation} Before training it ranked {before:.1%} so.", fields)
    if high < CHANCE:
        title = f"the {c.subject} ranks held-out pairs backwards: accuracy {value}"
        return Diagnosis("backwards", "bad", title, *_why_backwards(c, rule), **fields)
    if low <= CHANCE:
        return Diagnosis(
            "not_learning",
            "bad",
            f"no learning is visible on held-out data: accuracy {value}",
            f"The {c.subject} ranks {share:.1%}{rows} as people did, which chance explains. The weights did move, so "
            "what they learned does not carry over.",
            rule,
            f"check that the labels mean something (`afzal check`), train longer, or change {c.named('beta')}",
            **fields,
        )
    remedy = f"check that the labels mean something (`afzal check`), or change {c.named('lr')}"
    rule = f"{rule}, does not lie below the accuracy before training, and accuracy or margin grew"
    if before is not None and high < before:
        title = f"fewer held-out pairs are ranked as people did than before training: accuracy {value}"
        return Diagnosis("not_learning", "bad", title, explanation, rule, remedy, **fields)
    if not has_grown and margin:
        title = f"the margin did not grow: {number(margin[0])} to {number(margin[1])}"
        details = f"{explanation} Pairs were already ranked this way before training."
        return Diagnosis("not_learning", "bad", title, details, rule, remedy, **fields)
    return Diagnosis("learning", "good", f"held-out accuracy {value}, above chance", explanation, rule, **fields)


def _why_backwards(c: Curves, rule: str) -> tuple[str, str, str]:
    """Explanation, rule and remedy: swapped labels would leave one of the two parts ranked right."""
    trained = [v for _, v in c.points("train", "rewards/accuracies")]
    training_accuracy = tail_mean(trained) if trained else CHANCE
    if training_accuracy < CHANCE:
        value = number(training_accuracy, 3)
        why = f"It ranks the training rows so too (accuracy {value}): the objective itself lowers the margin."
        return why, rule, "check the sign of the objective, or use another (discopop does so near a margin of 0)"
    why = "Reward accuracy is below chance: the labels of the training or the evaluation rows are probably swapped."
    return why, rule, "look at a few rows with `afzal check`, and set the fields with --columns chosen=…,rejected=…"


def _still_low(c: Curves, accuracy: str, explanation: str, fields: Mapping[str, Any]) -> Diagnosis:
    """More pairs are ranked as people did than before training, but not more than by chance: without a reference, the
    start has an order of its own, such as short answers first."""
    title = f"held-out pairs are not yet ranked above chance: {accuracy}"
    remedy = f"train longer or raise {c.named('lr')}"
    if not c.is_reward_model:
        explanation += (
            " Without a reference, an answer's own log-prob is its reward, so the start has an order of its own."
        )
        remedy += ", or use an objective with a reference, such as dpo"
    rule = f"the 95% interval of the last held-out reward accuracy includes {CHANCE} or lies below it, but rose"
    return Diagnosis("little_learned", "watch", title, explanation, rule, remedy, change=c.times_lr(3), **fields)


def _falling_loss(c: Curves) -> Diagnosis | None:
    """For methods without pairs: did the held-out loss fall (and, for KTO, did desirable rise above undesirable)?"""
    losses, margin = [v for _, v in c.points("eval", "loss")], c.margin()
    if len(losses) < 2:
        return None
    first, last, best = losses[0], losses[-1], min(losses)
    rule = f"the held-out loss fell by at least {MOVED_LOSS:.0%} of its first value, and the margin did not shrink"
    explanation = f"Held-out loss went from {number(first)} to {number(last)}, at its best {number(best)}"
    explanation += f"; desirable over undesirable by {signed(margin[1])} in reward." if margin else "."
    evidence = {"first": first, "best": best}
    margin_grew = margin is None or margin[1] > margin[0]
    if first - best >= MOVED_LOSS * abs(first) and margin_grew:
        title = f"held-out loss fell from {number(first)} to {number(best)}"
        return Diagnosis("learning", "good", title, explanation, rule, evidence=evidence)
    if last < first and margin_grew:
        return Diagnosis(
            "little_learned",
            "watch",
            f"little was learned: the held-out loss fell only from {number(first)} to {number(last)}",
            f"{explanation} That is less than {MOVED_LOSS:.0%}.",
            rule,
            f"raise {c.named('lr')}, or make more updates (a smaller batch_size, more epochs)",
            evidence=evidence,
            change=c.times_lr(3),
        )
    title = f"the held-out loss did not fall: {number(first)} to {number(last)}"
    if last < first and margin is not None:
        title = f"the margin did not grow: {number(margin[0])} to {number(margin[1])}"
    return Diagnosis(
        "not_learning",
        "bad",
        title,
        f"{explanation} The weights did move, so what they learned does not carry over.",
        rule,
        f"check the data (`afzal check`), train longer, or change {c.named('lr')}",
        evidence=evidence,
    )
