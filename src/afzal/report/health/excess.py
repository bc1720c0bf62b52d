"""Was too much learned: past the best held-out loss, at the cost of the chosen texts, or by heart?"""

from __future__ import annotations

import math

from afzal.report.health.curves import Curves, Diagnosis, tail_mean
from afzal.report.text import is_number, number, signed
from afzal.stats.intervals import half_width

RISE_OF_FIRST = 0.03  # share of the first held-out loss
RISE_OF_DROP = 0.10  # share of what the held-out loss had fallen by
CHOSEN_WATCH = 1.5  # perplexity of the chosen responses over its first value
CHOSEN_BAD = 3.0
COMMON_FALL = 3.0  # nats the chosen fell per nat that the gap to the rejected gained
COMMON_FALL_NATS = 2.0
COLLAPSED_LOSS = 0.05  # share of the first training loss
COLLAPSED_ACCURACY = 0.98
OVERFIT_GAP = 0.10
KL_WATCH, KL_WATCH_TOKEN = 10.0, 0.5  # nats per sequence and per sampled token, both exceeded
KL_BAD, KL_BAD_TOKEN = 50.0, 1.0


def held_out_loss(c: Curves) -> Diagnosis | None:
    """Did the held-out loss turn upwards while the training loss went on falling?"""
    points, train = c.points("eval", "loss"), c.points("train", "loss")
    if len(points) < 3 or len(train) < 2:
        return None
    at, best = min(points, key=lambda p: (p[1], p[0]))
    first, (end, last) = points[0][1], points[-1]
    before = [v for s, v in train if s <= at] or [train[0][1]]
    falling = tail_mean([v for _, v in train]) < tail_mean(before)
    evidence = {"minimum": best, "last": last}
    rule = (
        f"the last held-out loss is above its minimum by more than {RISE_OF_FIRST:.0%} of the first and "
        f"{RISE_OF_DROP:.0%} of the fall, while the training loss went on falling (bad: above the first)"
    )
    if not falling or last - best <= max(RISE_OF_FIRST * abs(first), RISE_OF_DROP * (first - best)):
        words = f"Its minimum, {number(best)}, is at step {at}; the last value is {number(last)}."
        return Diagnosis("held_out_loss", "good", "held-out loss did not turn upwards", words, rule, "", at, evidence)
    return Diagnosis(
        "held_out_loss_rises",
        "bad" if last > first else "watch",
        f"over-optimised after step {at}: held-out loss {number(best)} there, {number(last)} at the end",
        f"From step {at} to step {end} the held-out loss rose while the training loss kept falling: the model went on "
        "learning its rows and stopped learning the preference.",
        rule,
        f"stop near step {at} (early_stop_patience), {c.lower_lr()}, or gather more data",
        at,
        evidence,
    )


def log_probs(c: Curves) -> Diagnosis | None:
    """Over-optimisation and likelihood displacement: both show in the log-prob of the chosen responses."""
    chosen, rejected, length = c.change("logps/chosen"), c.change("logps/rejected"), c.change("lengths/chosen")
    margin = c.margin()
    if chosen is None or rejected is None or margin is None:
        return None
    fall, other = chosen[0] - chosen[1], rejected[0] - rejected[1]
    tokens = length[0] if length and length[0] > 0 else math.inf
    ratio = math.exp(min(fall / tokens, 50.0))
    evidence = {"chosen_fall": fall, "rejected_fall": other, "perplexity_ratio": ratio}
    said = f"Chosen responses changed by {signed(-fall)} nats"
    said += f" ({signed(-fall / tokens, 2)} per token)" if tokens < math.inf else ""
    said += f", rejected ones by {signed(-other)}"
    if ratio >= CHOSEN_BAD and margin[1] > margin[0]:
        return Diagnosis(
            "over_optimised",
            "bad",
            f"over-optimised: the margin grew, but chosen responses became {number(ratio, 2)} times as perplexing",
            f"{said}. The margin grows only because the rejected fall faster; probability is leaving both for texts "
            "that nobody compared.",
            f"perplexity of chosen responses at least {CHOSEN_BAD} times its first value, with the margin rising",
            f"{c.lower_lr()}, raise {c.named('beta')}, or stop earlier (early_stop_patience)",
            _step_of_ratio(c, tokens),
            evidence,
        )
    common = fall >= COMMON_FALL_NATS and fall >= COMMON_FALL * abs(other - fall)
    rule = (
        f"both log-probs fell, and the perplexity of chosen responses is at least {CHOSEN_WATCH} times its first "
        f"value, or the chosen fell by {COMMON_FALL_NATS:.0f} nats and {COMMON_FALL:.0f} times what the gap gained"
    )
    if min(fall, other) > 0 and (ratio >= CHOSEN_WATCH or common):
        return Diagnosis(
            "displacement",
            "watch",
            f"likelihood displacement: chosen responses lost {number(fall, 3)} nats, rejected ones {number(other, 3)}",
            f"{said}. Some of this is usual with DPO, since only the difference counts; it matters when the chosen "
            "texts themselves are wanted, and when chosen and rejected are nearly alike.",
            rule,
            f"raise {c.named('beta')}, {c.lower_lr()}, or drop near-identical pairs",
            evidence=evidence,
        )
    title = "chosen responses kept their likelihood" if fall <= 0 else "chosen responses kept most of their likelihood"
    return Diagnosis("log_probs", "good", title, f"{said}.", rule, evidence=evidence)


