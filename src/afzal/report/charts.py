"""The training curves of a run, one small figure per question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afzal.health import interval_of
from afzal.health.facts import kl_of, referenced, unit_of, writes
from afzal.report import svg
from afzal.report.svg import CHOSEN, HELD_OUT, OTHER, REJECTED, TRAIN, Rule, Series
from afzal.report.value_range import robust_range
from afzal.text import is_number, number, setting

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title, a one-sentence caption, and its legend."""

    key: str
    title: str
    caption: str
    drawing: str
    legend: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """The contents of a figure before it is drawn."""

    key: str
    title: str
    caption: str
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    y_range: tuple[float, float] | None = None

    @property
    def has_values(self) -> bool:
        """Whether there is a finite number to draw."""
        return any(is_number(y) for s in self.series for _, y in s.points)

    def draw(self, marked: tuple[float, str] | None) -> Figure:
        """The figure, with a labelled vertical line at ``marked`` (step, label)."""
        drawing = svg.line_chart(
            self.series, title=f"{self.title} by step", y_range=self.y_range, rules=self.rules, marked=marked
        )
        return Figure(self.key, self.title, self.caption, drawing, tuple(self.series))


def figures(metrics: Records, facts: Mapping[str, Any]) -> list[Figure]:
    """Every figure for which the run has numbers, the most useful first."""
    train = [m for m in metrics if m.get("kind") == "train" and is_number(m.get("step"))]
    held_out = [m for m in metrics if m.get("kind") == "eval" and is_number(m.get("step"))]
    rollouts = [as_train(m) for m in metrics if m.get("kind") == "rollout" and is_number(m.get("step"))]
    single = unit_of(facts) == "response"
    names = good, bad = ("desirable", "undesirable") if single else ("chosen", "rejected")
    responses = f"{good} and {bad} responses"
    if _is_sft(train, held_out):
        names, responses = ("data", "data"), "the data's responses"
    at_reference = _in(facts, "objective", "at_reference")
    unit = " (β × nats)" if referenced(facts) else ""
    clip = _in(facts, "config", "max_grad_norm")
    plots = [
        _single_plot("reward", "Reward", "Mean over the policy's own answers; larger is better.", rollouts, held_out),
        _single_plot(
            "loss",
            "Loss",
            "The quantity that is minimised; smaller is better."
            + (" Nats per token." if _is_sft(train, held_out) else ""),
            train,
            held_out,
            rules=[Rule(at_reference, f"policy = reference: {number(at_reference)}")]
            if is_number(at_reference)
            else [],
        ),
        _single_plot(
            "rewards/accuracies",
            "Reward accuracy",
            "Share of pairs ranked as people did; larger is better. Band: 95% interval.",
            train,
            held_out,
            rules=[Rule(0.5, "chance")],
            y_range=(0.0, 1.0),
        ),
        _single_plot(
            "rewards/margins",
            "Reward margin",
            f"Reward of the chosen minus that of the rejected{unit}; larger is better.",
            train,
            held_out,
            rules=[Rule(0.0, "")],
        ),
        _single_plot("perplexity", "Perplexity", "exp of the held-out loss; smaller is better.", train, held_out),
        _pair_plot("logps", "Log-probability", f"Of {responses}, nats per response.", train, held_out, names),
        _pair_plot("rewards", *_reward_words(facts, f"{good} and {bad}"), train, held_out, names),
        _single_plot("kl", kl_of(facts), "Nats per answer; larger is further away.", rollouts, held_out)
        if rollouts
        else _kl(held_out, kl_of(facts)),
        _from_zero(
            _single_plot("entropy", "Entropy", "Of complete answers, nats: how random the policy is.", rollouts, [])
        ),
        _single_plot(
            "value/explained_variance", "Value model", "Share of the returns' variance explained.", rollouts, []
        ),
        _from_zero(_single_plot("policy/clipfrac", "Clipped", "Share of ratios beyond the clip.", train, [])),
        _single_plot(
            "kl_estimate", "KL estimate of the loss", "KTO's z₀, from mismatched rows; nats.", train, held_out
        ),
        _lengths(train, held_out, names),
        _single_plot(
            "samples/eos_rate",
            "Ended with EOS",
            "Share of samples that stop before the token limit.",
            rollouts or train,
            held_out,
            y_range=(0.0, 1.0),
        ),
        _from_zero(
            _single_plot(
                "grad_norm",
                "Gradient norm",
                "Before clipping.",
                train,
                [],
                rules=[Rule(clip, f"clipped above {setting(clip)}")] if is_number(clip) else [],
            )
        ),
        _from_zero(_single_plot("lr", "Learning rate", "As scheduled.", train, [])),
    ]
    kept_step = facts.get("kept_step")
    marked = (kept_step, "weights kept") if is_number(kept_step) else None
    return [plot.draw(marked) for plot in plots if plot.has_values]


def _reward_words(facts: Mapping[str, Any], sides: str) -> tuple[str, str]:
    """Title and caption of the rewards, by what they are."""
    if referenced(facts):
        return "Implicit reward", f"β (log π − log π_ref), {sides}."
    if writes(facts):
        return "Reward", f"What the objective makes of log π alone, without a reference: {sides}."
    return "Reward", f"The reward model's score of {sides} responses."


_WRITTEN = {
    "objective/scores": "reward",
    "objective/kl_exact": "kl",
    "objective/entropy": "entropy",
    "rollout/length": "samples/length",
    "rollout/eos_rate": "samples/eos_rate",
}


