"""Render a plan as text lines and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from afzal.plan.job import tokens_at_once, tokens_per_update, trained_parameters
from afzal.plan.memory import USABLE
from afzal.plan.planner import Plan
from afzal.plan.shapes import parameters

_OF_AN_UPDATE = ("compute", "shards", "tensor", "replicas", "optimiser")
_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def lines(plan: Plan) -> list[str]:
    """The plan as text lines: job, layout, memory, one update, the whole run, assumptions."""
    iteration = [_iteration(plan)] if plan.job.method.online else []
    blocks = [_job(plan), _layout(plan), _memory(plan), _update(plan), *iteration, _run(plan)]
    blocks.append(["assumed", *assumptions(plan)])
    return [line for block in blocks for line in (*block, "")][:-1]


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as JSON data, in bytes, seconds, floating-point operations and tokens."""
    job, layout = plan.job, plan.layout
    return {
        "model": asdict(job.shape) | {"parameters": parameters(job.shape)},
        "method": job.method.name,
        "trained_parameters": trained_parameters(job),
        "reference": job.reference,
        "reward_model": None if job.reward is None else job.reward.name,
        "value": job.value if job.method.value else None,
        "lora_rank": job.rank or None,
        "frozen_weights": job.frozen,
        "dtype": job.dtype,
        "data": asdict(job.lengths) | {"batch_size": job.batch_size, "epochs": job.epochs},
        "hardware": asdict(plan.device),
        "layout": asdict(layout) | {"devices": layout.devices, "chosen": list(plan.chosen)},
        "memory": {
            "moment": plan.memory.name,
            "terms": plan.memory.terms,
            "total": plan.memory.total,
            "usable": USABLE * plan.device.memory,
            "loading": plan.loading.total,
            "fits": plan.fits,
        },
        "tokens_at_once": tokens_at_once(job, layout),
        "largest_tokens_per_forward": plan.largest,
        "flops_per_update": {"executed": plan.executed, "useful": plan.useful},
        "traffic_per_update": asdict(plan.traffic),
        "seconds_per_update": {key: getattr(plan.times, key) for key in _OF_AN_UPDATE}
        | {"total": plan.times.update, "hidden": plan.times.hidden},
        "iteration": iteration_data(plan) if job.method.online else None,
        "seconds_before": plan.times.before,
        "updates": plan.updates,
        "hours": plan.hours,
        "device_hours": plan.hours * layout.devices,
        "cost": plan.cost,
        "assumed": assumptions(plan),
    }


def iteration_data(plan: Plan) -> dict[str, Any]:
    """One iteration of a method that learns from rewards: counts, seconds, and each part's share of the seconds."""
    job, t = plan.job, plan.times
    parts = {"sampling": t.sampling, "scoring": t.scoring, "updates": t.updates * t.update}
    prompts = min(job.batch_size, job.lengths.items)
    return {
        "prompts": prompts,
        "answers": prompts * job.lengths.branches,
        "updates": t.updates,
        "seconds": parts | {"total": t.iteration},
        "shares": {name: seconds / t.iteration for name, seconds in parts.items()},
    }


def assumptions(plan: Plan) -> list[str]:
    """The assumptions behind the figures, one sentence each."""
    job, device = plan.job, plan.device
    peak = device.bf16 if job.dtype == "bf16" else device.fp32
    notes = [
        f"arithmetic at {plan.assumed.mfu:.0%} of a peak of {_scaled(peak)}FLOP/s; nothing here was timed",
        f"{USABLE:.0%} of {device.memory / 1e9:g} GB can be filled; {device.reserve / 1e9:g} GB belong to the runtime",
        "no evaluation, no checkpoints written, no padding, work spread evenly",
    ]
    if plan.layout.devices > 1:
        notes.append(
            f"links at {plan.assumed.link:.0%} of {device.intra / 1e9:g} GB/s inside a node "
            f"and {device.inter / 1e9:g} GB/s per device between nodes"
        )
        notes.append("several devices share the work as in PyTorch's FSDP2, which afzal train uses under torchrun")
        notes.append("loading: every device reads its own shard")
    if job.reference == "cached":
        notes.append("the reference's log-probs are computed once, before the first update")
    if job.shape.family not in ("llama", "mistral", "qwen2"):
        notes.append(f"activations of {job.shape.family} are less exact than those of llama")
    if job.method.online:
        notes.append("every answer has the stated length; a token reads all weights once, or computes for all rows")
        if job.reward is None:
            notes.append("rewards take neither memory nor time: a function or a server gives them")
        if plan.layout.shards > 1:
            notes.append("during sampling and scoring every device holds policy, reference and value model unsharded")
    if plan.layout.recompute == "selective":
        notes.append("selective checkpointing recomputes no matrix products, and its time is not counted")
    if job.shape.media:
        counted_parts = "only the tokens" if not job.shape.towers else "only weights and tokens, not the arithmetic,"
        notes.append(f"of the encoders of images and sounds {counted_parts} are counted; they stay frozen")
    if job.frozen != "dtype":
        notes.append(f"frozen matrices are stored as {job.frozen}; computation is in {job.dtype}")
    return notes


def largest_first(plan: Plan) -> list[tuple[str, float]]:
    """The memory terms and their bytes, the largest first."""
    return sorted(plan.memory.terms.items(), key=lambda term: -term[1])


