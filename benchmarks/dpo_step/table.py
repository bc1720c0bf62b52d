"""Sides and table of the DPO benchmark. Loads no model library, so figures can be read anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIDES = ("afzal", "trl", "plain", "afzal-cached", "trl-best")
OPPONENT = {"trl": "afzal", "plain": "afzal", "trl-best": "afzal-cached", "trl-bf16": "afzal"}
"""Each peer, and Afzal's side that does the same work: trl-best and afzal-cached group lengths and cache references.
trl-bf16 holds all weights in bf16, which is less work and gives another result; it runs only on request."""


def heading(about: Mapping[str, Any]) -> str:
    """Date, machine and versions of a measurement in one line, and the command below it."""
    versions = [f"{name} {number}" for name, number in about["versions"].items()]
    more = [about["dtype"]] if "dtype" in about else []
    more += [about["model"]] if about.get("model") else []
    more += [f"{about['parameters'] / 1e6:.0f} M parameters"] if "parameters" in about else []
    more += [f"LoRA of rank {about['rank']}"] if about.get("rank") else []
    more += [f"Afzal with {about['optimizer']}"] if about.get("optimizer", "adamw") != "adamw" else []
    facts = [about["date"], about["device"], threads(about), f"load {about['load']:.2f}"]
    facts += [*versions, *more]
    return f"{', '.join(facts)}\n\n    {about['command']}\n"


def threads(about: Mapping[str, Any]) -> str:
    """The number of threads, in words."""
    return f"{about['threads']} thread{'' if about['threads'] == 1 else 's'}"


def markdown(about: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Table of all figures of one benchmark run."""
    stated = about.get("stated_peak")
    columns = ["shape (prompt, responses)", "side", "pairs/s", "tokens/s", "Afzal's speedup", "share of matmul peak"]
    columns += [f"MFU of {stated / 1e12:.0f} TFLOP/s"] if stated else []
    columns += ["executed / minimum", "peak memory"]
    lines = [heading(about), f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for r in results:
        for side in [s for s in (*SIDES, "trl-bf16") if s in r]:
            f = r[side]
            mfu = [f"{f['flops_per_second'] / stated:.0%}"] if stated else []
            cells = [
                f"{r['shape']} {tuple(round(x) for x in r['mean'])}",
                side,
                f"{f['pairs_per_second']:.3f}",
                f"{f['tokens_per_second']:.0f}",
                ratio(f),
                of_peak(f),
                *mfu,
                shown(f["executed_over_minimum"], ".3f"),
                shown(f.get("peak_bytes"), "GB"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    absent = dict(about.get("left_out", {}))
    left_out = [f"{side}: {reason}" for side, reason in absent.items()]
    left_out += [f"{side} on {r['shape']}: {why}" for r in results for side, why in r.get("left_out", {}).items()]
    wrong = [f"\n**{r['disagreement']}**" for r in results if r.get("disagreement")]
    return "\n".join(lines + [f"\nLeft out: {line}" for line in left_out] + wrong)


def of_peak(figures: Mapping[str, Any]) -> str:
    """Share of the run's fastest matrix product; and, if measured, of the mean product around each update."""
    mean = figures.get("of_mean")
    return f"{figures['roofline']:.0%}" + (f" ({mean:.0%} of the mean)" if mean else "")


def ratio(figures: Mapping[str, Any], *, spread: bool = True) -> str:
    """Speed of Afzal relative to this side by the clock and, if measured, in processor time: the median, and the lowest
    and highest over the updates."""
    by_clock, by_processor = (_ratio(figures.get(name), spread) for name in ("ratio", "processor_ratio"))
    return f"{by_clock}; processor time {by_processor}" if by_processor else by_clock


def _ratio(ratios: Mapping[str, float] | None, spread: bool) -> str:
    if not ratios:
        return ""
    return f"{ratios['median']:.1f}x" + (f" ({ratios['low']:.1f} to {ratios['high']:.1f})" if spread else "")


def shown(value: float | None, how: str) -> str:
    """A formatted figure, or "" if it was not measured; ``how`` is a format specification, or GB."""
    if value is None:
        return ""
    return f"{value / 1e9:.2f} GB" if how == "GB" else f"{value:{how}}"