def as_train(record: Mapping[str, Any]) -> dict[str, Any]:
    """A rollout's record with the names of the held-out figures that it is drawn with."""
    return {_WRITTEN.get(name, name): value for name, value in record.items()}


def smoothing_window(count: int) -> int:
    """Width of the running mean: an odd number near a fifteenth of the curve, 1 (none) for short ones."""
    return 1 if count < 10 else max(3, count // 15) | 1


def smooth(points: Sequence[svg.Point], window: int) -> list[svg.Point]:
    """Centred running mean over ``window`` points (fewer at the ends); gaps stay gaps."""
    half = window // 2
    out: list[svg.Point] = []
    for i, (x, y) in enumerate(points):
        window_values = [v for _, v in points[max(0, i - half) : i + half + 1] if is_number(v)]
        out.append((x, sum(window_values) / len(window_values) if is_number(y) and window_values else None))
    return out


def points_of(records: Records, name: str) -> list[svg.Point]:
    """(step, value) of a metric; a value that is not finite becomes a gap, a missing one is skipped."""
    return [(r["step"], r[name] if is_number(r[name]) else None) for r in records if name in r]


def _in(facts: Mapping[str, Any], *path: str) -> Any:
    value: Any = facts
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _is_sft(train: Records, held_out: Records) -> bool:
    return not any("rewards/chosen" in r for r in (*train, *held_out))


def _train_series(records: Records, name: str, colour: int, *, series_name: str = "", label: str = "") -> list[Series]:
    """The raw curve, faint, under its running mean; a learning-rate schedule or a short curve is drawn as it is."""
    points = points_of(records, name)
    if not points:
        return []
    window, prefix = smoothing_window(len(points)), f"{series_name}, " if series_name else ""
    if window == 1 or name == "lr":
        return [Series(series_name or "train", tuple(points), colour, "line", label=label)]
    mean = Series(f"{prefix}mean of {window}", tuple(smooth(points, window)), colour, "line", label=label)
    return [Series(f"{prefix}each step", tuple(points), colour, "faint"), mean]


def _held_out_series(
    records: Records, name: str, colour: int = HELD_OUT, series_name: str = "held out"
) -> list[Series]:
    points = points_of(records, name)
    if not points:
        return []
    bounds = [interval_of(r, name) for r in records if name in r]
    if all(b is None for b in bounds):
        return [Series(series_name, tuple(points), colour, "dots")]
    low, high = (tuple(b[k] if b else None for b in bounds) for k in (0, 1))
    return [Series(series_name, tuple(points), colour, "dots", low, high)]


def _single_plot(
    name: str,
    title: str,
    caption: str,
    train: Records,
    held_out: Records,
    *,
    rules: Sequence[Rule] = (),
    y_range: tuple[float, float] | None = None,
) -> Plot:
    """One quantity: training in grey, held out in green."""
    series = [*_train_series(train, name, TRAIN), *_held_out_series(held_out, name)]
    return Plot(name, title, caption, series, rules, y_range)


def _pair_plot(kind: str, title: str, caption: str, train: Records, held_out: Records, names: tuple[str, str]) -> Plot:
    """Chosen and rejected of one quantity: lines for training, dots for held-out data."""
    series: list[Series] = []
    for side, series_name, colour in (("chosen", names[0], CHOSEN), ("rejected", names[1], REJECTED)):
        mean = _train_series(train, f"{kind}/{side}", colour, series_name=series_name)[-1:]
        dots = _held_out_series(held_out, f"{kind}/{side}", colour, f"{series_name}, held out")
        pair = [*mean, *dots]
        series += [*pair[:-1], *(_labelled(s, series_name) for s in pair[-1:])]
    return Plot(kind, title, caption, series)


def _labelled(series: Series, label: str) -> Series:
    return replace(series, label=label)


def _kl(held_out: Records, title: str) -> Plot:
    caption = "Of the policy's own answers, nats per answer; larger is further away. Band: 95% interval over prompts."
    if any(is_number(share := r.get("kl_cut")) and share > 0 for r in held_out):
        caption += " For answers that were cut, only their first tokens count."
    return Plot("kl", title, caption, _held_out_series(held_out, "kl", series_name="samples"))


def _lengths(train: Records, held_out: Records, names: tuple[str, str]) -> Plot:
    sides = (("chosen", names[0], CHOSEN), ("rejected", names[1], REJECTED))
    series = [s for k, n, c in sides for s in _train_series(train, f"lengths/{k}", c, series_name=n, label=n)[-1:]]
    samples = [_labelled(s, "samples") for s in _held_out_series(held_out, "samples/length", OTHER, "samples")]
    caption = "Tokens, of the data's responses and of samples."
    return _from_zero(Plot("lengths", "Response length", caption, [*series, *samples]))


def _from_zero(plot: Plot) -> Plot:
    """The same plot with an axis that starts at 0, for quantities whose size matters and not only their change."""
    values = [y for s in plot.series for _, y in s.points if is_number(y)]
    top = max([robust_range([y for _, y in s.points] for s in plot.series)[1], *(r.y for r in plot.rules)])
    return replace(plot, y_range=(0.0, 1.08 * top)) if top > 0 and min(values, default=0.0) >= 0 else plot


def figure_of(name: str, metrics: Records) -> Figure:
    """The figure of any metric by name, training and held out together; the drawing is empty without numbers."""
    train, rollouts, held_out = (
        [m for m in metrics if m.get("kind") == kind and name in m] for kind in ("train", "rollout", "eval")
    )
    plot = _single_plot(name, name, "", train or rollouts, held_out)
    return plot.draw(None) if plot.has_values else Figure(name, name, "", "", ())
