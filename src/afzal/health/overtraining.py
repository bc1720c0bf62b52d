"""Checks for over-training: past the best held-out loss, at the cost of the chosen texts, or by memorising rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from afzal.health.curves import FEW_ROWS, Curves, Diagnosis, interval_of, noise, tail_mean
from afzal.health.facts import kl_of
from afzal.text import interval, is_number, number, plural, signed

RISE_OF_FIRST = 0.03  # share of the first held-out loss
RISE_OF_DROP = 0.10  # share of the fall of the held-out loss
CHOSEN_WATCH = 1.5  # perplexity of the chosen responses over its first value
CHOSEN_BAD = 3.0
COMMON_FALL = 3.0  # nats the chosen fell per nat that the gap to the rejected gained
COMMON_FALL_NATS = 2.0
COLLAPSED_LOSS = 0.05  # share of the first training loss
COLLAPSED_ACCURACY = 0.98
OVERFIT_GAP = 0.10
FITTED, FITTED_OF_FIRST = 0.5, 0.15  # of the held-out loss, and of the first held-out loss: both
SURE = 4.0  # standard errors of the training loss
KL_WATCH, KL_WATCH_TOKEN = 10.0, 0.5  # nats per sequence and per sampled token, both exceeded
KL_BAD, KL_BAD_TOKEN = 50.0, 1.0


def held_out_loss(c: Curves) -> Diagnosis | None:
    """Did the held-out loss turn upwards while the training loss did not?"""
    points = c.points("eval", "loss")
    train = c.points("train", "loss") if c.training_loss_is_one_curve else []
    if len(points) < 3:
        return None
    best_step, best = min(points, key=lambda p: (p[1], p[0]))
    first, (end, last) = points[0][1], points[-1]
    limit = max(RISE_OF_FIRST * abs(first), RISE_OF_DROP * (first - best))
    # a single evaluation may be above by chance, so the one before it must be too, if it comes after the minimum
    after_minimum = [v for s, v in points[-2:] if s > best_step]
    evidence = {"minimum": best, "last": last}
    rule = (
        f"the last two held-out losses after the minimum are above it by more than {RISE_OF_FIRST:.0%} of the first "
        f"and {RISE_OF_DROP:.0%} of the fall, while the training loss did not rise (bad: above the first)"
    )
    if not after_minimum or min(after_minimum) - best <= limit or _training_rose(train, best_step):
        text = f"Its minimum, {number(best)}, is at step {best_step}; the last value is {number(last)}."
        return Diagnosis(
            "held_out_loss", "good", "held-out loss did not turn upwards", text, rule, "", best_step, evidence
        )
    rows = c.held_out[-1].get("n")
    if is_number(rows) and rows < FEW_ROWS:
        few = plural(int(rows), "held-out row")
        return Diagnosis(
            "held_out_loss_few_rows",
            "open",
            f"the held-out loss rose on {few}, too few for a conclusion",
            f"It was {number(best)} at step {best_step} and is {number(last)} at the end.",
            f"{rule}; at least {FEW_ROWS} held-out rows",
            "hold out more rows: raise eval_fraction or give --eval-data",
            best_step,
            evidence,
        )
    return Diagnosis(
        "held_out_loss_rises",
        "bad" if last > first else "watch",
        f"over-optimised after step {best_step}: held-out loss {number(best)} there, {number(last)} at the end",
        f"From step {best_step} to step {end} the held-out loss rose while the training loss did not: the model kept "
        "learning its rows but no longer the preference.",
        rule,
        f"stop near step {best_step} (early_stop_patience), {c.lower_lr()}, or gather more data",
        best_step,
        evidence,
        change={"early_stop_patience": 2},
    )


def _training_rose(train: Sequence[tuple[int, float]], step: int) -> bool:
    """Whether the training loss ended above its level around step ``step`` by more than chance."""
    values = [v for _, v in train]
    if len(values) < 2:
        return False
    earlier = [v for s, v in train if s <= step] or values[:1]
    size = max(3, len(values) // 10)
    noise_limit = 2 * noise(values) / min(size, len(earlier)) ** 0.5
    return tail_mean(values) > sum(earlier[-size:]) / len(earlier[-size:]) + noise_limit


def log_probs(c: Curves) -> Diagnosis | None:
    """Is there over-optimisation or likelihood displacement? Both show in the log-prob of the chosen responses."""
    chosen, rejected, length = c.change("logps/chosen"), c.change("logps/rejected"), c.change("lengths/chosen")
    margin = c.margin()
    if chosen is None or rejected is None or margin is None:
        return None
    fall, rejected_fall = chosen[0] - chosen[1], rejected[0] - rejected[1]
    tokens = length[0] if length and length[0] > 0 else math.inf
    ratio = math.exp(min(fall / tokens, 50.0))
    evidence = {"chosen_fall": fall, "rejected_fall": rejected_fall, "perplexity_ratio": ratio}
    text = f"Chosen responses changed by {signed(-fall)} nats"
    text += f" ({signed(-fall / tokens, 2)} per token)" if tokens < math.inf else ""
    text += f", rejected ones by {signed(-rejected_fall)}"
    if ratio >= CHOSEN_BAD and margin[1] > margin[0]:
        return Diagnosis(
            "over_optimised",
            "bad",
            f"over-optimised: the margin grew, but chosen responses became {number(ratio, 2)} times as perplexing",
            f"{text}. The margin grows only because the rejected ones fall faster; probability is moving from both "
            "to texts that nobody compared.",
            f"perplexity of chosen responses at least {CHOSEN_BAD} times its first value, with the margin rising",
            f"{c.lower_lr()}, raise {c.named('beta')}, or stop earlier (early_stop_patience)",
            _step_of_ratio(c, tokens),
            evidence,
            change=c.times_lr(1 / 3),
        )
    common = fall >= COMMON_FALL_NATS and fall >= COMMON_FALL * abs(rejected_fall - fall)
    rule = (
        f"both log-probs fell, and the perplexity of chosen responses is at least {CHOSEN_WATCH} times its first "
        f"value, or the chosen fell by {COMMON_FALL_NATS:.0f} nats and {COMMON_FALL:.0f} times the gain of the gap"
    )
    if min(fall, rejected_fall) > 0 and (ratio >= CHOSEN_WATCH or common):
        return Diagnosis(
            "displacement",
            "watch",
            f"likelihood displacement: chosen responses lost {number(fall, 3)} nats, "
            f"rejected ones {number(rejected_fall, 3)}",
            f"{text}. Some of this is usual with DPO, since only the difference counts; it matters if the chosen "
            "texts themselves are wanted, or if chosen and rejected are nearly alike.",
            rule,
            f"raise {c.named('beta')}, {c.lower_lr()}, or drop near-identical pairs",
            evidence=evidence,
        )
    title = "chosen responses kept their likelihood" if fall <= 0 else "chosen responses kept most of their likelihood"
    return Diagnosis("log_probs", "good", title, f"{text}.", rule, evidence=evidence)


def overfit(c: Curves) -> Diagnosis | None:
    """Were the training rows memorised, or fitted much better than held-out rows?"""
    points, shares = c.points("train", "loss"), [v for _, v in c.points("train", "rewards/accuracies")]
    held_out, last = c.points("eval", "loss"), c.last_accuracy()
    if len(points) < 10 or not held_out or not c.training_loss_is_one_curve:
        return None
    losses = [v for _, v in points]
    loss, first, held_out_loss = tail_mean(losses), held_out[0][1], held_out[-1][1]
    share, high = (tail_mean(shares), last[1][1]) if shares and last else (0.0, 1.0)
    noise_limit = SURE * noise(losses) / max(3, len(losses) // 10) ** 0.5
    evidence = {"train_loss": loss, "held_out_loss": held_out_loss, "train_accuracy": share, "held_out_high": high}
    rule = (
        f"training loss at most {FITTED:.0%} of the held-out loss and below it by {FITTED_OF_FIRST:.0%} of the first "
        f"held-out loss and {SURE:.0f} standard errors (bad: at most {COLLAPSED_LOSS:.0%} of the first, with accuracy "
        f"at least {COLLAPSED_ACCURACY} and the entire held-out interval more than {OVERFIT_GAP} below it)"
    )
    text = f"Training loss ends at {number(loss)}, held-out loss at {number(held_out_loss)}"
    text += (
        f"; training accuracy at {number(share, 3)}, held out at most {number(high, 3)}." if shares and last else "."
    )
    if loss <= COLLAPSED_LOSS * losses[0] and share >= COLLAPSED_ACCURACY and high < share - OVERFIT_GAP:
        return Diagnosis(
            "overfit",
            "bad",
            f"overfitted: training accuracy {number(share, 3)}, held out at most {number(high, 3)}",
            f"The training loss collapsed to {number(loss)} with every pair ranked right; held-out pairs do not "
            "follow: the rows were memorised. More epochs only make the log-ratios grow.",
            rule,
            f"fewer epochs, {c.lower_lr()}, raise {c.named('beta')}, or use IPO, whose target margin is finite",
            evidence=evidence,
            change=c.times_lr(1 / 3),
        )
    if loss <= FITTED * held_out_loss and held_out_loss - loss > max(FITTED_OF_FIRST * abs(first), noise_limit):
        return Diagnosis(
            "rows_fitted",
            "watch",
            f"training rows are fitted better than held-out rows: loss {number(loss, 3)} "
            f"against {number(held_out_loss, 3)}",
            f"{text} Part of what was learned applies only to the training rows, and further epochs add to that part.",
            rule,
            f"fewer epochs, {c.lower_lr()}, or more data",
            evidence=evidence,
        )
    return Diagnosis("fit", "good", "no sign of memorised rows", text, rule, evidence=evidence)


def distance(c: Curves) -> Diagnosis | None:
    """How far did the policy move from its start (KL of its own answers, nats)?"""
    records = [r for r in c.held_out if is_number(r.get("kl"))]
    if not records:
        return None
    last, (step, kl) = records[-1], c.points("eval", "kl")[-1]
    bounds = interval_of(last, "kl")
    low = bounds[0] if bounds else kl
    tokens = last.get("kl_tokens", last.get("samples/length"))
    per_token = low / tokens if is_number(tokens) and tokens > 0 else math.inf
    estimate = number(kl, 3) + (f" {interval(*bounds)}" if bounds else "")
    evidence = {"kl": kl, "kl_low": low}
    rule = (
        f"the lower end of the KL's 95% interval is above {KL_WATCH:.0f} nats per answer and {KL_WATCH_TOKEN} a token "
        f"(bad: {KL_BAD:.0f} and {KL_BAD_TOKEN:.0f}); within bounds if no answer was cut and the estimate is not "
        f"negative"
    )
    kl_name = kl_of(c.facts)
    if low > KL_WATCH and per_token > KL_WATCH_TOKEN:
        return Diagnosis(
            "kl_large",
            "bad" if low > KL_BAD and per_token > KL_BAD_TOKEN else "watch",
            f"the policy moved far: {kl_name} is {estimate} nats",
            f"Best-of-n sampling would need n of about {_best_of_n(low)} to move as far. The model is losing what it "
            "knew before in exchange for the preference.",
            rule,
            f"raise {c.named('beta')}, {c.lower_lr()}, or stop earlier "
            + ("(kl_budget)" if c.in_rounds else "(early_stop_patience)"),
            step,
            evidence,
            change=c.times_lr(1 / 3),
        )
    if kl < 0:
        text = "A KL is never negative: the mean log-ratio of so few samples says nothing about it."
        return Diagnosis("kl_unknown", "open", f"{kl_name} is unknown", text, rule, "", step, evidence)
    cut_share = _cut_share(last)
    if cut_share:
        return Diagnosis(
            "kl_of_cut_answers",
            "open",
            f"{kl_name} is {estimate} nats or more: {cut_share:.0%} of the answers were cut",
            f"This is the KL of the first {number(tokens, 3)} tokens, on average. The KL of complete answers is "
            "larger, and unknown.",
            rule,
            "raise max_new_tokens" if c.in_rounds else "raise sample_tokens",
            step,
            evidence,
        )
    per_token_text = f", {number(kl / tokens, 2)} per token" if is_number(tokens) and tokens > 0 else ""
    title = f"{kl_name} is {estimate} nats, within bounds"
    return Diagnosis("kl", "good", title, f"Per answer{per_token_text}.", rule, "", step, evidence)


def _cut_share(record: Mapping[str, Any]) -> float:
    """Share of answers cut by the token limit."""
    share, ended = record.get("kl_cut"), record.get("samples/eos_rate")
    return share if is_number(share) else 1 - ended if is_number(ended) else 0.0


def _step_of_ratio(c: Curves, tokens: float) -> int | None:
    """The first evaluation at which the chosen responses' perplexity had passed the limit."""
    points = c.points("eval", "logps/chosen")
    steps = [s for s, v in points if (points[0][1] - v) / tokens >= math.log(CHOSEN_BAD)]
    return steps[0] if steps else None


def _best_of_n(kl: float) -> str:
    """n of best-of-n sampling with this KL, ln n − (n − 1)/n: for large n about e^(KL + 1)."""
    return "10" + f"{(kl + 1) / math.log(10):.0f}".translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