def overfit(c: Curves) -> Diagnosis | None:
    """Were the training pairs learned by heart while held-out pairs do not follow?"""
    losses, shares = ([v for _, v in c.points("train", n)] for n in ("loss", "rewards/accuracies"))
    last = c.last_accuracy()
    if len(losses) < 10 or not shares or not last:
        return None
    loss, share, high = tail_mean(losses), tail_mean(shares), last[1][1]
    evidence = {"train_loss": loss, "train_accuracy": share, "held_out_high": high}
    rule = (
        f"training loss at most {COLLAPSED_LOSS:.0%} of the first and accuracy at least {COLLAPSED_ACCURACY}, while "
        f"the whole held-out interval is more than {OVERFIT_GAP} below it"
    )
    by_heart = loss <= COLLAPSED_LOSS * losses[0] and share >= COLLAPSED_ACCURACY
    if not by_heart or high >= share - OVERFIT_GAP:
        words = f"Training accuracy ends at {number(share, 3)}; the held-out interval reaches {number(high, 3)}."
        return Diagnosis("fit", "good", "the training rows were not learned by heart", words, rule, evidence=evidence)
    return Diagnosis(
        "overfit",
        "bad",
        f"overfitted: training accuracy {number(share, 3)}, held out at most {number(high, 3)}",
        f"The training loss collapsed to {number(loss)} with every pair ranked right; held-out pairs do not follow: "
        "the rows were learned by heart. More epochs only make the log-ratios grow.",
        rule,
        f"fewer epochs, {c.lower_lr()}, raise {c.named('beta')}, or use IPO, whose loss is bounded",
        evidence=evidence,
    )


def distance(c: Curves) -> Diagnosis | None:
    """How far did the policy go from its reference (sampled KL, nats per sequence)?"""
    records = [r for r in c.held_out if is_number(r.get("kl"))]
    if not records:
        return None
    step, kl = c.points("eval", "kl")[-1]
    error, length = (records[-1].get(k) for k in ("kl_se", "samples/length"))
    low = kl - 2 * error if is_number(error) else kl
    per_token = low / length if is_number(length) and length > 0 else math.inf
    said = number(kl, 3) + (f" ± {number(half_width(error), 2)}" if is_number(error) else "")
    evidence = {"kl": kl, "kl_low": low}
    rule = (
        f"KL less two standard errors above {KL_WATCH:.0f} nats per sequence and {KL_WATCH_TOKEN} per sampled token "
        f"(bad: {KL_BAD:.0f} and {KL_BAD_TOKEN:.0f})"
    )
    if low <= KL_WATCH or per_token <= KL_WATCH_TOKEN:
        per = f", {number(kl / length, 2)} per token" if is_number(length) and length > 0 else ""
        title = f"KL to the reference is {said} nats, within bounds"
        return Diagnosis("kl", "good", title, f"Per sampled response{per}.", rule, "", step, evidence)
    return Diagnosis(
        "kl_large",
        "bad" if low > KL_BAD and per_token > KL_BAD_TOKEN else "watch",
        f"the policy went far from its reference: KL {said} nats",
        f"Best-of-n sampling from the reference would need n of about {_best_of(low)} to go as far. What the reference "
        "knew is being given up for the preference.",
        rule,
        f"raise {c.named('beta')}, {c.lower_lr()}, or stop earlier (early_stop_patience)",
        step,
        evidence,
    )


def _step_of_ratio(c: Curves, tokens: float) -> int | None:
    """The first evaluation at which the chosen responses' perplexity had passed the limit."""
    points = c.points("eval", "logps/chosen")
    passed = [s for s, v in points if (points[0][1] - v) / tokens >= math.log(CHOSEN_BAD)]
    return passed[0] if passed else None


def _best_of(kl: float) -> str:
    """n of best-of-n sampling with this KL, ln n − (n − 1)/n: for large n about e^(KL + 1)."""
    return "10" + f"{(kl + 1) / math.log(10):.0f}".translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