def _job(plan: Plan) -> list[str]:
    job = plan.job
    trained = trained_parameters(job)
    training = f"{trained:,} train" if job.rank or job.method.value else "all train"
    if job.rank:
        training += f" (LoRA rank {job.rank})"
    reference = {"none": "no reference", "cached": "reference cached", "live": "reference live"}[job.reference]
    mean, prompts = job.lengths.tokens / job.lengths.items, min(job.batch_size, job.lengths.items)
    batch = f"{prompts} per iteration" if job.method.online else f"{prompts} per update"
    towers = f" and {job.shape.towers:,} of towers" if job.shape.towers else ""
    return [
        f"{job.shape.name}: {parameters(job.shape) + job.shape.projection:,} weights{towers}, {training}",
        f"{job.method.name}, {job.dtype}, {reference}, prompts {'shared' if job.shared else 'unshared'}",
        f"{job.lengths.items:,} items of {mean:,.0f} tokens ({job.lengths.scored / job.lengths.items:,.0f} scored, "
        f"at most {job.lengths.longest:,}), {batch}",
    ]


def _layout(plan: Plan) -> list[str]:
    layout = plan.layout
    machines = f"{layout.nodes} x {layout.gpus} {plan.device.name}"
    parts = f"shards {layout.shards}, tensor {layout.tensor}, checkpointing {layout.recompute}"
    names = {"recompute": "checkpointing"}
    chosen = ", ".join(names.get(name, name) for name in plan.chosen)
    at_once = f"{tokens_at_once(plan.job, layout):,.0f} tokens per forward pass"
    return [f"layout: {machines}, {parts}, {at_once}", *([f"chosen here: {chosen}"] if chosen else [])]


def _memory(plan: Plan) -> list[str]:
    moment = plan.memory
    rows = [_row(name, f"{size / 1e9:.2f} GB") for name, size in largest_first(plan) if size >= 5e6]
    verdict = f"of {USABLE * plan.device.memory / 1e9:.1f} GB: {'fits' if plan.fits else 'DOES NOT FIT'}"
    largest = f"{plan.largest:,} tokens" if plan.largest else "none"
    moment_name = moment.name if moment.name in ("generation", "scoring") else f"{moment.name} of the backward pass"
    return [
        f"memory per device at its fullest ({moment_name})",
        *rows,
        _row("total", f"{moment.total / 1e9:.2f} GB", verdict),
        _row("largest pass", largest, "the largest forward pass that fits"),
        _row("loading", f"{plan.loading.total / 1e9:.2f} GB", "before the first update"),
    ]


def _update(plan: Plan) -> list[str]:
    t, bytes_moved = plan.times, plan.traffic
    rows = [_row("arithmetic", _seconds(t.compute), f"{_scaled(plan.executed)}FLOP, {_scaled(plan.useful)} useful")]
    if plan.layout.shards > 1:
        overlap = "overlaps the arithmetic" if t.hidden else "longer than the arithmetic it overlaps"
        traffic = f"{_scaled(bytes_moved.gather)}B gathered, {_scaled(bytes_moved.scatter)}B scattered"
        rows.append(_row("shards", _seconds(t.shards), f"{traffic} per device, {overlap}"))
    if plan.layout.tensor > 1:
        rows.append(_row("tensor sums", _seconds(t.tensor), f"{_scaled(bytes_moved.tensor)}B per device"))
    if bytes_moved.replicas:
        rows.append(_row("replica sums", _seconds(t.replicas), f"{_scaled(bytes_moved.replicas)}B per device"))
    rows.append(_row("optimiser", _seconds(t.optimiser), "its state read and written once"))
    rate = tokens_per_update(plan.job) / t.update
    return ["one update", *rows, _row("total", _seconds(t.update), f"{rate:,.0f} tokens per second")]


def _iteration(plan: Plan) -> list[str]:
    data = iteration_data(plan)
    remarks = {
        "sampling": f"{data['answers']:,} answers to {data['prompts']:,} prompts",
        "scoring": "their log-probs under policy and reference"
        + (", rewards" if plan.job.reward is not None else "")
        + (", values" if plan.job.method.value else ""),
        "updates": f"{data['updates']} of them",
    }
    rows = [
        _row(name, _seconds(data["seconds"][name]), f"{data['shares'][name]:.0%}: {words}")
        for name, words in remarks.items()
    ]
    return ["one iteration", *rows, _row("total", _seconds(plan.times.iteration))]


def _run(plan: Plan) -> list[str]:
    device_hours = plan.hours * plan.layout.devices
    cost = [] if plan.cost is None else [_row("cost", f"{plan.cost:,.2f}")]
    reference = [_row("reference", _seconds(plan.times.before), "once")] if plan.times.before else []
    return [
        "whole run",
        *reference,
        _row("updates", f"{plan.updates:,}"),
        _row("time", _duration(plan.hours), f"{device_hours:,.2f} device hours"),
        *cost,
    ]


def _row(name: str, value: str, note: str = "") -> str:
    return f"  {name:<15} {value:>14}  {note}".rstrip()


def _scaled(value: float) -> str:
    size, prefix = next(((s, p) for s, p in _UNITS if value >= s), (1.0, ""))
    return f"{value / size:.3g} {prefix}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
