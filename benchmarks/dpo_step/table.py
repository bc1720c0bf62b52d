"""The sides of the bench, and its table. Loads no model library, so that figures can be read anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIDES = ("afzal", "trl", "plain", "afzal-cached", "trl-best")
OPPONENT = {"trl": "afzal", "plain": "afzal", "trl-best": "afzal-cached", "trl-bf16": "afzal"}
"""Each peer, and the side that does the same work: trl-best has grouped lengths and cached references, like its own.
trl-bf16 holds all weights in bf16, which is less work and another result; it runs where it is asked for."""


def heading(about: Mapping[str, Any]) -> str:
    """Where and with what figures were taken: one line, and the command below it."""
    versions = [f"{name} {number}" for name, number in about["versions"].items()]
    more = [about["dtype"]] if "dtype" in about else []
    more += [about["model"]] if about.get("model") else []
    more += [f"{about['parameters'] / 1e6:.0f} M parameters"] if "parameters" in about else []
    more += [f"LoRA of rank {about['rank']}"] if about.get("rank") else []
    more += [f"Afzal with {about['optimizer']}"] if about.get("optimizer", "adamw") != "adamw" else []
    facts = [about["date"], about["device"], f"{about['threads']} threads", f"load {about['load']:.2f}"]
    facts += [*versions, *more]
    return f"{', '.join(facts)}\n\n    {about['command']}\n"


def markdown(about: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Every figure of a run of the bench."""
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
    """The share of the best product of the run; and, where it was taken, of the products around each update."""
    mean = figures.get("of_mean")
    return f"{figures['roofline']:.0%}" + (f" ({mean:.0%} of the mean)" if mean else "")


def ratio(figures: Mapping[str, Any], *, spread: bool = True) -> str:
    """How many times faster Afzal is than this side: the median, and the lowest and highest of the updates."""
    found = figures.get("ratio")
    if not found:
        return ""
    return f"{found['median']:.1f}x" + (f" ({found['low']:.1f} to {found['high']:.1f})" if spread else "")


def shown(value: float | None, how: str) -> str:
    """A figure, or nothing where it was not taken; ``how`` is a format, or GB."""
    if value is None:
        return ""
    return f"{value / 1e9:.2f} GB" if how == "GB" else f"{value:{how}}"
