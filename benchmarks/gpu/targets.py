"""Compare the measured figures with the targets, and with `afzal plan` for the same updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from afzal import plan
from benchmarks.dpo_step import shapes
from benchmarks.machine import card
from benchmarks.table import Figures

FASTER = {
    "trl": {"uf": 2.0, "hh": 2.5, "tldr": 3.5},
    "trl-best": {"uf": 1.25, "hh": 1.5, "tldr": 1.8},
}
"""Targets for the speed relative to TRL by default and at its best, by shape."""
MEMORY = 0.5
"""Target for the share of the same peer's peak memory: at most this."""
MFU = 0.4
"""Target for the share of the card's stated bf16 peak on 8 billion weights, counting the least work: at least this."""
_ASSUMED_MFU = 0.3  # the default of `afzal plan`


class Target(NamedTuple):
    """One figure and its target; ``met`` is None if it was not measured."""

    what: str
    wanted: str
    found: str
    met: bool | None


def section(figures: Sequence[Figures]) -> str:
    """Markdown tables of the targets, and of plan and measurement, for the page of figures."""
    steps = [f for f in figures if f.name.startswith("dpo-step")]
    lines = ["## Targets", "", "| what | wanted | found | met |", "|---|---|---|---|"]
    lines += [f"| {t.what} | {t.wanted} | {t.found} | {_yes_no(t.met)} |" for f in steps for t in targets(f)]
    rows = [row for f in steps for row in planned(f)]
    if rows:
        lines += ["", "## Plan and measurement", "", *_PLAN_HEAD, *rows]
    return "\n".join([*lines, ""])


_PLAN_HEAD = [
    f"Allocated by PyTorch at the peak, and seconds per update; the plan assumes a share of the matrix peak of "
    f"{_ASSUMED_MFU:.0%}, and its memory is without what the runtime takes before any tensor.",
    "",
    "| run | side and shape | memory | planned | difference | seconds | planned | recomputing |",
    "|---|---|---|---|---|---|---|---|",
]


def targets(figures: Figures) -> Iterator[Target]:
    """Every target that a run of the training step has figures for."""
    about, name = figures.content["about"], figures.name
    for result in figures.content["shapes"]:
        for peer, wanted in FASTER.items():
            yield from _against(name, result, peer, wanted.get(result["shape"]))
        billions = about["parameters"] / 1e9
        if about.get("stated_peak") and billions > 7:
            for side in (s for s in ("afzal", "afzal-cached") if s in result):
                share = result[side]["flops_per_second"] / about["stated_peak"]
                what = f"{name}, {side} on {result['shape']}: MFU of {about['stated_peak'] / 1e12:.0f} TFLOP/s"
                yield Target(what, f">= {MFU:.0%}", f"{share:.1%}", share >= MFU)


def _against(name: str, result: Mapping[str, Any], peer: str, wanted: float | None) -> Iterator[Target]:
    ours = "afzal" if peer == "trl" else "afzal-cached"
    if peer not in result and peer not in result.get("left_out", {}):
        return  # it was not requested
    if wanted is not None:
        what = f"{name} on {result['shape']}: {ours} against {peer}, updates per second"
        ratio = result.get(peer, {}).get("ratio")
        if ratio is None:
            yield Target(what, f">= {wanted:g}x", result.get("left_out", {}).get(peer, "Afzal was not measured"), None)
        else:
            spread = f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
            yield Target(what, f">= {wanted:g}x", spread, ratio["median"] >= wanted)
    sizes = [result.get(side, {}).get("peak_bytes") for side in (ours, peer)]
    if all(sizes):
        share = sizes[0] / sizes[1]
        what = f"{name} on {result['shape']}: {ours} against {peer}, peak memory"
        yield Target(what, f"<= {MEMORY:.0%}", f"{share:.0%} ({_gb(sizes[0])} of {_gb(sizes[1])})", share <= MEMORY)


def planned(figures: Figures) -> Iterator[str]:
    """A row of plan and measurement for every side of Afzal, if the plan knows the model and the card."""
    about = figures.content["about"]
    device = card(about["device"])
    if device is None or about.get("model") not in plan.SHAPES:
        return
    for result in figures.content["shapes"]:
        for side in (s for s in ("afzal", "afzal-cached") if "peak_bytes" in result.get(s, {})):
            seconds = float(np.mean(result[side]["seconds"]))
            again = any("recomput" in note for note in result[side].get("notes", ()))
            job, layout = job_of(about, result, side), plan.Layout(recompute="full" if again else "none")
            memory = plan.peak(job, layout, device).total - device.reserve
            least = plan.times(job, layout, device, plan.Assumptions(mfu=_ASSUMED_MFU)).update
            measured = result[side]["peak_bytes"]
            yield (
                f"| {figures.name} | {side} on {result['shape']} | {_gb(measured)} | {_gb(memory)} "
                f"| {memory / measured - 1:+.1%} | {seconds:.3f} | {least:.3f} | {_yes_no(again)} |"
            )


def job_of(about: Mapping[str, Any], result: Mapping[str, Any], side: str) -> plan.Job:
    """The measured updates as a job for `afzal plan`."""
    counts = np.array(result["counts"]).reshape(-1, 3)
    return plan.Job(
        plan.SHAPES[about["model"]],
        plan.METHODS["dpo"],
        plan.lengths(counts),
        batch_size=result["pairs"],
        reference="cached" if side == "afzal-cached" else "live",
        rank=about.get("rank", 0),
        dtype=about["dtype"],
        state_bytes=4 if about.get("optimizer") == "rmsprop" else 8,
    )


def what_fits(device: plan.Device) -> list[str]:
    """Memory of full fine-tuning on this card for three model sizes, by reference and optimizer state."""
    counts = np.tile([[shapes.SHAPES["uf"].prompt, *[shapes.SHAPES["uf"].response] * 2]], (16, 1))
    lines = [
        f"Full fine-tuning with DPO on one {device.name} by the plan, blocks recomputed, 8,192 tokens at once:",
        "",
    ]
    lines += ["| model | AdamW, live reference | AdamW, cached | RMSprop, cached |", "|---|---|---|---|"]
    for name in ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b"):
        cells = []
        for reference, state in (("live", 8), ("cached", 8), ("cached", 4)):
            memory_options = {"reference": reference, "state_bytes": state}
            job = plan.Job(
                plan.SHAPES[name], plan.METHODS["dpo"], plan.lengths(counts), batch_size=16, **memory_options
            )
            layout = plan.Layout(recompute="full")
            total = plan.peak(job, layout, device).total
            cells.append(f"{_gb(total)}, {'fits' if plan.fits(job, layout, device) else 'does not fit'}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _yes_no(met: bool | None) -> str:
    return "?" if met is None else "yes" if met else "no"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
