"""Table of all methods. Loads no model library, so figures can be read anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.dpo_step.table import heading

TITLES = {"sft": "SFT", "reward": "reward model", "kto": "KTO", "orpo": "ORPO", "simpo": "SimPO"}
TITLES |= {"rloo": "RLOO", "grpo": "GRPO", "online-dpo": "online DPO", "ppo": "PPO"}
PEERS = {"trl": "TRL", "trl-best": "TRL at its best", "plain": "a plain loop"}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference between first losses: rounding from another order of sums, and that of bf16."""


def markdown(content: Mapping[str, Any]) -> str:
    """Table of every method of a run: medians over its updates, and ratios update by update."""
    about = content["about"]
    peers = [side for side in about["sides"] if side in PEERS]
    columns = ["method", "timed updates", "Afzal, CPU s / wall-clock s"]
    columns += [f"speedup over {PEERS[side]}, CPU / wall-clock" for side in peers]
    names = ", ".join(["Afzal", *(PEERS[side] for side in peers)])
    columns += [f"peak memory: {names}", f"first loss: {names}"]
    lines = [heading(about), note(about), "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [row(method, figures, about["sides"]) for method, figures in content["methods"].items()]
    absent = [
        f"{TITLES[method]}, {side}: {why}"
        for method, figures in content["methods"].items()
        for side, why in figures["left_out"].items()
    ]
    other = [
        f"{TITLES[method]}: losses are not compared: {figures['differs']}."
        for method, figures in content["methods"].items()
        if figures["differs"]
    ]
    other += [
        f"{TITLES[method]}: {figures['remark']}"
        for method, figures in content["methods"].items()
        if figures.get("remark")
    ]
    wrong = [
        f"**{TITLES[method]}: {figures['disagreement']}**"
        for method, figures in content["methods"].items()
        if figures["disagreement"]
    ]
    return "\n".join([*lines, *(f"\n{line}" for line in [*other, *(f"Left out: {a}" for a in absent), *wrong])])


def note(about: Mapping[str, Any]) -> str:
    """A sentence that explains what an update is."""
    return (
        f"{about['items']} items per update with HH-RLHF lengths ({about['lengths']}); items are pairs, "
        f"demonstrations, labelled responses, or sampled answers of {about['tokens']} tokens, {about['answers']} per "
        "prompt. If all sides have the same loss, first losses agree within a relative error of "
        f"{about['tolerance']:g}."
    )


def row(method: str, figures: Mapping[str, Any], sides: Sequence[str]) -> str:
    """The row of one method; cells are empty for a side that was left out or lacks the method."""
    ours = figures.get("afzal")
    taken = f"{median(ours['processor']):.2f} / {median(ours['clock']):.2f}" if ours else ""
    taking = [figures.get(side) for side in ("afzal", *(side for side in sides if side in PEERS))]
    cells = [
        TITLES[method],
        str(len(ours["clock"])) if ours else "",
        taken,
        *(ratios(ours, peer) for peer in taking[1:]),
        ", ".join(f"{side['peak_bytes'] / 1e9:.2f}" if side else "-" for side in taking) + " GB",
        "not compared" if figures["differs"] else ", ".join(f"{s['first_loss']:.5g}" if s else "-" for s in taking),
    ]
    return f"| {' | '.join(cells)} |"


def ratios(own: Mapping[str, Any] | None, peer: Mapping[str, Any] | None) -> str:
    """A peer's processor and wall seconds relative to Afzal's: medians over the same updates."""
    if not own or not peer:
        return ""
    medians = (
        median(theirs / ours for ours, theirs in zip(own[kind], peer[kind], strict=False))
        for kind in ("processor", "clock")
    )
    return " / ".join(f"{ratio:.1f}x" for ratio in medians)


def disagreement(figures: Mapping[str, Any], tolerance: float) -> str:
    """How the sides' first losses disagree; "" if they agree, or are not the same loss."""
    losses = {side: figures[side]["first_loss"] for side in ("afzal", *PEERS) if side in figures}
    if figures["differs"] or len(losses) < 2:
        return ""
    low, high = min(losses.values()), max(losses.values())
    if high - low <= tolerance * abs(low):
        return ""
    return f"the sides do not compute the same loss: {losses}"
